//! A CA that somebody else made: Istio's Secret `cacerts`, good and bad.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not the helpers beside them"
)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use karst_ca::{Authority, AuthorityConfig, AuthorityError, Material, PluggedCa, PluggedError};
use karst_identity::{Credential, PrivateKey, clock::Clock, tls};
use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SignatureAlgorithm,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params
}

fn root(name: &str, algorithm: &'static SignatureAlgorithm) -> Ca {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params(name, is_ca), key).unwrap()
}

fn below(parent: &Ca, name: &str, is_ca: IsCa, algorithm: &'static SignatureAlgorithm) -> Ca {
    let key = KeyPair::generate_for(algorithm).unwrap();
    CertifiedIssuer::signed_by(params(name, is_ca), key, parent).unwrap()
}

/// A Secret's four texts.
struct Secret {
    certificate: String,
    key: String,
    roots: String,
    chain: String,
}

impl Secret {
    fn of(signing: &Ca, between: &[&Ca], root: &Ca) -> Self {
        let chain: String = std::iter::once(&signing)
            .chain(between)
            .chain([&root])
            .map(|ca| ca.pem())
            .collect();
        Self {
            certificate: signing.pem(),
            key: signing.key().serialize_pem(),
            roots: root.pem(),
            chain,
        }
    }

    fn plugged(&self) -> PluggedCa<'_> {
        PluggedCa {
            certificate: &self.certificate,
            key: &self.key,
            roots: &self.roots,
            chain: &self.chain,
        }
    }

    fn material(&self) -> Material<'_> {
        Material::Plugged {
            ca: self.plugged(),
            former: None,
        }
    }

    fn authority(&self) -> Result<Authority, AuthorityError> {
        Authority::from_material(config(), &self.material())
    }

    fn refused(&self) -> PluggedError {
        match self.authority() {
            Err(AuthorityError::Plugged(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("must not be used"),
        }
    }
}

fn config() -> AuthorityConfig {
    AuthorityConfig::kept_elsewhere(TrustDomain::default())
}

fn credential(ca: &Authority, name: &str) -> Credential {
    let id = SpiffeId::new(&TrustDomain::default(), "shop", name);
    let key = Arc::new(PrivateKey::generate().unwrap());
    let csr = key.csr_pem(&id).unwrap();
    let signed = ca
        .sign_workload(&csr, &id, Duration::ZERO, SystemTime::now())
        .unwrap();
    let trust = Arc::new(TrustDomains::default());
    Credential::from_signed(&id, key, &signed, trust, Clock::system()).unwrap()
}

async fn shake_hands(client: &Credential, server: &Credential) -> bool {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(client.client_config(std::slice::from_ref(&server.id)));
    let acceptor = TlsAcceptor::from(server.server_config());
    let (client, server) = tokio::join!(
        connector.connect(tls::mesh_server_name(), near),
        acceptor.accept(far)
    );
    client.is_ok() && server.is_ok()
}

const EC: &SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
const RSA: &SignatureAlgorithm = &rcgen::PKCS_RSA_SHA256;
const CA: IsCa = IsCa::Ca(BasicConstraints::Unconstrained);

#[tokio::test]
async fn workloads_below_any_of_its_forms_trust_each_other() {
    tls::install_provider();
    let root = root("root", RSA);
    let (one, other) = (below(&root, "one", CA, EC), below(&root, "other", CA, RSA));
    let deep = below(&one, "deep", CA, EC);
    let mut short = Secret::of(&deep, &[&one], &root);
    short.chain = one.pem();
    let secrets = [
        Secret::of(&root, &[], &root),
        Secret::of(&one, &[], &root),
        Secret::of(&other, &[], &root),
        Secret::of(&deep, &[&one], &root),
        short,
    ];
    let credentials: Vec<Credential> = secrets
        .iter()
        .map(|secret| credential(&secret.authority().unwrap(), "a"))
        .collect();
    for (client, server) in credentials.iter().zip(credentials.iter().cycle().skip(1)) {
        assert!(shake_hands(client, server).await);
    }
}

#[test]
fn what_does_not_fit_together_is_refused_with_its_name() {
    tls::install_provider();
    let (ours, foreign) = (root("ours", EC), root("foreign", EC));
    let one = below(&ours, "one", CA, EC);
    let good = || Secret::of(&one, &[], &ours);
    assert!(good().authority().is_ok());
    let with = |change: fn(&mut Secret, &Ca)| {
        let mut secret = good();
        change(&mut secret, &foreign);
        secret.refused()
    };
    assert!(matches!(
        with(|secret, other| secret.key = other.key().serialize_pem()),
        PluggedError::Pair
    ));
    assert!(matches!(
        with(|secret, other| secret.roots = other.pem()),
        PluggedError::Broken(_)
    ));
    assert!(matches!(
        with(|secret, _| secret.key.clear()),
        PluggedError::Key(_)
    ));
    assert!(matches!(
        with(|secret, _| secret.roots.clear()),
        PluggedError::Roots(_)
    ));
    assert!(matches!(
        with(|secret, _| secret.certificate.clear()),
        PluggedError::Certificate("ca-cert.pem")
    ));
    let leaf = below(&ours, "leaf", IsCa::ExplicitNoCa, EC);
    assert!(matches!(
        Secret::of(&leaf, &[], &ours).refused(),
        PluggedError::NotCa
    ));
}

#[tokio::test]
async fn a_mesh_moves_from_its_own_root_to_a_plugged_one() {
    tls::install_provider();
    let state = Authority::first_state(&config(), SystemTime::now()).unwrap();
    let own = Material::State {
        place: "Secret karst-system/karst-ca",
        json: &state,
    };
    let authority = Authority::from_material(config(), &own).unwrap();
    let before = credential(&authority, "before");
    let root = root("root", EC);
    let secret = Secret::of(&below(&root, "one", CA, EC), &[], &root);
    let plugged = Material::Plugged {
        ca: secret.plugged(),
        former: Some(("Secret karst-system/karst-ca", &state)),
    };
    assert!(authority.adopt(&plugged).unwrap());
    assert!(!authority.adopt(&plugged).unwrap(), "nothing is new");
    let after = credential(&authority, "after");
    assert!(authority.root_pem().matches("BEGIN CERTIFICATE").count() == 2);
    assert!(
        !shake_hands(&before, &after).await,
        "it has not heard of the new root"
    );
    let mut broken = Secret::of(&root, &[], &root);
    broken.key.clear();
    assert!(authority.adopt(&broken.material()).is_err());
    assert!(shake_hands(&after, &credential(&authority, "still")).await);
}

#[test]
fn two_replicas_agree_on_a_rotation_that_one_of_them_takes() {
    tls::install_provider();
    let now = SystemTime::now();
    let place = "Secret karst-system/karst-ca";
    let state = Authority::first_state(&config(), now).unwrap();
    let material = |json| Material::State { place, json };
    let one = Authority::from_material(config(), &material(&state)).unwrap();
    let other = Authority::from_material(config(), &material(&state)).unwrap();
    let next = one
        .next_state(karst_ca::rotation::Step::Announce, now)
        .unwrap();
    assert_eq!(
        one.root_pem(),
        other.root_pem(),
        "nothing holds before it is kept"
    );
    assert!(one.adopt(&material(&next)).unwrap() && other.adopt(&material(&next)).unwrap());
    assert_eq!(one.root_pem(), other.root_pem());
    assert_eq!(one.root_fingerprint(), other.root_fingerprint());
    assert_eq!(one.root_pem().matches("BEGIN CERTIFICATE").count(), 2);
}
