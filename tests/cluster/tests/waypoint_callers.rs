//! Whom a seal refuses: `karst check` names them while the policy is only tried, and when it is in force. The Service's
//! status says what is sealed and why.

use karst_test_cluster::{
    Cluster, Namespace, cluster::run, eventually, orders::Orders, pods::shell, until,
};
use serde_json::Value;

/// `ANNOTATIONS` as YAML writes a mapping.
const NO_DELETE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, annotations: {ANNOTATIONS}}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
";

#[test]
fn check_names_the_callers_of_a_sealed_service_that_come_without_the_mesh() {
    let cluster = Cluster::get();
    let orders = Orders::open("callers");
    let street = Namespace::new("callers-street");
    street.apply(&shell("passer-by", "n1"));
    cluster.wait_ready(street.name());
    let outside = || {
        let words = [
            "karst-echo",
            "client",
            "--timeout",
            "3",
            "http://orders.callers/",
        ];
        let said = cluster.exec("callers-street/passer-by", &words).stdout;
        String::from_utf8_lossy(&said).contains("StatusCode=200")
    };
    assert!(outside(), "without a seal it is served");
    assert!(finding(cluster).is_none(), "nothing is sealed yet");

    // On trial: all goes on, and who would be refused is named.
    let policy = |annotations: &str| {
        let yaml = NO_DELETE.replace("ANNOTATIONS", annotations);
        orders.namespace.apply(&yaml);
    };
    policy("istio.io/dry-run: \"true\"");
    let named = until("the dry run's callers are named", || {
        let found = finding(cluster)?;
        let message = text(&found["message"]);
        message
            .contains("callers-street/passer-by")
            .then_some(found)
    });
    println!("{named}");
    assert_eq!(named["verdict"], "warning");
    assert!(text(&named["message"]).contains("would refuse"), "{named}");
    assert_eq!(sealed(cluster)["reason"], "DryRun");
    assert!(outside(), "a dry run refuses nobody");

    // In force.
    policy("");
    eventually("it is refused", || !outside());
    let named = until("the seal's callers are named", || {
        let found = finding(cluster)?;
        text(&found["message"])
            .contains("this refuses")
            .then_some(found)
    });
    println!("{named}");
    let message = text(&named["message"]);
    assert!(message.contains("callers-street/passer-by"), "{message}");
    assert!(message.contains("policy callers/no-delete"), "{message}");
    let condition = sealed(cluster);
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&"True".into(), &"PolicyAttached".into())
    );

    // Waived, which the status says, and no policy at all.
    let annotate = |value: &str| {
        let mut annotate = cluster.kubectl();
        let words = [
            "-n",
            "callers",
            "annotate",
            "--overwrite",
            "service",
            "orders",
        ];
        run(annotate.args(words).arg(value));
    };
    annotate("karst.dev/seal=false");
    eventually("it is served again", outside);
    eventually("the status says why", || {
        sealed(cluster)["reason"] == "Waived"
    });
    assert!(finding(cluster).is_none(), "nobody is refused");
    annotate("karst.dev/seal-");
    let mut delete = cluster.kubectl();
    run(delete.args([
        "-n",
        "callers",
        "delete",
        "authorizationpolicy",
        "no-delete",
    ]));
    eventually("nothing is said of a seal", || sealed(cluster).is_null());
}

/// What `karst check` says of the seal of the service.
fn finding(cluster: &Cluster) -> Option<Value> {
    // Warnings are in its exit code.
    let said = cluster
        .karst()
        .args(["check", "--no-pods", "-o", "json"])
        .output()
        .expect("karst starts");
    let all: Vec<Value> = serde_json::from_slice(&said.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&said.stderr)));
    all.into_iter()
        .find(|one| one["check"] == "seal" && one["subject"] == "callers/orders")
}

/// The condition of the service; null where it has none.
fn sealed(cluster: &Cluster) -> Value {
    let service = cluster.object(&["service", "orders", "-n", "callers"]);
    let conditions = service["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|one| one["type"] == "karst.dev/Sealed");
    found.cloned().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
