//! The API server is gone, answers errors, refuses us for asking too much, is slow, or has an older state than before:
//! traffic and policy go on, nobody storms it, and what is changed afterwards takes hold.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use karst_test_cluster::{Cluster, Detached, Pair, cluster::run, eventually, until};
use rustix::process::Signal;
use serde_json::Value;

/// How long a fault lasts in the rung, and in `soak`.
const SHORT: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);
/// New connections a second meanwhile.
const RATE: u32 = 50;
/// Requests a second that all of our programs together may send while they are refused: two controllers with thirty
/// watches each.
const REFUSED_RATE: f64 = 10.0;

/// Whatever a test did to the control plane is undone when this is dropped.
struct Whole<'a>(&'a Cluster);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        for process in ["etcd", "apiserver"] {
            if self.0.runs(process) {
                self.0.signal(process, Signal::CONT);
            }
        }
        self.0.up();
        for kind in ["flowschema", "prioritylevelconfiguration"] {
            let mut delete = self.0.kubectl();
            let _ = delete
                .args(["delete", kind, "refused", "--ignore-not-found"])
                .output();
        }
    }
}

/// Waits for the fault's time. What goes on is measured by the load.
fn lasts(time: Duration) {
    sleep(time);
}

/// The load has failed nobody, the policy holds, and what is changed takes hold.
fn expect_unharmed(cluster: &Cluster, pair: &Pair, load: Detached, what: &str) {
    let report = load.stop(cluster);
    eprintln!("{what}: {report}");
    assert_eq!(report["failures"], 0, "{what}: {report}");
    let started = Instant::now();
    pair.expect_changes();
    eprintln!("{what}: changes hold after {:?}", started.elapsed());
    assert!(!pair.reaches("stranger"), "{what}: the policy is gone");
}

/// The load goes past the service, as it does wherever kubelets cannot say that they live: Kubernetes believes their nodes
/// dead after 20 s here, and takes endpoints away from everybody.
fn api_server_ends(time: Duration) {
    let cluster = Cluster::get();
    let pair = Pair::open("api-gone");
    let load = pair.load_past_service(RATE);
    let whole = Whole(cluster);
    cluster.signal("apiserver", Signal::KILL);
    lasts(time);
    // Its watch caches begin anew: every watch from before is answered by 410.
    drop(whole);
    expect_unharmed(cluster, &pair, load, "API server gone");
}

#[test]
fn an_api_server_that_ends_harms_nobody() {
    api_server_ends(SHORT);
}

#[test]
#[ignore = "soak: two minutes"]
fn soak_an_api_server_gone_for_a_minute_harms_nobody() {
    api_server_ends(MINUTE);
}

#[test]
#[ignore = "soak: two minutes"]
fn soak_an_api_server_that_answers_errors_harms_nobody() {
    let cluster = Cluster::get();
    let pair = Pair::open("api-errors");
    let load = pair.load_past_service(RATE);
    let whole = Whole(cluster);
    // What is not in its caches is answered by 500.
    cluster.signal("etcd", Signal::KILL);
    lasts(MINUTE);
    drop(whole);
    expect_unharmed(cluster, &pair, load, "API server without etcd");
}

#[test]
#[ignore = "soak: two minutes"]
fn soak_an_api_server_that_hangs_harms_nobody() {
    let cluster = Cluster::get();
    let pair = Pair::open("api-slow");
    let load = pair.load_past_service(RATE);
    let whole = Whole(cluster);
    cluster.signal("etcd", Signal::STOP);
    lasts(MINUTE);
    drop(whole);
    expect_unharmed(cluster, &pair, load, "API server that hangs");
}

/// Nothing of ours is let through: each request is answered by 429.
const REFUSED: &str = "
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {name: refused}
spec:
  type: Limited
  limited: {nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: {type: Reject}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {name: refused}
spec:
  matchingPrecedence: 2
  priorityLevelConfiguration: {name: refused}
  rules:
    - subjects: [{kind: Group, group: {name: 'system:serviceaccounts:karst-system'}}]
      resourceRules: [{verbs: ['*'], apiGroups: ['*'], resources: ['*'], clusterScope: true, namespaces: ['*']}]
      nonResourceRules: [{verbs: ['*'], nonResourceURLs: ['*']}]
";

fn too_many_requests(time: Duration) {
    let cluster = Cluster::get();
    let pair = Pair::open("api-refuses");
    let load = pair.load(RATE);
    let whole = Whole(cluster);
    cluster.apply(REFUSED);
    until("requests are refused", || {
        (refused(cluster) > 0).then_some(())
    });
    let before = refused(cluster);
    // One controller has to begin meanwhile.
    let label = "app.kubernetes.io/name=karst-controller";
    let pods = cluster.object(&["pods", "-n", "karst-system", "-l", label]);
    let name = pods["items"][0]["metadata"]["name"]
        .as_str()
        .expect("a pod");
    let delete = ["-n", "karst-system", "delete", "pod", name, "--wait=false"];
    run(cluster.kubectl().args(delete));
    lasts(time);
    let rate = (refused(cluster) - before) as f64 / time.as_secs_f64();
    eprintln!("refused {rate:.1} requests a second");
    drop(whole);
    let rollout = [
        "-n",
        "karst-system",
        "rollout",
        "status",
        "deployment/karst-controller",
    ];
    run(cluster.kubectl().args(rollout));
    expect_unharmed(cluster, &pair, load, "429");
    assert!(
        rate <= REFUSED_RATE,
        "{rate} requests a second while refused"
    );
}

#[test]
#[ignore = "soak: two minutes"]
fn soak_an_api_server_that_refuses_us_for_a_minute_is_not_stormed() {
    too_many_requests(MINUTE);
}

/// Requests of ours that were answered by 429.
fn refused(cluster: &Cluster) -> usize {
    let log = cluster.audit_log();
    log.lines()
        .filter(|line| line.contains("\"code\":429"))
        .count()
}

const ALLOWED_AGAIN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-clients}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [client]}}]}]
";

/// Kubernetes' own programs, as everyone who restores etcd has to start them anew: a watch of theirs would wait for a version
/// that is yet to come, and be told nothing of what has an earlier one, as of a pod that wants a node.
fn kubernetes_begins_anew(cluster: &Cluster) {
    for process in ["controller-manager", "scheduler"] {
        cluster.signal(process, Signal::KILL);
        eventually("it has ended", || !cluster.runs(process));
    }
    for node in ["n1", "n2"] {
        for service in ["kubelet", "kube-proxy"] {
            run(cluster.node(node).args(["pkill", "-KILL", "-x", service]));
        }
    }
}

/// Two hundred versions go by, and everybody who watches pods hears of the last one.
fn change_much(pair: &Pair) {
    let many: String = (0..200)
        .map(|n| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: change-{n}}}\n"))
        .collect();
    pair.namespace.apply(&many);
    let namespace = pair.namespace.name();
    let annotate = ["annotate", "pods", "--all", "changed=last", "-n", namespace];
    run(Cluster::get().kubectl().args(annotate));
}

/// The versions of objects go back with it: what follows them must notice that its own are from a time that never was.
/// Nothing of Karst is started anew.
#[test]
#[ignore = "soak: two minutes"]
fn soak_an_older_etcd_is_what_the_mesh_follows() {
    let cluster = Cluster::get();
    let pair = Pair::open("etcd-older");
    let whole = Whole(cluster);
    let data = cluster.state().join("etcd");
    let kept = cluster.state().join("etcd-kept");
    let stop = || {
        for process in ["apiserver", "etcd"] {
            cluster.signal(process, Signal::KILL);
            eventually("it has ended", || !cluster.runs(process));
        }
    };
    stop();
    run(std::process::Command::new("cp")
        .arg("-a")
        .args([&data, &kept]));
    cluster.up();
    // What is to be forgotten: the client is refused, and versions go on.
    pair.namespace.apply(ALLOWED_AGAIN);
    eventually("the client is refused", || !pair.reaches("client"));
    change_much(&pair);
    stop();
    fs::remove_dir_all(&data).expect("what etcd has can be removed");
    fs::rename(&kept, &data).expect("its copy can be put there");
    kubernetes_begins_anew(cluster);
    drop(whole);
    let policies = cluster.object(&["authorizationpolicies", "-n", "etcd-older"]);
    assert_eq!(
        policies["items"].as_array().map(Vec::len),
        Some(1),
        "{policies}"
    );
    eventually("the client is served again", || pair.reaches("client"));
    assert!(!pair.reaches("stranger"), "the older policy is gone");
    pair.expect_changes();
    let said = run(cluster.karst().args(["status", "-o", "json"]));
    let agents: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let behind = agents.as_array().into_iter().flatten();
    for agent in behind {
        assert_eq!(agent["changesBehind"], 0, "{agents}");
    }
}
