//! The authority: signs leaves for workloads and for the controller's own server, in the name of the signing root, or
//! of a CA below it that was plugged in.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use karst_identity::{
    CertificateSigner, SignError, SignedCertificate, TrustBundle,
    bundle::{Fingerprint, certificate_pem},
    clock::Clock,
    private_file::{self, PrivateFileError},
};
use karst_model::identity::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use zeroize::Zeroizing;

use crate::{
    authorize::MeshTrust,
    csr::{CsrError, RequestedKey},
    plugged::{PluggedCa, PluggedError},
    root::{Root, RootError, Roots, random_serial, signing_fingerprint},
    rotation::{self, Phase, RotationTimes, Step, StepError},
};

/// Leaves start this far in the past, since clocks differ; those that live shortly, a quarter of their life.
pub const BACKDATE: Duration = Duration::from_secs(600);
/// Life of a leaf where none, or a longer one, is asked for.
pub const LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const ROOT_LEFT_MIN: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most names in a serving certificate.
const SERVER_NAMES_MAX: usize = 100;

/// Where the CA keeps its state, and for whom it signs.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// Mode 0700, made if missing. Whoever reads it is the mesh. None where the caller keeps the state.
    pub state_dir: Option<PathBuf>,
    /// Whose mesh the state is of; its roots are named for it.
    pub trust_domain: TrustDomain,
    /// In which leaves are signed.
    pub trust: MeshTrust,
    /// Longest life of a leaf; requests for more get this.
    pub leaf_ttl_max: Duration,
    pub root_life: Duration,
}

impl AuthorityConfig {
    pub fn new(state_dir: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        Self {
            state_dir: Some(state_dir.into()),
            ..Self::kept_elsewhere(trust_domain)
        }
    }

    /// For callers that keep the state themselves, see [`Material`].
    pub fn kept_elsewhere(trust_domain: TrustDomain) -> Self {
        Self {
            state_dir: None,
            trust: MeshTrust::only(trust_domain.clone()),
            trust_domain,
            leaf_ttl_max: LEAF_TTL,
            root_life: ROOT_LIFE,
        }
    }
}

/// Why a leaf or a root was not made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("{id} is not of our trust domain {own}")]
    TrustDomain { id: SpiffeId, own: TrustDomain },
    #[error("our signing root has expired: restore the clock, or rotate the root")]
    RootExpired,
    #[error(
        "{0:?} is neither a DNS name nor an IP address, so it cannot stand in a serving certificate"
    )]
    Name(String),
    #[error("a serving certificate needs between one and {SERVER_NAMES_MAX} names, got {0}")]
    NameCount(usize),
    #[error(
        "signing failed in the crypto library: this is a bug in Karst, or the CA's key is damaged"
    )]
    Sign(#[source] rcgen::Error),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Plugged(#[from] PluggedError),
    #[error("a plugged-in CA is rotated by whoever made it: see the page on root rotation")]
    NotOurs,
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A certificate and key for the controller's own server.
pub struct ServerPair {
    /// Leaf, intermediates, then the signing root, which joining nodes need to see.
    pub chain_pem: String,
    pub key_pem: Zeroizing<String>,
    pub not_after: SystemTime,
}

/// What an authority signs with, as its keeper has it.
#[derive(Clone, Copy)]
pub enum Material<'a> {
    /// Our own roots, as [`Authority::first_state`] and [`Authority::next_state`] write them.
    State {
        /// Where they are kept, for messages.
        place: &'a str,
        json: &'a [u8],
    },
    /// A CA that somebody else made.
    Plugged {
        ca: PluggedCa<'a>,
        /// Our own roots of before, which stay trusted while they are there.
        former: Option<(&'a str, &'a [u8])>,
    },
}

/// See the module. Cheap to share by `Arc`; signing takes a read lock only.
pub struct Authority {
    cfg: AuthorityConfig,
    signing: RwLock<Signing>,
}

struct Signing {
    /// Our own roots; none where a CA is plugged in.
    roots: Option<Roots>,
    issuer: Issuer<'static, KeyPair>,
    /// PEM of the certificates between leaf and root, the signing one first.
    intermediates: Vec<String>,
    bundle: TrustBundle,
    fingerprint: Fingerprint,
    not_after: SystemTime,
}

impl Signing {
    fn new(roots: Roots) -> Result<Self, RootError> {
        let first = roots.roots.first().ok_or(RootError::Empty)?;
        let issuer = first.issuer()?;
        let not_after = first.not_after().ok_or(RootError::Pair)?;
        let bundle = roots.bundle()?;
        let fingerprint = signing_fingerprint(&bundle).ok_or(RootError::Empty)?;
        Ok(Self {
            issuer,
            intermediates: Vec::new(),
            bundle,
            fingerprint,
            not_after,
            roots: Some(roots),
        })
    }

    fn from_material(
        cfg: &AuthorityConfig,
        material: &Material<'_>,
    ) -> Result<Self, AuthorityError> {
        let parse = |place: &str, json: &[u8]| {
            Roots::parse(Path::new(place), json.to_vec(), &cfg.trust_domain)
        };
        match material {
            Material::State { place, json } => Ok(Self::new(parse(place, json)?)?),
            Material::Plugged { ca, former } => {
                let read = ca.read()?;
                let mut trusted = read.bundle.pem();
                if let Some((place, json)) = former {
                    trusted += &parse(place, json)?
                        .bundle()
                        .map_err(RootError::Bundle)?
                        .pem();
                }
                let bundle = TrustBundle::from_pem(&trusted).map_err(RootError::Bundle)?;
                let fingerprint = signing_fingerprint(&read.bundle).ok_or(RootError::Empty)?;
                Ok(Self {
                    roots: None,
                    issuer: read.issuer,
                    intermediates: read.intermediates,
                    bundle,
                    fingerprint,
                    not_after: read.not_after,
                })
            }
        }
    }

    /// The certificate that signs, and what leads from it to the root that callers pin.
    fn chain_pem(&self) -> String {
        let root = self.bundle.roots().first().map(certificate_pem);
        self.intermediates.iter().cloned().chain(root).collect()
    }

    fn phase(&self) -> Phase {
        self.roots
            .as_ref()
            .map_or(Phase::Steady, |roots| roots.phase)
    }
}

impl Authority {
    /// Reads the state, or makes a first root. Needs a state folder.
    pub fn load_or_create(cfg: AuthorityConfig, now: SystemTime) -> Result<Self, AuthorityError> {
        let dir = cfg.state_dir.clone().unwrap_or_default();
        private_file::prepare_dir(&dir)?;
        let roots = Roots::load_or_create(&dir, &cfg.trust_domain, cfg.root_life, now)?;
        let signing = RwLock::new(Signing::new(roots)?);
        Ok(Self { cfg, signing })
    }

    /// The state of a new mesh, for the caller to keep.
    pub fn first_state(
        cfg: &AuthorityConfig,
        now: SystemTime,
    ) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
        let first = Roots::first(&cfg.trust_domain, cfg.root_life, now)?;
        Ok(Zeroizing::new(first.json()))
    }

    /// An authority whose state the caller keeps.
    pub fn from_material(
        cfg: AuthorityConfig,
        material: &Material<'_>,
    ) -> Result<Self, AuthorityError> {
        let signing = RwLock::new(Signing::from_material(&cfg, material)?);
        Ok(Self { cfg, signing })
    }

    /// Signs with other material from here on, if it can be used; returns whether it is another. After an error the
    /// present one holds.
    pub fn adopt(&self, material: &Material<'_>) -> Result<bool, AuthorityError> {
        let next = Signing::from_material(&self.cfg, material)?;
        let mut signing = self.signing.write().unwrap_or_else(PoisonError::into_inner);
        let differs = next.chain_pem() != signing.chain_pem()
            || next.bundle.pem() != signing.bundle.pem()
            || next.phase() != signing.phase();
        *signing = next;
        Ok(differs)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.cfg.trust_domain
    }

    /// All roots that are trusted now, the signing one first.
    pub fn bundle(&self) -> TrustBundle {
        self.signing().bundle.clone()
    }

    /// [`Self::bundle`] as concatenated PEM.
    pub fn root_pem(&self) -> String {
        self.signing().bundle.pem()
    }

    /// SHA-256 of the signing root, for join tokens.
    pub fn root_fingerprint(&self) -> Fingerprint {
        self.signing().fingerprint
    }

    /// A leaf for `id` over the key of the request. The caller has checked that it may have it.
    ///
    /// A `ttl` of zero, or above the configured most, gets the most; no leaf outlives the root.
    pub fn sign_workload(
        &self,
        csr_pem: &str,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedCertificate, AuthorityError> {
        if !self.cfg.trust.covers(&id.trust_domain) {
            return Err(AuthorityError::TrustDomain {
                id: id.clone(),
                own: self.cfg.trust.get().own,
            });
        }
        let key = RequestedKey::from_pem(csr_pem)?;
        let uri = id.to_string().try_into().map_err(AuthorityError::Sign)?;
        let signing = self.signing();
        let mut params = self.leaf(ttl, now, signing.not_after)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params
            .signed_by(key.public_key(), &signing.issuer)
            .map_err(AuthorityError::Sign)?;
        let mut chain_pem = vec![leaf.pem()];
        chain_pem.extend(signing.intermediates.iter().cloned());
        chain_pem.push(signing.bundle.pem());
        Ok(SignedCertificate { chain_pem })
    }

    /// A new key and certificate for a server of these DNS names and IP addresses.
    pub fn server_certificate(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<ServerPair, AuthorityError> {
        if names.is_empty() || names.len() > SERVER_NAMES_MAX {
            return Err(AuthorityError::NameCount(names.len()));
        }
        let key =
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Sign)?;
        let signing = self.signing();
        let mut params = self.leaf(self.cfg.leaf_ttl_max, now, signing.not_after)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "karst-controller");
        params.subject_alt_names = names
            .iter()
            .map(|name| server_name(name))
            .collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let not_after = params.not_after.into();
        let leaf = params
            .signed_by(&key, &signing.issuer)
            .map_err(AuthorityError::Sign)?;
        Ok(ServerPair {
            chain_pem: leaf.pem() + &signing.chain_pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            not_after,
        })
    }

    /// The parts that all leaves share. With an empty subject, names are critical (RFC 5280 section 4.2.1.6).
    fn leaf(
        &self,
        ttl: Duration,
        now: SystemTime,
        root_not_after: SystemTime,
    ) -> Result<CertificateParams, AuthorityError> {
        if now >= root_not_after {
            return Err(AuthorityError::RootExpired);
        }
        let ttl = if ttl.is_zero() {
            self.cfg.leaf_ttl_max
        } else {
            ttl.min(self.cfg.leaf_ttl_max)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
        params.not_before = (now - self.backdate()).into();
        params.not_after = (now + ttl).min(root_not_after).into();
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn signing(&self) -> std::sync::RwLockReadGuard<'_, Signing> {
        self.signing.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn backdate(&self) -> Duration {
        BACKDATE.min(self.cfg.leaf_ttl_max / 4)
    }

    fn times(&self) -> RotationTimes {
        // A leaf of the phase before may also be young by its clock's error.
        RotationTimes {
            root_left_min: ROOT_LEFT_MIN,
            leaf_ttl_max: self.cfg.leaf_ttl_max + self.backdate(),
        }
    }

    /// Longest life of a leaf.
    pub fn leaf_ttl_max(&self) -> Duration {
        self.cfg.leaf_ttl_max
    }

    /// Where a root rotation stands.
    pub fn phase(&self) -> Phase {
        self.signing().phase()
    }

    /// The step that is due by itself, if any; for the controller's leader to take.
    pub fn due_step(&self, now: SystemTime) -> Option<Step> {
        let signing = self.signing();
        signing.roots.as_ref()?;
        rotation::due(signing.phase(), signing.not_after, &self.times(), now)
    }

    /// The state after one step of a root rotation, for whoever keeps it: nothing has changed here before it is adopted.
    pub fn next_state(
        &self,
        step: Step,
        now: SystemTime,
    ) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
        let roots = self.next_roots(step, now)?;
        Ok(Zeroizing::new(roots.json()))
    }

    /// Takes one step of a root rotation. On disk before it counts; after an error nothing has changed.
    pub fn rotate(&self, step: Step, now: SystemTime) -> Result<(), AuthorityError> {
        let next = Signing::new(self.next_roots(step, now)?)?;
        if let (Some(dir), Some(roots)) = (&self.cfg.state_dir, &next.roots) {
            roots.save(dir)?;
        }
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn next_roots(&self, step: Step, now: SystemTime) -> Result<Roots, AuthorityError> {
        let signing = self.signing();
        let mut roots = signing.roots.clone().ok_or(AuthorityError::NotOurs)?;
        rotation::check(step, roots.phase, &self.times(), now)?;
        match step {
            Step::Announce => {
                roots
                    .roots
                    .push(Root::make(&self.cfg.trust_domain, self.cfg.root_life, now)?);
                roots.phase = Phase::Announced { at: now };
            }
            Step::Switch => {
                roots.roots.swap(0, 1);
                roots.phase = Phase::Switched { at: now };
            }
            Step::Retire => {
                roots.roots.truncate(1);
                roots.phase = Phase::Steady;
            }
        }
        Ok(roots)
    }
}

fn server_name(name: &str) -> Result<SanType, AuthorityError> {
    use rustls_pki_types::ServerName;
    let bad = || AuthorityError::Name(name.to_owned());
    match ServerName::try_from(name).ok().ok_or_else(bad)? {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(std::net::IpAddr::from(address))),
        _ => Ok(SanType::DnsName(name.try_into().ok().ok_or_else(bad)?)),
    }
}

/// An [`Authority`] in this process as a signer: for tests and single-process set-ups. It authorizes nothing.
pub struct LocalSigner {
    pub authority: Arc<Authority>,
    pub clock: Clock,
}

#[async_trait]
impl CertificateSigner for LocalSigner {
    async fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> Result<SignedCertificate, SignError> {
        self.authority
            .sign_workload(&csr_pem, id, ttl, self.clock.now())
            .map_err(|error| SignError::Refused {
                id: id.clone(),
                reason: error.to_string(),
            })
    }
}
