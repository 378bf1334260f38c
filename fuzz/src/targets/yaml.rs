//! Kubernetes YAML in the controller's directory: a person's mistakes, and a pod author's tricks.

use std::path::Path;

use crate::Target;

/// A file.
pub const FILE: Target = Target {
    name: "yaml",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = karst_files::parse(Path::new("input.yaml"), text);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/dataplane-mode: ambient\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [\"cluster.local/ns/shop/sa/web\"]\n    to:\n    - operation: {ports: [\"80\"]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.96.0.10\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n",
        "a: &a [x]\nb: [*a, *a]\nc: |\n  text\nd: \"\\u0041\"\n",
        "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"p\", \"namespace\": \"shop\"}, \"spec\": {\"containers\": []}}\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
