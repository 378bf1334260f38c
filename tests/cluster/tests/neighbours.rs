//! Callers that no agent captures: the API server calling a webhook, a node's port, a pod on the host's network, a
//! scraper outside the mesh. They reach pods of the mesh as before; under STRICT they reach the ports that say so alone.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually};
use serde_json::Value;

/// How long a caller that is to be refused may wait.
const CALL: Duration = Duration::from_secs(2);
/// A port that everybody may call, as metrics are.
const OPEN: u16 = 9090;
const CLOSED: u16 = 8080;

const SERVER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, '--port=8080', '--port=9090', '--port=8443', '--tls=8443']
      readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports:
    - {name: http, port: 8080}
    - {name: http-metrics, port: 9090}
    - {name: https, port: 443, targetPort: 8443}
";

const CALLERS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: scraper}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-the-host}
spec:
  hostNetwork: true
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
";

/// Two ports for callers outside of the mesh.
const OPENED: &str = "  portLevelMtls: {9090: {mode: PERMISSIVE}, 8443: {mode: PERMISSIVE}}\n";

/// The server and everybody who calls it.
struct Street {
    shop: Namespace,
    street: Namespace,
    server: IpAddr,
    /// Of the service's first two ports, on the first node.
    node_ports: [SocketAddr; 2],
}

impl Street {
    fn open(cluster: &Cluster) -> Self {
        let (shop, street) = (
            Namespace::new("neighbours"),
            Namespace::new("neighbours-out"),
        );
        shop.apply(SERVER);
        street.apply(CALLERS);
        cluster.wait_ready(shop.name());
        cluster.wait_ready(street.name());
        let server = cluster.object(&["-n", shop.name(), "pod", "server"]);
        let service = cluster.object(&["-n", shop.name(), "service", "server"]);
        let node = cluster.object(&["node", "n1"]);
        let node = address(&node["status"]["addresses"][0]["address"]);
        let port = |at: usize| {
            let port = service["spec"]["ports"][at]["nodePort"].as_u64();
            u16::try_from(port.expect("a port")).expect("16 bits")
        };
        cluster.apply(&webhook(&shop, &street));
        Self {
            server: address(&server["status"]["podIP"]),
            node_ports: [port(0), port(1)].map(|port| SocketAddr::new(node, port)),
            shop,
            street,
        }
    }

    /// Who reaches the server: each caller, at the closed port and at the open one.
    fn reached(&self, cluster: &Cluster) -> Vec<(&'static str, bool)> {
        let from = |pod: &str, port: u16| {
            let pod = format!("{}/{pod}", self.street.name());
            let url = format!("http://{}:{port}/", self.server);
            let call = cluster.exec(&pod, &["karst-echo", "client", "--timeout", "2", &url]);
            String::from_utf8_lossy(&call.stdout).contains("StatusCode=200")
        };
        vec![
            ("scraper", from("scraper", CLOSED)),
            ("scraper, open port", from("scraper", OPEN)),
            ("host network", from("on-the-host", CLOSED)),
            ("host network, open port", from("on-the-host", OPEN)),
            ("node port", answers(self.node_ports[0])),
            ("node port, open port", answers(self.node_ports[1])),
            ("webhook, open port", self.webhook_is_reached(cluster)),
        ]
    }

    /// karst-echo is no webhook: that the API server dislikes its certificate shows that it was reached.
    fn webhook_is_reached(&self, cluster: &Cluster) -> bool {
        let mut create = cluster.kubectl();
        create.args(["-n", self.street.name(), "create", "configmap", "tried"]);
        let said = create
            .arg("--dry-run=server")
            .output()
            .expect("kubectl starts");
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(
            said.contains("neighbours.karst.test"),
            "the webhook is not called: {said}"
        );
        said.contains("x509")
    }

    fn wait(&self, cluster: &Cluster, when: &str, expected: impl Fn(&str) -> bool) {
        eventually(
            &format!("callers are answered as they should be {when}"),
            || {
                let mut reached = self.reached(cluster).into_iter();
                reached.all(|(caller, reached)| reached == expected(caller))
            },
        );
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        let mut delete = Cluster::get().kubectl();
        delete.args(["delete", "validatingwebhookconfiguration", "neighbours"]);
        let _ = delete.output();
    }
}

/// Asks the server before a ConfigMap of the street is made.
fn webhook(shop: &Namespace, street: &Namespace) -> String {
    format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: neighbours}}
webhooks:
  - name: neighbours.karst.test
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: 2
    failurePolicy: Fail
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {street}}}}}
    matchConditions: [{{name: tried, expression: \"request.name == 'tried'\"}}]
    rules: [{{apiGroups: [''], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}}]
    clientConfig: {{service: {{namespace: {shop}, name: server, port: 443, path: /}}}}
",
        street = street.name(),
        shop = shop.name()
    )
}

fn address(value: &Value) -> IpAddr {
    value.as_str().expect("text").parse().expect("an address")
}

/// An HTTP request from this machine, outside of all nodes.
fn answers(to: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, CALL)?;
        stream.set_read_timeout(Some(CALL))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[test]
fn callers_outside_the_mesh_reach_it_where_it_says_so() {
    let cluster = Cluster::get();
    let street = Street::open(cluster);
    street.wait(cluster, "outside the mesh", |_| true);

    street.shop.label();
    street.shop.wait_enrolled();
    street.wait(cluster, "in the mesh", |_| true);

    street.shop.apply(STRICT);
    street.wait(cluster, "under STRICT", |_| false);

    street.shop.apply(&format!("{STRICT}{OPENED}"));
    let is_open = |caller: &str| caller.ends_with("open port");
    street.wait(cluster, "with two open ports", is_open);
}

#[test]
fn the_cluster_s_own_pods_and_those_of_the_host_are_left_alone() {
    let cluster = Cluster::get();
    let label = |value: &str| {
        let mut label = cluster.kubectl();
        run(label.args(["label", "--overwrite", "namespace", "kube-system", value]));
    };
    label("istio.io/dataplane-mode=ambient");
    // Enrolled after it by the same controllers and agents: what was asked first has been decided.
    let street = Namespace::new("left-alone");
    street.apply(CALLERS);
    cluster.wait_ready(street.name());
    street.label();
    let protocol = |namespace: &str, pod: &str| {
        let workloads = cluster.workloads(namespace).unwrap_or_default();
        let mut found = workloads.iter().filter(|one| {
            let name = one["name"].as_str().unwrap_or_default();
            name.starts_with(pod)
        });
        found
            .next()
            .and_then(|one| one["protocol"].as_str().map(str::to_owned))
    };
    eventually("the pod beside it is in the mesh", || {
        protocol(street.name(), "scraper").as_deref() == Some("HBONE")
    });
    let resolver = protocol("kube-system", "coredns");
    let on_the_host = protocol(street.name(), "on-the-host");
    label("istio.io/dataplane-mode-");
    assert_eq!(resolver.as_deref(), Some("TCP"));
    assert_ne!(on_the_host.as_deref(), Some("HBONE"));
}
