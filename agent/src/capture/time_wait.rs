//! Lets a captured pod use a port again that is in TIME_WAIT.
//!
//! All captured connections of a pod go to one address and port of its own, and all that the agent brings to an
//! application come from one address. Without this, a pod could make or take only as many connections a minute as there
//! are ephemeral ports (28,232 by default), to all destinations together. `net.ipv4.tcp_tw_reuse` belongs to the pod's
//! own namespace; 1 allows reuse one second after the end where timestamps prove it safe (RFC 6191). The default, 2,
//! does so for loopback only. What was there before is put back when the pod is released.

use std::{fs, io};

use karst_netns::Netns;

/// `/proc/sys/net` shows the namespace of the thread that looks. In a container `/proc/sys` is mounted read-only, and the
/// node's own `/proc` is reached through its process 1.
const SETTINGS: [&str; 2] = [
    "/proc/sys/net/ipv4/tcp_tw_reuse",
    "/proc/1/root/proc/sys/net/ipv4/tcp_tw_reuse",
];

/// Allows reuse in `netns`; returns the setting before, None if it was so already.
pub(crate) fn allow_reuse(netns: &Netns) -> io::Result<Option<String>> {
    netns.run(|| {
        let before = fs::read_to_string(SETTINGS[0])?.trim().to_owned();
        if before == "1" {
            return Ok(None);
        }
        write("1")?;
        Ok(Some(before))
    })?
}

/// Puts the setting back.
pub(crate) fn restore(netns: &Netns, before: &str) -> io::Result<()> {
    netns.run(|| write(before))?
}

fn write(value: &str) -> io::Result<()> {
    match fs::write(SETTINGS[0], value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            fs::write(SETTINGS[1], value)
        }
        written => written,
    }
}
