//! Asks the controller's CA for certificates: Istio's own service and messages.

use std::time::Duration;

use async_trait::async_trait;
use karst_identity::{CertificateSigner, SignError, SignedCertificate};
use karst_model::identity::SpiffeId;
use karst_proto::ca::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use prost_types::{Struct, Value, value::Kind};

use crate::Link;

/// Signs through the controller.
pub struct ControllerSigner {
    pub link: Link,
}

#[async_trait]
impl CertificateSigner for ControllerSigner {
    async fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> Result<SignedCertificate, SignError> {
        let request = IstioCertificateRequest {
            csr: csr_pem,
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonation(id)),
        };
        let mut client = IstioCertificateServiceClient::new(self.link.channel());
        let answered = client
            .create_certificate(self.link.authorized(request))
            .await;
        match answered {
            Ok(response) => Ok(SignedCertificate {
                chain_pem: response.into_inner().cert_chain,
            }),
            Err(status) => Err(refusal(id, &status)),
        }
    }
}

/// `ImpersonatedIdentity`: whose certificate is asked for. A node asks for those of the workloads that run on it, a
/// waypoint for its own, by the name that the mesh has now.
fn impersonation(id: &SpiffeId) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(id.to_string())),
    };
    Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}

fn refusal(id: &SpiffeId, status: &tonic::Status) -> SignError {
    use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated};
    match status.code() {
        Unauthenticated | PermissionDenied | InvalidArgument => SignError::Refused {
            id: id.clone(),
            reason: status.message().to_owned(),
        },
        _ => SignError::Unavailable(status.message().to_owned()),
    }
}
