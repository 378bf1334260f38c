//! An OCI image out of files: a layer, a configuration, a manifest, as one archive or as a layout of many.
//!
//! The same files give the same bytes: no time of the day and no user of this machine goes in.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What containerd reads an image's name from, in an archive.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What every other tool reads it from.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// Folders that a program expects, even in an image made from nothing.
const FOLDERS: [(&str, u32); 7] = [
    ("tmp", 0o1777),
    ("etc", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("dev", 0o755),
    ("var", 0o755),
    ("run", 0o755),
];

/// The files of an image, as one layer.
pub(super) struct Layer {
    archive: Builder<Vec<u8>>,
    /// Entries so far: each path goes in once, and its folders before it.
    paths: BTreeSet<String>,
}

impl Layer {
    /// A layer with the folders that every program expects.
    pub(super) fn new() -> Result<Self> {
        let mut layer = Self {
            archive: Builder::new(Vec::new()),
            paths: BTreeSet::new(),
        };
        for (folder, mode) in FOLDERS {
            layer.folder(folder, mode)?;
        }
        // Runtimes name paths by the older name.
        layer.link("/var/run", "../run")?;
        Ok(layer)
    }

    /// Adds a folder, unless it is there.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.paths.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        let mut header = header(EntryType::Directory, mode, 0);
        self.paths.insert(path.to_owned());
        let path = format!("{path}/");
        Ok(self.archive.append_data(&mut header, path, [].as_slice())?)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent, 0o755),
            None => Ok(()),
        }
    }

    /// Adds a file with these bytes, unless the path is there.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = path.trim_start_matches('/');
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
        Ok(self.archive.append_data(&mut header, path, bytes)?)
    }

    /// Adds a symbolic link, unless the path is there.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let path = path.trim_start_matches('/');
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        let mut header = header(EntryType::Symlink, 0o777, 0);
        Ok(self.archive.append_link(&mut header, path, target)?)
    }

    fn bytes(self) -> Result<Vec<u8>> {
        self.archive.into_inner().context("closing a layer")
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// An image before it is written.
pub(super) struct Image {
    /// Its full names, `host/name:tag`.
    pub(super) names: Vec<String>,
    /// Its files.
    pub(super) layer: Layer,
    /// What runs when a pod names no command; may be empty.
    pub(super) entrypoint: Vec<String>,
}

/// How layers are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// As they are: nothing to unpack, for nodes on this machine.
    None,
    /// For a registry.
    Gzip,
}

struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Blob {
    fn digest(&self) -> String {
        digest(&self.bytes)
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.kind, "digest": self.digest(), "size": self.bytes.len() })
    }

    /// Where it lies in a layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest().replace(':', "/"))
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image as its blobs.
struct Packed {
    names: Vec<String>,
    /// Layer, configuration, manifest.
    blobs: [Blob; 3],
}

impl Packed {
    fn new(image: Image, compression: Compression) -> Result<Self> {
        let plain = image.layer.bytes()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": image.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&plain)] },
        });
        let layer = pack(plain, compression)?;
        let config = Blob {
            kind: "application/vnd.oci.image.config.v1+json",
            bytes: serde_json::to_vec(&config)?,
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest = Blob {
            kind: MANIFEST,
            bytes: serde_json::to_vec(&manifest)?,
        };
        Ok(Self {
            names: image.names,
            blobs: [layer, config, manifest],
        })
    }

    /// What an index says of it, once for each of its names.
    fn descriptors(&self) -> impl Iterator<Item = Value> {
        let [_, _, manifest] = &self.blobs;
        self.names.iter().map(|name| {
            let mut descriptor = manifest.descriptor();
            descriptor["annotations"] = json!({ CONTAINERD_NAME: name, REFERENCE: name });
            descriptor
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn pack(plain: Vec<u8>, compression: Compression) -> Result<Blob> {
    if compression == Compression::None {
        return Ok(Blob {
            kind: "application/vnd.oci.image.layer.v1.tar",
            bytes: plain,
        });
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain)?;
    Ok(Blob {
        kind: "application/vnd.oci.image.layer.v1.tar+gzip",
        bytes: encoder.finish()?,
    })
}

/// The machine's architecture as Go, and so OCI, calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn index(images: &[Packed]) -> Value {
    let manifests: Vec<Value> = images.iter().flat_map(Packed::descriptors).collect();
    json!({ "schemaVersion": 2, "manifests": manifests })
}

/// Writes one image as an archive that containerd imports; the size of its layer in bytes.
pub(super) fn write_archive(image: Image, file: &Path) -> Result<usize> {
    let packed = Packed::new(image, Compression::None)?;
    let mut archive = Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
        archive.append_data(&mut header, path, bytes)
    };
    add("oci-layout", LAYOUT)?;
    add(
        "index.json",
        &serde_json::to_vec(&index(std::slice::from_ref(&packed)))?,
    )?;
    for blob in &packed.blobs {
        add(&blob.path(), &blob.bytes)?;
    }
    write(file, &archive.into_inner()?)?;
    Ok(packed.blobs[0].bytes.len())
}

/// Writes images as an OCI layout, from which other tools push them to a registry.
pub(super) fn write_layout(images: Vec<Image>, folder: &Path) -> Result<()> {
    let packed = images
        .into_iter()
        .map(|image| Packed::new(image, Compression::Gzip));
    let packed = packed.collect::<Result<Vec<_>>>()?;
    for blob in packed.iter().flat_map(|image| &image.blobs) {
        write(&folder.join(blob.path()), &blob.bytes)?;
    }
    write(&folder.join("oci-layout"), LAYOUT)?;
    write(
        &folder.join("index.json"),
        &serde_json::to_vec_pretty(&index(&packed))?,
    )
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(file.parent().context("an image has a folder")?)?;
    fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image(name: &str) -> Image {
        let mut layer = Layer::new().unwrap();
        layer.file("/bin/tool", b"program", 0o755).unwrap();
        layer.link("/bin/alias", "tool").unwrap();
        Image {
            names: vec![name.to_owned(), format!("{name}-too")],
            layer,
            entrypoint: vec!["/bin/tool".to_owned()],
        }
    }

    fn folder(test: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("karst-oci-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn blob(folder: &Path, descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"].as_str().unwrap();
        let bytes = fs::read(folder.join("blobs").join(name.replace(':', "/"))).unwrap();
        assert_eq!(digest(&bytes), name);
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
        bytes
    }

    #[test]
    fn a_layout_leads_from_the_index_to_every_file() {
        let folder = folder("layout");
        write_layout(
            vec![image("karst.test/a:1"), image("karst.test/b:1")],
            &folder,
        )
        .unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        let names: Vec<_> = manifests
            .iter()
            .map(|one| one["annotations"][REFERENCE].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "karst.test/a:1",
                "karst.test/a:1-too",
                "karst.test/b:1",
                "karst.test/b:1-too"
            ]
        );
        let manifest: Value = serde_json::from_slice(&blob(&folder, &manifests[0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&folder, &manifest["config"])).unwrap();
        let packed = blob(&folder, &manifest["layers"][0]);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice())
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&plain));
        let mut layer = tar::Archive::new(plain.as_slice());
        let paths: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(paths.contains(&"bin/tool".to_owned()), "{paths:?}");
        let bin = paths.iter().position(|path| path == "bin/").unwrap();
        let tool = paths.iter().position(|path| path == "bin/tool").unwrap();
        assert!(bin < tool, "a folder comes before what is in it: {paths:?}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let folder = folder("same");
        let [one, two] = ["one", "two"].map(|name| folder.join(name));
        for file in [&one, &two] {
            write_archive(image("karst.test/a:1"), file).unwrap();
        }
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_path_goes_in_once() {
        let mut layer = Layer::new().unwrap();
        layer.file("/a/b", b"first", 0o644).unwrap();
        layer.file("a/b", b"second", 0o644).unwrap();
        layer.folder("/a", 0o700).unwrap();
        let bytes = layer.bytes().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
        let paths: Vec<_> = entries
            .map(|entry| entry.path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            paths.iter().filter(|path| path.starts_with('a')).count(),
            2,
            "{paths:?}"
        );
    }
}
