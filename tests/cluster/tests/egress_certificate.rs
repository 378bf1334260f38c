//! A server outside of the mesh that demands a certificate of its clients: Debian's nginx. The application speaks plainly,
//! the waypoint shows the certificate of a Secret, and no other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use karst_test_cluster::{
    Cluster, Namespace, eventually,
    orders::{Orders, status},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

const OUTSIDE: &str = "cert-outside";
const INSIDE: &str = "cert-inside";

const SERVER: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: payments}
data:
  nginx.conf: |
    daemon off;
    pid /tmp/nginx.pid;
    error_log stderr;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
      server { listen 8080; location / { return 200 ready; } }
      server {
        listen 8443 ssl;
        ssl_certificate /mnt/tls/tls.crt;
        ssl_certificate_key /mnt/tls/tls.key;
        ssl_client_certificate /mnt/tls/ca.crt;
        ssl_verify_client on;
        location / { return 200 \"Client=$ssl_client_s_dn\\n\"; }
      }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: payments, labels: {app: payments}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  securityContext: {runAsUser: 10001}
  containers:
    - name: nginx
      image: karst.test/nginx:1
      command: [nginx, -e, stderr, -c, /mnt/config/nginx.conf]
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
      volumeMounts:
        - {name: config, mountPath: /mnt/config, readOnly: true}
        - {name: tls, mountPath: /mnt/tls, readOnly: true}
  volumes:
    - {name: config, configMap: {name: payments}}
    - {name: tls, secret: {secretName: payments}}
---
apiVersion: v1
kind: Service
metadata: {name: payments}
spec:
  selector: {app: payments}
  ports: [{name: https, port: 8443, targetPort: 8443}]
";

const EGRESS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: payments
  labels: {istio.io/use-waypoint: waypoint}
spec:
  hosts: [api.payments.example]
  location: MESH_EXTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]
  resolution: DNS
  endpoints: [{address: payments.cert-outside.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payments}
spec:
  host: api.payments.example
  trafficPolicy:
    tls: {mode: MUTUAL, sni: api.payments.example, credentialName: payments-client}
";

/// What the chart makes for one entry of its value `credentials`.
const RIGHT: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: karst-payments-client}
rules:
  - {apiGroups: [''], resources: [secrets], resourceNames: [payments-client], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: karst-payments-client}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: karst-payments-client}
subjects: [{kind: ServiceAccount, name: karst-controller, namespace: karst-system}]
";

/// A root of its own for the server and its clients.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "Payments Root";
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A Secret with a certificate of this name, and what verifies its peers.
    fn secret(&self, secret: &str, name: &str, roots: &Self) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let [certificate, key, root] =
            [certificate.pem(), key.serialize_pem(), roots.pem.clone()].map(|t| STANDARD.encode(t));
        format!(
            "{{apiVersion: v1, kind: Secret, type: kubernetes.io/tls, metadata: {{name: {secret}}}, \
             data: {{tls.crt: {certificate}, tls.key: {key}, ca.crt: {root}}}}}"
        )
    }
}

/// Whether the rule's status has this, among all that it says.
fn rule_says(text: &str) -> bool {
    let rule = Cluster::get().object(&["destinationrule", "payments", "-n", INSIDE]);
    rule["status"].to_string().contains(text)
}

#[test]
fn a_server_that_demands_a_certificate_gets_that_of_the_secret_and_nothing_goes_out_without_it() {
    let root = Root::new();
    let outside = Namespace::new(OUTSIDE);
    outside.apply(&root.secret("payments", "api.payments.example", &root));
    outside.apply(SERVER);
    let orders = Orders::open(INSIDE);
    Cluster::get().wait_ready(OUTSIDE);
    let inside = &orders.namespace;
    let call = || orders.call("http://api.payments.example/", &[]);

    // The Secret is there, and the controller may not read it.
    inside.apply(&root.secret("payments-client", "shop-1.example", &root));
    inside.apply(EGRESS);
    eventually("the rule says what is missing", || {
        rule_says("InvalidCertificateRef") && rule_says("the chart's value `credentials`")
    });
    eventually("nothing goes out", || status(&call()) == Some("503"));

    inside.apply(RIGHT);
    eventually("the server sees the Secret's certificate", || {
        call().contains("Client=CN=shop-1.example")
    });
    eventually("the rule is in order", || {
        !rule_says("InvalidCertificateRef")
    });

    // Another certificate, under load: the new one is shown, and nobody is refused.
    let words = [
        "http://api.payments.example/",
        "--duration",
        "600",
        "--pause-ms",
        "5",
    ];
    let before = orders.counted();
    let load = orders.requests(&words);
    eventually("the load runs", || orders.counted() > before + 100);
    let changed = Instant::now();
    inside.apply(&root.secret("payments-client", "shop-2.example", &root));
    eventually("the server sees the new certificate", || {
        call().contains("Client=CN=shop-2.example")
    });
    println!("a changed Secret held after {:?}", changed.elapsed());
    let report = load.stop(Cluster::get());
    println!("while it changed: {report}");
    assert_eq!(report["failures"], 0, "{report}");
    let statuses = report["statuses"].as_object();
    assert_eq!(statuses.map(serde_json::Map::len), Some(1), "{report}");
    assert!(report["statuses"]["200"].as_u64() > Some(100), "{report}");

    // A certificate of somebody else's root: nginx answers those with 400, and what it says is passed on as it is.
    let stranger = Root::new().secret("payments-client", "stranger.example", &root);
    inside.apply(&stranger);
    eventually("a stranger is refused", || status(&call()) == Some("400"));
}
