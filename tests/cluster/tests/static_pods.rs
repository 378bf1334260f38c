//! Static pods, whose UID on their node is not the one that the API server knows: one that runs is captured when its
//! namespace is labelled, one that starts later starts captured.

use std::io::Write as _;
use std::process::Stdio;

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually};

const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

/// Only what is captured is answered.
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

/// A manifest in the kubelet's folder on the first node; gone when dropped.
struct StaticPod<'a> {
    cluster: &'a Cluster,
    file: String,
}

impl<'a> StaticPod<'a> {
    fn put(cluster: &'a Cluster, namespace: &str, name: &str) -> Self {
        let file = format!("/var/lib/kubelet/static/{namespace}-{name}.yaml");
        let pod = format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: echo, image: karst.test/echo:1, command: [karst-echo, server, '--port=8080']}}]
"
        );
        // Kubelets read no file that begins with a dot: this one is whole when it is read.
        let aside = "/var/lib/kubelet/static/.new";
        let write = format!("cat >{aside} && mv {aside} {file}");
        let mut node = cluster.node("n1");
        let mut child = node
            .args(["sh", "-c", &write])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell on the node");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(pod.as_bytes()).expect("written");
        drop(input);
        assert!(child.wait().expect("it ends").success());
        Self { cluster, file }
    }
}

impl Drop for StaticPod<'_> {
    fn drop(&mut self) {
        let mut node = self.cluster.node("n1");
        let _ = node.args(["rm", "-f", &self.file]).output();
    }
}

#[test]
fn static_pods_are_in_the_mesh_as_others_are() {
    let cluster = Cluster::get();
    let (shop, street) = (
        Namespace::new("static-pods"),
        Namespace::new("static-street"),
    );
    let _early = StaticPod::put(cluster, shop.name(), "early");
    for namespace in [&shop, &street] {
        namespace.apply(CLIENT);
    }
    wait_running(cluster, shop.name(), "early-n1");
    cluster.wait_ready(shop.name());
    cluster.wait_ready(street.name());
    shop.label();
    shop.wait_enrolled();
    let _late = StaticPod::put(cluster, shop.name(), "late");
    wait_running(cluster, shop.name(), "late-n1");
    shop.wait_enrolled();

    shop.apply(STRICT);
    let answers = |from: &Namespace, pod: &str| {
        let server = cluster.object(&["-n", shop.name(), "pod", pod]);
        let addr = server["status"]["podIP"].as_str().expect("an address");
        let url = format!("http://{addr}:8080/");
        let client = format!("{}/client", from.name());
        let call = cluster.exec(&client, &["karst-echo", "client", "--timeout", "2", &url]);
        call.status.success()
    };
    for pod in ["early-n1", "late-n1"] {
        eventually(&format!("{pod} refuses plaintext"), || {
            !answers(&street, pod)
        });
        assert!(answers(&shop, pod), "{pod} does not answer the mesh");
    }
}

fn wait_running(cluster: &Cluster, namespace: &str, pod: &str) {
    eventually(&format!("{pod} runs"), || {
        let mut get = cluster.kubectl();
        let phase = "jsonpath={.status.phase}";
        let said = get
            .args(["-n", namespace, "get", "pod", pod, "-o", phase])
            .output();
        said.is_ok_and(|said| said.stdout == b"Running")
    });
    run(cluster.kubectl().args(["-n", namespace, "get", "pod", pod]));
}
