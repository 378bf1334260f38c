//! Who calls: the bearer token of a request, checked. Used by every service.

use std::sync::Arc;

use karst_ca::{Authenticator, Caller, Rules, authenticate::AuthError, authorize::Account};
use karst_model::name::GatewayKey;
use karst_telemetry::error_chain::Chain;
use tonic::{Status, metadata::MetadataMap};

use super::peer::Peer;

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
        if self.rules.agents.contains(&account(&caller)) {
            return Ok(caller);
        }
        tracing::warn!(%caller, "caller is not a node agent: refused");
        Err(Status::permission_denied("only node agents may call this"))
    }

    /// The caller of a request that node agents and waypoints may make, and which of them it is. A waypoint's Gateway has
    /// the name of its service account.
    pub async fn proxy(&self, metadata: &MetadataMap) -> Result<(Peer, Caller), Status> {
        let caller = self.caller(metadata).await?;
        let account = account(&caller);
        if self.rules.agents.contains(&account) {
            return Ok((Peer::Agent(caller.node.as_str().into()), caller));
        }
        if self.rules.own.contains(&account) {
            return Ok((waypoint(&caller), caller));
        }
        tracing::warn!(%caller, "caller is neither a node agent nor a waypoint: refused");
        Err(Status::permission_denied(
            "only node agents and waypoints may call this",
        ))
    }
}

fn account(caller: &Caller) -> Account {
    Account {
        namespace: caller.namespace.clone(),
        service_account: caller.service_account.clone(),
    }
}

fn waypoint(caller: &Caller) -> Peer {
    Peer::Waypoint {
        gateway: GatewayKey {
            namespace: caller.namespace.as_str().into(),
            name: caller.service_account.as_str().into(),
        },
        replica: caller.pod_uid.as_deref().unwrap_or(&caller.node).into(),
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
