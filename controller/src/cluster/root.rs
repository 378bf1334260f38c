//! The root of trust, kept in Secrets of the install namespace.
//!
//! ```text
//!   Secret cacerts (Istio's format), where there is one ──┐
//!   Secret karst-ca: made once, by whoever comes first ───┴─► Authority ◄── read again every 10 s
//!                        ▲                                        │
//!                        └─── leader: a step of a root rotation ──┘
//! ```
//!
//! A rotation of our own root begins by itself a year before its end, or when Secret karst-ca gets the annotation
//! `karst.dev/rotate-root`, with any value; its later steps take themselves.
//!
//! Secrets are read one by one by name: the controller has no permission to list or watch them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use karst_ca::{
    Authority, AuthorityConfig, AuthorityError, Material, PluggedCa,
    rotation::{Phase, Step},
};
use karst_identity::bundle::hex;
use karst_k8s_api::k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use kube::{Api, Client, api::PostParams};
use rand::RngExt as _;
use tokio::sync::watch;

use crate::{
    lease::Leadership,
    watch::{Backoff, WatchHealth},
};

/// Our own root.
const OWN: &str = "karst-ca";
/// Key in it.
const STATE: &str = "authority.json";
/// Annotation of it that asks for a new root.
const ROTATE: &str = "karst.dev/rotate-root";
/// A CA that the administrator brings.
const PLUGGED: &str = "cacerts";
/// Between looks at the Secrets.
const PERIOD: Duration = Duration::from_secs(10);
/// Longest time that one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no root of trust, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("Secret {place} cannot be read or written")]
    Api {
        place: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("Secret {place}: the API server gave no answer within {PATIENCE:?}")]
    Slow { place: String },
    #[error("Secret {place} has no text under {key:?}: complete it, or delete it to do without it")]
    Missing { place: String, key: &'static str },
    #[error("Secret {place} cannot be used")]
    Unusable {
        place: String,
        #[source]
        source: AuthorityError,
    },
}

/// Reads and writes the Secrets.
#[derive(Clone)]
pub struct RootStore {
    secrets: Api<Secret>,
    namespace: String,
    cfg: AuthorityConfig,
    health: WatchHealth,
}

/// Both Secrets, as they are.
struct Kept {
    own: Option<Secret>,
    plugged: Option<Secret>,
}

impl RootStore {
    pub fn new(client: Client, namespace: &str, cfg: AuthorityConfig, health: WatchHealth) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            cfg,
            health,
        }
    }

    /// The authority, however long it takes. A plugged-in CA that cannot be used is waited for: a root of our own would
    /// be another mesh.
    pub async fn load_or_create(&self) -> Authority {
        let mut backoff = Backoff::default();
        loop {
            match self.attempt().await {
                Ok(authority) => {
                    self.health.waits_for_root(None);
                    return authority;
                }
                Err(error) => {
                    let reason = Chain(&error).to_string();
                    if self.health.waits_for_root(Some(reason.clone())) {
                        tracing::error!(reason, "no root of trust yet: trying again");
                    }
                }
            }
            let wait = backoff.next(rand::rng().random());
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self) -> Result<Authority, RootError> {
        let mut kept = self.read().await?;
        if kept.plugged.is_none() && kept.own.is_none() {
            kept.own = Some(self.create().await?);
        }
        self.with(&kept, |material| {
            Authority::from_material(self.cfg.clone(), &material)
        })
    }

    async fn read(&self) -> Result<Kept, RootError> {
        Ok(Kept {
            plugged: self.within(PLUGGED, self.secrets.get_opt(PLUGGED)).await?,
            own: self.within(OWN, self.secrets.get_opt(OWN)).await?,
        })
    }

    /// Makes a first root, unless another replica has just done so: then that one holds.
    async fn create(&self) -> Result<Secret, RootError> {
        let state = Authority::first_state(&self.cfg, SystemTime::now())
            .map_err(|source| self.unusable(OWN, source))?;
        let metadata = ObjectMeta {
            name: Some(OWN.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/part-of".to_owned(),
                "karst".to_owned(),
            )])),
            ..ObjectMeta::default()
        };
        let secret = Secret {
            metadata,
            type_: Some("karst.dev/ca".to_owned()),
            data: Some(BTreeMap::from([(
                STATE.to_owned(),
                ByteString(state.to_vec()),
            )])),
            ..Secret::default()
        };
        let params = PostParams::default();
        let created = self.secrets.create(&params, &secret);
        let created = tokio::time::timeout(PATIENCE, created).await;
        match created {
            Ok(Ok(secret)) => {
                tracing::info!(place = self.place(OWN), "made the mesh's root of trust");
                Ok(secret)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                self.within(OWN, self.secrets.get(OWN)).await
            }
            Ok(Err(source)) => Err(self.api(OWN, source)),
            Err(_elapsed) => Err(self.slow(OWN)),
        }
    }

    /// Hands the material that the Secrets hold to `work`.
    fn with<T>(
        &self,
        kept: &Kept,
        work: impl FnOnce(Material<'_>) -> Result<T, AuthorityError>,
    ) -> Result<T, RootError> {
        let own_place = self.place(OWN);
        let own = match &kept.own {
            Some(secret) => Some(self.bytes(secret, OWN, STATE)?),
            None => None,
        };
        let Some(plugged) = &kept.plugged else {
            let json = own.ok_or_else(|| RootError::Missing {
                place: own_place.clone(),
                key: STATE,
            })?;
            let material = Material::State {
                place: &own_place,
                json,
            };
            return work(material).map_err(|source| self.unusable(OWN, source));
        };
        let text = |key| {
            let bytes = self.bytes(plugged, PLUGGED, key)?;
            std::str::from_utf8(bytes).map_err(|_utf8| RootError::Missing {
                place: self.place(PLUGGED),
                key,
            })
        };
        let ca = PluggedCa {
            certificate: text("ca-cert.pem")?,
            key: text("ca-key.pem")?,
            roots: text("root-cert.pem")?,
            chain: text("cert-chain.pem")?,
        };
        let former = own.map(|json| (own_place.as_str(), json));
        work(Material::Plugged { ca, former }).map_err(|source| self.unusable(PLUGGED, source))
    }

    fn bytes<'a>(
        &self,
        secret: &'a Secret,
        name: &str,
        key: &'static str,
    ) -> Result<&'a [u8], RootError> {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        let value = value.map(|value| value.0.as_slice());
        value.ok_or_else(|| RootError::Missing {
            place: self.place(name),
            key,
        })
    }

    async fn within<T>(
        &self,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RootError> {
        match tokio::time::timeout(PATIENCE, request).await {
            Ok(answer) => answer.map_err(|source| self.api(name, source)),
            Err(_elapsed) => Err(self.slow(name)),
        }
    }

    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    fn api(&self, name: &str, source: kube::Error) -> RootError {
        RootError::Api {
            place: self.place(name),
            source: Box::new(source),
        }
    }

    fn slow(&self, name: &str) -> RootError {
        RootError::Slow {
            place: self.place(name),
        }
    }

    fn unusable(&self, name: &str, source: AuthorityError) -> RootError {
        RootError::Unusable {
            place: self.place(name),
            source,
        }
    }
}

/// Keeps the authority as the Secrets say. What cannot be used changes nothing.
pub struct RootFollower {
    pub store: RootStore,
    pub authority: Arc<Authority>,
    pub leadership: Leadership,
    /// Counts changes, for those who show certificates of the authority.
    pub changes: watch::Sender<u64>,
}

impl RootFollower {
    pub async fn run(self, shutdown: Shutdown) {
        let mut told = None;
        while !shutdown.is_cancelled() {
            let jitter = rand::rng().random_range(0.8..1.2);
            tokio::select! {
                () = tokio::time::sleep(PERIOD.mul_f64(jitter)) => {}
                () = shutdown.cancelled() => return,
            }
            let trouble = self
                .look()
                .await
                .err()
                .map(|error| Chain(&error).to_string());
            if let Some(reason) = trouble.as_ref().filter(|_| told != trouble) {
                tracing::error!(reason, "root of trust: the present one stays");
            }
            told = trouble;
        }
    }

    async fn look(&self) -> Result<(), RootError> {
        let kept = self.store.read().await?;
        if kept.own.is_none() && kept.plugged.is_none() {
            return Err(RootError::Missing {
                place: self.store.place(OWN),
                key: STATE,
            });
        }
        self.adopt(&kept)?;
        self.step(kept).await
    }

    fn adopt(&self, kept: &Kept) -> Result<(), RootError> {
        let differs = self
            .store
            .with(kept, |material| self.authority.adopt(&material))?;
        if differs {
            let root = hex(&self.authority.root_fingerprint());
            tracing::info!(root, phase = ?self.authority.phase(), "root of trust changed");
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// The leader takes a step of a root rotation that is due; on a conflict somebody else just has.
    async fn step(&self, mut kept: Kept) -> Result<(), RootError> {
        let now = SystemTime::now();
        let Some(own) = kept.own.as_mut().filter(|_| self.leadership.is_held()) else {
            return Ok(());
        };
        // Ours must be the one that signs, and no rotation under way.
        let may_begin = kept.plugged.is_none() && self.authority.phase() == Phase::Steady;
        let annotations = own.metadata.annotations.get_or_insert_default();
        let asked = may_begin && annotations.remove(ROTATE).is_some();
        let due = self.authority.due_step(now);
        let Some(step) = due.or_else(|| asked.then_some(Step::Announce)) else {
            return Ok(());
        };
        let state = self
            .authority
            .next_state(step, now)
            .map_err(|source| self.store.unusable(OWN, source))?;
        own.data
            .get_or_insert_default()
            .insert(STATE.to_owned(), ByteString(state.to_vec()));
        tracing::info!(?step, "root rotation");
        let params = PostParams::default();
        let written = self.store.secrets.replace(OWN, &params, &*own);
        self.store.within(OWN, written).await?;
        self.adopt(&kept)
    }
}
