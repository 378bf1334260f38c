//! The node's link, listened to: when the first tunnel of a client goes over it.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;

const NODE_LINK: &str = "eth0";
/// Smaller segments are acknowledgements and pings of idle tunnels, in bytes of the whole packet.
const SMALLEST: usize = 160;

/// tcpdump, saying when a tunnel of one pod carries something.
pub(super) struct Tunnels {
    child: Child,
    seen: Receiver<SystemTime>,
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Tunnels {
    pub(super) fn listen(cluster: &Cluster, node: &str, from: IpAddr) -> Result<Self> {
        let filter = format!("tcp dst port 15008 and src host {from} and greater {SMALLEST}");
        let mut child = cluster
            .enter(node)?
            .args([
                "tcpdump",
                "-n",
                "-l",
                "-tt",
                "--immediate-mode",
                "-i",
                NODE_LINK,
            ])
            .arg(filter)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        wait_until_it_listens(&mut child)?;
        let lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
        let (tell, seen) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if time(&line).is_some_and(|at| tell.send(at).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { child, seen })
    }

    /// Waits until nothing has been carried for this long.
    pub(super) fn wait_for_silence(&self, silence: Duration) -> Result<()> {
        loop {
            match self.seen.recv_timeout(silence) {
                Ok(_busy) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("tcpdump ended"),
            }
        }
    }

    /// The next time that something is carried.
    pub(super) fn next(&self, patience: Duration) -> Result<SystemTime> {
        self.seen
            .recv_timeout(patience)
            .context("no tunnel was seen on the node's link")
    }
}

fn wait_until_it_listens(child: &mut Child) -> Result<()> {
    let said = BufReader::new(child.stderr.take().context("its messages are piped")?);
    for line in said.lines() {
        if line?.contains("listening on") {
            return Ok(());
        }
    }
    bail!("tcpdump did not start")
}

/// The time at the start of a line of `tcpdump -tt`: seconds since the epoch, a point, microseconds.
fn time(line: &str) -> Option<SystemTime> {
    let (seconds, rest) = line.split_once('.')?;
    let micros = rest.split(' ').next()?;
    let since =
        Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?);
    Some(SystemTime::UNIX_EPOCH + since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_line_is_read() {
        let line = "1795243665.123456 IP 10.0.0.1.40000 > 10.0.0.2.15008: Flags [P.], length 180";
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_243_665_123_456);
        assert_eq!(time(line), Some(at));
        assert_eq!(time("tcpdump: verbose output suppressed"), None);
    }
}
