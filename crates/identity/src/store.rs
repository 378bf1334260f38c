//! All credentials of this process: who needs which, and a task that gets and renews them.
//!
//! [`Rotation`] decides; this shell makes keys and requests, asks the signer, checks the answers, keeps the results
//! and wakes those who wait. The agent requires an identity for each local workload and releases it with the last.

mod status;

use std::{
    collections::BTreeMap,
    error::Error,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use karst_runtime::supervise::Shutdown;
use tokio::sync::{Notify, watch};

pub use self::status::{CertificateStatus, IdentityState, IdentityStatus};
use crate::{
    bundle::TrustBundle,
    clock::Clock,
    credential::{Credential, CredentialError},
    key::{KeyError, PrivateKey},
    persist::Folder,
    private_file::PrivateFileError,
    rotation::{Released, Rotation, RotationConfig, TooMany, Validity},
    signer::{CertificateSigner, SignError, SignedCertificate},
};

/// How a store gets and keeps certificates.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Life asked of the CA, which may give less.
    pub ttl: Duration,
    /// Longest wait for one answer of the CA.
    pub sign_timeout: Duration,
    /// The trust domain that identities are known by here, and its aliases, until [`Store::update_trust`] says others.
    pub trust: TrustDomains,
    /// How long another trust domain is only believed before certificates in it are asked for: until then every peer
    /// has heard of it.
    pub trust_delay: Duration,
    /// Where to keep keys and certificates over a restart; a folder on a tmpfs. None: nowhere.
    pub persist_dir: Option<PathBuf>,
    pub rotation: RotationConfig,
    pub clock: Clock,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 3600),
            sign_timeout: Duration::from_secs(10),
            trust: TrustDomains::default(),
            trust_delay: Duration::from_secs(15),
            persist_dir: None,
            rotation: RotationConfig::default(),
            clock: Clock::system(),
        }
    }
}

/// Longest sleep between two looks at the wall clock, which may have been set, or the machine suspended.
const CLOCK_CHECK_MAX: Duration = Duration::from_secs(15);

/// Why an identity is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    #[error("{0} is of no workload on this node: nothing asked for its certificate")]
    NotRequired(SpiffeId),
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("no certificate for {id} within {waited:?}; {last}")]
    TimedOut {
        id: SpiffeId,
        waited: Duration,
        last: String,
    },
    #[error("{0} was released while a connection waited for its certificate")]
    Released(SpiffeId),
}

/// One attempt that brought no certificate.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Answer(#[from] CredentialError),
}

/// Counters of a store, all since start.
#[derive(Debug, Default)]
pub struct StoreCounters {
    pub issued: AtomicU64,
    pub failed: AtomicU64,
    /// Identities refused because of the bound.
    pub refused: AtomicU64,
    /// Credentials that could not be saved; they serve from memory.
    pub unsaved: AtomicU64,
}

/// Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    cfg: StoreConfig,
    signer: Arc<dyn CertificateSigner>,
    /// Locked before `state`, never after: readers of credentials do not wait for a disk.
    folder: Option<Mutex<Folder>>,
    state: Mutex<State>,
    /// Wakes `run` when something became due.
    changed: Notify,
    counters: StoreCounters,
}

struct State {
    rotation: Rotation,
    /// By identity in the home domain, here and in all that follows: it is the same in every domain of the mesh.
    slots: BTreeMap<SpiffeId, Slot>,
    /// Read from disk at start, not asked for yet.
    unclaimed: BTreeMap<SpiffeId, Arc<Credential>>,
    /// The roots of the newest answer; all credentials use them.
    bundle: Option<Arc<TrustBundle>>,
    trust: Arc<TrustDomains>,
    /// The trust domain in which certificates are asked for.
    asks_in: TrustDomain,
    /// When that becomes `trust.own`, if it is another.
    switch_at: Option<SystemTime>,
}

struct Slot {
    credential: watch::Sender<Option<Arc<Credential>>>,
    last_error: Option<String>,
    saved: bool,
}

impl Store {
    /// Reads what an earlier run saved. `run` must be spawned for anything to be asked for.
    pub fn new(
        cfg: StoreConfig,
        signer: Arc<dyn CertificateSigner>,
    ) -> Result<Self, PrivateFileError> {
        let home = &cfg.trust.own;
        let folder = cfg.persist_dir.as_deref();
        let folder = folder.map(|dir| Folder::open(dir, home)).transpose()?;
        let trust = Arc::new(cfg.trust.clone());
        let unclaimed = folder
            .as_ref()
            .map(|folder| folder.load(&trust, &cfg.clock, cfg.rotation.identities_max))
            .unwrap_or_default();
        let rotation = Rotation::new(cfg.rotation.clone(), rand::random());
        let state = State {
            rotation,
            slots: BTreeMap::new(),
            unclaimed,
            bundle: None,
            asks_in: trust.own.clone(),
            trust,
            switch_at: None,
        };
        Ok(Self(Arc::new(Inner {
            cfg,
            signer,
            folder: folder.map(Mutex::new),
            state: Mutex::new(state),
            changed: Notify::new(),
            counters: StoreCounters::default(),
        })))
    }

    /// One more user of `id`: its certificate will be got and renewed until as many releases.
    pub fn require(&self, id: &SpiffeId) -> Result<(), IdentityError> {
        let now = self.0.cfg.clock.now();
        let id = &self.0.key(id);
        let mut state = self.0.state();
        if let Err(error) = state.rotation.handle_require(now, id) {
            self.0.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(error.into());
        }
        if !state.slots.contains_key(id) {
            state.add_slot(id, now);
        }
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }

    /// One user less; with the last, certificate and key are dropped, on disk too. Live connections keep theirs.
    pub fn release(&self, id: &SpiffeId) {
        let id = &self.0.key(id);
        let released = {
            let mut state = self.0.state();
            let released = state.rotation.handle_release(id);
            if released == Released::Dropped {
                state.slots.remove(id);
            }
            released
        };
        if released == Released::Dropped {
            self.0.unsave(id);
        }
    }

    /// The certificate, if there is one and it has not expired.
    pub fn credential(&self, id: &SpiffeId) -> Option<Arc<Credential>> {
        let id = &self.0.key(id);
        let credential = self.0.state().slots.get(id)?.credential.borrow().clone()?;
        credential
            .is_valid_at(self.0.cfg.clock.now())
            .then_some(credential)
    }

    /// The certificate; where there is none yet, waits for it with the highest priority, at most for `longest`.
    pub async fn wait(
        &self,
        id: &SpiffeId,
        longest: Duration,
    ) -> Result<Arc<Credential>, IdentityError> {
        if let Some(credential) = self.credential(id) {
            return Ok(credential);
        }
        let mut changes = {
            let key = self.0.key(id);
            let mut state = self.0.state();
            state.rotation.handle_awaited(&key);
            let slot = state.slots.get(&key);
            slot.map(|slot| slot.credential.subscribe())
        }
        .ok_or_else(|| IdentityError::NotRequired(id.clone()))?;
        self.0.changed.notify_one();
        let clock = &self.0.cfg.clock;
        let usable = |held: &Option<Arc<Credential>>| {
            held.as_ref()
                .is_some_and(|held| held.is_valid_at(clock.now()))
        };
        match tokio::time::timeout(longest, changes.wait_for(usable)).await {
            Ok(Ok(held)) => held
                .clone()
                .ok_or_else(|| IdentityError::Released(id.clone())),
            Ok(Err(_closed)) => Err(IdentityError::Released(id.clone())),
            Err(_elapsed) => Err(self.timed_out(id, longest)),
        }
    }

    fn timed_out(&self, id: &SpiffeId, waited: Duration) -> IdentityError {
        let state = self.0.state();
        let last = state
            .slots
            .get(&self.0.key(id))
            .and_then(|slot| slot.last_error.clone());
        let last = last.map_or_else(
            || "the certificate authority has not answered".to_owned(),
            |e| format!("last failure: {e}"),
        );
        IdentityError::TimedOut {
            id: id.clone(),
            waited,
            last,
        }
    }

    /// Follows the certificate through renewals and changes of roots. None when nothing requires `id`.
    pub fn watch(&self, id: &SpiffeId) -> Option<watch::Receiver<Option<Arc<Credential>>>> {
        let id = self.0.key(id);
        Some(self.0.state().slots.get(&id)?.credential.subscribe())
    }

    /// Trusts these roots from now on, for all identities: the first phase of a root rotation reaches everyone before
    /// the next renewal. Live connections are kept.
    pub fn update_bundle(&self, bundle: TrustBundle) {
        let swapped = self.0.state().adopt_bundle(&Arc::new(bundle));
        swapped.iter().for_each(|id| self.0.save(id));
    }

    /// Takes these names for those of our mesh from now on, and after [`StoreConfig::trust_delay`] asks for certificates
    /// in `trust.own`. Those that are held serve until then. Live connections are kept.
    pub fn update_trust(&self, trust: &TrustDomains) {
        let mut state = self.0.state();
        if *state.trust == *trust {
            return;
        }
        tracing::info!(own = %trust.own, aliases = ?trust.aliases, "trust domain of the mesh");
        state.adopt_trust(&Arc::new(trust.clone()));
        let switches = state.asks_in != trust.own;
        let at = self.0.cfg.clock.now() + self.0.cfg.trust_delay;
        state.switch_at = switches.then_some(at);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Drops saved credentials that nothing required since start. For the agent to call when it knows all its pods.
    pub fn forget_unclaimed(&self) {
        let unclaimed = std::mem::take(&mut self.0.state().unclaimed);
        unclaimed.keys().for_each(|id| self.0.unsave(id));
    }

    /// When the first certificate of all that are held ends; `None` where none is held.
    pub fn soonest_expiry(&self) -> Option<SystemTime> {
        status::soonest_expiry(&self.0.state())
    }

    /// One entry per identity for status pages; no private keys.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        status::statuses(&self.0.state(), self.0.cfg.clock.now())
    }

    pub fn counters(&self) -> &StoreCounters {
        &self.0.counters
    }

    /// Gets and renews certificates until shutdown. Spawn once, by `supervise::spawn_essential`.
    pub async fn run(self, shutdown: Shutdown) {
        let mut requests = FuturesUnordered::new();
        loop {
            let (due, sleep) = self.0.poll();
            for id in due {
                requests.push(self.0.request(id));
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(sleep) => {}
                Some((id, outcome)) = requests.next() => self.0.finish(&id, outcome),
            }
        }
    }
}

impl State {
    /// A slot for a newly required identity, filled from disk where an earlier run left a certificate.
    fn add_slot(&mut self, id: &SpiffeId, now: SystemTime) {
        let restored = self
            .unclaimed
            .remove(id)
            .filter(|held| held.is_valid_at(now));
        let restored = restored.map(|held| match &self.bundle {
            Some(bundle) if bundle != held.bundle() => Arc::new(held.with_bundle(bundle.clone())),
            _ => held,
        });
        let restored = restored.map(|held| match held.trust() == &self.trust {
            true => held,
            false => Arc::new(held.with_trust(self.trust.clone())),
        });
        if let Some(credential) = &restored {
            self.rotation.handle_restored(now, id, validity(credential));
        }
        let saved = restored.is_some();
        let slot = Slot {
            credential: watch::Sender::new(restored),
            last_error: None,
            saved,
        };
        self.slots.insert(id.clone(), slot);
    }

    fn adopt_trust(&mut self, trust: &Arc<TrustDomains>) {
        self.trust = trust.clone();
        for slot in self.slots.values() {
            slot.credential.send_if_modified(|held| {
                *held = held
                    .as_ref()
                    .map(|held| Arc::new(held.with_trust(trust.clone())));
                held.is_some()
            });
        }
    }

    /// Asks in the trust domain of now, if it is time, and has the certificates replaced that are in another.
    fn switch(&mut self, now: SystemTime) {
        if self.switch_at.is_none_or(|at| at > now) {
            return;
        }
        self.switch_at = None;
        self.asks_in = self.trust.own.clone();
        for (id, slot) in &self.slots {
            let held = slot.credential.borrow();
            if held
                .as_ref()
                .is_some_and(|held| held.id.trust_domain != self.asks_in)
            {
                self.rotation.handle_replace(now, id);
            }
        }
    }

    /// The newest roots count for every identity, not only for the one whose answer brought them. Returns whose
    /// credentials changed.
    fn adopt_bundle(&mut self, bundle: &Arc<TrustBundle>) -> Vec<SpiffeId> {
        if self.bundle.as_ref() == Some(bundle) {
            return Vec::new();
        }
        self.bundle = Some(bundle.clone());
        let mut changed = Vec::new();
        for (id, slot) in &mut self.slots {
            let held = slot.credential.borrow().clone();
            let Some(held) = held.filter(|held| held.bundle() != bundle) else {
                continue;
            };
            slot.credential
                .send_replace(Some(Arc::new(held.with_bundle(bundle.clone()))));
            changed.push(id.clone());
        }
        changed
    }
}

impl Inner {
    /// What an identity is known by here.
    fn key(&self, id: &SpiffeId) -> SpiffeId {
        id.in_trust_domain(&self.cfg.trust.own)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to ask for now, and how long to sleep if nothing else happens.
    fn poll(&self) -> (Vec<SpiffeId>, Duration) {
        let now = self.cfg.clock.now();
        let mut state = self.state();
        state.switch(now);
        let due = state.rotation.poll_requests(now);
        let next = state.rotation.poll_timeout().into_iter();
        let next = next.chain(state.switch_at).min();
        let sleep = next.map_or(CLOCK_CHECK_MAX, |at| {
            at.duration_since(now).unwrap_or_default()
        });
        (due, sleep.min(CLOCK_CHECK_MAX))
    }

    /// One attempt: a new key, a request, an answer that is checked.
    async fn request(&self, id: SpiffeId) -> (SpiffeId, Result<Credential, RequestError>) {
        let outcome = self.ask(&id).await;
        (id, outcome)
    }

    async fn ask(&self, id: &SpiffeId) -> Result<Credential, RequestError> {
        let (id, trust) = {
            let state = self.state();
            (&id.in_trust_domain(&state.asks_in), state.trust.clone())
        };
        let key = Arc::new(PrivateKey::generate()?);
        let csr = key.csr_pem(id)?;
        let answer = tokio::time::timeout(
            self.cfg.sign_timeout,
            self.signer.sign(id, csr, self.cfg.ttl),
        )
        .await;
        let signed: SignedCertificate =
            answer.unwrap_or(Err(SignError::TimedOut(self.cfg.sign_timeout)))?;
        Ok(Credential::from_signed(
            id,
            key,
            &signed,
            trust,
            self.cfg.clock.clone(),
        )?)
    }

    fn finish(&self, id: &SpiffeId, outcome: Result<Credential, RequestError>) {
        match outcome {
            Ok(credential) => self.finish_issued(id, credential),
            Err(error) => self.finish_failed(id, &error),
        }
    }

    fn finish_issued(&self, id: &SpiffeId, credential: Credential) {
        self.counters.issued.fetch_add(1, Ordering::Relaxed);
        let credential = Arc::new(credential);
        let mut changed = {
            let now = self.cfg.clock.now();
            let mut state = self.state();
            if !state.rotation.handle_issued(now, id, validity(&credential)) {
                return;
            }
            if credential.id.trust_domain != state.asks_in {
                state.rotation.handle_replace(now, id);
            }
            let credential = match credential.trust() == &state.trust {
                true => credential.clone(),
                false => Arc::new(credential.with_trust(state.trust.clone())),
            };
            if let Some(slot) = state.slots.get_mut(id) {
                slot.credential.send_replace(Some(credential.clone()));
                slot.last_error = None;
            }
            state.adopt_bundle(credential.bundle())
        };
        tracing::debug!(%id, serial = credential.serial, "certificate issued");
        changed.push(id.clone());
        changed.iter().for_each(|id| self.save(id));
    }

    fn finish_failed(&self, id: &SpiffeId, error: &RequestError) {
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
        let now = self.cfg.clock.now();
        let text = chain_text(error);
        let mut state = self.state();
        state.rotation.handle_failed(now, id);
        let Some(slot) = state.slots.get_mut(id) else {
            return;
        };
        let expires = slot
            .credential
            .borrow()
            .as_ref()
            .map(|held| crate::clock::rfc3339(held.not_after));
        tracing::warn!(%id, error = text, kept_until = expires, "no certificate, will ask again");
        slot.last_error = Some(text);
    }

    /// Saves what is held for `id` now, unless it was released. A failure costs nothing until the next restart.
    fn save(&self, id: &SpiffeId) {
        let Some(folder) = &self.folder else { return };
        let folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self
            .state()
            .slots
            .get(id)
            .and_then(|slot| slot.credential.borrow().clone());
        let Some(held) = held else { return };
        let saved = folder.save(&held);
        if let Err(error) = &saved {
            self.counters.unsaved.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%id, error = chain_text(error), "credential not saved, it serves from memory");
        }
        if let Some(slot) = self.state().slots.get_mut(id) {
            slot.saved = saved.is_ok();
        }
    }

    /// Removes what is saved for an identity that nothing requires.
    fn unsave(&self, id: &SpiffeId) {
        let Some(folder) = &self.folder else { return };
        let folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.state().slots.contains_key(id) {
            folder.remove(id);
        }
    }
}

fn validity(credential: &Credential) -> Validity {
    Validity {
        not_before: credential.not_before,
        not_after: credential.not_after,
    }
}

/// An error with its causes, for one log line or status field.
pub(crate) fn chain_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
