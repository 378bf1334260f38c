//! A service in two versions behind a waypoint, with clients on both nodes: what tests of requests have in common.

use serde_json::Value;

use crate::{
    Cluster, Load, Namespace,
    cluster::run,
    pods::shell,
    wait::{eventually, until},
};

/// Service `orders` (HTTP, gRPC and WebSocket on port 80) with a pod of each version, a service for each version, a
/// headless one for both, and pod `client`.
pub struct Orders {
    /// Where all of it is: in the mesh, bound to its waypoint.
    pub namespace: Namespace,
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: VERSION, labels: {app: orders, version: VERSION}}
spec:
  nodeSelector: {kubernetes.io/hostname: NODE}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, --port=8080]
      readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: orders-VERSION}
spec:
  selector: {app: orders, version: VERSION}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: orders-headless}
spec:
  clusterIP: None
  selector: {app: orders}
  ports: [{name: http, port: 8080}]
";

/// The versions of `orders` as subsets, for rules that name them.
pub const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
";

impl Orders {
    /// Opens it in `name`, with a waypoint by the user's command, and waits until everything goes through that.
    pub fn open(name: &str) -> Self {
        let namespace = Namespace::new(name);
        for (version, node) in [("v1", "n2"), ("v2", "n1")] {
            namespace.apply(&PODS.replace("VERSION", version).replace("NODE", node));
        }
        namespace.apply(&format!("{SERVICES}{}", shell("client", "n1")));
        let cluster = Cluster::get();
        cluster.wait_ready(name);
        namespace.label();
        namespace.wait_enrolled();
        let said = run(cluster.karst().args(["waypoint", "apply", name]));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("in place"), "{said}");
        let orders = Self { namespace };
        eventually("requests go through the waypoint", || {
            orders.call("http://orders/", &[]);
            orders.counted() > 0
        });
        orders
    }

    /// `name` of a pod, as tests call commands in it.
    pub fn pod(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace.name())
    }

    /// One request of the client; what `karst-echo client` says, empty where there is no answer.
    pub fn call(&self, url: &str, more: &[&str]) -> String {
        let mut words = vec!["karst-echo", "client", "--timeout", "5", url];
        words.extend(more);
        let said = Cluster::get().exec(&self.pod("client"), &words);
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// Starts `karst-echo requests` in the client.
    pub fn requests(&self, words: &[&str]) -> Load {
        let all = [&["karst-echo", "requests"], words].concat();
        Load::spawn(Cluster::get(), &self.pod("client"), &all)
    }

    /// Waits until these pods, which came later, are ready and reached by HBONE.
    pub fn wait_for(&self, pods: &[&str]) {
        let name = self.namespace.name();
        Cluster::get().wait_ready(name);
        eventually("pods that came later are in the mesh", || {
            let workloads = Cluster::get().workloads(name).unwrap_or_default();
            let meshed = |pod: &&str| {
                let mut found = workloads.iter().filter(|one| one["name"] == **pod);
                found.any(|one| one["protocol"] == "HBONE")
            };
            pods.iter().all(meshed)
        });
    }

    /// Makes every answer of a pod have this status from now on; 200 takes that back.
    pub fn tell(&self, pod: &str, status: u16) {
        let url = format!("http://127.0.0.1:8080/told?status={status}");
        run_in(&self.pod(pod), &url);
    }

    /// How many requests reached a pod, and how many at once at most.
    pub fn seen(&self, pod: &str) -> (u64, u64) {
        let said = run_in(&self.pod(pod), "http://127.0.0.1:8080/seen");
        let number = |name: &str| {
            let found = said.lines().find_map(|line| line.split_once(name));
            found.and_then(|(_, number)| number.trim().parse().ok())
        };
        let seen = number("Requests=").zip(number("AtOnce="));
        seen.unwrap_or_else(|| panic!("{pod} does not say what it has seen: {said}"))
    }

    /// A route to both versions by weight; whoever sends `x-user: tester` gets v2.
    pub fn route(&self, v1: u32, v2: u32) {
        self.namespace.apply(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: orders}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: orders, port: 80}}]
  rules:
    - name: testers
      matches: [{{headers: [{{name: x-user, value: tester}}]}}]
      backendRefs: [{{name: orders-v2, port: 80}}]
    - name: everybody
      backendRefs:
        - {{name: orders-v1, port: 80, weight: {v1}}}
        - {{name: orders-v2, port: 80, weight: {v2}}}
"
        ));
    }

    /// The waypoint's pods that are ready.
    pub fn replicas(&self) -> Vec<String> {
        let label = "gateway.networking.k8s.io/gateway-name=waypoint";
        let pods = Cluster::get().object(&["pods", "-n", self.namespace.name(), "-l", label]);
        let ready = |pod: &&Value| {
            let containers = pod["status"]["containerStatuses"].as_array();
            containers.is_some_and(|all| all.iter().all(|one| one["ready"] == true))
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let pods = pods["items"].as_array().into_iter().flatten();
        let names = pods
            .filter(ready)
            .filter_map(|pod| pod["metadata"]["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// Requests that a replica of the waypoint has answered, as its metrics say.
    pub fn counted_by(&self, replica: &str) -> u64 {
        until(&format!("{replica} says what it has counted"), || {
            self.count_of(replica)
        })
    }

    fn count_of(&self, replica: &str) -> Option<u64> {
        let mut get = Cluster::get().kubectl();
        let path = format!(
            "/api/v1/namespaces/{}/pods/{replica}:15020/proxy/metrics",
            self.namespace.name()
        );
        let said = get.args(["get", "--raw", &path]).output().ok()?;
        let page = String::from_utf8_lossy(&said.stdout).into_owned();
        let counts = page.lines().filter_map(|line| {
            let (_, value) = line
                .strip_prefix("istio_requests_total{")?
                .rsplit_once("} ")?;
            value.split(' ').next()?.parse::<u64>().ok()
        });
        said.status.success().then(|| counts.sum())
    }

    /// Requests that all replicas have answered.
    pub fn counted(&self) -> u64 {
        let replicas = self.replicas();
        replicas
            .iter()
            .map(|replica| self.counted_by(replica))
            .sum()
    }

    /// What the waypoint's pods have logged.
    pub fn waypoint_log(&self) -> String {
        let mut logs = Cluster::get().kubectl();
        let label = "gateway.networking.k8s.io/gateway-name=waypoint";
        logs.args([
            "-n",
            self.namespace.name(),
            "logs",
            "--tail=-1",
            "-l",
            label,
        ]);
        let said = logs.output().map(|said| said.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// A pod of karst-echo on port 8080, whose service account is its name's default; `labels` as YAML writes a mapping.
pub fn echo(name: &str, node: &str, labels: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{labels}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, --port=8080, --port=8443, --tls=8443, --tls-names=api.bank.example]
      readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1}}
---"
    )
}

/// A service of port 80 for such pods.
pub fn service(name: &str, labels: &str, selector: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, labels: {{{labels}}}}}
spec:
  selector: {{{selector}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---"
    )
}

/// A request of a pod to itself, which must be answered.
fn run_in(pod: &str, url: &str) -> String {
    let said = Cluster::get().exec(pod, &["karst-echo", "client", url]);
    assert!(said.status.success(), "{pod}: {url}: {said:?}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// The status of the first answer in what `karst-echo client` says.
pub fn status(said: &str) -> Option<&str> {
    let line = said
        .lines()
        .find_map(|line| line.split_once("StatusCode="))?;
    Some(line.1)
}
