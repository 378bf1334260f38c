//! The generated code in `src/gen` is what the `.proto` files say. `KARST_CODEGEN=write` writes it instead.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, path::Path};

use tonic_prost_build::{Builder, Config};

const PROTOS: [&str; 15] = [
    "google/rpc/status.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/type/v3/http_status.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "istio/workload/workload.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "karst/v1/karst.proto",
    "karst/v1/waypoint.proto",
    "karst/v1/rate_limit.proto",
    "karst/v1/traffic.proto",
    "karst/v1/telemetry.proto",
    "karst/reads/v1/reads.proto",
    "karst/reads/v1/observations.proto",
];

#[test]
fn generated_code_is_fresh() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    let fresh = generate();
    if std::env::var("KARST_CODEGEN").as_deref() == Ok("write") {
        fs::create_dir_all(&checked_in).unwrap();
        for (name, text) in &fresh {
            fs::write(checked_in.join(name), text).unwrap();
        }
        return;
    }
    for (name, text) in &fresh {
        let old = fs::read_to_string(checked_in.join(name)).unwrap_or_default();
        assert!(
            old == *text,
            "src/gen/{name} is stale: run `KARST_CODEGEN=write cargo test -p karst-proto --test fresh`"
        );
    }
    let files: Vec<_> = fs::read_dir(&checked_in)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    for file in files {
        assert!(
            fresh.contains_key(&file),
            "src/gen/{file} has no .proto any more"
        );
    }
}

/// File name to text.
fn generate() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    // Ordered, so that the bytes of a workload (and their hash, its version) do not change without need.
    let mut files = compile(&PROTOS, &root, |builder| {
        builder
            .btree_map(".istio.workload.Workload.services")
            .btree_map(".karst.v1.WorkloadExtension.labels")
    });
    let mut encoded = compile(&["encoded/discovery.proto"], &root, |builder| {
        builder
            .build_client(false)
            .bytes(".")
            .extern_path(
                ".envoy.service.discovery.v3.DeltaDiscoveryRequest",
                "crate::discovery::DeltaDiscoveryRequest",
            )
            .extern_path(".envoy.config.core.v3", "crate::core")
            .extern_path(".google.rpc", "crate::rpc")
    });
    let text = encoded.remove("envoy.service.discovery.v3.rs").unwrap();
    files.insert("encoded.rs".into(), text);
    files
}

fn compile(
    protos: &[&str],
    root: &Path,
    options: impl FnOnce(Builder) -> Builder,
) -> BTreeMap<String, String> {
    let out = tempfile_dir();
    let descriptors = protox::compile(protos, [root]).unwrap();
    let builder = tonic_prost_build::configure()
        .out_dir(&out.0)
        .emit_rerun_if_changed(false);
    options(builder)
        .compile_fds_with_config(descriptors, Config::new())
        .unwrap();
    fs::read_dir(&out.0)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .filter(|(_, text)| !text.trim().is_empty())
        .collect()
}

/// A directory that goes away with the value.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempfile_dir() -> Scratch {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("karst-codegen-{}-{n}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    Scratch(dir)
}
