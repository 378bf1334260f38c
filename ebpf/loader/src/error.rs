//! What can go wrong between the agent and the kernel, and whose fault it is.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::programs::ProgramError;
use karst_netns::NetnsCookie;

/// Why the programs could not be loaded or removed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "this binary was built without the kernel programs: run `cargo xtask ebpf`, then build again"
    )]
    NotBuilt,
    #[error("{} is not on a bpf file system: run `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    #[error("{} holds maps of version {found}, this binary needs {wanted}: remove the old ones first", pin_dir.display())]
    OtherVersion {
        pin_dir: PathBuf,
        found: u32,
        wanted: u32,
    },
    #[error("at most {wanted} kubelet cgroups can be named, got {got}")]
    TooManyKubelets { got: usize, wanted: usize },
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("the kernel refuses the programs or maps")]
    Object(#[source] Box<EbpfError>),
    #[error("the kernel refuses program {name}")]
    Program {
        name: &'static str,
        source: Box<ProgramError>,
    },
    #[error("the object holds no program {0}: it was built from other sources")]
    Missing(&'static str),
    #[error("cannot attach or replace {name}")]
    Link { name: String, source: io::Error },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("cannot take down pod {cookie}")]
    Pod {
        cookie: NetnsCookie,
        source: Box<AttachError>,
    },
}

/// Why a pod could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("all {0} places for enrolled pods on this node are taken")]
    Full(u32),
    #[error("pod has no address, or two of one family")]
    Addresses,
    #[error("prefix {prefix} is too long for {addr}")]
    Prefix { addr: std::net::IpAddr, prefix: u8 },
    #[error("cannot read the port of a listener")]
    Listener(#[source] io::Error),
    #[error("listener is not in the pod's namespace")]
    ForeignListener,
    #[error("cannot load the pod's steering program")]
    Steering(#[source] Box<LoadError>),
    #[error("cannot guard interface {ifindex} of the host's namespace")]
    Guard {
        ifindex: u32,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("map {map} is full")]
    Full { map: &'static str },
    #[error("cannot use map {map}")]
    Kernel {
        map: &'static str,
        source: Box<aya::maps::MapError>,
    },
    #[error("pod {0} is not attached")]
    NotAttached(NetnsCookie),
}

impl MapError {
    /// Names the map; a full one is its own case, as it means "raise a limit", not "report a bug".
    pub(crate) fn of(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| match &source {
            aya::maps::MapError::SyscallError(call)
                if matches!(
                    call.io_error.raw_os_error(),
                    Some(libc::E2BIG | libc::ENOSPC)
                ) =>
            {
                Self::Full { map }
            }
            _ => Self::Kernel {
                map,
                source: Box::new(source),
            },
        }
    }
}
