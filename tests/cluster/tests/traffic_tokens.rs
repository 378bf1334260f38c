//! Who may, and how much: tokens of users, their groups and their issuer's keys, external authorizers, rate limits, and
//! TLS to a host outside of the mesh; with objects as a user of Istio writes them.

use karst_test_cluster::{
    Cluster, Load, Namespace,
    cluster::run,
    eventually,
    orders::{Orders, SUBSETS, echo, service, status},
    tokens::{Key, key_set},
};
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";

/// After every test.
const FAR: u64 = 4_102_444_800;

const USERS: &str = "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  jwtRules:
    - issuer: https://issuer.example
      jwksUri: http://keys.users.svc.cluster.local/kept/jwks
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  action: ALLOW
  rules:
    - from: [{source: {requestPrincipals: ['https://issuer.example/*']}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
    - match: [{headers: {'@request.auth.claims.groups': {exact: beta}}}]
      route: [{destination: {host: orders, subset: v2}}]
    - route: [{destination: {host: orders, subset: v1}}]
";

/// Settings of the controller that hold for one test.
struct Controller;

impl Controller {
    fn with(settings: &[&str]) -> Self {
        Self::set(settings);
        Self
    }

    fn set(settings: &[&str]) {
        let kubectl = |words: &[&str]| {
            let mut kubectl = Cluster::get().kubectl();
            run(kubectl.args(["-n", "karst-system"]).args(words));
        };
        let deployment = "deployment/karst-controller";
        kubectl(&[&["set", "env", deployment], settings].concat());
        kubectl(&["rollout", "status", deployment, "--timeout=120s"]);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            Self::set(&["KARST_JWKS_ALLOW_PRIVATE-", "KARST_JWKS_REFRESH_SECONDS-"]);
        }
    }
}

fn claims(groups: &[&str]) -> Value {
    json!({"iss": ISSUER, "sub": "somebody", "exp": FAR, "groups": groups})
}

#[test]
fn groups_reach_their_version_and_keys_rotate_under_load() {
    let cluster = Cluster::get();
    let _controller = Controller::with(&[
        "KARST_JWKS_ALLOW_PRIVATE=true",
        "KARST_JWKS_REFRESH_SECONDS=2",
    ]);
    let orders = Orders::open("users");
    orders.namespace.apply(&echo("keys", "n2", "app: keys"));
    orders
        .namespace
        .apply(&service("keys", "istio.io/use-waypoint: none", "app: keys"));
    cluster.wait_ready("users");
    let [one, two] = ["one", "two"].map(Key::new);
    let publish = |keys: &[&Key]| {
        let kept = format!("x-keep:{}", key_set(keys));
        let url = "http://127.0.0.1:8080/kept/jwks";
        let words = ["karst-echo", "client", "--method", "PUT", "-H", &kept, url];
        let said = cluster.exec("users/keys", &words);
        assert!(said.status.success(), "{said:?}");
    };
    publish(&[&one]);
    orders.namespace.apply(SUBSETS);
    orders.namespace.apply(USERS);
    let bearer =
        |key: &Key, groups: &[&str]| format!("authorization:Bearer {}", key.sign(&claims(groups)));
    let ask = |header: &str| orders.call("http://orders/", &["-H", header]);
    let old = bearer(&one, &["staff", "beta"]);
    // Without any of it, half of the requests go there as well.
    eventually("the first key is known", || {
        (0..12).all(|_| ask(&old).contains("Hostname=v2"))
    });

    // Groups.
    let staff = bearer(&one, &["staff"]);
    for (header, version, count) in [(&old, "v2", 500), (&staff, "v1", 500)] {
        let words = ["http://orders/", "--count", "500", "-H", header];
        let report = orders.requests(&words).report();
        assert_eq!(report["answered_by"][version], count, "{report}");
    }
    assert_eq!(status(&orders.call("http://orders/", &[])), Some("403"));
    let forged = bearer(&Key::new("one"), &["beta"]);
    assert_eq!(status(&ask(&forged)), Some("401"));
    let late = json!({"iss": ISSUER, "sub": "s", "exp": 1_000, "groups": ["beta"]});
    let late = format!("authorization:Bearer {}", one.sign(&late));
    assert_eq!(status(&ask(&late)), Some("401"));

    // The issuer publishes a second key, signs with it, and forgets the first.
    let new = bearer(&two, &["beta"]);
    let load = |header: &str| -> Load {
        let words = ["http://orders/", "--connections", "4", "--pause-ms", "10"];
        let more = ["--duration", "600", "-H", header];
        orders.requests(&[&words[..], &more].concat())
    };
    assert_eq!(status(&ask(&new)), Some("401"), "not published yet");
    let with_old = load(&old);
    publish(&[&one, &two]);
    eventually("the second key is known", || {
        ask(&new).contains("Hostname=v2")
    });
    let with_new = load(&new);
    eventually("both are used", || {
        (0..20).all(|_| ask(&new).contains("Hostname=v2") && ask(&old).contains("Hostname=v2"))
    });
    let first = with_old.stop(cluster);
    publish(&[&two]);
    eventually("the first key is forgotten", || {
        status(&ask(&old)) == Some("401")
    });
    let second = with_new.stop(cluster);
    println!("rotation: with the old key {first}\n with the new one {second}");
    for report in [&first, &second] {
        assert_eq!(report["failures"], 0, "{report}");
        assert_eq!(report["statuses"]["200"], report["requests"], "{report}");
        assert_eq!(report["answered_by"]["v2"], report["requests"], "{report}");
    }
}

const LIMIT: &str = "
apiVersion: policy.karst.io/v1alpha1
kind: RateLimit
metadata: {name: orders}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  rules:
    - name: tenants
      match: [{paths: [/limited*]}]
      requests: 50
      per: 1s
      burst: 50
      key: [{by: Header, name: x-tenant}]
";

const PROVIDERS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: karst-system}
data:
  mesh: |
    extensionProviders:
    - name: sample-ext-authz-http
      envoyExtAuthzHttp:
        service: first.limits.svc.cluster.local
        port: 80
        pathPrefix: /authorize
        includeRequestHeadersInCheck: [x-ext-authz]
        headersToDownstreamOnDeny: [x-ext-authz-check-result]
    - name: second
      envoyExtAuthzHttp:
        service: second.limits.svc.cluster.local
        port: 80
";

const CUSTOM: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ext-authz}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  action: CUSTOM
  provider: {name: sample-ext-authz-http}
  rules: [{to: [{operation: {paths: [/headers]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: second}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  action: CUSTOM
  provider: {name: second}
  rules: [{to: [{operation: {paths: [/headers]}}]}]
";

const BANK: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: bank
  labels: {istio.io/use-waypoint: waypoint}
spec:
  hosts: [api.bank.example]
  exportTo: ['.']
  location: MESH_EXTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]
  resolution: DNS
  endpoints: [{address: bank.limits-outside.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bank}
spec:
  host: api.bank.example
  trafficPolicy:
    tls: {mode: SIMPLE, sni: api.bank.example, insecureSkipVerify: true}
";

const OUTSIDE: &str = "
apiVersion: v1
kind: Service
metadata: {name: bank}
spec:
  selector: {app: bank}
  ports: [{name: https, port: 8443, targetPort: 8443}]
";

/// Mesh-wide configuration that goes when the test ends.
struct MeshConfig;

impl Drop for MeshConfig {
    fn drop(&mut self) {
        let mut delete = Cluster::get().kubectl();
        delete.args(["-n", "karst-system", "delete", "configmap", "istio"]);
        let _ = delete.output();
    }
}

#[test]
fn limits_hold_as_written_authorizers_decide_and_tls_is_made_on_the_way_out() {
    let cluster = Cluster::get();
    let outside = Namespace::new("limits-outside");
    outside.apply(&echo("bank", "n2", "app: bank"));
    outside.apply(OUTSIDE);
    let orders = Orders::open("limits");
    for name in ["first", "second"] {
        orders
            .namespace
            .apply(&echo(name, "n2", &format!("app: {name}")));
        let no_waypoint = "istio.io/use-waypoint: none";
        let service = service(name, no_waypoint, &format!("app: {name}"));
        orders.namespace.apply(&service);
    }
    cluster.wait_ready("limits-outside");
    orders.wait_for(&["first", "second"]);

    // Rate limits: a burst, and then so many a second, for each tenant by itself.
    orders.namespace.apply(LIMIT);
    eventually("the limit holds", || {
        let words = ["http://orders/limited", "--count", "120"];
        let report = orders.requests(&words).report();
        report["statuses"]["429"].as_u64().unwrap_or(0) > 0
    });
    let words = [
        "http://orders/limited",
        "--connections",
        "4",
        "--duration",
        "10",
        "--pause-ms",
        "5",
    ];
    let tenants = ["x-tenant:a", "x-tenant:b"];
    let loads = tenants.map(|tenant| orders.requests(&[&words[..], &["-H", tenant]].concat()));
    for report in loads.map(Load::report) {
        let passed = report["statuses"]["200"].as_f64().unwrap_or(0.0);
        println!("limit: {passed} of 50 + 10 * 50 passed: {report}");
        assert!((passed - 550.0).abs() <= 0.02 * 550.0, "{report}");
        assert_eq!(report["failures"], 0, "{report}");
    }

    // External authorization, as in Istio's task: by a header; and a second authorizer has its say.
    cluster.apply(PROVIDERS);
    let _config = MeshConfig;
    orders.namespace.apply(CUSTOM);
    let ask = |decision: &str| {
        let header = format!("x-ext-authz:{decision}");
        orders.call("http://orders/headers", &["-H", &header])
    };
    eventually("both authorizers are asked", || {
        status(&ask("allow")) == Some("200") && status(&ask("deny")) == Some("403")
    });
    let denied = ask("deny");
    assert!(
        denied.contains("X-Ext-Authz-Check-Result:denied"),
        "{denied}"
    );
    let elsewhere = orders.call("http://orders/ip", &["-H", "x-ext-authz:deny"]);
    assert_eq!(
        status(&elsewhere),
        Some("200"),
        "only what the policy names"
    );
    orders.tell("second", 403);
    eventually("the second denies", || status(&ask("allow")) == Some("403"));
    orders.tell("second", 200);
    assert_eq!(status(&ask("allow")), Some("200"));

    // TLS origination: the application speaks plainly, the server outside is spoken to in TLS.
    orders.namespace.apply(BANK);
    eventually("the host outside answers over TLS", || {
        let said = orders.call("http://api.bank.example/accounts", &[]);
        said.contains("ServicePort=8443") && said.contains("Host=api.bank.example")
    });
    let words = ["http://api.bank.example/accounts", "--count", "500"];
    let report = orders.requests(&words).report();
    println!("TLS origination: {report}");
    assert_eq!(report["answered_by"]["bank"], 500, "{report}");
    assert_told_once(cluster);
}

/// The status of the ServiceEntry names its addresses, and is written no more once everybody has it.
fn assert_told_once(cluster: &Cluster) {
    let entry = || cluster.object(&["serviceentry", "bank", "-n", "limits"]);
    let is_everywhere = |entry: &Value| {
        let conditions = entry["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| one["type"] == "Programmed" && one["status"] == "True")
    };
    let mut told = entry();
    eventually("everybody has the entry", || {
        told = entry();
        is_everywhere(&told)
    });
    let addresses = told["status"]["addresses"].as_array();
    let mut addresses = addresses.into_iter().flatten();
    assert!(
        addresses.any(|one| one["value"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("240.240."))),
        "{}",
        told["status"]
    );
    for _ in 0..20 {
        assert_eq!(entry()["status"], told["status"], "it is written again");
    }
}
