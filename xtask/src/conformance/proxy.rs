//! The waypoint's HTTP path as a proxy of its own on loopback, between a suite's client and a server.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    release,
    setup::{self, Group},
    shell,
};

/// How long a program may take until it listens.
const START: Duration = Duration::from_secs(20);

/// A program that listens; ended when dropped.
pub(super) struct Listening {
    child: Child,
    pub(super) at: SocketAddr,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Its end is what is wanted: whether it has ended by itself meanwhile does not matter.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Starts a program that will listen at an address of loopback, which it is told by `args`.
pub(super) fn listening(
    program: &std::path::Path,
    args: impl FnOnce(SocketAddr) -> Vec<String>,
) -> Result<Listening> {
    let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new(program);
    command
        .args(args(at))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command
        .spawn()
        .with_context(|| format!("starting {}", shell::line(&command)))?;
    let listening = Listening { child, at };
    let connected = || TcpStream::connect(at).ok();
    shell::wait_for(
        &format!("{} accepts connections", program.display()),
        START,
        connected,
    )?;
    Ok(listening)
}

/// Builds and starts the proxy in front of an HTTP/2 server.
pub(super) fn in_front_of(server: SocketAddr) -> Result<Listening> {
    setup::ensure(&[Group::Build])?;
    let program = release::example("karst-waypoint", "plain_proxy")?;
    listening(&program, |at| {
        let listener = format!("{at}=http2:{server}");
        ["--threads", "1", "--listen", &listener]
            .map(str::to_owned)
            .to_vec()
    })
}
