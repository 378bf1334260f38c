//! Writes the chart's template of the webhook's configuration: `cargo run -p karst-controller --example print_webhook`.

use std::{fs, path::Path};

use karst_controller::admission::configuration;

fn main() -> anyhow::Result<()> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/chart/templates/webhook.yaml");
    fs::write(path, configuration::template()?)?;
    Ok(())
}
