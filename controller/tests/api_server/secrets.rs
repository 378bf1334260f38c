//! Secrets that DestinationRules name: asked for by name only, followed through what may happen to them, and waited for
//! before the first configuration is told.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use karst_controller::{
    cluster::connect,
    credentials::{CredentialMetrics, Keeper},
    mesh::Command,
};
use karst_identity::tls;
use karst_index::{Event, IndexConfig, ReadSecret, SecretName};
use karst_k8s_api::{Kind, Object};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::server::{Act, ApiServer};

const PLURAL: &str = "secrets";
const PATH: &str = "/api/v1/namespaces/shop/secrets/web-client";
const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate that signs itself, and its key.
fn pair() -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["client.example".to_owned()]).unwrap();
    [made.cert.pem(), made.signing_key.serialize_pem()]
}

fn secret([chain, key]: [&str; 2]) -> Value {
    let [chain, key] = [chain, key].map(|text| STANDARD.encode(text));
    json!({"type": "kubernetes.io/tls", "data": {"tls.crt": chain, "tls.key": key}})
}

fn name(name: &str) -> SecretName {
    SecretName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn forbidden() -> Act {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
        "code": 403, "message": "secrets is forbidden: User \"karst\" cannot list resource \"secrets\""});
    Act::Answer(403, "", status.to_string())
}

fn keeper(server: &ApiServer) -> Keeper {
    tls::install_provider();
    let address = format!("http://{}", server.address);
    let client = connect::client(kube::Config::new(address.parse().unwrap())).unwrap();
    Keeper::new(Some(client), CredentialMetrics::default())
}

fn read(event: Event) -> ReadSecret {
    match event {
        Event::Secret { read, .. } => read,
        other => panic!("{other:?}"),
    }
}

/// What is told next.
async fn next(told: &mut mpsc::Receiver<Command>) -> ReadSecret {
    let Ok(Some(Command::Objects(events))) = tokio::time::timeout(PATIENCE, told.recv()).await
    else {
        panic!("nothing was told");
    };
    let [event] = events.try_into().unwrap();
    read(event)
}

fn chain(read: &ReadSecret) -> Option<Arc<str>> {
    let (chain, _) = read.good.as_ref()?.pair.clone()?;
    Some(chain)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_asked_for_by_its_name_alone_and_followed() {
    let server = ApiServer::start().await;
    server.put(
        "/api/v1/namespaces/shop/secrets/of-others",
        secret(["x", "y"]),
    );
    server.script(1, forbidden(), |asked| asked.lists(PLURAL));
    let (wanted, wants) = watch::channel(BTreeSet::from([name("web-client")]));
    let (commands, mut told) = mpsc::channel(16);
    let shutdown = Shutdown::new();
    spawn_connection(
        "secrets",
        keeper(&server).run(wants, commands, shutdown.clone()),
    );
    let problem = |read: &ReadSecret| read.problem.clone().unwrap_or_default().to_string();
    let refused = next(&mut told).await;
    assert!(
        problem(&refused).contains("the chart's value `credentials`"),
        "{refused:?}"
    );
    // The right is there from now on, and the Secret is not.
    assert_eq!(problem(&next(&mut told).await), "is not there");
    let [first, key] = pair();
    server.put(PATH, secret([&first, &key]));
    let good = next(&mut told).await;
    assert_eq!(
        (chain(&good).as_deref(), &good.problem),
        (Some(&*first), &None)
    );
    // The key of another: what was there before goes on.
    let [second, other] = pair();
    server.put(PATH, secret([&second, &key]));
    let torn = next(&mut told).await;
    assert_eq!(chain(&torn).as_deref(), Some(&*first));
    assert!(problem(&torn).starts_with("cannot be used"), "{torn:?}");
    server.put(PATH, secret([&second, &other]));
    assert_eq!(chain(&next(&mut told).await).as_deref(), Some(&*second));
    server.delete(PATH);
    let gone = next(&mut told).await;
    assert_eq!((chain(&gone), &*problem(&gone)), (None, "is not there"));
    for asked in server.asked(|asked| asked.path.contains(PLURAL)) {
        let selector = asked.query.get("fieldSelector").map(String::as_str);
        assert_eq!(selector, Some("metadata.name=web-client"), "{asked:?}");
    }
    // Wanted no more: whatever becomes of it is not told.
    wanted.send_replace([name("another")].into());
    assert_eq!(problem(&next(&mut told).await), "is not there");
    server.put(PATH, secret([&first, &key]));
    server.put(
        "/api/v1/namespaces/shop/secrets/another",
        secret([&second, &other]),
    );
    assert_eq!(chain(&next(&mut told).await).as_deref(), Some(&*second));
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_as_a_restored_server_has_it() {
    let server = ApiServer::start().await;
    let [[older, older_key], [newer, newer_key]] = [pair(), pair()];
    server.put(PATH, secret([&older, &older_key]));
    let snapshot = server.snapshot();
    let (_wanted, wants) = watch::channel(BTreeSet::from([name("web-client")]));
    let (commands, mut told) = mpsc::channel(16);
    let shutdown = Shutdown::new();
    spawn_connection(
        "secrets",
        keeper(&server).run(wants, commands, shutdown.clone()),
    );
    assert_eq!(chain(&next(&mut told).await).as_deref(), Some(&*older));
    server.put(PATH, secret([&newer, &newer_key]));
    assert_eq!(chain(&next(&mut told).await).as_deref(), Some(&*newer));
    // A watch of a version that it has yet to give would be silent.
    server.script(2, Act::HangUp, |asked| asked.watches(PLURAL));
    server.restore(snapshot);
    server.end_watches();
    assert_eq!(chain(&next(&mut told).await).as_deref(), Some(&*older));
    shutdown.cancel();
}

fn objects() -> Vec<Event> {
    let gateway = json!({"metadata": {"name": "w", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        "status": {"addresses": [{"value": "10.0.0.9"}]}});
    let service = json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "w"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}});
    let rule = json!({"metadata": {"name": "r", "namespace": "shop"},
        "spec": {"host": "web", "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "web-client"}}}});
    let kinds = [Kind::Gateway, Kind::Service, Kind::DestinationRule];
    let all = kinds.into_iter().zip([gateway, service, rule]);
    all.map(|(kind, object)| Event::Apply(Object::deserialize(kind, object).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_first_has_the_secrets_in_it() {
    let server = ApiServer::start().await;
    let [first, key] = pair();
    server.put(PATH, secret([&first, &key]));
    let roots = json!({"data": {"cacert": STANDARD.encode(&first)}});
    server.put(&format!("{PATH}-cacert"), roots);
    let mut keeper = keeper(&server);
    let events = keeper.first(IndexConfig::default(), &objects()).await;
    let [own, apart] = events.try_into().unwrap();
    assert_eq!(chain(&read(own)).as_deref(), Some(&*first));
    let apart = read(apart);
    assert_eq!(apart.good.unwrap().roots.as_deref(), Some(&*first));
    // Without a rule that names one nothing is asked.
    let server = ApiServer::start().await;
    let without: Vec<Event> = objects().into_iter().take(2).collect();
    let mut keeper = self::keeper(&server);
    let events = keeper.first(IndexConfig::default(), &without).await;
    assert!(events.is_empty());
    assert!(server.asked(|_| true).is_empty());
}
