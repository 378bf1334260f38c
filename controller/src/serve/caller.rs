//! Who calls: the bearer token of a request, checked. Used by every service.

use std::sync::Arc;

use karst_ca::{Authenticator, Caller, Rules, authenticate::AuthError, authorize::Account};
use karst_telemetry::error_chain::Chain;
use tonic::{Status, metadata::MetadataMap};

/// Checks callers. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    pub authenticator: Arc<dyn Authenticator>,
    pub rules: Arc<Rules>,
}

impl Gate {
    /// The caller of a request, whoever it is.
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let bearer = bearer(metadata).unwrap_or_default();
        self.authenticator
            .authenticate(bearer)
            .await
            .map_err(|error| {
                tracing::warn!(reason = %Chain(&error), "caller refused");
                match error {
                    AuthError::Unavailable(_) => {
                        Status::unavailable("tokens cannot be checked now")
                    }
                    _ => Status::unauthenticated("not authenticated"),
                }
            })
    }

    /// The caller of a request that only node agents may make.
    pub async fn agent(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.caller(metadata).await?;
        let account = Account {
            namespace: caller.namespace.clone(),
            service_account: caller.service_account.clone(),
        };
        if self.rules.agents.contains(&account) {
            return Ok(caller);
        }
        tracing::warn!(%caller, "caller is not a node agent: refused");
        Err(Status::permission_denied("only node agents may call this"))
    }
}

/// The token of `authorization: Bearer <token>`.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let (scheme, token) = metadata
        .get("authorization")?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
