//! The `sk_lookup` program of one pod: loaded with the pod's slot, linked to its namespace.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use karst_netns::NetnsCookie;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::{LoadError, link, object};

const NAME: &str = "karst_sk_lookup";

/// Attaches, or replaces after a restart. From here on the namespace fails closed.
pub(crate) fn attach(
    pin_dir: &Path,
    slot: u32,
    cookie: NetnsCookie,
    netns: Option<BorrowedFd<'_>>,
) -> Result<(), LoadError> {
    let mut ebpf = object::open(pin_dir, Some(slot))?;
    let refused = |source| LoadError::Program {
        name: NAME,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(NAME).ok_or(LoadError::Missing(NAME))?;
    let program: &mut SkLookup = program.try_into().map_err(refused)?;
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.try_clone();
    let name = pin_path(pin_dir, cookie);
    let named = |source| LoadError::Link {
        name: name.display().to_string(),
        source,
    };
    link::establish(&name, &fd.map_err(named)?, || {
        let netns = netns.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let id = program.attach(netns).map_err(io::Error::other)?;
        program
            .take_link(id)
            .map(FdLink::from)
            .map_err(io::Error::other)
    })
    .map(drop)
    .map_err(named)
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
