//! How a node gets its credential: once by join token, then again and again by the one it has.

use std::{sync::Arc, time::SystemTime};

use karst_ca::{Authority, Tokens, token::NODE_TTL};
use karst_identity::clock::Clock;
use karst_proto::karst::{
    JoinRequest, NodeCredential, RenewRequest, enrollment_server::Enrollment,
};
use karst_telemetry::error_chain::Chain;
use tonic::{Request, Response, Status};

use super::{caller::Gate, metrics::ServeMetrics};

/// Longest join token that is looked at.
const JOIN_TOKEN_MAX: usize = 4096;

/// The service.
pub struct Enroll {
    pub gate: Gate,
    pub tokens: Arc<Tokens>,
    pub authority: Arc<Authority>,
    pub cluster_id: Arc<str>,
    pub clock: Clock,
    pub metrics: ServeMetrics,
}

#[tonic::async_trait]
impl Enrollment for Enroll {
    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<NodeCredential>, Status> {
        let JoinRequest { join_token, node } = request.into_inner();
        if join_token.len() > JOIN_TOKEN_MAX {
            return Err(Status::invalid_argument("join token is too long"));
        }
        let now = self.clock.now();
        let (tokens, asked) = (self.tokens.clone(), node.clone());
        // The use of a token is written to disk before it counts.
        let redeemed =
            tokio::task::spawn_blocking(move || tokens.redeem_join(&join_token, &asked, now));
        let redeemed = redeemed
            .await
            .map_err(|_panic| Status::internal("joining failed: see the controller's log"))?;
        let token = redeemed.map_err(|error| {
            self.metrics.joins_refused.inc();
            tracing::warn!(node, reason = %Chain(&error), "node may not join");
            Status::permission_denied(error.public())
        })?;
        self.metrics.joins.inc();
        tracing::info!(node, "node joined");
        Ok(Response::new(self.credential(token, now)))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<NodeCredential>, Status> {
        let (_, caller) = self.gate.proxy(request.metadata()).await?;
        let now = self.clock.now();
        let token = self.tokens.renew_node(&caller, now).map_err(|error| {
            tracing::warn!(reason = %Chain(&error), "node token not renewed");
            Status::permission_denied("this token is not renewed here: join the node again")
        })?;
        Ok(Response::new(self.credential(token, now)))
    }
}

impl Enroll {
    fn credential(&self, node_token: String, now: SystemTime) -> NodeCredential {
        let expires = (now + NODE_TTL)
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        NodeCredential {
            node_token,
            expires_at: expires.as_secs().cast_signed(),
            root_bundle: self.authority.root_pem(),
            trust_domain: self.authority.trust_domain().to_string(),
            cluster_id: self.cluster_id.to_string(),
        }
    }
}
