//! Handshakes over an in-memory pipe: whom each side believes, and what it says when it does not.

use std::{io, sync::Arc, time::SystemTime};

use karst_identity::{PeerCertError, peer_cert_error, peer_id, tls};
use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::mint::{Ca, HOUR, Leaf, shifted_clock};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/orders";

type Ended = (
    io::Result<client::TlsStream<DuplexStream>>,
    io::Result<server::TlsStream<DuplexStream>>,
);

/// Both ends, and one byte each way, since a client learns of a refused certificate only by reading.
async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ended {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = async {
        let mut tls = TlsConnector::from(client)
            .connect(tls::mesh_server_name(), near)
            .await?;
        tls.write_all(b"?").await?;
        tls.read_exact(&mut [0]).await?;
        Ok(tls)
    };
    let accept = async {
        let mut tls = TlsAcceptor::from(server).accept(far).await?;
        tls.read_exact(&mut [0]).await?;
        tls.write_all(b"!").await?;
        Ok(tls)
    };
    tokio::join!(connect, accept)
}

fn accepted(ids: &[&str]) -> Vec<SpiffeId> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

#[tokio::test]
async fn mtls_between_two_members() {
    let ca = Ca::root("root");
    let (web, orders) = (ca.credential(CLIENT, &[&ca]), ca.credential(SERVER, &[&ca]));
    for _ in 0..2 {
        let ended = handshake(
            web.client_config(&accepted(&[SERVER])),
            orders.server_config(),
        )
        .await;
        let (client, server) = (ended.0.unwrap(), ended.1.unwrap());
        let seen = server.get_ref().1;
        assert_eq!(
            peer_id(seen.peer_certificates().unwrap())
                .unwrap()
                .to_string(),
            CLIENT
        );
        assert_eq!(
            peer_id(client.get_ref().1.peer_certificates().unwrap())
                .unwrap()
                .to_string(),
            SERVER
        );
        assert_eq!(seen.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(
            seen.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        assert_eq!(seen.server_name(), None, "no SNI");
        assert_eq!(
            seen.negotiated_key_exchange_group().unwrap().name(),
            NamedGroup::X25519MLKEM768
        );
        let suite = seen.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(
            seen.handshake_kind(),
            Some(rustls::HandshakeKind::Full),
            "never resumed"
        );
    }
}

#[tokio::test]
async fn members_meet_by_every_name_of_their_trust_domain() {
    const RENAMED: &str = "spiffe://new.example/ns/shop/sa/orders";
    let ca = Ca::root("root");
    let trust = Arc::new(TrustDomains {
        own: TrustDomain("new.example".into()),
        aliases: vec![TrustDomain::default()],
    });
    let (web, orders) = (
        ca.credential(CLIENT, &[&ca]),
        ca.credential(RENAMED, &[&ca]),
    );
    let (told, untold) = (web.with_trust(trust.clone()), web);
    let server = orders.with_trust(trust).server_config();
    // The workload is known by its old name, and its certificate has the new one.
    let ended = handshake(told.client_config(&accepted(&[SERVER])), server.clone()).await;
    assert!(ended.0.is_ok() && ended.1.is_ok());
    // Another account is another account.
    let others = accepted(&["spiffe://cluster.local/ns/shop/sa/carts"]);
    let ended = handshake(told.client_config(&others), server.clone()).await;
    assert_eq!(refusal(ended.0, "carts").reason(), "unexpected_identity");
    // Who has not heard of the new name does not believe it.
    let ended = handshake(untold.client_config(&accepted(&[SERVER])), server).await;
    assert_eq!(refusal(ended.0, "untold").reason(), "unexpected_identity");
}

#[tokio::test]
async fn configurations_are_made_once() {
    let ca = Ca::root("root");
    let web = ca.credential(CLIENT, &[&ca]);
    assert!(Arc::ptr_eq(&web.server_config(), &web.server_config()));
    let ids = accepted(&[SERVER]);
    assert!(Arc::ptr_eq(
        &web.client_config(&ids),
        &web.client_config(&ids)
    ));
    assert!(!Arc::ptr_eq(
        &web.client_config(&ids),
        &web.client_config(&[])
    ));
}

#[tokio::test]
async fn a_peer_without_the_hybrid_key_exchange_is_accepted() {
    let ca = Ca::root("root");
    let orders = ca.credential(SERVER, &[&ca]);
    let classic = CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::SECP256R1],
        ..CryptoProvider::clone(&tls::provider())
    };
    let (pem, key) = ca.issue(&Leaf::of(CLIENT));
    let (client, server) = handshake(
        raw_client(classic, Some((&pem, &key))),
        orders.server_config(),
    )
    .await;
    client.unwrap();
    let group = server
        .unwrap()
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .unwrap()
        .name();
    assert_eq!(group, NamedGroup::secp256r1);
}

struct Case {
    name: &'static str,
    leaf: Leaf,
    own_root: bool,
    /// Reason that a server gives for such a client, and a client for such a server.
    server: &'static str,
    client: &'static str,
    /// What both texts must hold: who, and what to do.
    says: &'static str,
}

fn cases(peer: &str) -> Vec<Case> {
    let good = || Leaf::of(peer);
    let now = SystemTime::now();
    let case = |name, leaf, reason, says| Case {
        name,
        leaf,
        own_root: true,
        server: reason,
        client: reason,
        says,
    };
    let uris = |uris: &[&str]| Leaf {
        uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        ..good()
    };
    vec![
        case(
            "expired",
            Leaf {
                not_after: now - HOUR / 20,
                ..good()
            },
            "expired",
            "expired 3m ago",
        ),
        case(
            "early",
            Leaf {
                not_before: now + HOUR / 2,
                ..good()
            },
            "not_yet_valid",
            "compare the clocks",
        ),
        case("no uri", uris(&[]), "no_uri", "holds no URI name"),
        case(
            "two uris",
            uris(&[peer, "spiffe://cluster.local/ns/a/sa/b"]),
            "many_uris",
            "exactly one",
        ),
        case(
            "twice the same",
            uris(&[peer, peer]),
            "many_uris",
            "exactly one",
        ),
        case(
            "no workload",
            uris(&["spiffe://cluster.local/vm/7"]),
            "not_spiffe",
            "ns/<namespace>",
        ),
        Case {
            own_root: false,
            ..case("stranger", good(), "unknown_root", "none of our 1 roots")
        },
        Case {
            server: "trust_domain",
            client: "unexpected_identity",
            ..case(
                "other domain",
                uris(&["spiffe://other.org/ns/shop/sa/x"]),
                "",
                "spiffe://other.org/ns/shop/sa/x",
            )
        },
    ]
}

fn refusal<T>(ended: io::Result<T>, name: &str) -> PeerCertError {
    let Err(error) = ended else {
        panic!("{name} was accepted")
    };
    peer_cert_error(&error)
        .unwrap_or_else(|| panic!("{name}: {error}"))
        .clone()
}

fn check_refusal(refusal: &PeerCertError, reason: &str, case: &Case) {
    assert_eq!(refusal.reason(), reason, "{}: {refusal}", case.name);
    assert!(
        refusal.to_string().contains(case.says),
        "{}: {refusal}",
        case.name
    );
}

#[tokio::test]
async fn a_server_refuses_each_bad_client_with_its_reason() {
    // The stranger's root has the same name: only the key tells it apart.
    let (ca, stranger) = (Ca::root("root"), Ca::root("root"));
    let orders = ca.credential(SERVER, &[&ca]);
    for case in cases(CLIENT) {
        let (pem, key) = if case.own_root { &ca } else { &stranger }.issue(&case.leaf);
        let client = raw_client(CryptoProvider::clone(&tls::provider()), Some((&pem, &key)));
        let (client, server) = handshake(client, orders.server_config()).await;
        check_refusal(&refusal(server.map(drop), case.name), case.server, &case);
        assert!(client.is_err(), "{}", case.name);
    }
}

#[tokio::test]
async fn a_client_refuses_each_bad_server_with_its_reason() {
    let (ca, stranger) = (Ca::root("root"), Ca::root("root"));
    let web = ca.credential(CLIENT, &[&ca]);
    for case in cases(SERVER) {
        let (pem, key) = if case.own_root { &ca } else { &stranger }.issue(&case.leaf);
        let (client, server) = handshake(
            web.client_config(&accepted(&[SERVER])),
            raw_server(&pem, &key),
        )
        .await;
        check_refusal(&refusal(client.map(drop), case.name), case.client, &case);
        assert!(server.is_err(), "{}", case.name);
    }
}

#[tokio::test]
async fn usage_is_checked_on_both_sides() {
    let ca = Ca::root("root");
    let (web, orders) = (ca.credential(CLIENT, &[&ca]), ca.credential(SERVER, &[&ca]));
    let only = |usage: &[ExtendedKeyUsagePurpose], id| {
        ca.issue(&Leaf {
            usages: usage.to_vec(),
            ..Leaf::of(id)
        })
    };
    for usage in [&[][..], &[ExtendedKeyUsagePurpose::ServerAuth]] {
        let (pem, key) = only(usage, CLIENT);
        let client = raw_client(CryptoProvider::clone(&tls::provider()), Some((&pem, &key)));
        let (_, server) = handshake(client, orders.server_config()).await;
        assert_eq!(
            refusal(server.map(drop), "client usage").reason(),
            "wrong_usage"
        );
    }
    for usage in [&[][..], &[ExtendedKeyUsagePurpose::ClientAuth]] {
        let (pem, key) = only(usage, SERVER);
        let (client, _) = handshake(
            web.client_config(&accepted(&[SERVER])),
            raw_server(&pem, &key),
        )
        .await;
        assert_eq!(
            refusal(client.map(drop), "server usage").reason(),
            "wrong_usage"
        );
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::root("root");
    let client = raw_client(CryptoProvider::clone(&tls::provider()), None);
    let (client, server) = handshake(client, ca.credential(SERVER, &[&ca]).server_config()).await;
    assert_eq!(
        refusal(server.map(drop), "anonymous").reason(),
        "no_certificate"
    );
    assert!(client.is_err());
}

#[tokio::test]
async fn another_identity_behind_the_address_is_refused() {
    let ca = Ca::root("root");
    let (web, orders) = (ca.credential(CLIENT, &[&ca]), ca.credential(SERVER, &[&ca]));
    for expected in [&[][..], &["spiffe://cluster.local/ns/shop/sa/cart"]] {
        let (client, _) = handshake(
            web.client_config(&accepted(expected)),
            orders.server_config(),
        )
        .await;
        let refusal = refusal(client.map(drop), "unexpected");
        assert_eq!(refusal.reason(), "unexpected_identity");
        assert!(refusal.to_string().contains(SERVER), "{refusal}");
    }
}

#[tokio::test]
async fn clocks_five_minutes_off_do_not_matter() {
    let ca = Ca::root("root");
    for (ours, theirs) in [(300, -300), (-300, 300), (-300, 0), (0, 300)] {
        let web = ca.credential_at(CLIENT, &[&ca], shifted_clock(ours).0);
        let orders = ca.credential_at(SERVER, &[&ca], shifted_clock(theirs).0);
        let (client, server) = handshake(
            web.client_config(&accepted(&[SERVER])),
            orders.server_config(),
        )
        .await;
        client.unwrap();
        server.unwrap();
    }
}

#[tokio::test]
async fn a_chain_over_an_intermediate_is_accepted() {
    let root = Ca::root("root");
    let middle = root.intermediate("middle");
    let (pem, key) = middle.issue(&Leaf::of(CLIENT));
    let orders = root.credential(SERVER, &[&root]);
    let chain = pem + &middle.pem;
    let client = raw_client(
        CryptoProvider::clone(&tls::provider()),
        Some((&chain, &key)),
    );
    let (client, server) = handshake(client, orders.server_config()).await;
    client.unwrap();
    server.unwrap();
}

/// Every state that two nodes can be in at the same time, while a root is replaced in two phases.
#[tokio::test]
async fn two_roots_rotate_without_a_failed_handshake() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let begin = || |id: &str| old.credential(id, &[&old]);
    let announced = |id: &str| old.credential(id, &[&old, &new]);
    let switched = |id: &str| new.credential(id, &[&new, &old]);
    let retired = |id: &str| new.credential(id, &[&new]);
    let phases: [&dyn Fn(&str) -> karst_identity::Credential; 4] =
        [&begin(), &announced, &switched, &retired];
    for pair in phases.windows(2) {
        for (ours, theirs) in [
            (pair[0], pair[1]),
            (pair[1], pair[0]),
            (pair[0], pair[0]),
            (pair[1], pair[1]),
        ] {
            let (web, orders) = (ours(CLIENT), theirs(SERVER));
            let (client, server) = handshake(
                web.client_config(&accepted(&[SERVER])),
                orders.server_config(),
            )
            .await;
            client.unwrap();
            server.unwrap();
        }
    }
    // And a jump over the phases does fail: the phases are what makes it safe.
    let (client, _) = handshake(
        begin()(CLIENT).client_config(&accepted(&[SERVER])),
        retired(SERVER).server_config(),
    )
    .await;
    assert_eq!(refusal(client.map(drop), "jump").reason(), "unknown_root");
}

#[tokio::test]
async fn a_live_connection_outlives_a_change_of_roots() {
    let (old, new) = (Ca::root("old"), Ca::root("new"));
    let (web, orders) = (
        old.credential(CLIENT, &[&old]),
        old.credential(SERVER, &[&old]),
    );
    let ended = handshake(
        web.client_config(&accepted(&[SERVER])),
        orders.server_config(),
    )
    .await;
    let (mut client, mut server) = (ended.0.unwrap(), ended.1.unwrap());
    let orders = orders.with_bundle(Arc::new(Ca::bundle(&[&new])));
    client.write_all(b"still here").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 10];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");
    let (_, refused) = handshake(
        web.client_config(&accepted(&[SERVER])),
        orders.server_config(),
    )
    .await;
    assert_eq!(
        refusal(refused.map(drop), "old root").reason(),
        "unknown_root"
    );
}

fn certs(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(key.serialize_der()).unwrap()
}

/// A client that shows whatever it is given and believes every server.
fn raw_client(provider: CryptoProvider, shown: Option<(&str, &KeyPair)>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAll));
    let mut config = match shown {
        Some((pem, key)) => builder
            .with_client_auth_cert(certs(pem), key_der(key))
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A server that shows whatever it is given and asks clients for nothing.
fn raw_server(pem: &str, key: &KeyPair) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs(pem), key_der(key))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct BelieveAll;

impl ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
