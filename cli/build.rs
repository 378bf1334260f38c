//! Puts the chart into the program: the list of its files with their text, as a constant.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let chart = manifests.join("chart");
    let mut source = listing("TEMPLATES", &chart.join("templates"), &["yaml"], "")?;
    source.push_str(&listing("CRDS", &manifests.join("crds"), &["yaml"], "")?);
    let mut files = String::new();
    for folder in ["files/dashboards", "files/prometheus"] {
        let endings = &["json", "yaml"];
        files.push_str(&entries(
            &chart.join(folder),
            endings,
            &format!("{folder}/"),
        )?);
    }
    source.push_str(&constant("FILES", &files));
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("chart.rs"), source)
}

fn listing(name: &str, folder: &Path, endings: &[&str], prefix: &str) -> io::Result<String> {
    Ok(constant(name, &entries(folder, endings, prefix)?))
}

fn constant(name: &str, entries: &str) -> String {
    format!("/// Files of `manifests`, by name.\nconst {name}: &[(&str, &str)] = &[\n{entries}];\n")
}

/// `(prefix and file name, text),` of a folder's files with these endings, in the order of names.
fn entries(folder: &Path, endings: &[&str], prefix: &str) -> io::Result<String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            files.push(entry?.path());
        }
    }
    files.retain(|file| {
        let ending = file.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| endings.contains(&ending))
    });
    files.sort();
    let lines = files.iter().map(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        format!(
            "    ({name:?}, include_str!({:?})),\n",
            file.to_string_lossy()
        )
    });
    Ok(lines.collect())
}
