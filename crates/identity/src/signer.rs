//! The seam to whoever signs: the controller over gRPC, a plug-in CA, or the CA in the same process (tests).

use std::time::Duration;

use async_trait::async_trait;
use karst_model::identity::SpiffeId;

/// Signs certificate requests for workload identities.
#[async_trait]
pub trait CertificateSigner: Send + Sync {
    /// A certificate for `id` over the key in `csr_pem`, valid for `ttl` or less.
    async fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> Result<SignedCertificate, SignError>;
}

/// What a CA answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCertificate {
    /// PEM: the leaf, then intermediates one by one; the **last** element is the root bundle, which may hold several
    /// certificates.
    pub chain_pem: Vec<String>,
}

/// Why no certificate came back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignError {
    #[error("certificate authority not reachable: {0}")]
    Unavailable(String),
    #[error("certificate authority refused to sign for {id}: {reason}")]
    Refused { id: SpiffeId, reason: String },
    #[error("certificate authority did not answer within {0:?}")]
    TimedOut(Duration),
}
