//! What the index's owner is told while lists and watches fail: everything once, nothing twice, nothing lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use karst_controller::{
    cluster::connect,
    mesh::Command,
    problems::Problems,
    status::{Source, Statuses},
    watch::{Told, Watch, WatchHealth},
};
use karst_identity::tls;
use karst_index::Event;
use karst_k8s_api::object::wrote_addresses;
use karst_runtime::supervise::{Shutdown, spawn_connection};
use karst_telemetry::metrics::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::server::{Act, ApiServer, event, expired};

const POLICIES: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";
const PLURAL: &str = "authorizationpolicies";

fn path(name: &str) -> String {
    format!("{POLICIES}/{name}")
}

fn policy(port: &str) -> Value {
    json!({"spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [port]}}]}]}})
}

/// A controller's watches, and what they tell.
struct Watching {
    /// What was told of first.
    first: Vec<String>,
    told: mpsc::Receiver<Command>,
    problems: Arc<Problems>,
    health: WatchHealth,
    registry: Registry,
    shutdown: Shutdown,
}

impl Watching {
    async fn of(server: &ApiServer) -> Self {
        tls::install_provider();
        let address = format!("http://{}", server.address);
        let client = connect::client(kube::Config::new(address.parse().unwrap())).unwrap();
        let problems = Arc::new(Problems::default());
        let told = Told {
            problems: problems.clone(),
            statuses: Arc::new(Statuses::new(Source::Cluster)),
        };
        let (registry, shutdown) = (Registry::new(), Shutdown::new());
        let health = WatchHealth::register(&registry);
        let mut watch = Watch::start(&client, &health, told, &shutdown);
        let first = watch.first().await.iter().map(text).collect();
        let (commands, told) = mpsc::channel(16);
        spawn_connection("forward", watch.forward(commands));
        Self {
            first,
            told,
            problems,
            health,
            registry,
            shutdown,
        }
    }

    /// All that is told up to `last`.
    async fn up_to(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        while !all.iter().any(|one| one == last) {
            let next = tokio::time::timeout(Duration::from_secs(30), self.told.recv()).await;
            let Ok(Some(Command::Objects(events))) = next else {
                panic!("{last} was not told, only {all:?}")
            };
            all.extend(events.iter().map(text));
        }
        all
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.registry.encode();
        let of_policies =
            |line: &&str| line.starts_with(name) && line.contains("\"AuthorizationPolicy\"");
        let line = text.lines().find(of_policies);
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn text(event: &Event) -> String {
    match event {
        Event::Apply(object) => format!("+{}", object.key().name),
        Event::Delete(key) => format!("-{}", key.name),
        other => format!("{other:?}"),
    }
}

async fn with_policies(names: &[&str]) -> ApiServer {
    let server = ApiServer::start().await;
    for name in names {
        server.put(&path(name), policy("1"));
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_fell_too_far_behind_tells_only_what_differs() {
    let server = with_policies(&["changed", "gone", "same"]).await;
    let mut watching = Watching::of(&server).await;
    assert_eq!(watching.first, ["+changed", "+gone", "+same"]);
    let watched = |times| {
        move |server: &ApiServer| server.asked(|asked| asked.watches(PLURAL)).len() >= times
    };
    server.until("it watches", watched(1)).await;
    // Watches of the kind are refused until the server has forgotten.
    let refused = Act::Answer(500, "", "{}".into());
    let forgotten = Arc::new(AtomicBool::new(false));
    let has = forgotten.clone();
    server.script(usize::MAX, refused, move |asked| {
        asked.watches(PLURAL) && !has.load(Ordering::Relaxed)
    });
    server.end_watches();
    server.until("it tries to watch again", watched(2)).await;
    server.delete(&path("gone"));
    server.put(&path("changed"), policy("2"));
    server.put(&path("new"), policy("1"));
    server.compact();
    forgotten.store(true, Ordering::Relaxed);
    let mut told = watching.up_to("-gone").await;
    told.sort();
    assert_eq!(told, ["+changed", "+new", "-gone"], "nothing of `same`");
    assert_eq!(server.asked(|asked| asked.lists(PLURAL)).len(), 2);
    assert_eq!(watching.metric("karst_watch_relists_total"), 2);
    server.put(&path("later"), policy("1"));
    assert_eq!(watching.up_to("+later").await, ["+later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_refused_as_too_old_lists_again() {
    let server = with_policies(&["a"]).await;
    let mut watching = Watching::of(&server).await;
    // Twice: the first would be over by chance.
    let gone = Act::Answer(410, "", expired().to_string());
    server.script(2, gone, |asked| asked.watches(PLURAL));
    server.end_watches();
    let again = |server: &ApiServer| server.asked(|asked| asked.lists(PLURAL)).len() >= 2;
    server.until("it lists again", again).await;
    server.put(&path("b"), policy("1"));
    assert_eq!(watching.up_to("+b").await, ["+b"]);
    assert_eq!(watching.metric("karst_watch_failures_total"), 0, "ordinary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_with_an_older_state_is_believed() {
    let server = with_policies(&["a", "b"]).await;
    let mut watching = Watching::of(&server).await;
    let older = server.snapshot();
    server.delete(&path("b"));
    server.put(&path("forgotten"), policy("1"));
    assert_eq!(watching.up_to("+forgotten").await, ["-b", "+forgotten"]);
    // It is away, and knows nothing of the newest versions when it is there again.
    server.script(3, Act::HangUp, |asked| asked.watches(PLURAL));
    server.restore(older);
    server.end_watches();
    let mut told = watching.up_to("-forgotten").await;
    told.sort();
    assert_eq!(told, ["+b", "-forgotten"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_asked_again_until_everything_is_there() {
    let server = with_policies(&["a"]).await;
    let fails = Act::Answer(500, "", "etcd is away".into());
    server.script(3, fails, |asked| asked.lists(PLURAL));
    let watching = Watching::of(&server).await;
    assert_eq!(
        watching.first,
        ["+a"],
        "nothing is served before all is there"
    );
    assert!(watching.health.pending().is_empty());
    assert_eq!(watching.metric("karst_watch_failures_total"), 3);
    let lists = server.asked(|asked| asked.lists(PLURAL));
    assert_eq!(lists.len(), 4);
    let waits: Vec<Duration> = lists.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(
        waits.iter().all(|wait| *wait >= Duration::from_millis(100)),
        "{waits:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_gets_the_rest_that_it_asks_for_and_nobody_sleeps_through_its_return() {
    let server = with_policies(&["a"]).await;
    let busy = || Act::Answer(429, "retry-after: 1\r\n", "Too many requests".into());
    let status = json!({"kind": "Status", "status": "Failure", "code": 429, "details": {"retryAfterSeconds": 2}});
    server.script(1, busy(), |asked| asked.lists(PLURAL));
    let asks_for_two = Act::Answer(429, "retry-after: 2\r\n", status.to_string());
    server.script(1, asks_for_two, |asked| asked.lists(PLURAL));
    // Without an end, by its own account.
    let away = Act::Answer(503, "retry-after: 86400\r\n", "away".into());
    server.script(1, away, |asked| asked.lists(PLURAL));
    let watching = Watching::of(&server).await;
    assert_eq!(watching.first, ["+a"]);
    let lists = server.asked(|asked| asked.lists(PLURAL));
    let waits: Vec<Duration> = lists.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert_eq!(waits.len(), 3, "{waits:?}");
    assert!(
        waits[0] >= Duration::from_secs(1) && waits[1] >= Duration::from_secs(2),
        "{waits:?}"
    );
    assert!(waits[2] < Duration::from_secs(20), "{waits:?}");
    assert_eq!(watching.metric("karst_watch_failures_total"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_ends_inside_an_object_goes_on_where_it_was() {
    for cut in [true, false] {
        let server = with_policies(&["a"]).await;
        // What the server says for a while, made from what it will say afterwards.
        let whole = {
            server.put(&path("whole"), policy("1"));
            let line = event("ADDED", &server.get(&path("whole")).unwrap());
            server.put(&path("half"), policy("1"));
            let half = event("ADDED", &server.get(&path("half")).unwrap());
            server.delete(&path("whole"));
            server.delete(&path("half"));
            line + &half[..half.len() / 2]
        };
        let mut watching = Watching::of(&server).await;
        assert_eq!(watching.first, ["+a"]);
        server.script(1, Act::Watch { says: whole, cut }, |asked| {
            asked.watches(PLURAL)
        });
        server.end_watches();
        // As its version is that of the object that came whole, the server tells what followed.
        let told = watching.up_to("-whole").await;
        assert_eq!(told[0], "+whole", "{told:?}");
        assert!(told.contains(&"+half".to_owned()), "{told:?}");
        assert_eq!(server.asked(|asked| asked.lists(PLURAL)).len(), 1);
        server.put(&path("later"), policy("1"));
        assert!(
            watching
                .up_to("+later")
                .await
                .ends_with(&["+later".to_owned()])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_read_is_named_and_holds_up_nobody() {
    let broken = json!({"spec": {"action": "DENY", "rules": "all"}});
    let server = with_policies(&["a", "b", "c"]).await;
    server.put(&path("b"), broken.clone());
    let mut watching = Watching::of(&server).await;
    // A policy that was never readable denies: nobody knows what its author meant to refuse.
    assert_eq!(watching.first, ["+a", "+b", "+c"]);
    let named = |watching: &Watching| watching.problems.json()["objects"].to_string();
    let first = named(&watching);
    assert!(
        first.contains("shop/b") && first.contains("spec.rules"),
        "{first}"
    );
    // One that was: its last good form stays.
    server.put(&path("c"), broken);
    server.put(&path("d"), policy("1"));
    assert_eq!(watching.up_to("+d").await, ["+d"]);
    assert!(named(&watching).contains("shop/c"), "{}", named(&watching));
    assert_eq!(watching.metric("karst_watch_unusable_objects"), 2);
    server.put(&path("b"), policy("1"));
    server.put(&path("c"), policy("1"));
    let mut told = watching.up_to("+c").await;
    told.sort();
    assert_eq!(told, ["+b", "+c"]);
    assert_eq!(watching.problems.json()["objects"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_alone_move_the_version_on_and_tell_nothing() {
    let server = with_policies(&["a"]).await;
    let mut watching = Watching::of(&server).await;
    let namespaces = "/api/v1/namespaces";
    for number in 0..5 {
        server.put(&format!("{namespaces}/n{number}"), json!({}));
    }
    let told = watching.up_to("+n4").await;
    assert_eq!(told.len(), 5, "{told:?}");
    let version = server.version();
    let bookmark = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"resourceVersion": version.to_string()}});
    let says = event("BOOKMARK", &bookmark);
    server.script(1, Act::Watch { says, cut: false }, |asked| {
        asked.watches(PLURAL)
    });
    server.end_watches();
    let from = version.to_string();
    let at_the_bookmark = move |server: &ApiServer| {
        let watches = server.asked(|asked| asked.watches(PLURAL));
        watches
            .last()
            .is_some_and(|last| last.query["resourceVersion"] == from)
    };
    server
        .until("a watch from the bookmark on", at_the_bookmark)
        .await;
    // What was before the bookmark is not needed any more.
    server.compact();
    server.put(&path("b"), policy("1"));
    assert_eq!(watching.up_to("+b").await, ["+b"]);
    assert_eq!(server.asked(|asked| asked.lists(PLURAL)).len(), 1);
}

/// Else they are taken for somebody else's as soon as they come back, and the status is written anew for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_that_we_wrote_are_known_as_ours() {
    let server = with_policies(&[]).await;
    let mut watching = Watching::of(&server).await;
    let writers = |status: &str| {
        json!([
            {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}},
            {"manager": status, "operation": "Apply", "subresource": "status",
                "fieldsV1": {"f:status": {"f:addresses": {}}}},
        ])
    };
    for (writer, ours) in [("karst", true), ("istiod", false)] {
        let entry = json!({
            "metadata": {"managedFields": writers(writer)},
            "spec": {"hosts": ["api.bank.example"], "resolution": "DNS"},
            "status": {"addresses": [{"host": "api.bank.example", "value": "240.240.1.1"}]},
        });
        let path = "/apis/networking.istio.io/v1/namespaces/shop/serviceentries/bank";
        server.put(path, entry);
        let told = tokio::time::timeout(Duration::from_secs(30), watching.told.recv()).await;
        let Ok(Some(Command::Objects(events))) = told else {
            panic!("nothing is told of what {writer} wrote");
        };
        let [Event::Apply(entry)] = events.as_slice() else {
            panic!("{events:?}");
        };
        let meta = entry.metadata();
        assert_eq!(wrote_addresses(meta), ours, "written by {writer}");
        let kept = meta.managed_fields.iter().flatten().count();
        assert_eq!(kept, usize::from(ours), "the rest only takes room");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_as_many_labels_as_an_object_can_hold_is_one_pod() {
    let server = with_policies(&[]).await;
    let mut watching = Watching::of(&server).await;
    // More than etcd takes by default, 1.5 MiB.
    let labels: serde_json::Map<String, Value> = (0..40_000)
        .map(|number| {
            (
                format!("label-{number}.example/name"),
                json!(format!("value-{number}")),
            )
        })
        .collect();
    let spec = json!({"nodeName": "n1", "containers": []});
    let pod =
        json!({"metadata": {"labels": labels}, "spec": spec, "status": {"podIP": "10.0.0.9"}});
    assert!(pod.to_string().len() > 3 << 19);
    server.put("/api/v1/namespaces/shop/pods/labels", pod);
    server.put("/api/v1/namespaces/shop/pods/plain", json!({"spec": spec}));
    let told = watching.up_to("+plain").await;
    assert_eq!(told, ["+labels", "+plain"]);
    server.end_watches();
    server.put("/api/v1/namespaces/shop/pods/later", json!({"spec": spec}));
    assert_eq!(watching.up_to("+later").await, ["+later"]);
}
