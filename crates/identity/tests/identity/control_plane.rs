//! The connection between an agent and the controller: by bundle, by pinned root, and by nobody else.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use karst_identity::{
    TrustBundle,
    bundle::fingerprint,
    tls::{self, ConnectError, Connector, ControlPlaneTrust, ServingCertificate},
};
use karst_runtime::supervise::Shutdown;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::mint::Ca;

struct Controller {
    root: TrustBundle,
    address: String,
    shutdown: Shutdown,
}

/// A server that answers each connection with one byte, under a root of its own.
async fn controller(names: &[&str]) -> Controller {
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = leaf
        .signed_by(&key, &Issuer::new(params, root_key))
        .unwrap();
    let serving =
        ServingCertificate::new(&(leaf.pem() + &root.pem()), &key.serialize_pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!(
        "https://127.0.0.1:{}",
        listener.local_addr().unwrap().port()
    );
    let shutdown = Shutdown::new();
    let mut incoming = tls::incoming(
        listener,
        tls::control_plane_server_config(serving),
        &shutdown,
    );
    karst_runtime::supervise::spawn_connection("test controller", async move {
        while let Some(Ok(mut tls)) = incoming.next().await {
            tls.write_all(b"!").await.unwrap();
            tls.shutdown().await.unwrap();
        }
    });
    Controller {
        root: TrustBundle::from_pem(&root.pem()).unwrap(),
        address,
        shutdown,
    }
}

async fn dial(address: &str, trust: ControlPlaneTrust) -> Result<u8, ConnectError> {
    let connector = Connector::new(tls::control_plane_client_config(&trust).unwrap());
    let mut tls = connector.connect(address.parse().unwrap()).await?;
    Ok(tls.read_u8().await.unwrap())
}

#[tokio::test]
async fn the_controller_is_known_by_its_bundle_or_its_pinned_root() {
    let it = controller(&["127.0.0.1"]).await;
    let pin = fingerprint(&it.root.roots()[0]);
    assert_eq!(
        dial(&it.address, ControlPlaneTrust::Bundle(it.root.clone()))
            .await
            .unwrap(),
        b'!'
    );
    assert_eq!(
        dial(&it.address, ControlPlaneTrust::PinnedRoot(pin))
            .await
            .unwrap(),
        b'!'
    );
    it.shutdown.cancel();
}

#[tokio::test]
async fn anybody_else_is_refused() {
    let (it, stranger) = (controller(&["127.0.0.1"]).await, Ca::root("stranger"));
    for trust in [
        ControlPlaneTrust::Bundle(Ca::bundle(&[&stranger])),
        ControlPlaneTrust::PinnedRoot([7; 32]),
    ] {
        assert!(matches!(
            dial(&it.address, trust).await,
            Err(ConnectError::Tls { .. })
        ));
    }
    it.shutdown.cancel();
}

#[tokio::test]
async fn the_dialled_name_must_stand_in_the_certificate() {
    let it = controller(&["karst-controller.karst-system.svc"]).await;
    let pin = fingerprint(&it.root.roots()[0]);
    for trust in [
        ControlPlaneTrust::Bundle(it.root.clone()),
        ControlPlaneTrust::PinnedRoot(pin),
    ] {
        assert!(matches!(
            dial(&it.address, trust.clone()).await,
            Err(ConnectError::Tls { .. })
        ));
        let named = Connector::new(tls::control_plane_client_config(&trust).unwrap())
            .with_server_name("karst-controller.karst-system.svc".try_into().unwrap());
        named.connect(it.address.parse().unwrap()).await.unwrap();
    }
    it.shutdown.cancel();
}

#[tokio::test]
async fn a_silent_caller_delays_nobody() {
    let it = controller(&["127.0.0.1"]).await;
    let port = it.address.rsplit(':').next().unwrap();
    let _silent = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}"))
        .await
        .unwrap();
    let answered = dial(&it.address, ControlPlaneTrust::Bundle(it.root.clone()));
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(5), answered)
            .await
            .unwrap()
            .unwrap(),
        b'!'
    );
    it.shutdown.cancel();
}

#[test]
fn a_broken_renewal_keeps_the_serving_certificate() {
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::new(vec!["a.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap()
        .pem();
    let serving = ServingCertificate::new(&pem, &key.serialize_pem()).unwrap();
    assert!(serving.replace("broken", &key.serialize_pem()).is_err());
    assert!(
        serving
            .replace(&pem, &KeyPair::generate().unwrap().serialize_pem())
            .is_err()
    );
    assert_eq!(Arc::strong_count(&serving), 1);
}
