//! Pinned links: attached once, then only their program is replaced, so that no packet and no
//! connect passes between two versions.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::ProgramFd;
use aya::programs::links::FdLink;

/// Commands of bpf(2), from `linux/bpf.h`.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
/// Attach type of `sk_lookup` programs, from `linux/bpf.h`.
const BPF_SK_LOOKUP: u32 = 36;

/// What `establish` did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Established {
    Attached,
    Replaced,
}

/// Replaces the program of the link pinned at `path`; where there is none, attaches and pins.
pub(crate) fn establish<E>(
    path: &Path,
    program: &ProgramFd,
    attach: impl FnOnce() -> Result<FdLink, E>,
) -> io::Result<Established>
where
    E: std::error::Error + Send + Sync + 'static,
{
    establish_with(path, program, || {
        let link = attach().map_err(io::Error::other)?;
        link.pin(path).map_err(io::Error::other).map(drop)
    })
}

/// The same for a namespace's `sk_lookup`; without a namespace there is nothing to attach to.
pub(crate) fn establish_lookup(
    path: &Path,
    program: &ProgramFd,
    netns: Option<BorrowedFd<'_>>,
) -> io::Result<Established> {
    establish_with(path, program, || {
        let netns = netns.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let link = create_lookup(program.as_fd(), netns)?;
        pin(link.as_fd(), path)
    })
}

fn establish_with(
    path: &Path,
    program: &ProgramFd,
    attach_and_pin: impl FnOnce() -> io::Result<()>,
) -> io::Result<Established> {
    match open(path) {
        Ok(link) => {
            update(link.as_fd(), program.as_fd())?;
            Ok(Established::Replaced)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            attach_and_pin()?;
            Ok(Established::Attached)
        }
        Err(error) => Err(error),
    }
}

/// Ends what the link pinned at `path` does, at once; the pin stays.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    let attr = LinkDetach {
        link_fd: link.as_raw_fd() as u32,
    };
    bpf(BPF_LINK_DETACH, &attr).map(drop)
}

/// Of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the kernel gives a new descriptor that nobody else owns.
    bpf(BPF_OBJ_GET, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

fn create_lookup(program: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: netns.as_raw_fd() as u32,
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the kernel gives a new descriptor that nobody else owns.
    bpf(BPF_LINK_CREATE, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the command's own attribute struct, and its size is passed with it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
