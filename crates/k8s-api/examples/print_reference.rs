//! Writes `docs/reference/istio-compat.md` and `gateway-api.md` from the tables: `cargo run -p karst-k8s-api --example print_reference`.

#![expect(clippy::unwrap_used, reason = "a tool that cannot go on fails")]

use std::{fs, path::Path};

use karst_k8s_api::honoured;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("istio-compat.md"), honoured::page()).unwrap();
    fs::write(folder.join("gateway-api.md"), honoured::gateway_page()).unwrap();
}
