//! The served port as a client sees it that knows nothing but Istio's names and numbers: every message here is written
//! by hand, none is ours.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::HashMap, fs, net::SocketAddr, path::Path, time::Duration};

use clap::Parser as _;
use http::uri::PathAndQuery;
use karst_ca::{Authority, AuthorityConfig, Tokens, token::AgentAccount};
use karst_controller::{app, config::Cli};
use karst_identity::{
    clock::Clock,
    tls::{self, Connector, ControlPlaneTrust, control_plane_client_config},
};
use karst_model::identity::TrustDomain;
use karst_runtime::supervise::Shutdown;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};

#[derive(Clone, PartialEq, Message)]
struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, repeated, tag = "3")]
    subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    unsubscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    initial: HashMap<String, String>,
    #[prost(string, tag = "6")]
    nonce: String,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(string, repeated, tag = "6")]
    removed: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, optional, tag = "2")]
    resource: Option<Any>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    aliases: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct TrustDomains {
    #[prost(string, tag = "1")]
    own: String,
    #[prost(string, repeated, tag = "2")]
    aliases: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    workload: Option<Workload>,
    #[prost(message, optional, tag = "2")]
    service: Option<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Workload {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    addresses: Vec<Vec<u8>>,
    #[prost(int32, tag = "5")]
    tunnel_protocol: i32,
    #[prost(string, tag = "7")]
    service_account: String,
    #[prost(string, tag = "20")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    hostname: String,
    #[prost(bool, tag = "11")]
    canonical: bool,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<prost_types::Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Karst's own join, also by number.
#[derive(Clone, PartialEq, Message)]
struct Join {
    #[prost(string, tag = "1")]
    token: String,
    #[prost(string, tag = "2")]
    node: String,
}

#[derive(Clone, PartialEq, Message)]
struct Joined {
    #[prost(string, tag = "1")]
    node_token: String,
    #[prost(string, tag = "3")]
    roots: String,
}

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const TRUST_DOMAINS: &str = "type.googleapis.com/karst.v1.TrustDomains";
const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

const FILES: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: orders-0, namespace: shop, uid: u-1, labels: {app: orders}}
spec: {nodeName: n1, serviceAccountName: orders, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// A running controller.
struct Controller {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    roots: ControlPlaneTrust,
    shutdown: Shutdown,
}

/// Two different ones.
fn free_ports() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.each_ref().map(|port| port.local_addr().unwrap())
}

impl Controller {
    async fn start() -> Self {
        tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        fs::write(dir.path().join("files/shop.yaml"), FILES).unwrap();
        let state = dir.path().join("state");
        let authority = authority(&state);
        let ([addr, admin], shutdown) = (free_ports(), Shutdown::new());
        let flag = |path: &Path| path.display().to_string();
        let files = dir.path().join("files");
        let cli = Cli::parse_from([
            "karst-controller",
            "--files",
            &flag(&files),
            "--state-dir",
            &flag(&state),
            "--listen",
            &addr.to_string(),
            "--admin",
            &admin.to_string(),
            "--drain-seconds",
            "1",
        ]);
        let run = Box::pin(app::serve(cli.config, shutdown.clone()));
        karst_runtime::supervise::spawn_connection("controller", async move { run.await.unwrap() });
        let controller = Self {
            dir,
            addr,
            roots: ControlPlaneTrust::Bundle(authority.bundle()),
            shutdown,
        };
        controller.wait_until_it_answers().await;
        controller
    }

    async fn wait_until_it_answers(&self) {
        let mut last = None;
        let answers = async {
            while let Err(error) = self.try_channel().await {
                last = Some(error);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(20), answers).await;
        assert!(answered.is_ok(), "the controller does not answer: {last:?}");
    }

    /// The connector speaks TLS whatever the scheme; tonic itself refuses `https` with a connector of others.
    async fn try_channel(&self) -> Result<Channel, tonic::transport::Error> {
        let connector = Connector::new(control_plane_client_config(&self.roots).unwrap());
        Endpoint::from_shared(format!("http://{}", self.addr))
            .unwrap()
            .connect_with_connector(connector)
            .await
    }

    async fn grpc(&self) -> Grpc<Channel> {
        let mut grpc = Grpc::new(self.try_channel().await.unwrap());
        grpc.ready().await.unwrap();
        grpc
    }

    async fn join(&self, token: &str, node: &str) -> Result<Joined, Status> {
        let request = Request::new(Join {
            token: token.into(),
            node: node.into(),
        });
        let path = PathAndQuery::from_static("/karst.v1.Enrollment/Join");
        let codec = tonic_prost::ProstCodec::<Join, Joined>::default();
        self.grpc()
            .await
            .unary(request, path, codec)
            .await
            .map(tonic::Response::into_inner)
    }

    fn join_token(&self, node: &str) -> String {
        let state = self.dir.path().join("state");
        let tokens = Tokens::load_or_create(&state, AgentAccount::default()).unwrap();
        let (root, now) = (authority(&state).root_fingerprint(), Clock::system().now());
        tokens
            .issue_join(node, root, Duration::from_secs(60), now)
            .unwrap()
    }

    async fn certificate(&self, bearer: &str, id: &str) -> Result<Vec<String>, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .pem()
            .unwrap();
        let id = prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(id.into())),
        };
        let metadata = prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), id)].into(),
        };
        let request = CertificateRequest {
            csr,
            validity_duration: 3600,
            metadata: Some(metadata),
        };
        let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = PathAndQuery::from_static(CREATE);
        let response = self
            .grpc()
            .await
            .unary(authorized(request, bearer), path, codec)
            .await?;
        Ok(response.into_inner().cert_chain)
    }

    async fn stream(&self, bearer: &str) -> Result<Stream, Status> {
        let (tx, rx) = mpsc::channel(16);
        let codec = tonic_prost::ProstCodec::<DeltaRequest, DeltaResponse>::default();
        let request = authorized(ReceiverStream::new(rx), bearer);
        let rx = self
            .grpc()
            .await
            .streaming(request, PathAndQuery::from_static(ADS), codec)
            .await?
            .into_inner();
        Ok(Stream { tx, rx })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn authority(state: &Path) -> Authority {
    let config = AuthorityConfig::new(state, TrustDomain::default());
    Authority::load_or_create(config, Clock::system().now()).unwrap()
}

fn authorized<T>(message: T, bearer: &str) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    request
}

struct Stream {
    tx: mpsc::Sender<DeltaRequest>,
    rx: Streaming<DeltaResponse>,
}

impl Stream {
    async fn send(&self, request: DeltaRequest) {
        self.tx.send(request).await.unwrap();
    }

    async fn subscribe(&self, type_url: &str, initial: HashMap<String, String>) {
        let node = Some(Node {
            id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".into(),
        });
        self.send(DeltaRequest {
            node,
            type_url: type_url.into(),
            initial,
            ..DeltaRequest::default()
        })
        .await;
    }

    async fn next(&mut self) -> DeltaResponse {
        let next = tokio::time::timeout(Duration::from_secs(20), self.rx.message());
        let response = next.await.expect("an answer in time").unwrap().unwrap();
        let ack = DeltaRequest {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            ..DeltaRequest::default()
        };
        self.send(ack).await;
        response
    }
}

fn address(resource: &Resource) -> Address {
    Address::decode(&*resource.resource.as_ref().unwrap().value).unwrap()
}

fn names(response: &DeltaResponse) -> Vec<&str> {
    let mut names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    names
}

const POD: &str = "Kubernetes//Pod/shop/orders-0";
const SERVICE: &str = "shop/orders.shop.svc.cluster.local";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_once_and_follows_the_mesh() {
    let controller = Controller::start().await;
    let token = controller.join_token("n1");
    let joined = controller.join(&token, "n1").await.unwrap();
    assert!(joined.roots.contains("BEGIN CERTIFICATE"));
    assert!(
        controller.join(&token, "n1").await.is_err(),
        "a join token works once"
    );
    let bearer = joined.node_token;

    let mut stream = controller.stream(&bearer).await.unwrap();
    stream.subscribe(AUTHORIZATION, HashMap::new()).await;
    stream.subscribe(ADDRESS, HashMap::new()).await;
    let policies = stream.next().await;
    assert_eq!(
        (policies.type_url.as_str(), policies.resources.len()),
        (AUTHORIZATION, 0),
        "an empty answer"
    );
    let addresses = stream.next().await;
    assert_eq!(names(&addresses), [POD, SERVICE]);
    let pod = addresses.resources.iter().find(|r| r.name == POD).unwrap();
    assert_eq!(
        (pod.aliases.as_slice(), pod.version.len()),
        (["/10.0.0.1".to_owned()].as_slice(), 16)
    );
    let workload = address(pod).workload.unwrap();
    assert_eq!(
        (workload.addresses, workload.service_account.as_str()),
        (vec![vec![10, 0, 0, 1]], "orders")
    );
    assert_eq!(workload.tunnel_protocol, 0, "not captured, so not HBONE");
    let service = address(
        addresses
            .resources
            .iter()
            .find(|r| r.name == SERVICE)
            .unwrap(),
    )
    .service
    .unwrap();
    assert!(service.canonical);

    let held: HashMap<_, _> = addresses
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    let mut again = controller.stream(&bearer).await.unwrap();
    let stale = HashMap::from([("gone".to_owned(), "1".to_owned())]);
    again
        .subscribe(ADDRESS, held.into_iter().chain(stale).collect())
        .await;
    let resync = again.next().await;
    assert_eq!(
        (resync.resources.len(), resync.removed.as_slice()),
        (0, ["gone".to_owned()].as_slice())
    );

    let edited = FILES.replace("10.0.0.1", "10.0.0.2");
    fs::write(controller.dir.path().join("files/shop.yaml"), edited).unwrap();
    assert_eq!(names(&again.next().await), [POD], "only what changed");
    assert_eq!(names(&stream.next().await), [POD]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_demand_lookups_answer_also_with_no() {
    let controller = Controller::start().await;
    let bearer = controller
        .join(&controller.join_token("n1"), "n1")
        .await
        .unwrap()
        .node_token;
    let mut stream = controller.stream(&bearer).await.unwrap();
    let star = || vec!["*".to_owned()];
    let ask = |subscribe: Vec<String>, unsubscribe| DeltaRequest {
        type_url: ADDRESS.into(),
        subscribe,
        unsubscribe,
        ..DeltaRequest::default()
    };
    stream.send(ask(star(), star())).await;
    assert!(stream.next().await.resources.is_empty());
    stream
        .send(ask(
            vec!["/10.96.0.1".into(), "/10.9.9.9".into()],
            Vec::new(),
        ))
        .await;
    let answer = stream.next().await;
    assert_eq!(
        (names(&answer), answer.removed.as_slice()),
        (vec![POD, SERVICE], ["/10.9.9.9".to_owned()].as_slice())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_for_pods_of_the_callers_node() {
    let controller = Controller::start().await;
    let bearer = controller
        .join(&controller.join_token("n1"), "n1")
        .await
        .unwrap()
        .node_token;
    let chain = controller
        .certificate(&bearer, "spiffe://cluster.local/ns/shop/sa/orders")
        .await
        .unwrap();
    assert!(chain.len() >= 2 && chain.iter().all(|pem| pem.contains("BEGIN CERTIFICATE")));
    let elsewhere = controller
        .join(&controller.join_token("n2"), "n2")
        .await
        .unwrap()
        .node_token;
    for (bearer, id) in [
        (
            elsewhere.as_str(),
            "spiffe://cluster.local/ns/shop/sa/orders",
        ),
        (&bearer, "spiffe://cluster.local/ns/shop/sa/other"),
        (&bearer, "spiffe://other/ns/shop/sa/orders"),
        (&bearer, "garbage"),
        ("garbage", "spiffe://cluster.local/ns/shop/sa/orders"),
    ] {
        let refused = controller.certificate(bearer, id).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{id}");
        assert!(
            !refused.message().contains("node"),
            "nothing leaks: {}",
            refused.message()
        );
    }
    assert!(controller.stream("garbage").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_trust_domain_is_told_and_signed_and_the_one_before_stays() {
    let controller = Controller::start().await;
    let token = controller.join_token("n1");
    let bearer = controller.join(&token, "n1").await.unwrap().node_token;
    let renamed = "spiffe://new.example/ns/shop/sa/orders";
    assert!(controller.certificate(&bearer, renamed).await.is_err());
    let mut stream = controller.stream(&bearer).await.unwrap();
    stream.subscribe(TRUST_DOMAINS, HashMap::new()).await;
    assert!(
        stream.next().await.resources.is_empty(),
        "what agents know already"
    );

    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: new.example\n    trustDomainAliases: [old.example]\n";
    let file = controller.dir.path().join("files/mesh.yaml");
    fs::write(&file, mesh).unwrap();
    let told = stream.next().await;
    assert_eq!(names(&told), ["mesh"]);
    let value = &told.resources[0].resource.as_ref().unwrap().value;
    let domains = TrustDomains::decode(&**value).unwrap();
    assert_eq!(domains.own, "new.example");
    assert_eq!(domains.aliases, ["old.example", "cluster.local"]);
    for id in [
        renamed,
        "spiffe://old.example/ns/shop/sa/orders",
        "spiffe://cluster.local/ns/shop/sa/orders",
    ] {
        assert!(controller.certificate(&bearer, id).await.is_ok(), "{id}");
    }
    let other = "spiffe://new.example/ns/shop/sa/other";
    assert!(controller.certificate(&bearer, other).await.is_err());

    // What cannot be read takes nothing away; the next that can is told.
    fs::write(&file, mesh.replace("trustDomain: new", "trustDomain: [new")).unwrap();
    assert!(controller.certificate(&bearer, renamed).await.is_ok());
    fs::remove_file(&file).unwrap();
    let told = stream.next().await;
    let value = &told.resources[0].resource.as_ref().unwrap().value;
    let domains = TrustDomains::decode(&**value).unwrap();
    assert_eq!(domains.own, "cluster.local");
    assert_eq!(
        domains.aliases,
        ["new.example"],
        "certificates are out there"
    );
}
