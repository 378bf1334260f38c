//! The authority as its callers see it: what it signs, what it refuses, what it remembers.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not the helpers beside them"
)]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use karst_ca::{
    Authority, AuthorityConfig, AuthorityError, CsrError,
    root::RootError,
    rotation::{Phase, Step},
};
use karst_identity::{Credential, PrivateKey, TrustBundle, clock::Clock, peer_id, tls};
use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use rcgen::{CertificateParams, KeyPair};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const DAY: Duration = Duration::from_secs(86_400);

fn authority(dir: &Path, now: SystemTime) -> Authority {
    Authority::load_or_create(AuthorityConfig::new(dir, TrustDomain::default()), now).unwrap()
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", name)
}

fn credential(ca: &Authority, name: &str, ttl: Duration, now: SystemTime) -> Credential {
    let key = Arc::new(PrivateKey::generate().unwrap());
    let signed = ca
        .sign_workload(&key.csr_pem(&id(name)).unwrap(), &id(name), ttl, now)
        .unwrap();
    Credential::from_signed(
        &id(name),
        key,
        &signed,
        Arc::new(TrustDomains::default()),
        Clock::from_fn(move || now),
    )
    .unwrap()
}

async fn handshake(client: &Credential, server: &Credential) -> bool {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(client.client_config(std::slice::from_ref(&server.id)));
    let acceptor = TlsAcceptor::from(server.server_config());
    let (client, server) = tokio::join!(
        connector.connect(tls::mesh_server_name(), near),
        acceptor.accept(far)
    );
    client.is_ok() && server.is_ok()
}

#[test]
fn the_root_is_made_once_and_is_private() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let first = authority(dir.path(), now).root_pem();
    assert_eq!(authority(dir.path(), now + DAY).root_pem(), first);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(dir.path()), mode(&dir.path().join("authority.json"))),
        (0o700, 0o600)
    );
}

#[test]
fn a_leaf_is_as_the_facts_say() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = authority(dir.path(), now);
    let leaf = credential(&ca, "orders", Duration::from_secs(3600), now);
    assert_eq!(peer_id(leaf.chain()).unwrap(), id("orders"));
    let (_, cert) = x509_parser::parse_x509_certificate(&leaf.chain()[0]).unwrap();
    assert_eq!(cert.subject().iter().count(), 0);
    assert!(cert.subject_alternative_name().unwrap().unwrap().critical);
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let purpose = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(purpose.server_auth && purpose.client_auth);
    assert_eq!(
        leaf.not_after.duration_since(leaf.not_before).unwrap(),
        Duration::from_secs(3600 + 600)
    );
    assert_ne!(leaf.serial, credential(&ca, "orders", DAY, now).serial);
}

#[test]
fn the_life_of_a_leaf_is_clamped() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = authority(dir.path(), now);
    for ttl in [Duration::ZERO, 90 * DAY] {
        let life = credential(&ca, "orders", ttl, now)
            .not_after
            .duration_since(now)
            .unwrap();
        assert!(
            life <= DAY && life > DAY - Duration::from_secs(2),
            "{life:?}"
        );
    }
}

#[test]
fn bad_requests_are_refused_by_name() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = authority(dir.path(), now);
    let refuse = |csr: &str| match ca.sign_workload(csr, &id("orders"), DAY, now) {
        Err(AuthorityError::Csr(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse("junk"), CsrError::Pem);
    assert!(matches!(
        refuse(&"a".repeat(100_000)),
        CsrError::TooLarge(_)
    ));
    assert_eq!(
        refuse(&ca.root_pem()),
        CsrError::Label("CERTIFICATE".into())
    );
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&ed25519)
        .unwrap()
        .pem()
        .unwrap();
    assert!(matches!(refuse(&csr), CsrError::KeyKind(_)));
    assert_eq!(refuse(&with_another_signature()), CsrError::Signature);
    assert!(matches!(
        refuse("-----BEGIN CERTIFICATE REQUEST-----\nMAAA\n-----END CERTIFICATE REQUEST-----\n"),
        CsrError::Der(_)
    ));
}

/// A request whose last byte, inside the signature, was changed.
fn with_another_signature() -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let key = KeyPair::generate().unwrap();
    let mut der = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .der()
        .to_vec();
    *der.last_mut().unwrap() ^= 1;
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    )
}

#[test]
fn another_trust_domain_is_refused() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let other = TrustDomain("other.org".into());
    let csr = PrivateKey::generate()
        .unwrap()
        .csr_pem(&id("orders"))
        .unwrap();
    let refused =
        authority(dir.path(), now).sign_workload(&csr, &SpiffeId::new(&other, "a", "b"), DAY, now);
    assert!(matches!(refused, Err(AuthorityError::TrustDomain { .. })));
    let reopened = Authority::load_or_create(AuthorityConfig::new(dir.path(), other), now);
    assert!(matches!(
        reopened,
        Err(AuthorityError::Root(RootError::TrustDomain { .. }))
    ));
}

#[test]
fn another_name_of_the_mesh_is_signed_while_it_is_one() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let cfg = AuthorityConfig::new(dir.path(), TrustDomain::default());
    let trust = cfg.trust.clone();
    let authority = Authority::load_or_create(cfg, now).unwrap();
    let renamed = id("orders").in_trust_domain(&TrustDomain("new.example".into()));
    let csr = PrivateKey::generate().unwrap().csr_pem(&renamed).unwrap();
    assert!(authority.sign_workload(&csr, &renamed, DAY, now).is_err());
    trust.set(TrustDomains {
        own: renamed.trust_domain.clone(),
        aliases: vec![TrustDomain::default()],
    });
    assert!(authority.sign_workload(&csr, &renamed, DAY, now).is_ok());
    assert!(
        authority
            .sign_workload(&csr, &id("orders"), DAY, now)
            .is_ok()
    );
}

#[test]
fn damaged_state_is_reported_and_left_alone() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let file = dir.path().join("authority.json");
    std::fs::write(&file, "{").unwrap();
    let opened = Authority::load_or_create(
        AuthorityConfig::new(dir.path(), TrustDomain::default()),
        now,
    );
    assert!(matches!(
        opened,
        Err(AuthorityError::Root(RootError::Json { .. }))
    ));
    assert_eq!(std::fs::read(&file).unwrap(), b"{");
}

#[test]
fn a_serving_certificate_carries_its_names_and_its_root() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = authority(dir.path(), now);
    let names = ["10.0.0.1", "fd00::1", "karst-controller.karst-system.svc"].map(String::from);
    let pair = ca.server_certificate(&names, now).unwrap();
    assert!(pair.chain_pem.ends_with(&ca.root_pem()));
    tls::ServingCertificate::new(&pair.chain_pem, &pair.key_pem).unwrap();
    assert!(matches!(
        ca.server_certificate(&[], now),
        Err(AuthorityError::NameCount(0))
    ));
    assert!(matches!(
        ca.server_certificate(&["a b".into()], now),
        Err(AuthorityError::Name(_))
    ));
}

#[tokio::test]
async fn a_root_is_replaced_in_two_phases_without_a_failed_handshake() {
    let (dir, mut now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = authority(dir.path(), now);
    let first = ca.root_fingerprint();
    for step in [Step::Announce, Step::Switch, Step::Retire] {
        // A node that renewed just before the step meets one that renewed just after.
        let former = credential(&ca, "web", DAY, now);
        ca.rotate(step, now).unwrap();
        let renewed = credential(&ca, "orders", DAY, now);
        assert!(handshake(&former, &renewed).await, "{step:?}");
        assert!(handshake(&renewed, &former).await, "{step:?}");
        assert!(
            step == Step::Retire || ca.rotate(step, now).is_err(),
            "each step once"
        );
        now += DAY + Duration::from_secs(700);
    }
    assert_eq!(ca.phase(), Phase::Steady);
    assert_ne!(ca.root_fingerprint(), first);
    assert_eq!(
        TrustBundle::from_pem(&authority(dir.path(), now).root_pem()).unwrap(),
        ca.bundle()
    );
}

#[test]
fn a_step_that_cannot_be_written_does_not_count() {
    let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let state = dir.path().join("state");
    let ca = authority(&state, now);
    let before = ca.root_pem();
    std::fs::rename(&state, dir.path().join("away")).unwrap();
    assert!(matches!(
        ca.rotate(Step::Announce, now),
        Err(AuthorityError::File(_))
    ));
    assert_eq!((ca.root_pem(), ca.phase()), (before, Phase::Steady));
}
