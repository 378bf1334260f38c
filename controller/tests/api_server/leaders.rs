//! Controllers that die between two writes, and two that both believe to lead: real processes, killed and stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Act, ApiServer, Asked, expired};

const POLICIES: usize = 60;
const SHOP: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/karst-system/leases/karst-controller";
const ROOT: &str = "/api/v1/namespaces/karst-system/secrets/karst-ca";
const NAMESPACES: [&str; 3] = ["karst-system", "shop", "other"];

/// A running `karst-controller`, killed at the end.
struct Controller {
    child: Child,
    name: &'static str,
    log: PathBuf,
    _folder: TempDir,
}

impl Controller {
    /// `name` is also the token that it shows to the API server.
    fn start(server: &ApiServer, name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let one = |key: &str, value: Value| json!([{"name": "it", key: value}]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": one("cluster", json!({"server": format!("http://{}", server.address)})),
            "users": one("user", json!({"token": name})),
            "contexts": one("context", json!({"cluster": "it", "user": "it"})),
        });
        fs::write(&kubeconfig, config.to_string()).unwrap();
        let log = folder.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_karst-controller"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .args(["--kubernetes", "--replica", name, "--read-port", "0"])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.2:0"])
            .args(["--webhook", "127.0.0.3:0"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            name,
            log,
            _folder: folder,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it, and waits until none of its threads runs any more.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let stopped = waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.unwrap().1.stopped());
    }

    fn wrote(&self, server: &ApiServer, since: Instant) -> Vec<String> {
        let ours = |asked: &Asked| asked.by == self.name && asked.at >= since && asked.writes();
        let wrote = server.asked(ours);
        wrote
            .iter()
            .map(|one| format!("{} {}", one.method, one.path))
            .collect()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.name);
        }
    }
}

fn policy(name: &str, account: &str) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name},
        "spec": {"rules": [{"from": [{"source": {"serviceAccounts": [account]}}]}]}})
}

async fn shop(policies: usize) -> ApiServer {
    let server = ApiServer::start().await;
    for name in NAMESPACES {
        server.put(&format!("/api/v1/namespaces/{name}"), json!({}));
    }
    for number in 0..policies {
        let name = format!("policy-{number:02}");
        server.put(&format!("{SHOP}/{name}"), policy(&name, "client"));
    }
    server
}

fn is_status(asked: &Asked) -> bool {
    asked.method == "PATCH" && asked.path.ends_with("/status")
}

/// Whether every policy says what became of its present form, and says it once.
fn all_told(server: &ApiServer) -> bool {
    let policies = server.all(SHOP);
    policies.iter().all(|policy| {
        let conditions = policy["status"]["conditions"].as_array();
        let kinds: Vec<&Value> = conditions
            .into_iter()
            .flatten()
            .map(|one| &one["type"])
            .collect();
        let mut once = kinds.clone();
        once.dedup();
        !kinds.is_empty()
            && once == kinds
            && policy["status"]["observedGeneration"] == policy["metadata"]["generation"]
    })
}

fn bundles(server: &ApiServer) -> Vec<Value> {
    let maps = server.all("/api/v1/configmaps");
    let ours = maps
        .into_iter()
        .filter(|map| map["metadata"]["name"] == "istio-ca-root-cert");
    ours.map(|map| map["data"]["root-cert.pem"].clone())
        .collect()
}

fn leads(server: &ApiServer, name: &str) -> bool {
    let lease = server.get(LEASE).unwrap_or_default();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holder.starts_with(&format!("{name}_"))
}

/// Waits until a controller has looked at the lease so many times more.
async fn until_looks(server: &ApiServer, name: &'static str, times: usize) {
    let looks = move |server: &ApiServer| {
        server
            .asked(|asked| asked.by == name && asked.method == "GET" && asked.path == LEASE)
            .len()
    };
    let enough = looks(server) + times;
    server
        .until("looks at the lease", move |server| looks(server) >= enough)
        .await;
}

/// The write at which a controller dies: it is done, and nobody hears of it.
async fn dies_at(server: &ApiServer, number: usize, matches: fn(&Asked) -> bool) -> Controller {
    let controller = Controller::start(server, "first");
    let mut count = 0;
    let (reached, mut hear) = tokio::sync::watch::channel(false);
    let nth = std::sync::Mutex::new(move |asked: &Asked| {
        count += usize::from(matches(asked));
        let now = matches(asked) && count == number;
        if now {
            reached.send_replace(true);
        }
        now
    });
    server.script(1, Act::DoAndSaySilence, move |asked| {
        (nth.lock().unwrap())(asked)
    });
    let waited = tokio::time::timeout(Duration::from_secs(60), hear.wait_for(|so| *so)).await;
    assert!(waited.is_ok(), "it never wrote number {number}");
    controller
}

/// Of ConfigMaps nobody of this name can watch from the version that was listed first, however often it asks.
fn refuse_first_versions(server: &ApiServer, name: &'static str) {
    let first = std::sync::Mutex::new(BTreeMap::new());
    let gone = Act::Answer(410, "", expired().to_string());
    server.script(usize::MAX, gone, move |asked| {
        if asked.by != name || !asked.watches("configmaps") {
            return false;
        }
        let selector = |name: &str| asked.query.get(name).cloned();
        let which = (selector("labelSelector"), selector("fieldSelector"));
        let version = asked.query["resourceVersion"].clone();
        let mut first = first.lock().unwrap();
        *first.entry(which).or_insert_with(|| version.clone()) == version
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_between_two_writes_leaves_nothing_half_done() {
    let server = shop(POLICIES).await;
    refuse_first_versions(&server, "second");
    let first = dies_at(&server, 25, is_status).await;
    first.signal(Signal::KILL);
    let root = server.get(ROOT).unwrap();
    assert!(!all_told(&server), "it died in the middle");
    let second = Controller::start(&server, "second");
    server.until("all policies are told", all_told).await;
    assert!(leads(&server, "second"));
    server
        .until("bundles everywhere", |server| {
            bundles(server).len() == NAMESPACES.len()
        })
        .await;
    let all = bundles(&server);
    assert!(
        all.iter().all(|pem| *pem == all[0] && !pem.is_null()),
        "{all:?}"
    );
    assert_eq!(server.get(ROOT).unwrap(), root, "one root of trust");
    assert_eq!(server.all("/api/v1/secrets").len(), 1);
    server.delete("/api/v1/namespaces/other/configmaps/istio-ca-root-cert");
    server
        .until("the bundle is back", |server| {
            bundles(server).len() == NAMESPACES.len()
        })
        .await;
    // Then there is nothing left to write.
    until_looks(&server, "second", 1).await;
    let settled = Instant::now();
    until_looks(&server, "second", 2).await;
    assert_eq!(second.wrote(&server, settled), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_of_trust_whose_making_nobody_heard_of_is_the_root() {
    let server = shop(1).await;
    let makes_root = |asked: &Asked| asked.method == "POST" && asked.path.ends_with("/secrets");
    let first = dies_at(&server, 1, makes_root).await;
    server
        .until("the root is there", |server| server.get(ROOT).is_some())
        .await;
    first.signal(Signal::KILL);
    let root = server.get(ROOT).unwrap();
    let _second = Controller::start(&server, "second");
    server
        .until("bundles everywhere", |server| {
            bundles(server).len() == NAMESPACES.len()
        })
        .await;
    assert_eq!(server.get(ROOT).unwrap(), root);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_writes_nothing_once_another_leads() {
    let server = shop(3).await;
    let first = Controller::start(&server, "first");
    server
        .until("the first leads", |server| {
            leads(server, "first") && all_told(server)
        })
        .await;
    let second = Controller::start(&server, "second");
    until_looks(&server, "second", 2).await;
    assert_eq!(
        second.wrote(&server, second_started(&server)),
        Vec::<String>::new(),
        "only one leads"
    );
    first.stop();
    // What the first will hear of first, once it goes on: before it looks at the lease.
    server.put(&format!("{SHOP}/policy-00"), policy("policy-00", "another"));
    server.put("/api/v1/namespaces/late", json!({}));
    server
        .until("the second leads and writes", |server| {
            leads(server, "second") && all_told(server)
        })
        .await;
    server.put(&format!("{SHOP}/policy-01"), policy("policy-01", "another"));
    server.until("the second writes", all_told).await;
    // Its first look at the lease stays without an answer: it has nothing but its clock.
    server.script(1, Act::DoAndSaySilence, |asked| {
        asked.by == "first" && asked.path == LEASE
    });
    let on = Instant::now();
    first.signal(Signal::CONT);
    server.put(&format!("{SHOP}/policy-02"), policy("policy-02", "another"));
    until_looks(&server, "first", 3).await;
    server.until("the second writes on", all_told).await;
    assert_eq!(first.wrote(&server, on), Vec::<String>::new());
    assert!(leads(&server, "second"));
    assert_eq!(bundles(&server).len(), NAMESPACES.len() + 1);
}

fn second_started(server: &ApiServer) -> Instant {
    server.asked(|asked| asked.by == "second")[0].at
}

#[tokio::test(flavor = "multi_thread")]
async fn one_status_that_is_refused_holds_up_no_other() {
    let server = shop(POLICIES).await;
    let refusal = json!({"kind": "Status", "status": "Failure", "code": 422, "message": "invalid"})
        .to_string();
    let first_of_all = |asked: &Asked| is_status(asked) && asked.path.contains("/policy-00/");
    server.script(2, Act::Answer(422, "", refusal), first_of_all);
    // And one that the API server cannot take now, with others behind it.
    let away = Act::Answer(500, "", "etcd is away".into());
    server.script(1, away, |asked| {
        is_status(asked) && asked.path.contains("/policy-30/")
    });
    let _controller = Controller::start(&server, "first");
    server
        .until("the others are told", |server| {
            let told = server
                .all(SHOP)
                .into_iter()
                .filter(|one| one["status"].is_object());
            told.count() == POLICIES - 1
                && server.get(&format!("{SHOP}/policy-00")).unwrap()["status"].is_null()
        })
        .await;
    server.until("all are told in the end", all_told).await;
}
