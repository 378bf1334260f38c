//! Writes `manifests/crds/*.yaml` from the Rust types: `cargo run -p karst-k8s-api --example print_crds`.

#![expect(clippy::unwrap_used, reason = "a tool that cannot go on fails")]

use std::{fs, path::Path};

use karst_k8s_api::{Kind, crd};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/crds");
    fs::create_dir_all(&folder).unwrap();
    for kind in Kind::all() {
        if let Some(definition) = crd::of(kind) {
            let text = crd::to_yaml(&definition).unwrap();
            fs::write(folder.join(crd::file_name(kind)), text).unwrap();
        }
    }
}
