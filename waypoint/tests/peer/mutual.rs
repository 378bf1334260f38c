//! TLS with a certificate of the user's own, to a server outside of the mesh that demands one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use karst_discovery::Update;
use karst_identity::tls::provider;
use karst_model::{
    name::ServiceKey,
    protocol::{AppProtocol, TunnelProtocol},
    traffic::{
        ClientCredential, Scope, Secret, ServiceTraffic, TlsMode, TrafficPolicy, TrustAnchors,
        UpstreamTls,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    client::{Client, status},
    rig::{World, fresh_ip, key, local},
};

const SERVER: &str = "api.example.com";

/// Who signs.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let params = || {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let key = KeyPair::generate().unwrap();
        Self {
            pem: params().self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params(), key),
        }
    }

    /// Certificate and key, PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// What a Secret with a certificate of this name makes of the settings.
fn mutual(server: &Ca, clients: &Ca, name: &str) -> UpstreamTls {
    let (chain, key) = clients.issue(name);
    UpstreamTls {
        sni: Some(SERVER.into()),
        anchors: TrustAnchors::Pem(server.pem.as_str().into()),
        credential: Some(ClientCredential {
            name: "shop/web-client".into(),
            chain: chain.into(),
            key: Secret::new(&key),
        }),
        ..UpstreamTls::new(TlsMode::Mutual)
    }
}

/// A server that takes clients of one CA, and answers with the name in the certificate that the connection was made with.
async fn server(world: &World, own: &Ca, clients: &Ca, names: &'static [&'static str]) {
    let (chain, secret) = own.issue(SERVER);
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(secret.as_bytes()).unwrap(),
        )
        .unwrap();
    let ip = fresh_ip();
    let listener = TcpListener::bind((ip, 8080)).await.unwrap();
    let config = Arc::new(config);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(converse(stream, config.clone(), names));
        }
    });
    world.add_workload("web", "outside", ip, TunnelProtocol::None);
}

async fn converse(stream: TcpStream, config: Arc<ServerConfig>, names: &[&str]) {
    let Ok(mut io) = TlsAcceptor::from(config).accept(stream).await else {
        return;
    };
    let shown = io.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let has = |name: &str| shown.windows(name.len()).any(|at| at == name.as_bytes());
    let name = names.iter().find(|name| has(name)).unwrap();
    answer_all(&mut io, name).await;
}

/// Answers every request with this text, until the client ends.
pub(crate) async fn answer_all(io: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &str) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match io.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(read) => got.extend_from_slice(&chunk[..read]),
        }
        if got.ends_with(b"\r\n\r\n") {
            got.clear();
            if io.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Settings of TLS for all of a service.
pub(crate) fn policy_of(world: &World, service: ServiceKey, tls: UpstreamTls) {
    let scope = Scope {
        policy: TrafficPolicy {
            tls: Some(tls),
            ..TrafficPolicy::default()
        },
        ..Scope::default()
    };
    let traffic = ServiceTraffic {
        service,
        scopes: vec![scope],
        subsets: Vec::new(),
        sources: Vec::new(),
    };
    world
        .state
        .apply([Update::ServiceTraffic(Arc::new(traffic))]);
}

fn policy(world: &World, tls: UpstreamTls) {
    policy_of(world, key("web"), tls);
}

async fn get(client: &Client, vip: SocketAddr) -> String {
    client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await
}

/// Until an answer ends with this; then twenty more do.
async fn settles(client: &Client, vip: SocketAddr, expected: &str) {
    while !get(client, vip).await.ends_with(expected) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..20 {
        let answer = get(client, vip).await;
        assert!(answer.ends_with(expected), "{answer}");
    }
}

/// Until nobody is served; then nobody is.
async fn refuses(client: &Client, vip: SocketAddr) -> String {
    while status(&get(client, vip).await) == "200" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut last = String::new();
    for _ in 0..20 {
        last = get(client, vip).await;
        assert!(status(&last).starts_with('5'), "{last}");
    }
    last
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_gets_the_one_of_the_secret_and_its_successor() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let (own, clients, others) = (Ca::new("outside"), Ca::new("clients"), Ca::new("others"));
        server(&world, &own, &clients, &["first.client", "second.client"]).await;
        let client = Client::new(&world);
        policy(&world, mutual(&own, &clients, "first.client"));
        settles(&client, vip, "first.client").await;
        // The Secret changes: connections that were made with the former certificate are not used any more.
        policy(&world, mutual(&own, &clients, "second.client"));
        settles(&client, vip, "second.client").await;
        // One of a CA that the server does not know, and none at all.
        policy(&world, mutual(&own, &others, "first.client"));
        refuses(&client, vip).await;
        let mut none = mutual(&own, &clients, "first.client");
        none.mode = TlsMode::Simple;
        policy(&world, none);
        refuses(&client, vip).await;
        policy(&world, mutual(&own, &clients, "second.client"));
        settles(&client, vip, "second.client").await;
        // The Secret goes: nothing goes out, on kept connections neither.
        let mut gone = mutual(&own, &clients, "second.client");
        gone.credential = None;
        gone.broken = Some("Secret shop/web-client is not there: connections fail".into());
        policy(&world, gone);
        let answer = refuses(&client, vip).await;
        assert!(
            answer.contains("Secret shop/web-client is not there"),
            "{answer}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_makes_no_connection_and_is_not_shown() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let (own, clients) = (Ca::new("outside"), Ca::new("clients"));
        server(&world, &own, &clients, &["first.client"]).await;
        let mut torn = mutual(&own, &clients, "first.client");
        let (_, other) = clients.issue("second.client");
        torn.credential.as_mut().unwrap().key = Secret::new(&other);
        policy(&world, torn);
        let answer = refuses(&Client::new(&world), vip).await;
        assert!(answer.contains("shop/web-client"), "{answer}");
        assert!(!answer.contains("PRIVATE"), "{answer}");
    })
    .await;
}
