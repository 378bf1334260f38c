//! Puts the chart into the program: the list of its files with their text, as a constant.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let mut source = String::new();
    for (constant, folder) in [("TEMPLATES", "chart/templates"), ("CRDS", "crds")] {
        source.push_str(&listing(constant, &manifests.join(folder))?);
    }
    fs::write(
        Path::new(&env::var("OUT_DIR").map_err(io::Error::other)?).join("chart.rs"),
        source,
    )
}

/// `const NAME: &[(file name, text)]` of a folder's YAML, in the order of names.
fn listing(constant: &str, folder: &Path) -> io::Result<String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            files.push(entry?.path());
        }
    }
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    let lines = files.iter().map(|file| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        format!(
            "    ({name:?}, include_str!({:?})),\n",
            file.to_string_lossy()
        )
    });
    Ok(format!(
        "/// Files of `manifests`, by name.\nconst {constant}: &[(&str, &str)] = &[\n{}];\n",
        lines.collect::<String>()
    ))
}
