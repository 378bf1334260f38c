//! Karst is taken away, put back and taken away again: nodes and cluster are as they were, to the file and the program,
//! with pods enrolled meanwhile, of whose connections none fails. It ends installed, as it began, for the tests that come
//! after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use karst_test_cluster::{
    Amount, Cluster, Load, Namespace, cluster::run, pair::server_and_client, until,
};
use serde_json::{Value, json};

const NODES: [&str; 2] = ["n1", "n2"];

/// What is compared, by its name.
type Snapshot = BTreeMap<String, String>;

#[test]
fn uninstall_leaves_nodes_and_cluster_as_found() {
    let cluster = Cluster::get();
    let shop = Namespace::new("leaves-nothing");
    cluster.apply(&idle(shop.name()));
    shop.apply(&server_and_client());
    shop.apply(SEALED);
    cluster.wait_ready(shop.name());

    let _installed = InstalledAgain(cluster);
    run(cluster.karst().args(["uninstall", "--purge"]));
    // As no program would print it: what comes back must be the file's own bytes, not what they mean.
    let reformat = "sed -i 's/^ *//' /etc/cni/net.d/*.conflist";
    run(cluster.node("n1").args(["sh", "-c", reformat]));
    let found = snapshot(cluster, &shop);
    run(cluster.karst().arg("install"));
    assert_ne!(
        snapshot(cluster, &shop),
        found,
        "the snapshot sees nothing of an installation"
    );

    let said = run(cluster
        .karst()
        .args(["enroll", &format!("ns/{}", shop.name())]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("3 pod(s) in the mesh") && said.contains("0 restart(s)"),
        "{said}"
    );
    let status = run(cluster.karst().args(["status", "-o", "json"]));
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let agents = status.as_array().expect("a list");
    assert_eq!(agents.len(), NODES.len());
    assert!(
        agents.iter().all(|agent| agent["error"].is_null()),
        "{status:#}"
    );
    assert!(
        agents.iter().any(|agent| agent["podsCaptured"] == 2),
        "{status:#}"
    );

    // While the two nodes let go, nobody may be asked for an identity that its peer has given up.
    shop.apply(ALLOWED);
    until("every node has the policy", || {
        let policy = cluster.object(&["authorizationpolicy", "clients", "-n", shop.name()]);
        let conditions = policy["status"]["conditions"].as_array()?;
        let mut programmed = conditions.iter().filter(|one| one["type"] == "Programmed");
        programmed.any(|one| one["status"] == "True").then_some(())
    });
    until("the controller says that the service is sealed", || {
        conditions(cluster, &shop)
            .contains("karst.dev/Sealed")
            .then_some(())
    });
    let held = held_programs(cluster);
    assert!(!held.is_empty(), "the agents hold no kernel programs");
    let load = Load::start(
        cluster,
        &format!("{}/client", shop.name()),
        &format!("server.{}:9000", shop.name()),
        CALLS,
    );
    run(cluster.karst().args(["uninstall", "--purge"]));
    let mut differing = String::new();
    until("everything is as it was", || {
        let now = snapshot(cluster, &shop);
        let changed = now
            .iter()
            .filter(|(what, text)| found.get(*what) != Some(text));
        let changed: Vec<_> = changed.collect();
        let left: Vec<_> = loaded_programs().intersection(&held).copied().collect();
        let said = format!("{changed:#?}, programs {left:?}");
        if said != differing {
            println!("still differs: {said}");
            differing = said;
        }
        (changed.is_empty() && left.is_empty()).then_some(())
    });
    let report = load.stop(cluster);
    println!("new connections through the uninstallation: {report}");
    assert_eq!(report["failures"], 0, "{report}");
    // The label stays and protects nothing any more: the pod must be able to talk as before.
    let lookup = cluster.exec(
        &format!("{}/idle", shop.name()),
        &["nslookup", "kubernetes.default.svc.cluster.local"],
    );
    assert!(
        lookup.status.success(),
        "a released pod cannot resolve names"
    );
}

/// Karst is there for the tests that come after, whatever became of this one.
struct InstalledAgain<'a>(&'a Cluster);

impl Drop for InstalledAgain<'_> {
    fn drop(&mut self) {
        let said = self.0.karst().arg("install").output();
        let installed = said.as_ref().is_ok_and(|said| said.status.success());
        assert!(installed || std::thread::panicking(), "{said:?}");
    }
}

/// A pod that waits on the first node.
fn idle(namespace: &str) -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "idle", "namespace": namespace},
        "spec": {
            "nodeName": "n1",
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "karst.test/busybox:1", "command": ["sleep", "3600"]}],
        },
    });
    pod.to_string()
}

/// New connections while Karst goes.
const CALLS: Amount = Amount {
    rate: 100,
    long: 0,
    seconds: 300,
};

/// Who may reach the server, by what it proves in the mesh alone.
const ALLOWED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {serviceAccounts: [default]}}]}]
";

/// A service that the controller says something of.
const SEALED: &str = "
apiVersion: v1
kind: Service
metadata: {name: idle, annotations: {karst.dev/seal: \"true\"}}
spec: {selector: {app: idle}, ports: [{port: 80}]}
";

/// Everything that an installation could leave behind.
fn snapshot(cluster: &Cluster, shop: &Namespace) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for node in NODES {
        for (what, script) in [
            ("conflists", "cat /etc/cni/net.d/*"),
            ("CNI files", "ls -A /etc/cni/net.d"),
            ("CNI executables", "ls -A /opt/cni/bin | grep karst || true"),
            ("pins", "ls -AR /sys/fs/bpf"),
            ("run directory", "ls -A /run/karst 2>/dev/null || true"),
            ("mounts", "grep karst /proc/1/mountinfo || true"),
            // kube-proxy takes the chains of a service that is gone away when it likes.
            (
                "nft",
                "nft list tables | grep -v kube-proxy | while read table; do nft list $table; done | grep -i karst || true",
            ),
            (
                "qdiscs",
                "for d in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do tc filter show dev $d ingress; tc filter show dev $d egress; done | grep karst || true",
            ),
        ] {
            let said = run(cluster.node(node).args(["sh", "-c", script]));
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            snapshot.insert(format!("{node}: {what}"), text);
        }
    }
    for kind in [
        "crds",
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "clusterroles",
        "clusterrolebindings",
        "priorityclasses",
        "namespaces",
        "gatewayclasses.gateway.networking.k8s.io",
        "xmeshes.gateway.networking.x-k8s.io",
    ] {
        snapshot.insert(kind.to_owned(), names(cluster, &[kind]));
    }
    for kind in ["configmaps", "secrets", "leases", "roles", "rolebindings"] {
        snapshot.insert(kind.to_owned(), names(cluster, &[kind, "-A"]));
    }
    snapshot.insert("conditions".to_owned(), conditions(cluster, shop));
    snapshot
}

/// What is said of the service in its status.
fn conditions(cluster: &Cluster, shop: &Namespace) -> String {
    let service = cluster.object(&["service", "idle", "-n", shop.name()]);
    service["status"]["conditions"].to_string()
}

fn names(cluster: &Cluster, words: &[&str]) -> String {
    let objects = cluster.object(words);
    let names = objects["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let meta = &object["metadata"];
            format!("{}/{}", meta["namespace"], meta["name"])
        });
    let names: Vec<String> = names.collect();
    names.join("\n")
}

/// Numbers of the kernel programs that processes in this cluster's pods hold. The kernel is shared with whatever else runs
/// on this machine, another cluster or lab maybe.
fn held_programs(cluster: &Cluster) -> BTreeSet<u32> {
    let group = format!("/{}", cluster.link(""));
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let ours = processes.map(|process| process.path()).filter(|process| {
        fs::read_to_string(process.join("cgroup")).is_ok_and(|groups| groups.contains(&group))
    });
    let descriptors = ours.flat_map(|process| {
        let listed = fs::read_dir(process.join("fdinfo")).into_iter();
        listed.flatten().flatten()
    });
    let texts = descriptors.filter_map(|one| fs::read_to_string(one.path()).ok());
    texts
        .filter_map(|text| {
            let number = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            number?.trim().parse().ok()
        })
        .collect()
}

/// Numbers of all of Karst's programs in the kernel.
fn loaded_programs() -> BTreeSet<u32> {
    let said = Command::new("bpftool").args(["prog", "list"]).output();
    let said = said.expect("bpftool is installed by `cargo xtask setup`");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let ours = text.lines().filter(|line| line.contains("name karst_"));
    let numbers = ours.filter_map(|line| line.split(':').next()?.parse().ok());
    numbers.collect()
}
