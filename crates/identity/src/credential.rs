//! A checked certificate with its key, and the rustls configurations made from it.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use hashbrown::HashMap;
use karst_model::identity::{SpiffeId, TrustDomains};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    bundle::{BundleError, TrustBundle, certificate_pem},
    certificate::Facts,
    clock::{Clock, rfc3339, unix_time},
    key::PrivateKey,
    peer::{PeerCertError, id_of},
    signer::SignedCertificate,
    tls::{ALPN_H2, provider},
    verify::{Chain, ClientVerifier, ServerVerifier, Usage, verify_chain},
};

/// Most client configurations kept per credential; one per distinct set of accepted identities.
pub const MAX_CLIENT_CONFIGS: usize = 1024;

/// A workload's certificate, key and trust. Immutable: renewal makes a new one, and connections keep theirs.
pub struct Credential {
    pub id: SpiffeId,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Hexadecimal.
    pub serial: String,
    key: Arc<PrivateKey>,
    certified: Arc<CertifiedKey>,
    bundle: Arc<TrustBundle>,
    trust: Arc<TrustDomains>,
    clock: Clock,
    server: OnceLock<Arc<ServerConfig>>,
    clients: Mutex<HashMap<Box<[SpiffeId]>, Arc<ClientConfig>>>,
}

/// A CA's answer, or a file, that cannot be used as a credential.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("answer for {0} holds {1} parts: expected the leaf, intermediates, and the roots last")]
    Parts(SpiffeId, usize),
    #[error("part {part} of the certificate chain for {id} is not one PEM certificate")]
    Pem { id: SpiffeId, part: usize },
    #[error("roots in the answer for {0} are unusable")]
    Roots(SpiffeId, #[source] BundleError),
    #[error("certificate for {0} cannot be read")]
    Leaf(SpiffeId, #[source] Box<PeerCertError>),
    #[error("asked for {asked}, certificate is for {got}: the certificate authority is faulty")]
    OtherIdentity { asked: SpiffeId, got: SpiffeId },
    #[error(
        "certificate for {0} is over another key than ours: the certificate authority is faulty"
    )]
    OtherKey(SpiffeId),
    #[error("certificate for {0} does not verify against the roots that came with it")]
    Untrusted(SpiffeId, #[source] Box<PeerCertError>),
    #[error("key for {0} cannot be used for TLS")]
    Key(SpiffeId, #[source] rustls::Error),
}

impl Credential {
    /// Checks a CA's answer: it names `id`, is over our key, and verifies against the roots that it brought.
    ///
    /// A certificate that starts in the future is taken: our own clock may be behind, and peers judge by theirs.
    pub fn from_signed(
        id: &SpiffeId,
        key: Arc<PrivateKey>,
        signed: &SignedCertificate,
        trust: Arc<TrustDomains>,
        clock: Clock,
    ) -> Result<Self, CredentialError> {
        let (chain, bundle) = split_chain(id, signed)?;
        let facts = Facts::read(&chain[0])
            .map_err(|error| CredentialError::Leaf(id.clone(), Box::new(error.into())))?;
        check_leaf(id, &key, &facts)?;
        let at = unix_time(clock.now().max(facts.not_before));
        for usage in [Usage::Server, Usage::Client] {
            verify_chain(
                Chain {
                    leaf: &chain[0],
                    intermediates: &chain[1..],
                },
                &bundle,
                usage,
                at,
            )
            .map_err(|error| CredentialError::Untrusted(id.clone(), Box::new(error)))?;
        }
        let signing_key = provider()
            .key_provider
            .load_private_key(key.pkcs8())
            .map_err(|source| CredentialError::Key(id.clone(), source))?;
        Ok(Self {
            id: id.clone(),
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            key,
            certified: Arc::new(CertifiedKey::new(chain, signing_key)),
            bundle: Arc::new(bundle),
            trust,
            clock,
            server: OnceLock::new(),
            clients: Mutex::default(),
        })
    }

    /// The same certificate, trusting other roots from now on. Live connections are not touched.
    #[must_use]
    pub fn with_bundle(&self, bundle: Arc<TrustBundle>) -> Self {
        self.trusting(bundle, self.trust.clone())
    }

    /// The same certificate, taking these names for those of our mesh from now on. Live connections are not touched.
    #[must_use]
    pub fn with_trust(&self, trust: Arc<TrustDomains>) -> Self {
        self.trusting(self.bundle.clone(), trust)
    }

    fn trusting(&self, bundle: Arc<TrustBundle>, trust: Arc<TrustDomains>) -> Self {
        Self {
            id: self.id.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            serial: self.serial.clone(),
            key: self.key.clone(),
            certified: self.certified.clone(),
            bundle,
            trust,
            clock: self.clock.clone(),
            server: OnceLock::new(),
            clients: Mutex::default(),
        }
    }

    /// Whether the certificate has not expired at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now <= self.not_after
    }

    /// For tunnels that arrive: TLS 1.3, ALPN h2, a client certificate of our trust domain, by any of its names. Made once.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server
            .get_or_init(|| Arc::new(self.build_server_config()))
            .clone()
    }

    /// For tunnels to a destination that may be any of `accepted`: TLS 1.3, ALPN h2, no SNI, no resumption. Kept for
    /// the next call; at most [`MAX_CLIENT_CONFIGS`], then the kept ones are made anew as they are asked for.
    pub fn client_config(&self, accepted: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = clients.get(accepted) {
            return found.clone();
        }
        if clients.len() >= MAX_CLIENT_CONFIGS {
            tracing::debug!(id = %self.id, "dropping {MAX_CLIENT_CONFIGS} kept client configurations: the bound is reached");
            clients.clear();
        }
        let config = Arc::new(self.build_client_config(accepted));
        clients.insert(accepted.into(), config.clone());
        config
    }

    /// Leaf first, then intermediates; without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(crate) fn trust(&self) -> &Arc<TrustDomains> {
        &self.trust
    }

    /// The roots that peers of this credential must chain to.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    pub(crate) fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The CA's answer that makes this credential again.
    pub(crate) fn to_signed(&self) -> SignedCertificate {
        let mut chain_pem: Vec<String> = self
            .chain()
            .iter()
            .map(|cert| certificate_pem(cert))
            .collect();
        chain_pem.push(self.bundle.pem());
        SignedCertificate { chain_pem }
    }

    /// Tickets are off: a resumed session would skip the check of the certificate, and could outlive it.
    fn build_server_config(&self) -> ServerConfig {
        let verifier = ClientVerifier {
            bundle: self.bundle.clone(),
            trust: self.trust.clone(),
        };
        let mut config =
            ServerConfig::builder_with_details(provider(), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("our provider has TLS 1.3 suites")
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config
    }

    fn build_client_config(&self, accepted: &[SpiffeId]) -> ClientConfig {
        let verifier = ServerVerifier {
            bundle: self.bundle.clone(),
            accepted: accepted.into(),
            trust: self.trust.clone(),
        };
        let mut config =
            ClientConfig::builder_with_details(provider(), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("our provider has TLS 1.3 suites")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                    self.certified.clone(),
                )));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("id", &self.id.to_string())
            .field("serial", &self.serial)
            .field("not_before", &rfc3339(self.not_before))
            .field("not_after", &rfc3339(self.not_after))
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

/// The leaf and intermediates, and the roots.
fn split_chain(
    id: &SpiffeId,
    signed: &SignedCertificate,
) -> Result<(Vec<CertificateDer<'static>>, TrustBundle), CredentialError> {
    let [chain @ .., roots] = &signed.chain_pem[..] else {
        return Err(CredentialError::Parts(id.clone(), 0));
    };
    if chain.is_empty() {
        return Err(CredentialError::Parts(id.clone(), 1));
    }
    let bundle = TrustBundle::from_pem(roots)
        .map_err(|source| CredentialError::Roots(id.clone(), source))?;
    let mut certs = Vec::with_capacity(chain.len());
    for (part, pem) in chain.iter().enumerate() {
        let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
        let bad = || CredentialError::Pem {
            id: id.clone(),
            part,
        };
        let cert = found.next().and_then(Result::ok).ok_or_else(bad)?;
        certs.push(cert);
        for more in found {
            // Some CAs put all intermediates into one element.
            certs.push(more.ok().ok_or_else(bad)?);
        }
    }
    Ok((certs, bundle))
}

fn check_leaf(id: &SpiffeId, key: &PrivateKey, facts: &Facts) -> Result<(), CredentialError> {
    let got = id_of(facts).map_err(|error| CredentialError::Leaf(id.clone(), Box::new(error)))?;
    if got != *id {
        return Err(CredentialError::OtherIdentity {
            asked: id.clone(),
            got,
        });
    }
    if facts.public_key != key.public_key() {
        return Err(CredentialError::OtherKey(id.clone()));
    }
    Ok(())
}
