//! The tc guard on the host side of a pod's veth. It outlives the agent.
//!
//! A pinned tcx link where the kernel has them (Linux 6.6), else a clsact filter. Making a clsact qdisc stops the
//! interface for some milliseconds, in which what is on its way to the pod is lost (the kernel's `qdisc_graft` calls
//! `dev_deactivate`): TCP sends it again, and a DNS query of that moment waits for its resolver's next try.

use std::io;
use std::mem::forget;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{SchedClassifier, TcAttachType};
use karst_netns::Netns;
use rustix::net::{AddressFamily, SocketType};

use crate::{LoadError, link, rtnetlink};

const NAME: &str = "karst_guard";
/// Our place among the filters of an interface: early, and found again after a restart.
const PRIORITY: u16 = 19;
const HANDLE: TcHandle = TcHandle::new(0, 0x6b74);

/// Any of netlink's, tc's and the kernel's errors; the caller names the interface.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Who made the interface's clsact qdisc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Qdisc {
    Ours,
    Foreign,
}

/// Gives the guard to the kernel, once per agent.
pub(crate) fn load(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        name: NAME,
        source: Box::new(source),
    };
    program(ebpf)?.load().map_err(refused)
}

/// Puts the guard on an interface, or replaces the one that is there. `pin` keeps its link, where there is one.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    host: &Netns,
    ifindex: u32,
    pin: &Path,
) -> Result<Qdisc, Error> {
    let program = program(ebpf)?;
    host.run(|| {
        let name = interface(ifindex)?;
        if attach_link(program, &name, pin).is_ok() {
            return Ok(Qdisc::Foreign);
        }
        let qdisc = match qdisc_add_clsact(&name) {
            Ok(()) => Qdisc::Ours,
            Err(_exists) => Qdisc::Foreign,
        };
        let old =
            SchedClassifierLink::attached(&name, TcAttachType::Ingress, PRIORITY, HANDLE, None)?;
        let id = match program.attach_to_link(old) {
            Ok(id) => id,
            Err(_absent) => program.attach_with_options(
                &name,
                TcAttachType::Ingress,
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    classid: None,
                }),
            )?,
        };
        // Dropping the link would detach the filter: it stays until `detach`, over restarts.
        forget(program.take_link(id)?);
        Ok(qdisc)
    })?
}

/// Fails on kernels without tcx.
fn attach_link(program: &mut SchedClassifier, name: &str, pin: &Path) -> Result<(), Error> {
    let fd = program.fd()?.try_clone()?;
    let mut establish = || {
        link::establish(pin, &fd, || {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program
                .attach_with_options(name, TcAttachType::Ingress, options)
                .map_err(io::Error::other)?;
            let attached = program.take_link(id).map_err(io::Error::other)?;
            FdLink::try_from(attached).map_err(io::Error::other)
        })
    };
    match establish() {
        // A link whose interface is gone cannot be used again.
        Err(_defunct) if pin.exists() => {
            std::fs::remove_file(pin)?;
            establish()?;
        }
        other => drop(other?),
    }
    Ok(())
}

/// Takes the guard off, and the qdisc if it was ours. An interface that is gone is fine.
pub(crate) fn detach(host: &Netns, ifindex: u32, qdisc: Qdisc, pin: &Path) -> Result<(), Error> {
    if pin.exists() {
        // Removing the pin alone would end the link a little later; one whose interface is gone is over already.
        let _already_over = link::detach(pin);
        return Ok(std::fs::remove_file(pin)?);
    }
    host.run(|| {
        let Ok(name) = interface(ifindex) else {
            return Ok(());
        };
        // Dropping an owned link detaches it.
        drop(SchedClassifierLink::attached(
            &name,
            TcAttachType::Ingress,
            PRIORITY,
            HANDLE,
            None,
        )?);
        match qdisc {
            Qdisc::Ours => Ok(delete_clsact(ifindex)?),
            Qdisc::Foreign => Ok(()),
        }
    })?
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, LoadError> {
    let program = ebpf.program_mut(NAME).ok_or(LoadError::Missing(NAME))?;
    program.try_into().map_err(|source| LoadError::Program {
        name: NAME,
        source: Box::new(source),
    })
}

fn interface(ifindex: u32) -> io::Result<String> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::index_to_name(&socket, ifindex)?)
}

/// Deletes `clsact`, in the calling thread's namespace; absent is fine.
fn delete_clsact(ifindex: u32) -> io::Result<()> {
    const RTM_DELQDISC: u16 = 37;
    const CLSACT_HANDLE: u32 = 0xffff_0000;
    const CLSACT_PARENT: u32 = 0xffff_fff1;
    // `tcmsg`: family, interface, handle, parent, info.
    let words = [0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0];
    match rtnetlink::request(RTM_DELQDISC, 0, words.map(u32::to_ne_bytes).as_flattened()) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
    )
}
