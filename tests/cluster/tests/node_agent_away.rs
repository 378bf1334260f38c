//! No agent runs on any node: pods of the mesh wait and say for whom, all others start.

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually, until};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: POD}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

fn pod(name: &str) -> String {
    POD.replace("POD", name)
}

/// The agents are on no node until this is dropped.
struct AgentsAway<'a>(&'a Cluster);

impl<'a> AgentsAway<'a> {
    fn send(cluster: &'a Cluster) -> Self {
        let away = Self(cluster);
        away.patch(r#"{"spec":{"template":{"spec":{"nodeSelector":{"agents":"away"}}}}}"#);
        eventually("every agent has ended", || {
            let pods = [
                "-n",
                "karst-system",
                "pods",
                "-l",
                "app.kubernetes.io/name=karst-agent",
            ];
            let pods = cluster.object(&pods);
            pods["items"].as_array().is_some_and(Vec::is_empty)
        });
        away
    }

    fn patch(&self, patch: &str) {
        let mut kubectl = self.0.kubectl();
        run(kubectl.args([
            "-n",
            "karst-system",
            "patch",
            "daemonset",
            "karst-agent",
            "-p",
            patch,
        ]));
    }
}

impl Drop for AgentsAway<'_> {
    fn drop(&mut self) {
        self.patch(r#"{"spec":{"template":{"spec":{"nodeSelector":{"agents":null}}}}}"#);
    }
}

#[test]
fn while_agents_are_away_pods_of_the_mesh_wait_and_all_others_start() {
    let cluster = Cluster::get();
    let (shop, street) = (Namespace::new("away-shop"), Namespace::new("away-street"));
    for namespace in [&shop, &street] {
        namespace.apply(&pod("before"));
        cluster.wait_ready(namespace.name());
    }
    shop.label();
    shop.wait_enrolled();

    let away = AgentsAway::send(cluster);
    street.apply(&pod("after"));
    cluster.wait_ready(street.name());
    shop.apply(&pod("after"));
    let why = until("the waiting pod says why", || {
        let mut events = cluster.kubectl();
        let about = "involvedObject.name=after,reason=FailedCreatePodSandBox";
        events.args([
            "-n",
            shop.name(),
            "get",
            "events",
            "--field-selector",
            about,
            "-o",
            "jsonpath={.items[*].message}",
        ]);
        let said = String::from_utf8_lossy(&run(&mut events).stdout).into_owned();
        (!said.is_empty()).then_some(said)
    });
    assert!(
        why.contains("the karst agent of this node") && why.contains(shop.name()),
        "{why}"
    );
    let waiting = cluster.object(&["-n", shop.name(), "pod", "after"]);
    assert_eq!(waiting["status"]["phase"], "Pending");

    drop(away);
    cluster.wait_ready(shop.name());
    shop.wait_enrolled();
}
