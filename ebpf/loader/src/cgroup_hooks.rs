//! The hooks at the cgroup root: one link each, pinned, its program replaced on restart.

use std::fs::File;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SockOps};

use crate::LoadError;
use crate::link::establish;

/// In the order in which they are attached: what a connect writes must be understood by the time
/// that it is written.
const HOOKS: [&str; 9] = [
    "karst_sock_ops",
    "karst_getpeername4",
    "karst_getpeername6",
    "karst_recvmsg4",
    "karst_recvmsg6",
    "karst_sendmsg4",
    "karst_sendmsg6",
    "karst_connect4",
    "karst_connect6",
];

/// Loads every cgroup hook and attaches it, or replaces what is attached.
pub(crate) fn attach(ebpf: &mut Ebpf, pin_dir: &Path, cgroup: &File) -> Result<(), LoadError> {
    HOOKS
        .into_iter()
        .try_for_each(|name| attach_one(ebpf, name, pin_dir, cgroup))
}

fn attach_one(
    ebpf: &mut Ebpf,
    name: &'static str,
    pin_dir: &Path,
    cgroup: &File,
) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        name,
        source: Box::new(source),
    };
    let path = pin_dir.join(format!("link_{name}"));
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let fd = match program {
        Program::CgroupSockAddr(hook) => hook.load().and_then(|()| cloned(hook.fd()?)),
        Program::SockOps(hook) => hook.load().and_then(|()| cloned(hook.fd()?)),
        _ => return Err(LoadError::Missing(name)),
    }
    .map_err(refused)?;
    establish(&path, &fd, || match program {
        Program::CgroupSockAddr(hook) => sock_addr(hook, cgroup),
        Program::SockOps(hook) => sock_ops(hook, cgroup),
        _ => Err(ProgramError::UnexpectedProgramType),
    })
    .map_err(|source| LoadError::Link {
        name: name.to_owned(),
        source,
    })
    .map(|done| tracing::debug!(program = name, ?done, "cgroup hook"))
}

fn cloned(fd: &aya::programs::ProgramFd) -> Result<aya::programs::ProgramFd, ProgramError> {
    fd.try_clone().map_err(ProgramError::IOError)
}

fn sock_addr(hook: &mut CgroupSockAddr, cgroup: &File) -> Result<FdLink, ProgramError> {
    let id = hook.attach(cgroup, CgroupAttachMode::Single)?;
    FdLink::try_from(hook.take_link(id)?).map_err(|_not_a_link| ProgramError::NotAttached)
}

fn sock_ops(hook: &mut SockOps, cgroup: &File) -> Result<FdLink, ProgramError> {
    let id = hook.attach(cgroup, CgroupAttachMode::Single)?;
    FdLink::try_from(hook.take_link(id)?).map_err(|_not_a_link| ProgramError::NotAttached)
}
