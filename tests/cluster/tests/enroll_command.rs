//! `karst enroll` and `karst unenroll` with two controllers, of which each serves some of the agents: what they say is
//! what happened, on both nodes.

use karst_test_cluster::{Amount, Cluster, Load, Namespace, cluster::run, pair::server_and_client};

const ON_THE_HOST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: on-the-host}
spec:
  hostNetwork: true
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

#[test]
fn enrolment_says_what_happened_whichever_controller_an_agent_follows() {
    let cluster = Cluster::get();
    let controllers = cluster.object(&["-n", "karst-system", "deployment", "karst-controller"]);
    assert_eq!(controllers["status"]["readyReplicas"], 2);
    let shop = Namespace::new("enroll-command");
    shop.apply(&server_and_client());
    shop.apply(ON_THE_HOST);
    cluster.wait_ready(shop.name());

    let client = format!("{}/client", shop.name());
    let target = format!("server.{}:9000", shop.name());
    let amount = Amount {
        rate: 50,
        long: 0,
        seconds: 600,
    };
    let load = Load::start(cluster, &client, &target, amount);
    for _ in 0..2 {
        let said = karst(cluster, "enroll", &shop);
        assert!(said.contains("2 pod(s) in the mesh"), "{said}");
        assert!(said.contains("0 restart(s)"), "{said}");
        assert!(said.contains("left alone: on-the-host"), "{said}");
        let said = karst(cluster, "unenroll", &shop);
        assert!(said.contains("2 pod(s) out of the mesh"), "{said}");
    }
    karst(cluster, "enroll", &shop);
    let report = load.stop(cluster);
    assert_eq!(report["failures"], 0, "{report}");

    // Opened after the enrolment, and held while it is asked about.
    let held = Amount {
        rate: 0,
        long: 3,
        seconds: 600,
    };
    let held = Load::start(cluster, &client, &target, held);
    let said = karst_test_cluster::until("the flows are shown", || {
        let said = karst(cluster, "enroll", &shop);
        said.contains("live connection").then_some(said)
    });
    assert!(said.contains("(100 %)"), "{said}");
    assert_eq!(held.stop(cluster)["failures"], 0);
}

fn karst(cluster: &Cluster, verb: &str, namespace: &Namespace) -> String {
    let said = run(cluster
        .karst()
        .args([verb, &format!("ns/{}", namespace.name())]));
    String::from_utf8_lossy(&said.stdout).into_owned()
}
