//! A packet capture on a node's link to the others, for what really travels.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use crate::Cluster;

/// tcpdump into a file, until [`Capture::stop`].
pub struct Capture {
    child: Child,
    file: NamedTempFile,
}

impl Capture {
    /// Captures what a node exchanges with everybody else.
    pub fn start(cluster: &Cluster, node: &str, filter: &str) -> Self {
        let file = NamedTempFile::with_prefix("karst-capture-").expect("a temporary file");
        let link = cluster.link(node);
        let mut child = Command::new("tcpdump")
            // The default ring has a few slots only, each for the largest packet.
            .args(["-i", &link, "-U", "-n", "--immediate-mode", "-B", "65536"])
            .args(["-s", "0", "-Z", "root", "-w"])
            .arg(file.path())
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump is installed");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("listening on"));
        assert!(ready, "tcpdump did not start on {link}");
        // Keeps reading, so that tcpdump never blocks on its own messages.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, file }
    }

    /// Ends the capture and returns its bytes (a pcap file).
    pub fn stop(mut self) -> Vec<u8> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        kill_process(pid, Signal::INT).expect("tcpdump still runs");
        self.child.wait().expect("tcpdump ends");
        fs::read(self.file.path()).expect("the capture is readable")
    }
}

/// Whether `needle` is anywhere in a capture.
pub fn contains(capture: &[u8], needle: &str) -> bool {
    let needle = needle.as_bytes();
    capture.windows(needle.len()).any(|window| window == needle)
}
