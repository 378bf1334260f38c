//! The shop of `examples/`, in namespaces of a test's own.

use std::{fs, path::Path, process::Output};

use crate::{Cluster, Namespace, wait::eventually};

/// nginx, an order service, Redis, PostgreSQL and a customer in one namespace; a passer-by in another.
pub struct Shop {
    /// Where the shop is. Not in the mesh at first.
    pub namespace: Namespace,
    /// Where the passer-by is. Never in the mesh.
    pub street: Namespace,
}

impl Shop {
    /// Opens the shop in `name` and its street in `name-street`, and waits until all pods are ready and a page is
    /// served: a node's kube-proxy refuses connections to a Service until it has heard of its pods.
    pub fn open(name: &str) -> Self {
        let street = format!("{name}-street");
        let shop = Self {
            namespace: Namespace::new(name),
            street: Namespace::new(&street),
        };
        let cluster = Cluster::get();
        let dns = cluster.object(&["service", "kube-dns", "-n", "kube-system"]);
        let dns = dns["spec"]["clusterIP"].as_str().expect("an address");
        cluster.apply(&yaml(name, &street).replace("10.96.0.10", dns));
        cluster.wait_ready(name);
        cluster.wait_ready(&street);
        shop.wait_for_page("open");
        shop
    }

    /// Loads a page as the customer, with a word in its address that travels in clear without the mesh.
    pub fn page(&self, word: &str) -> Output {
        let url = format!("http://front.{}/{word}", self.namespace.name());
        let customer = format!("{}/customer", self.namespace.name());
        Cluster::get().exec(&customer, &["karst-echo", "client", &url])
    }

    /// Loads a page and expects it.
    pub fn expect_page(&self, word: &str) {
        let page = self.page(word);
        assert!(is_page(&page), "no page: {page:?}");
    }

    /// Loads pages until one comes.
    pub fn wait_for_page(&self, word: &str) {
        eventually("a page is served", || is_page(&self.page(word)));
    }
}

fn is_page(page: &Output) -> bool {
    let said = String::from_utf8_lossy(&page.stdout);
    said.contains("StatusCode=200") && said.contains("shop: visit")
}

/// The example's files with our names; the namespaces are there already.
fn yaml(shop: &str, street: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    let listed = fs::read_dir(&folder).expect("examples/shop is there");
    let mut files: Vec<_> = listed
        .flatten()
        .map(|file| file.path())
        .filter(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".yaml") && !name.starts_with("10-")
        })
        .collect();
    files.sort();
    let texts = files.iter().map(|file| {
        let text = fs::read_to_string(file).expect("a file of examples/shop");
        renamed(&text, shop, street)
    });
    texts.collect::<Vec<_>>().join("---\n")
}

fn renamed(text: &str, shop: &str, street: &str) -> String {
    text.replace("namespace: shop", &format!("namespace: {shop}"))
        .replace("ns/shop/", &format!("ns/{shop}/"))
        .replace("orders.shop.svc", &format!("orders.{shop}.svc"))
        .replace("namespace: street", &format!("namespace: {street}"))
        .replace("namespaces: [street]", &format!("namespaces: [{street}]"))
}
