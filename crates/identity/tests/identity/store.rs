//! The store against a scripted CA, on tokio's paused clock where times matter.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use karst_identity::{
    CertificateSigner, IdentityError, SignError, SignedCertificate, Store, StoreConfig,
    clock::Clock, store::IdentityState,
};
use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use karst_runtime::supervise::{Shutdown, spawn_essential};

use crate::mint::{Ca, HOUR, Leaf};

/// Signs with its roots, unless told to fail.
struct Script {
    signing: Ca,
    bundle: Mutex<Vec<String>>,
    failing: AtomicBool,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    answers: AtomicUsize,
    life: Duration,
    clock: Clock,
}

impl Script {
    fn new(clock: Clock) -> Arc<Self> {
        let signing = Ca::root("root");
        let bundle = Mutex::new(vec![signing.pem.clone()]);
        Arc::new(Self {
            signing,
            bundle,
            failing: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            life: HOUR,
            clock,
        })
    }
}

#[async_trait]
impl CertificateSigner for Script {
    async fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        _ttl: Duration,
    ) -> Result<SignedCertificate, SignError> {
        let now_in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.in_flight_max
            .fetch_max(now_in_flight, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.failing.load(Ordering::SeqCst) {
            return Err(SignError::Unavailable("the test says so".to_owned()));
        }
        self.answers.fetch_add(1, Ordering::SeqCst);
        let now = self.clock.now();
        let leaf = Leaf {
            not_before: now,
            not_after: now + self.life,
            ..Leaf::of(&id.to_string())
        };
        let mut signed = self.signing.answer(&csr_pem, &leaf, &[]);
        signed.chain_pem[1] = self.bundle.lock().unwrap().concat();
        Ok(signed)
    }
}

/// A wall clock that follows tokio's paused one.
fn paused_clock() -> Clock {
    let (start, base) = (tokio::time::Instant::now(), SystemTime::now());
    Clock::from_fn(move || base + start.elapsed())
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", name)
}

fn open(script: &Arc<Script>, dir: Option<&Path>) -> (Store, Shutdown) {
    let clock = script.clock.clone();
    let cfg = StoreConfig {
        persist_dir: dir.map(Into::into),
        clock,
        ..StoreConfig::default()
    };
    let store = Store::new(cfg, script.clone()).unwrap();
    let shutdown = Shutdown::new();
    spawn_essential("identities", &shutdown, store.clone().run(shutdown.clone()));
    (store, shutdown)
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_required_identity_gets_a_certificate_and_keeps_it_fresh() {
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, None);
    let orders = id("orders");
    assert!(matches!(
        store.wait(&orders, LONG).await,
        Err(IdentityError::NotRequired(_))
    ));
    store.require(&orders).unwrap();
    let first = store.wait(&orders, LONG).await.unwrap();
    let mut follow = store.watch(&orders).unwrap();
    follow.mark_unchanged();
    for _ in 0..20 {
        follow.changed().await.unwrap();
        let held = follow.borrow_and_update().clone().unwrap();
        let left = held.not_after.duration_since(script.clock.now()).unwrap();
        assert!(left > HOUR / 3, "renewed in time");
        assert!(store.credential(&orders).is_some());
    }
    assert_ne!(store.credential(&orders).unwrap().serial, first.serial);
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_kept_while_the_ca_fails_and_until_it_expires() {
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, None);
    let orders = id("orders");
    store.require(&orders).unwrap();
    let held = store.wait(&orders, LONG).await.unwrap();
    script.failing.store(true, Ordering::SeqCst);
    tokio::time::sleep(HOUR * 9 / 10).await;
    assert_eq!(store.credential(&orders).unwrap().serial, held.serial);
    assert!(
        store.counters().failed.load(Ordering::Relaxed) > 3,
        "it kept asking"
    );
    assert!(
        store.statuses()[0]
            .last_error
            .as_deref()
            .unwrap()
            .contains("the test says so")
    );
    tokio::time::sleep(HOUR / 5).await;
    assert!(store.credential(&orders).is_none(), "expired");
    let error = store
        .wait(&orders, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("the test says so"), "{error}");
    assert_eq!(store.statuses()[0].state, IdentityState::Unavailable);
    script.failing.store(false, Ordering::SeqCst);
    store.wait(&orders, Duration::from_secs(200)).await.unwrap();
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_requests_are_in_flight() {
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, None);
    let ids: Vec<_> = (0..50).map(|n| id(&format!("sa{n}"))).collect();
    ids.iter().for_each(|id| store.require(id).unwrap());
    for id in &ids {
        store.wait(id, LONG).await.unwrap();
    }
    assert_eq!(script.in_flight_max.load(Ordering::SeqCst), 8);
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_last_release_drops_the_identity_and_wakes_who_waits() {
    let script = Script::new(paused_clock());
    script.failing.store(true, Ordering::SeqCst);
    let (store, shutdown) = open(&script, None);
    let orders = id("orders");
    store.require(&orders).unwrap();
    store.require(&orders).unwrap();
    store.release(&orders);
    assert_eq!(store.statuses()[0].references, 1);
    let waiting = store.wait(&orders, LONG);
    let (ended, ()) = tokio::join!(waiting, async { store.release(&orders) });
    assert!(
        matches!(ended, Err(IdentityError::Released(_))),
        "{ended:?}"
    );
    assert!(store.credential(&orders).is_none() && store.statuses().is_empty());
    store.require(&orders).unwrap();
    script.failing.store(false, Ordering::SeqCst);
    store.wait(&orders, LONG).await.unwrap();
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn new_roots_reach_every_identity_at_once() {
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, None);
    let (one, two) = (id("one"), id("two"));
    store.require(&one).unwrap();
    let before = store.wait(&one, LONG).await.unwrap();
    script.bundle.lock().unwrap().push(Ca::root("next").pem);
    store.require(&two).unwrap();
    store.wait(&two, LONG).await.unwrap();
    let after = store.credential(&one).unwrap();
    assert_eq!(
        (before.bundle().roots().len(), after.bundle().roots().len()),
        (1, 2)
    );
    assert_eq!(before.serial, after.serial);
    assert!(!Arc::ptr_eq(
        &before.server_config(),
        &after.server_config()
    ));
    shutdown.cancel();
}

fn renamed() -> TrustDomains {
    TrustDomains {
        own: TrustDomain("new.example".into()),
        aliases: vec![TrustDomain::default()],
    }
}

#[tokio::test(start_paused = true)]
async fn another_trust_domain_is_believed_first_and_asked_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, Some(dir.path()));
    let orders = id("orders");
    store.require(&orders).unwrap();
    let before = store.wait(&orders, LONG).await.unwrap();
    let mut follow = store.watch(&orders).unwrap();
    follow.mark_unchanged();

    store.update_trust(&renamed());
    let believed = follow.borrow_and_update().clone().unwrap();
    assert_eq!(believed.serial, before.serial, "the certificate is kept");
    let (told, began) = (
        StoreConfig::default().trust_delay,
        tokio::time::Instant::now(),
    );
    let replaced = |held: &Option<Arc<karst_identity::Credential>>| {
        held.as_ref()
            .is_some_and(|held| held.serial != before.serial)
    };
    let after = follow.wait_for(replaced).await.unwrap().clone().unwrap();
    assert!(began.elapsed() >= told, "peers have heard of it by then");
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(
        after.id.to_string(),
        "spiffe://new.example/ns/shop/sa/orders"
    );
    let by_its_new_name = orders.in_trust_domain(&renamed().own);
    assert!(store.credential(&by_its_new_name).is_some());
    assert_eq!(store.statuses()[0].identity, by_its_new_name.to_string());
    shutdown.cancel();

    // A restart finds it under the name that the identity has here.
    let (store, shutdown) = open(&script, Some(dir.path()));
    store.require(&orders).unwrap();
    assert_eq!(store.credential(&orders).unwrap().serial, after.serial);
    store.release(&orders);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "one file for one identity");
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_trust_domain_that_is_taken_back_is_never_asked_for() {
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, None);
    let orders = id("orders");
    store.require(&orders).unwrap();
    let before = store.wait(&orders, LONG).await.unwrap();
    store.update_trust(&renamed());
    store.update_trust(&TrustDomains::default());
    let mut follow = store.watch(&orders).unwrap();
    let renewed = |held: &Option<Arc<karst_identity::Credential>>| {
        held.as_ref()
            .is_some_and(|held| held.serial != before.serial)
    };
    let after = follow.wait_for(renewed).await.unwrap().clone().unwrap();
    assert_eq!(after.id, orders);
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_a_ca_serves_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let script = Script::new(paused_clock());
    let (orders, gone, unclaimed) = (id("orders"), id("gone"), id("unclaimed"));
    let (store, shutdown) = open(&script, Some(dir.path()));
    for id in [&orders, &gone, &unclaimed] {
        store.require(id).unwrap();
        store.wait(id, LONG).await.unwrap();
    }
    let serial = store.credential(&orders).unwrap().serial.clone();
    store.release(&gone);
    shutdown.cancel();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

    script.failing.store(true, Ordering::SeqCst);
    let (store, shutdown) = open(&script, Some(dir.path()));
    store.require(&orders).unwrap();
    assert_eq!(
        store.credential(&orders).unwrap().serial,
        serial,
        "at once, without the CA"
    );
    assert!(store.statuses()[0].saved);
    store.forget_unclaimed();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn damaged_and_expired_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let script = Script::new(paused_clock());
    let (store, shutdown) = open(&script, Some(dir.path()));
    store.require(&id("orders")).unwrap();
    store.wait(&id("orders"), LONG).await.unwrap();
    shutdown.cancel();
    std::fs::write(dir.path().join("junk.credential"), "{").unwrap();
    tokio::time::sleep(HOUR * 2).await;
    let (store, shutdown) = open(&script, Some(dir.path()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    store.require(&id("orders")).unwrap();
    store.wait(&id("orders"), LONG).await.unwrap();
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_saved_still_serves() {
    let dir = tempfile::tempdir().unwrap();
    let script = Script::new(paused_clock());
    let keys = dir.path().join("keys");
    let (store, shutdown) = open(&script, Some(&keys));
    std::fs::remove_dir(&keys).unwrap();
    store.require(&id("orders")).unwrap();
    store.wait(&id("orders"), LONG).await.unwrap();
    while store.counters().unsaved.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!store.statuses()[0].saved);
    shutdown.cancel();
}
