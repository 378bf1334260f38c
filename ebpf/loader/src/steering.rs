//! The `sk_lookup` program of one pod: loaded with the pod's slot, linked to its namespace.
//!
//! A program depends on its slot alone. [`Programs`] loads some before they are needed and keeps those of pods that
//! went: reading the object and having the program checked take most of the time that a pod would wait for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramFd, SkLookup};
use karst_netns::NetnsCookie;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::{LoadError, MapSizes, link, object};

const NAME: &str = "karst_sk_lookup";
/// Programs that are loaded for pods to come.
const SPARE: usize = 4;

/// Loaded programs by slot; at most one for every place in the map of pods.
pub(crate) struct Programs {
    pin_dir: PathBuf,
    sizes: MapSizes,
    by_slot: BTreeMap<u32, ProgramFd>,
}

impl Programs {
    pub(crate) fn new(pin_dir: &Path, sizes: MapSizes) -> Self {
        Self {
            pin_dir: pin_dir.to_owned(),
            sizes,
            by_slot: BTreeMap::new(),
        }
    }

    /// Attaches, or replaces after a restart. From here on the namespace fails closed.
    pub(crate) fn attach(
        &mut self,
        slot: u32,
        cookie: NetnsCookie,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), LoadError> {
        let name = pin_path(&self.pin_dir, cookie);
        let program = self.of_slot(slot)?;
        link::establish_lookup(&name, program, netns)
            .map(drop)
            .map_err(|source| LoadError::Link {
                name: name.display().to_string(),
                source,
            })
    }

    /// Loads a program for one of the free slots, given in the order in which they will be taken. False when enough
    /// are there.
    pub(crate) fn prepare(&mut self, free: impl Iterator<Item = u32>) -> Result<bool, LoadError> {
        let missing = free
            .take(SPARE)
            .find(|slot| !self.by_slot.contains_key(slot));
        match missing {
            Some(slot) => self.of_slot(slot).map(|_loaded| true),
            None => Ok(false),
        }
    }

    fn of_slot(&mut self, slot: u32) -> Result<&ProgramFd, LoadError> {
        match self.by_slot.entry(slot) {
            Entry::Occupied(loaded) => Ok(loaded.into_mut()),
            Entry::Vacant(empty) => Ok(empty.insert(load(&self.pin_dir, &self.sizes, slot)?)),
        }
    }
}

fn load(pin_dir: &Path, sizes: &MapSizes, slot: u32) -> Result<ProgramFd, LoadError> {
    let mut ebpf = object::open(pin_dir, sizes, Some(slot))?;
    let refused = |source| LoadError::Program {
        name: NAME,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(NAME).ok_or(LoadError::Missing(NAME))?;
    let program: &mut SkLookup = program.try_into().map_err(refused)?;
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.try_clone();
    fd.map_err(|source| LoadError::Link {
        name: NAME.to_owned(),
        source,
    })
}

/// Gives the namespace back its own lookup. When this returns, no connection is looked up by the program any more, so
/// its maps may be cleared; removing the pin alone would leave it running for a while, and it drops what it finds no
/// listener for.
pub(crate) fn detach(pin_dir: &Path, cookie: NetnsCookie) {
    // A connect that was captured a moment ago must have sent its SYN while it is still steered.
    settle();
    let path = pin_path(pin_dir, cookie);
    match link::detach(&path).and_then(|()| std::fs::remove_file(&path)) {
        Ok(()) => settle(),
        Err(error) => tracing::debug!(%cookie, %error, "steering was not attached"),
    }
}

/// Waits until every program that runs now, and every system call that it runs for, has passed. Takes some
/// milliseconds.
pub(crate) fn settle() {
    // Global: the kernel waits for a grace period of RCU, under which its programs run.
    if let Err(error) = membarrier(MembarrierCommand::Global) {
        tracing::debug!(%error, "cannot wait for the kernel's programs");
    }
}

fn pin_path(pin_dir: &Path, cookie: NetnsCookie) -> PathBuf {
    pin_dir.join(format!("pod_{cookie}"))
}
