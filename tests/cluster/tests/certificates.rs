//! Certificates that live a minute: the mesh gets a new root under load and no handshake fails; and a waypoint whose
//! certificate has run out, since no controller is there, lets nobody through or around.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use karst_test_cluster::{
    Amount, Cluster, Load, Namespace,
    cluster::run,
    eventually,
    orders::{Orders, status},
};
use serde_json::{Value, json};

/// Life of certificates; a phase of a rotation lasts a quarter longer.
const TTL: &str = "60";
/// Longest wait for a phase, on a busy machine.
const PHASE: Duration = Duration::from_secs(180);
/// Pods with an identity of their own; each connects for the first time somewhere in the rotation.
const NEWCOMERS: usize = 12;

const LOAD: Amount = Amount {
    rate: 50,
    long: 10,
    seconds: 900,
};

/// Karst with such certificates; as it was when dropped.
struct ShortLived<'a>(&'a Cluster);

impl<'a> ShortLived<'a> {
    fn install(cluster: &'a Cluster) -> Self {
        let this = Self(cluster);
        run(cluster.karst().args(["uninstall", "--purge"]));
        let value = format!("certificateTtlSeconds={TTL}");
        run(cluster.karst().args(["install", "--set", &value]));
        this
    }
}

impl Drop for ShortLived<'_> {
    fn drop(&mut self) {
        for words in [&["uninstall", "--purge"][..], &["install"]] {
            let said = self.0.karst().args(words).output();
            let done = said.as_ref().is_ok_and(|said| said.status.success());
            assert!(done || std::thread::panicking(), "{said:?}");
        }
    }
}

#[test]
#[ignore = "soak: phases of a rotation last as long as certificates live"]
fn soak_a_new_root_costs_no_handshake() {
    let cluster = Cluster::get();
    let _short_lived = ShortLived::install(cluster);
    let shop = Namespace::new("new-root");
    shop.apply(&server());
    for number in 0..NEWCOMERS {
        shop.apply(&newcomer(number));
    }
    cluster.wait_ready(shop.name());
    shop.label();
    shop.wait_enrolled();
    let before = trusted(cluster);
    let load = Load::start(cluster, "new-root/c0", "server.new-root:9000", LOAD);
    let rotate = [
        "annotate",
        "secret",
        "karst-ca",
        "karst.dev/rotate-root=now",
    ];
    run(cluster.kubectl().args(["-n", "karst-system"]).args(rotate));

    let started = Instant::now();
    let mut next = 1;
    let mut seen: Vec<String> = Vec::new();
    for phase in ["Announced", "Switched", "Steady"] {
        let begun = Instant::now();
        loop {
            let now = self::phase(cluster);
            if now == phase {
                break;
            }
            assert!(
                begun.elapsed() < PHASE,
                "{phase} does not come: {now}, {seen:?}"
            );
            sleep(Duration::from_secs(1));
            // A new identity every so often, in every phase.
            let due =
                started.elapsed() > Duration::from_secs(15) * u32::try_from(next).expect("few");
            if next < NEWCOMERS && due {
                first_words(cluster, next);
                next += 1;
            }
        }
        seen.push(format!(
            "{phase} after {:.0} s",
            started.elapsed().as_secs_f64()
        ));
    }
    first_words(cluster, 0);
    let report = load.stop(cluster);
    println!("{seen:?}, {next} identities spoke for the first time meanwhile: {report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert_ne!(trusted(cluster), before, "the root is the same");
    let mut logs = cluster.kubectl();
    let label = "app.kubernetes.io/name=karst-agent";
    logs.args([
        "-n",
        "karst-system",
        "logs",
        "--since=6m",
        "--tail=-1",
        "-l",
        label,
    ]);
    let logs = String::from_utf8_lossy(&run(&mut logs).stdout).into_owned();
    let failed: Vec<_> = logs
        .lines()
        .filter(|line| line.contains("handshake") && line.contains("new-root"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A newcomer's first connection.
fn first_words(cluster: &Cluster, number: usize) {
    let pod = format!("new-root/c{number}");
    let said = cluster.exec(
        &pod,
        &["karst-echo", "tcp", "server.new-root:9000", "--send", "100"],
    );
    assert!(said.status.success(), "{pod}: {said:?}");
}

#[test]
#[ignore = "soak: waits until certificates have run out"]
fn soak_nobody_is_reached_around_a_waypoint_whose_certificate_has_run_out() {
    let cluster = Cluster::get();
    let _short_lived = ShortLived::install(cluster);
    let orders = Orders::open("expired");
    orders.namespace.apply(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
",
    );
    eventually("DELETE is denied", || {
        status(&orders.call("http://orders/", &["--method", "DELETE"])) == Some("403")
    });
    // It speaks for the first time when all certificates have run out: no tunnel of before serves it.
    orders.namespace.apply(&newcomer(0));
    cluster.wait_ready("expired");
    orders.namespace.wait_enrolled();
    let pod = cluster.object(&["pod", "v1", "-n", "expired"]);
    let by_pod = format!(
        "http://{}:8080/",
        pod["status"]["podIP"].as_str().expect("one")
    );
    let ways = ["http://orders/", &by_pod, "http://orders-headless:8080/"];
    let ask = |method: &str, way: &str| {
        let words = [
            "karst-echo",
            "client",
            "--timeout",
            "5",
            "--method",
            method,
            way,
        ];
        let said = cluster.exec("expired/c0", &words).stdout;
        String::from_utf8_lossy(&said).into_owned()
    };
    controllers(cluster, "0");
    // Their life, and what clocks may differ.
    sleep(Duration::from_secs(75));
    for way in ways {
        for method in ["GET", "DELETE"] {
            assert_eq!(
                ask(method, way),
                "",
                "{method} {way} with certificates that ran out"
            );
        }
        // A tunnel that stands goes on, and so does policy.
        let denied = orders.call(way, &["--method", "DELETE"]);
        assert_ne!(status(&denied), Some("200"), "DELETE {way}");
    }
    let mut logs = cluster.kubectl();
    let label = "app.kubernetes.io/name=karst-agent";
    logs.args([
        "-n",
        "karst-system",
        "logs",
        "--since=2m",
        "--tail=-1",
        "-l",
        label,
    ]);
    let logs = String::from_utf8_lossy(&run(&mut logs).stdout).into_owned();
    let of_the_newcomer =
        |line: &&str| line.contains("connection failed") && line.contains("src.workload=c0");
    let about: Vec<_> = logs.lines().filter(of_the_newcomer).collect();
    println!("with certificates that ran out: {:?}", about.last());
    assert!(
        about.iter().any(|line| line.contains("certificate")),
        "no refusal names the certificate: {about:#?}"
    );
    controllers(cluster, "2");
    eventually("a controller is back, and so are certificates", || {
        status(&orders.call("http://orders/", &[])) == Some("200")
            && status(&orders.call("http://orders/", &["--method", "DELETE"])) == Some("403")
    });
}

fn controllers(cluster: &Cluster, replicas: &str) {
    let replicas = format!("--replicas={replicas}");
    let scale = [
        "-n",
        "karst-system",
        "scale",
        "deployment/karst-controller",
        &replicas,
    ];
    run(cluster.kubectl().args(scale));
}

/// Where the rotation stands: the first word of the phase in the CA's state.
fn phase(cluster: &Cluster) -> String {
    let mut get = cluster.kubectl();
    let template = "go-template={{index .data \"authority.json\" | base64decode}}";
    get.args([
        "-n",
        "karst-system",
        "get",
        "secret",
        "karst-ca",
        "-o",
        template,
    ]);
    let state: Value = serde_json::from_slice(&run(&mut get).stdout).expect("JSON");
    match &state["phase"] {
        Value::String(name) => name.clone(),
        Value::Object(with_time) => with_time.keys().next().cloned().unwrap_or_default(),
        other => other.to_string(),
    }
}

/// The roots that pods are told to trust.
fn trusted(cluster: &Cluster) -> Value {
    let map = cluster.object(&["configmap", "istio-ca-root-cert", "-n", "new-root"]);
    map["data"]["root-cert.pem"].clone()
}

fn server() -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "server", "labels": {"app": "server"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "n2"},
            "containers": [{
                "name": "echo",
                "image": "karst.test/echo:1",
                "command": ["karst-echo", "server", "--mode=echo:9000"],
                "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 1},
            }],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"name": "tcp", "port": 9000}]},
    });
    format!("{pod}\n---\n{service}")
}

/// A client with a service account of its own.
fn newcomer(number: usize) -> String {
    let name = format!("c{number}");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "n1"},
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "shell", "image": "karst.test/shell:1", "command": ["sleep", "infinity"]}],
        },
    });
    format!("{account}\n---\n{pod}")
}
