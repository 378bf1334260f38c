//! The compiled programs inside this binary, and how they are given to the kernel.

use std::path::Path;

use aya::{Ebpf, EbpfLoader};

use crate::LoadError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/karst.o"));

/// The map of per-socket facts: declared by BTF, which names no pin.
pub(crate) const SOCKETS: &str = "SOCKETS";

/// Makes or reuses the pinned maps in `pin_dir`, and prepares the programs.
///
/// `slot` is the pod that a steering program serves; `None` when none is loaded from this copy.
pub(crate) fn open(pin_dir: &Path, slot: Option<u32>) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let slot = slot.unwrap_or(u32::MAX);
    EbpfLoader::new()
        .btf(None)
        .default_map_pin_directory(pin_dir)
        .map_pin_path(SOCKETS, pin_dir.join(SOCKETS))
        .override_global("SLOT", &slot, true)
        .load(OBJECT)
        .map_err(|source| LoadError::Object(Box::new(source)))
}
