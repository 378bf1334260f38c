//! A server and its clients on two nodes, in the mesh, with a policy by identity: what goes on, and what stays forbidden,
//! whatever a test does to the cluster around them.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{
    Amount, Cluster, Detached, Namespace,
    pods::{byte_echo, byte_service, shell},
    wait::{eventually, until},
};

/// Service `server`, which `client` may reach and `stranger` may not.
pub struct Pair {
    /// Where all of it is.
    pub namespace: Namespace,
    changes: AtomicU32,
}

/// A server and a client without a policy, for tests of connections alone.
pub fn server_and_client() -> String {
    byte_echo("server", "n2") + &byte_service("server", "", "") + &shell("client", "n1")
}

const NO_STRANGERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-strangers}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [stranger]}}]}]
";

/// A pod with a service account of its name.
const CLIENT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  serviceAccountName: NAME
  terminationGracePeriodSeconds: 1
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-NAME}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [NAME]}}]}]
";

impl Pair {
    /// Opens it in `name` and waits until all of it is in the mesh.
    pub fn open(name: &str) -> Self {
        let pair = Self::outside(name);
        pair.enter();
        pair
    }

    /// Opens it in `name`, outside the mesh.
    pub fn outside(name: &str) -> Self {
        let namespace = Namespace::new(name);
        let both_families = byte_service("server", "", "ipFamilyPolicy: PreferDualStack");
        namespace.apply(&(byte_echo("server", "n2") + &both_families));
        namespace.apply(NO_STRANGERS);
        for client in ["client", "stranger"] {
            namespace.apply(&CLIENT.replace("NAME", client));
        }
        Cluster::get().wait_ready(name);
        Self {
            namespace,
            changes: AtomicU32::new(0),
        }
    }

    /// Enters the mesh, and waits until that and the policy hold.
    pub fn enter(&self) {
        self.namespace.label();
        self.namespace.wait_enrolled();
        eventually("strangers are refused", || {
            self.reaches("client") && !self.reaches("stranger")
        });
    }

    /// Whether a pod reaches the service.
    pub fn reaches(&self, client: &str) -> bool {
        self.reaches_at(client, &format!("server.{}:9000", self.namespace.name()))
    }

    /// Whether a pod reaches `host:port` and is echoed.
    pub fn reaches_at(&self, client: &str, target: &str) -> bool {
        let pod = format!("{}/{client}", self.namespace.name());
        let words = [
            "karst-echo",
            "load",
            target,
            "--rate",
            "1",
            "--duration",
            "1",
        ];
        // Who could not be asked has not been refused.
        let report: serde_json::Value = until(&format!("{pod} says whether it reaches"), || {
            serde_json::from_slice(&Cluster::get().exec(&pod, &words).stdout).ok()
        });
        report["connections"].as_u64() > Some(0)
    }

    /// New connections of the client, so many a second, until they are stopped.
    pub fn load(&self, rate: u32) -> Detached {
        self.load_to(&format!("server.{}:9000", self.namespace.name()), rate)
    }

    /// The same to the server's own address: whatever Kubernetes believes of the node and its endpoints.
    pub fn load_past_service(&self, rate: u32) -> Detached {
        let pod = Cluster::get().object(&["pod", "server", "-n", self.namespace.name()]);
        let address = pod["status"]["podIP"].as_str().expect("an address");
        self.load_to(&format!("{address}:9000"), rate)
    }

    fn load_to(&self, target: &str, rate: u32) -> Detached {
        let amount = Amount {
            rate,
            long: 0,
            seconds: 1800,
        };
        let client = format!("{}/client", self.namespace.name());
        Detached::start(Cluster::get(), &client, target, amount)
    }

    /// A newcomer with a new identity is served, and refused once a new policy says so: everything between the API server
    /// and the nodes works.
    pub fn expect_changes(&self) {
        let count = self.changes.fetch_add(1, Ordering::Relaxed);
        let name = format!("newcomer-{count}");
        self.namespace.apply(&CLIENT.replace("NAME", &name));
        Cluster::get().wait_ready(self.namespace.name());
        self.namespace.wait_enrolled();
        eventually("a newcomer is served", || self.reaches(&name));
        self.namespace.apply(&DENY.replace("NAME", &name));
        eventually("a new policy holds", || !self.reaches(&name));
    }
}
