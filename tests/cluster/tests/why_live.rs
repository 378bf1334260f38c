//! `karst why` on a cluster says what then happens, `karst why --last` what has happened, and neither says it to somebody
//! who may not see it.

use karst_test_cluster::{
    Cluster, Namespace,
    cluster::run,
    eventually,
    orders::{Orders, echo, status},
    pods::shell,
    until,
};
use serde_json::Value;

const NAMESPACE: &str = "why";
const STREET: &str = "why-street";

/// The service of a pod that takes connections from nobody.
const VAULT: &str = "
apiVersion: v1
kind: Service
metadata: {name: vault, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: vault}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
";

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: vault-is-closed}
spec:
  selector: {matchLabels: {app: vault}}
  action: DENY
  rules: [{from: [{source: {namespaces: [why]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

/// An account that may read one namespace alone.
const READER: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: karst-reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: why-street}]
";

/// What `karst why` ended with, and its answer.
struct Said {
    code: Option<i32>,
    answer: Value,
    text: String,
}

fn why(words: &[&str]) -> Said {
    let mut ask = Cluster::get().karst();
    ask.arg("why").args(words).args(["-o", "json"]);
    let said = ask.output().expect("karst starts");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    Said {
        code: said.status.code(),
        answer: serde_json::from_slice(&said.stdout).unwrap_or_default(),
        text,
    }
}

impl Said {
    fn decided_by(&self) -> &str {
        let name = &self.answer["decidedBy"]["name"];
        name.as_str().unwrap_or_default()
    }
}

/// What was denied or failed lately, as `karst why --last` says.
fn last(words: &[&str]) -> Vec<Value> {
    let said = why(&[&["--last"], words].concat());
    let items = said.answer.as_array().cloned();
    items.unwrap_or_else(|| panic!("no list: {}", said.text))
}

fn with_reason<'a>(items: &'a [Value], reason: &str) -> Option<&'a Value> {
    let mut found = items.iter().rev();
    found.find(|item| {
        item["reason"]
            .as_str()
            .is_some_and(|text| text.contains(reason))
    })
}

#[test]
fn why_says_what_happens_and_what_happened() {
    let cluster = Cluster::get();
    let orders = Orders::open(NAMESPACE);
    let street = Namespace::new(STREET);
    street.apply(&shell("client", "n1"));
    street.apply(READER);
    orders
        .namespace
        .apply(&(echo("vault", "n2", "app: vault") + VAULT));
    cluster.wait_ready(STREET);
    cluster.wait_ready(NAMESPACE);
    eventually("vault is in the mesh", || {
        let pods = cluster.workloads(NAMESPACE).unwrap_or_default();
        let mut vault = pods.iter().filter(|one| one["name"] == "vault");
        vault.any(|one| one["protocol"] == "HBONE")
    });
    let client = "why/client";

    // Before there is any policy all of it works, and is said to.
    let allowed = why(&[client, "why/orders:80", "GET", "/"]);
    assert_eq!(allowed.code, Some(0), "{}", allowed.text);
    orders.namespace.apply(POLICIES);

    // By a policy of connections, at the pod.
    let said = until("why says that L4 policy denies", || {
        let said = why(&[client, "why/vault:80"]);
        (said.code == Some(3)).then_some(said)
    });
    assert_eq!(said.decided_by(), "vault-is-closed", "{}", said.text);
    eventually("L4 policy denies", || {
        orders.call("http://vault/", &[]).is_empty()
    });
    until("the L4 denial is told", || {
        // Again: the first may have failed for another reason.
        orders.call("http://vault/", &[]);
        let items = last(&["vault", "--in", NAMESPACE]);
        let item = with_reason(&items, "why/vault-is-closed")?.clone();
        assert_eq!(item["kind"], "denied", "{item}");
        assert_eq!(item["source"]["workload"], "client", "{item}");
        assert_eq!(item["destination"]["workload"], "vault", "{item}");
        Some(())
    });

    // By a policy of requests, at the waypoint.
    let said = why(&[client, "why/orders:80", "DELETE", "/item"]);
    assert_eq!(
        (said.code, said.decided_by()),
        (Some(3), "no-delete"),
        "{}",
        said.text
    );
    let get = why(&[client, "why/orders:80", "GET", "/item"]);
    assert_eq!(get.code, Some(0), "{}", get.text);
    eventually("DELETE is denied", || {
        let answer = orders.call("http://orders/item?secret=1", &["--method", "DELETE"]);
        status(&answer) == Some("403")
    });
    until("the L7 denial is told", || {
        let items = last(&["--in", NAMESPACE]);
        let item = with_reason(&items, "why/no-delete")?.clone();
        assert_eq!(item["direction"], "waypoint", "{item}");
        assert_eq!(item["method"], "DELETE", "{item}");
        assert_eq!(item["path"], "/item", "no query: {item}");
        assert_eq!(item["status"], 403, "{item}");
        assert_eq!(item["source"]["workload"], "client", "{item}");
        Some(())
    });

    // From outside, where STRICT asks for mutual TLS.
    let said = why(&["why-street/client", "why/vault:80"]);
    assert_eq!(
        (said.code, said.decided_by()),
        (Some(3), "STRICT"),
        "{}",
        said.text
    );
    let outside = || {
        let words = [
            "karst-echo",
            "client",
            "--timeout",
            "3",
            "http://vault.why/",
        ];
        cluster.exec("why-street/client", &words).stdout
    };
    eventually("plain text is refused", || outside().is_empty());
    until("the refusal of plain text is told", || {
        outside();
        let items = last(&["vault", "--in", NAMESPACE]);
        let plain = items.iter().find(|item| {
            let address = item["source"]["address"].as_str().unwrap_or_default();
            item["source"]["identity"] == "" && !address.is_empty() && item["kind"] == "denied"
        })?;
        eprintln!("{plain}");
        Some(())
    });

    // What is not there is no answer but a question that is not clear.
    let unknown = why(&[client, "why/nothing:80"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.text);
    let unknown = why(&["why/nobody", "why/orders:80"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.text);

    who_may_not_see();
    let described = run(cluster.karst().args(["describe", "service/why/orders"]));
    let described = String::from_utf8_lossy(&described.stdout).into_owned();
    assert!(described.contains("no-delete"), "{described}");
}

/// An asker who may see one namespace gets nothing of another: no incident, no name of a policy.
fn who_may_not_see() {
    let reader = ["--reader", "why-street/reader"];
    let said = why(&[&["why/client", "why/vault:80"], &reader[..]].concat());
    assert!(!said.text.contains("vault-is-closed"), "{}", said.text);
    let said = why(&[&["--last", "--in", NAMESPACE], &reader[..]].concat());
    assert_ne!(said.code, Some(0), "{}", said.text);
    assert!(!said.text.contains("no-delete"), "{}", said.text);
    let said = why(&[&["--last", "--in", STREET], &reader[..]].concat());
    assert_eq!(said.code, Some(0), "{}", said.text);
}
