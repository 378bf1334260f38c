//! `karst check` finds what is wrong, and each finding names what to change. Faults are put in one after another, and
//! each is taken out before the next.

use std::process::Output;

use karst_test_cluster::{Cluster, cluster::run, eventually};
use serde_json::{Value, json};

/// A fault: how it gets in and out again, and the check that must find it.
struct Fault {
    name: &'static str,
    check: &'static str,
    /// What the named change must contain.
    fix: &'static str,
    put: fn(&Cluster),
    take: fn(&Cluster),
}

/// Faults of the way between nodes: found by packets.
const PATHS: &[Fault] = &[
    Fault {
        name: "port 15008 is dropped, as a NetworkPolicy would",
        check: "path",
        fix: "15008",
        put: |cluster| filter(cluster, "tcp dport 15008 drop"),
        take: unfilter,
    },
    Fault {
        name: "port 15008 is refused",
        check: "path",
        fix: "15008",
        put: |cluster| filter(cluster, "tcp dport 15008 reject with tcp reset"),
        take: unfilter,
    },
    Fault {
        name: "packets of full size are lost",
        check: "path",
        fix: "MTU",
        put: |cluster| filter(cluster, "tcp dport 15008 meta length > 1000 drop"),
        take: unfilter,
    },
];

/// Faults of a node.
const NODES: &[Fault] = &[Fault {
    name: "the CNI directory is read-only",
    check: "cni",
    fix: "read-write",
    put: |cluster| {
        node(
            cluster,
            "mount --bind /etc/cni/net.d /etc/cni/net.d && mount -o remount,ro,bind /etc/cni/net.d",
        );
    },
    take: |cluster| node(cluster, "umount /etc/cni/net.d"),
}];

/// Faults that the API server knows of.
const CLUSTER: &[Fault] = &[
    Fault {
        name: "PodSecurity refuses privileged pods",
        check: "pod-security",
        fix: "pod-security.kubernetes.io/enforce=privileged",
        put: |cluster| pod_security(cluster, "baseline"),
        take: |cluster| pod_security(cluster, "privileged"),
    },
    Fault {
        name: "istiod runs",
        check: "other-mesh",
        fix: "istioctl uninstall",
        put: |cluster| istio(cluster, "Deployment", "istiod"),
        take: |cluster| kubectl(cluster, &["delete", "deployment", "istiod"]),
    },
    Fault {
        name: "ztunnel runs",
        check: "other-mesh",
        fix: "istioctl uninstall",
        put: |cluster| istio(cluster, "DaemonSet", "ztunnel"),
        take: |cluster| kubectl(cluster, &["delete", "daemonset", "ztunnel"]),
    },
    Fault {
        name: "istiod's webhook checks objects",
        check: "other-mesh",
        fix: "istioctl uninstall",
        put: |cluster| webhook(cluster, "ValidatingWebhookConfiguration"),
        take: |cluster| {
            kubectl(
                cluster,
                &["delete", "validatingwebhookconfiguration", "istio-test"],
            )
        },
    },
    Fault {
        name: "istiod's webhook injects sidecars",
        check: "other-mesh",
        fix: "istioctl uninstall",
        put: |cluster| webhook(cluster, "MutatingWebhookConfiguration"),
        take: |cluster| {
            kubectl(
                cluster,
                &["delete", "mutatingwebhookconfiguration", "istio-test"],
            )
        },
    },
    Fault {
        name: "istiod has accepted a GatewayClass",
        check: "other-mesh",
        fix: "istioctl uninstall",
        put: accepted_class,
        take: |cluster| kubectl(cluster, &["delete", "gatewayclass", "istio-test"]),
    },
    Fault {
        name: "no controller runs",
        check: "controller",
        fix: "describe pods",
        put: |cluster| {
            kubectl(
                cluster,
                &[
                    "-n",
                    "karst-system",
                    "scale",
                    "deploy/karst-controller",
                    "--replicas=0",
                ],
            )
        },
        take: |cluster| {
            kubectl(
                cluster,
                &[
                    "-n",
                    "karst-system",
                    "scale",
                    "deploy/karst-controller",
                    "--replicas=2",
                ],
            )
        },
    },
];

#[test]
fn faults_of_paths_and_nodes_are_found() {
    let cluster = Cluster::get();
    expect_fine(cluster, &[]);
    for fault in PATHS.iter().chain(NODES) {
        find(cluster, fault, &[]);
    }
    let said = check(
        cluster,
        &["--image", "karst.test/none:1", "--timeout-seconds", "10"],
    );
    expect(&said, "an image that is not there", "node", "describe pod");
    expect_fine(cluster, &[]);
}

#[test]
fn faults_of_the_cluster_are_found() {
    let cluster = Cluster::get();
    for fault in CLUSTER {
        find(cluster, fault, &["--no-pods"]);
    }
    eventually("the controller is back", || {
        said_to_be_fine(&check(cluster, &["--no-pods"]))
    });
    let said = check_as_nobody(cluster);
    expect(
        &said,
        "a user without permission",
        "permissions",
        "cluster-admin",
    );
}

/// The check by a user who may do nothing.
fn check_as_nobody(cluster: &Cluster) -> Output {
    let token = run(cluster.kubectl().args(["create", "token", "default"]));
    let token = String::from_utf8_lossy(&token.stdout).trim().to_owned();
    let config = std::fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
    let with_token = |line: &str| match line.starts_with("users:") {
        true => format!("users: [{{name: user, user: {{token: \"{token}\"}}}}]"),
        false => line.to_owned(),
    };
    let lines: Vec<String> = config.lines().map(with_token).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines.join("\n")).expect("written");
    let mut karst = cluster.karst();
    karst.args(["check", "-o", "json", "--no-pods", "--kubeconfig"]);
    karst.arg(file.path()).output().expect("karst starts")
}

/// Puts a fault in, wants it found, takes it out.
fn find(cluster: &Cluster, fault: &Fault, words: &[&str]) {
    (fault.put)(cluster);
    let said = check(cluster, words);
    (fault.take)(cluster);
    expect(&said, fault.name, fault.check, fault.fix);
}

fn expect(said: &Output, fault: &str, check: &str, fix: &str) {
    let findings: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| {
        panic!(
            "{fault}: {error}: {}",
            String::from_utf8_lossy(&said.stderr)
        )
    });
    let mut all = findings.as_array().into_iter().flatten();
    let found = all.find(|finding| finding["check"] == check && finding["verdict"] == "failure");
    let found =
        found.unwrap_or_else(|| panic!("{fault}: check {check} found nothing: {findings:#}"));
    let named = found["fix"].as_str().unwrap_or_default();
    assert!(named.contains(fix), "{fault}: {found:#}");
    assert!(!said.status.success(), "{fault}: exit code 0");
}

fn check(cluster: &Cluster, words: &[&str]) -> Output {
    let mut karst = cluster.karst();
    karst.args(["check", "-o", "json"]).args(words);
    karst.output().expect("karst starts")
}

fn said_to_be_fine(said: &Output) -> bool {
    said.status.success()
}

fn expect_fine(cluster: &Cluster, words: &[&str]) {
    let said = check(cluster, words);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(
        said_to_be_fine(&said),
        "{text}{}",
        String::from_utf8_lossy(&said.stderr)
    );
}

fn kubectl(cluster: &Cluster, words: &[&str]) {
    run(cluster.kubectl().args(words));
}

/// Runs a script on the first node.
fn node(cluster: &Cluster, script: &str) {
    run(cluster.node("n1").args(["sh", "-c", script]));
}

/// Lets the first node forward packets by this rule too.
fn filter(cluster: &Cluster, rule: &str) {
    node(
        cluster,
        &format!(
            "nft add table inet checktest && \
             nft 'add chain inet checktest f {{ type filter hook forward priority -10; }}' && \
             nft 'add rule inet checktest f {rule}'"
        ),
    );
}

fn unfilter(cluster: &Cluster) {
    node(cluster, "nft delete table inet checktest");
}

fn pod_security(cluster: &Cluster, level: &str) {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    kubectl(
        cluster,
        &["label", "--overwrite", "namespace", "karst-system", &label],
    );
}

/// A workload that looks like Istio's.
fn istio(cluster: &Cluster, kind: &str, name: &str) {
    let labels = json!({"app": name});
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "karst.test/pause:1"}]},
            },
        },
    });
    cluster.apply(&object.to_string());
    if kind == "Deployment" {
        eventually("the deployment has a pod", || {
            cluster.object(&["deployment", name])["status"]["replicas"] == 1
        });
    }
}

fn webhook(cluster: &Cluster, kind: &str) {
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": "istio-test", "labels": {"app": "istiod"}},
        "webhooks": [],
    });
    cluster.apply(&object.to_string());
}

fn accepted_class(cluster: &Cluster) {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "istio-test"},
        "spec": {"controllerName": "istio.io/test"},
    });
    cluster.apply(&class.to_string());
    let status = json!({"status": {"conditions": [{
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
    }]}});
    kubectl(
        cluster,
        &[
            "patch",
            "gatewayclass",
            "istio-test",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ],
    );
}
