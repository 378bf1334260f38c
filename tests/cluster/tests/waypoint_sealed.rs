//! DELETE is denied by a policy of the service, which its waypoint enforces: nobody gets around it, by whichever address,
//! from wherever, with the waypoint or without one; and each refusal says why.

use karst_test_cluster::{
    Cluster, Namespace,
    cluster::run,
    eventually,
    orders::{Orders, status},
    pods::shell,
};

const NO_DELETE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
";

/// A pod that lets its kubelet ask another pod.
const PROBER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: prober}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, --port=8080]
      readinessProbe: {httpGet: {host: ADDRESS, path: /, port: 8080}, periodSeconds: 1}
";

#[test]
fn what_a_policy_by_request_denies_is_denied_on_every_way() {
    let cluster = Cluster::get();
    let orders = Orders::open("sealed");
    let street = Namespace::new("sealed-street");
    street.apply(&shell("client", "n1"));
    cluster.wait_ready(street.name());
    let pod = cluster.object(&["pod", "v1", "-n", "sealed"]);
    let address = pod["status"]["podIP"].as_str().expect("an address");
    let ways = [
        "http://orders.sealed/".to_owned(),
        format!("http://{address}:8080/"),
        "http://orders-headless.sealed:8080/".to_owned(),
    ];
    let outside = |url: &str, method: &str| {
        let words = [
            "karst-echo",
            "client",
            "--timeout",
            "3",
            "--method",
            method,
            url,
        ];
        let said = cluster.exec("sealed-street/client", &words);
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    assert!(
        outside(&ways[1], "GET").contains("StatusCode=200"),
        "the control: no policy yet"
    );
    orders.namespace.apply(NO_DELETE);

    for way in &ways {
        eventually(&format!("DELETE {way} is denied"), || {
            status(&orders.call(way, &["--method", "DELETE"])) == Some("403")
        });
        eventually(&format!("nobody outside reaches {way}"), || {
            outside(way, "GET").is_empty()
        });
    }
    for way in &ways {
        assert_eq!(status(&orders.call(way, &[])), Some("200"), "GET {way}");
        for method in ["GET", "DELETE"] {
            assert_eq!(outside(way, method), "", "{method} {way} from outside");
        }
    }
    assert!(
        orders.waypoint_log().contains("sealed/no-delete"),
        "{}",
        orders.waypoint_log()
    );
    let agents = cluster.agent_logs();
    assert!(agents.contains("sealed/karst-seal-orders"), "{agents}");

    // The kubelet's own probes pass, and no other pod's that are aimed here.
    orders.namespace.apply(&PROBER.replace("ADDRESS", address));
    eventually("the probe of another pod is refused", || {
        let about = "involvedObject.name=prober,reason=Unhealthy";
        let mut events = cluster.kubectl();
        let events = events.args(["-n", "sealed", "get", "events", "--field-selector", about]);
        !run(events.args(["-o", "name"])).stdout.is_empty()
    });
    for own in ["v1", "v2"] {
        let pod = cluster.object(&["pod", own, "-n", "sealed"]);
        assert_eq!(
            pod["status"]["containerStatuses"][0]["ready"], true,
            "{own}"
        );
    }
    let prober = cluster.object(&["pod", "prober", "-n", "sealed"]);
    assert_eq!(prober["status"]["containerStatuses"][0]["ready"], false);

    // Bound it stays, with no replica.
    let replicas = |count: &str| {
        let annotation = format!("karst.dev/replicas={count}");
        let mut annotate = cluster.kubectl();
        let words = [
            "-n",
            "sealed",
            "annotate",
            "--overwrite",
            "gateway",
            "waypoint",
            &annotation,
        ];
        run(annotate.args(words));
    };
    replicas("0");
    eventually("no replica is left", || orders.replicas().is_empty());
    eventually("the client's agent knows", || {
        ways.iter().all(|way| orders.call(way, &[]).is_empty())
    });
    for way in &ways {
        for method in ["GET", "DELETE"] {
            let around = orders.call(way, &["--method", method]);
            assert_eq!(around, "", "{method} {way} without a replica");
            assert_eq!(outside(way, method), "", "{method} {way} from outside");
        }
    }
    let agents = cluster.agent_logs();
    assert!(
        agents.contains("must be reached through its waypoint sealed/waypoint"),
        "{agents}"
    );
    replicas("1");
    eventually("a replica serves again", || {
        ways.iter()
            .all(|way| status(&orders.call(way, &[])) == Some("200"))
    });
    assert_eq!(
        status(&orders.call(&ways[0], &["--method", "DELETE"])),
        Some("403")
    );
}
