//! A handle on a network namespace: where it comes from, its identity, running code inside.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::socket::sockopt;

/// The kernel's number for one network namespace, unique until the machine reboots.
///
/// Unlike an inode number it is never reused, and kernel programs see the same value
/// (`bpf_get_netns_cookie`), so it is the key of every per-pod map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An open network namespace; it lives at least as long as this handle.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// Opens a namespace file: `/var/run/netns/NAME`, `/proc/PID/ns/net`, or a bind mount.
    ///
    /// Fails with the error of `open(2)`, or `InvalidInput` when the file is no network namespace.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let ns = Self::from_fd(File::open(path.as_ref())?.into());
        match ns.cookie() {
            Ok(_) => Ok(ns),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a network namespace", path.as_ref().display()),
            )),
            Err(error) => Err(error),
        }
    }

    /// The namespace that process `pid` is in now. Check the cookie afterwards: pids are reused.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Ok(Self::from_fd(
            File::open("/proc/thread-self/ns/net")?.into(),
        ))
    }

    /// Takes a descriptor that somebody else opened (or that was received over a socket).
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// A second handle on the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::from_fd(self.fd.try_clone()?))
    }

    /// The cookie of this namespace, read from a socket made inside.
    pub fn cookie(&self) -> io::Result<NetnsCookie> {
        self.run(|| {
            let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)
                .and_then(|unix| netns_cookie(unix.as_fd()));
            match socket {
                Ok(cookie) => Ok(cookie),
                Err(_) => netns_cookie(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.as_fd()),
            }
        })?
    }

    /// The inode number that `ls -i /proc/PID/ns/net` shows; unique while the namespace lives.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(File::from(self.fd.try_clone()?).metadata()?.ino())
    }

    /// Runs `f` with this thread inside the namespace, then returns the thread to where it was.
    ///
    /// `f` must be synchronous and quick: the thread serves nobody else meanwhile. Needs
    /// `CAP_SYS_ADMIN`; fails when the namespace cannot be entered. When the way back is barred
    /// the process aborts, as a thread lost in a pod's namespace would leak one pod's traffic
    /// into another's.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let home = match HOME.take() {
            Some(home) => home,
            None => Home::open()?,
        };
        // On the way back also when the way there fails: the remembered home is kept.
        let _way_back = WayBack(Some(home));
        enter(self.fd.as_fd())?;
        Ok(f())
    }

    /// Remembers where the calling thread is now, so that [`Netns::run`] need not look it up each time. For threads that
    /// change their namespace by `run` alone.
    pub fn remember_home() -> io::Result<()> {
        let home = Home::open()?;
        HOME.set(Some(Home { keep: true, ..home }));
        Ok(())
    }
}

thread_local! {
    /// Where this thread belongs, if it asked to remember; taken while it is away, so that a call within a call looks anew.
    static HOME: Cell<Option<Home>> = const { Cell::new(None) };
}

/// Where a thread goes back to.
struct Home {
    netns: Netns,
    /// Whether the thread remembers it for the next time.
    keep: bool,
}

impl Home {
    fn open() -> io::Result<Self> {
        Ok(Self {
            netns: Netns::current()?,
            keep: false,
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns the thread to its own namespace, also when the closure panics.
struct WayBack(Option<Home>);

impl Drop for WayBack {
    fn drop(&mut self) {
        let Some(home) = self.0.take() else { return };
        if enter(home.netns.as_fd()).is_err() {
            std::process::abort();
        }
        if home.keep {
            HOME.set(Some(home));
        }
    }
}

fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        fd,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// The cookie of the namespace that a socket was made in (Linux 5.14 for every family).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    let cookie = sockopt(socket, libc::SO_NETNS_COOKIE)?;
    Ok(NetnsCookie(u64::from_ne_bytes(cookie)))
}

/// The kernel's number for one socket, the same that kernel programs see.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    sockopt(socket, libc::SO_COOKIE).map(u64::from_ne_bytes)
}
