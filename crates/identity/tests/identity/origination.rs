//! TLS to servers that are no members of the mesh: whom it believes, and what it says when it does not.

use std::{error::Error as _, sync::Arc, time::Duration};

use karst_identity::tls::{HandshakeError, Inside, Origination, OriginationError, provider};
use karst_model::traffic::{ClientCredential, San, Secret, TlsMode, TrustAnchors, UpstreamTls};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;

use crate::mint::{Ca, Leaf};

const PATIENCE: Duration = Duration::from_secs(20);
const URI: &str = "spiffe://elsewhere/server";

/// A server of `api.example.com` and of [`URI`], with serial number 7.
fn server(ca: &Ca, clients: Option<&Ca>) -> Arc<ServerConfig> {
    let (chain, key) = ca.issue_server(&["api.example.com"], URI, 7);
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap();
            roots.add(root).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn simple(ca: &Ca) -> UpstreamTls {
    UpstreamTls {
        anchors: TrustAnchors::Pem(ca.pem.as_str().into()),
        ..UpstreamTls::new(TlsMode::Simple)
    }
}

/// Shakes hands over a pipe; the protocol that was agreed on, or what went wrong with all its causes.
async fn shake(
    tls: &UpstreamTls,
    server: Arc<ServerConfig>,
    inside: Inside,
) -> Result<Option<Vec<u8>>, String> {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let origination =
        Origination::new(tls, "api.example.com", inside).map_err(|e| e.to_string())?;
    let accepting = TlsAcceptor::from(server).accept(theirs);
    let (connected, accepted) = tokio::join!(origination.connect(ours, PATIENCE), accepting);
    let connected = connected.map_err(|error| all(&error))?;
    accepted.map_err(|error| format!("the server: {error}"))?;
    Ok(connected.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
}

fn all(error: &HandshakeError) -> String {
    let source = error.source().map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

#[tokio::test]
async fn a_server_of_the_right_name_and_root_is_believed() {
    let ca = Ca::root("outside");
    let agreed = shake(&simple(&ca), server(&ca, None), Inside::Http2).await;
    assert_eq!(agreed, Ok(Some(b"h2".to_vec())));
    let agreed = shake(&simple(&ca), server(&ca, None), Inside::Http1).await;
    assert_eq!(agreed, Ok(Some(b"http/1.1".to_vec())));
    let agreed = shake(&simple(&ca), server(&ca, None), Inside::Bytes).await;
    assert_eq!(agreed, Ok(None), "nothing is offered for what nobody knows");
}

#[tokio::test]
async fn another_root_name_or_a_revoked_certificate_is_not() {
    let (ca, other) = (Ca::root("outside"), Ca::root("another"));
    let refused = async |tls: &UpstreamTls| {
        shake(tls, server(&ca, None), Inside::Bytes)
            .await
            .unwrap_err()
    };
    assert!(refused(&simple(&other)).await.contains("UnknownIssuer"));
    let mut named = simple(&ca);
    named.sni = Some("other.example.com".into());
    let why = refused(&named).await;
    assert!(
        why.contains("NotValidForName") && why.contains("other.example.com"),
        "{why}"
    );
    let mut revoked = simple(&ca);
    revoked.crl = Some(ca.revocations(&[7]).into());
    assert!(refused(&revoked).await.contains("Revoked"));
    revoked.crl = Some(ca.revocations(&[8]).into());
    let fine = shake(&revoked, server(&ca, None), Inside::Bytes).await;
    assert_eq!(fine, Ok(None), "another certificate was revoked");
}

#[tokio::test]
async fn of_several_names_one_is_enough_and_none_is_refused() {
    let ca = Ca::root("outside");
    let with = |sans: Vec<San>| UpstreamTls {
        sans,
        sni: Some("sent.example.com".into()),
        ..simple(&ca)
    };
    for sans in [
        vec![
            San::Any("nobody".into()),
            San::Any("api.example.com".into()),
        ],
        vec![San::Dns("api.example.com".into())],
        vec![San::Uri(URI.into())],
        vec![San::Any(URI.into())],
    ] {
        let shaken = shake(&with(sans.clone()), server(&ca, None), Inside::Bytes).await;
        assert_eq!(shaken, Ok(None), "{sans:?}");
    }
    for sans in [
        vec![San::Dns(URI.into())],
        vec![San::Uri("api.example.com".into())],
        vec![San::Any("sent.example.com".into())],
    ] {
        let why = shake(&with(sans), server(&ca, None), Inside::Bytes).await;
        let why = why.unwrap_err();
        assert!(
            why.contains("api.example.com"),
            "it says what is there: {why}"
        );
    }
}

#[tokio::test]
async fn whoever_skips_verification_believes_everybody() {
    let (ca, other) = (Ca::root("outside"), Ca::root("another"));
    let mut tls = simple(&other);
    tls.insecure = true;
    tls.sni = Some("other.example.com".into());
    assert_eq!(
        shake(&tls, server(&ca, None), Inside::Bytes).await,
        Ok(None)
    );
}

#[tokio::test]
async fn mutual_shows_a_certificate_of_its_own() {
    let (ca, clients) = (Ca::root("outside"), Ca::root("clients"));
    let why = shake(&simple(&ca), server(&ca, Some(&clients)), Inside::Bytes).await;
    assert!(why.unwrap_err().contains("the server"), "it asks for one");
    let (chain, key) = clients.issue(&Leaf::of("spiffe://mesh/client"));
    let mut mutual = simple(&ca);
    mutual.mode = TlsMode::Mutual;
    mutual.credential = Some(ClientCredential {
        name: "shop/client".into(),
        chain: chain.into(),
        key: Secret::new(&key.serialize_pem()),
    });
    let shaken = shake(&mutual, server(&ca, Some(&clients)), Inside::Bytes).await;
    assert_eq!(shaken, Ok(None));
}

#[test]
fn what_cannot_be_used_is_an_error_and_never_less_verification() {
    let made = |change: &dyn Fn(&mut UpstreamTls)| {
        let mut tls = UpstreamTls {
            anchors: TrustAnchors::Pem(Ca::root("outside").pem.into()),
            ..UpstreamTls::new(TlsMode::Simple)
        };
        change(&mut tls);
        Origination::new(&tls, "api.example.com", Inside::Bytes).err()
    };
    assert!(made(&|_| {}).is_none());
    assert!(matches!(
        made(&|tls| tls.anchors = TrustAnchors::Pem("no certificate".into())),
        Some(OriginationError::NoRoots)
    ));
    assert!(matches!(
        made(&|tls| tls.broken = Some("no Secret is read".into())),
        Some(OriginationError::Broken(_))
    ));
    assert!(matches!(
        made(&|tls| tls.crl = Some("no list".into())),
        Some(OriginationError::Crl(_))
    ));
    assert!(matches!(
        made(&|tls| tls.mode = TlsMode::Mutual),
        Some(OriginationError::NoCredential)
    ));
    assert!(matches!(
        made(&|tls| tls.sni = Some("not a name".into())),
        Some(OriginationError::Name(_))
    ));
}
