//! The compiled programs inside this binary, and how they are given to the kernel.

use std::path::Path;

use aya::{Ebpf, EbpfLoader};
use karst_ebpf_abi::LISTENERS_PER_POD;

use crate::{LoadError, MapSizes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/karst.o"));

/// The map of per-socket facts: declared by BTF, which names no pin.
pub(crate) const SOCKETS: &str = "SOCKETS";

/// Makes or reuses the pinned maps in `pin_dir`, and prepares the programs.
///
/// `slot` is the pod that a steering program serves; `None` when none is loaded from this copy. Maps that are pinned
/// already keep their sizes.
pub(crate) fn open(pin_dir: &Path, sizes: &MapSizes, slot: Option<u32>) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let slot = slot.unwrap_or(u32::MAX);
    let mut loader = EbpfLoader::new();
    for (map, size) in sizes.by_map() {
        loader.map_max_entries(map, size);
    }
    loader
        .btf(None)
        .default_map_pin_directory(pin_dir)
        .map_pin_path(SOCKETS, pin_dir.join(SOCKETS))
        .override_global("SLOT", &slot, true)
        .load(OBJECT)
        .map_err(|source| LoadError::Object(Box::new(source)))
}

impl MapSizes {
    /// What the programs' own bounds are replaced by.
    fn by_map(&self) -> [(&'static str, u32); 11] {
        [
            ("PODS", self.pods),
            ("POD_BY_COOKIE", self.pods),
            ("GUARDED", self.pods),
            ("LISTENERS", self.pods * LISTENERS_PER_POD),
            ("DESTINATIONS", self.destinations),
            ("EXCLUDED_PORTS", self.exclusions),
            ("EXCLUDED_CIDRS", self.exclusions),
            ("PROBE_PORTS", self.exclusions),
            ("ORIG_DST", self.pending),
            ("APPROVED", self.pending),
            ("DIAL_INTENT", self.pending),
        ]
    }
}
