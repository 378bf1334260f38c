//! The certificate service, with Istio's name and messages.

use std::{sync::Arc, time::Duration};

use karst_ca::{Authority, AuthorityError, Caller, NodeView, Refusal, authorize};
use karst_identity::clock::Clock;
use karst_model::identity::SpiffeId;
use karst_proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use karst_telemetry::error_chain::Chain;
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use super::{caller::Gate, metrics::ServeMetrics};

/// Key of the request's metadata under which an agent names the identity that it asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The service.
pub struct Certificates {
    pub gate: Gate,
    pub authority: Arc<Authority>,
    pub pods: Arc<dyn NodeView + Send + Sync>,
    pub clock: Clock,
    pub metrics: ServeMetrics,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.gate.caller(request.metadata()).await?;
        let request = request.into_inner();
        let id = self.authorized(&caller, &request).map_err(|refusal| {
            self.metrics.certificates_refused.inc();
            tracing::warn!(reason = %Chain(&refusal), "certificate refused");
            Status::unauthenticated(refusal.public())
        })?;
        let signed = self.sign(&id, request).await?;
        self.metrics.certificates.inc();
        tracing::info!(%caller, %id, "certificate issued");
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: signed,
        }))
    }
}

impl Certificates {
    fn authorized(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<SpiffeId, Refusal> {
        let rules = &self.gate.rules;
        let id = authorize::wanted(rules, caller, impersonated(request))?;
        authorize::may_issue(rules, caller, &id, &*self.pods)?;
        Ok(id)
    }

    /// Signing takes tens of microseconds of CPU: not on a thread that serves streams.
    async fn sign(
        &self,
        id: &SpiffeId,
        request: IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let (authority, id, now) = (self.authority.clone(), id.clone(), self.clock.now());
        let ttl = Duration::from_secs(request.validity_duration.max(0).unsigned_abs());
        let signed = tokio::task::spawn_blocking(move || {
            authority.sign_workload(&request.csr, &id, ttl, now)
        });
        let signed = signed
            .await
            .map_err(|_panic| Status::internal("signing failed: see the controller's log"))?;
        signed
            .map(|certificate| certificate.chain_pem)
            .map_err(|error| {
                tracing::warn!(reason = %Chain(&error), "certificate not signed");
                match error {
                    AuthorityError::Csr(csr) => Status::invalid_argument(csr.to_string()),
                    _ => Status::internal("signing failed: see the controller's log"),
                }
            })
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    match &request.metadata.as_ref()?.fields.get(IMPERSONATED)?.kind {
        Some(Kind::StringValue(id)) => Some(id),
        // Present and unreadable is not the same as absent: it must not become the caller's own identity.
        _ => Some(""),
    }
}
