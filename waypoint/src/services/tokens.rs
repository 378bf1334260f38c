//! Which tokens are believed for which service. Services for which the same objects apply share what is compiled, and so
//! the tokens that were verified; only a change of these objects makes it anew.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use karst_discovery::State;
use karst_model::{
    name::{PolicyKey, ServiceKey},
    token::RequestAuthentication,
};
use karst_policy::{
    request::{GatewayRef, is_target},
    token::TokenRules,
};

/// Every RequestAuthentication, as it is now.
#[derive(Default)]
pub(super) struct Tokens {
    all: Vec<Arc<RequestAuthentication>>,
    compiled: Mutex<HashMap<Vec<PolicyKey>, Arc<TokenRules>>>,
}

impl Tokens {
    pub(super) fn new(state: &State) -> Self {
        Self {
            all: state.request_authentications(),
            compiled: Mutex::default(),
        }
    }

    /// The rules for requests to a service.
    pub(super) fn of(
        &self,
        service: Option<&ServiceKey>,
        gateway: GatewayRef<'_>,
    ) -> Arc<TokenRules> {
        let applies = |one: &&Arc<RequestAuthentication>| is_target(&one.targets, service, gateway);
        let applying: Vec<_> = self.all.iter().filter(applies).collect();
        let keys = applying.iter().map(|one| one.key.clone()).collect();
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled
            .entry(keys)
            .or_insert_with(|| Arc::new(TokenRules::new(applying)))
            .clone()
    }
}
