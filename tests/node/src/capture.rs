//! A packet capture, for what really travels.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use crate::{
    lab::Lab,
    wait::{PATIENCE, eventually},
};

/// tcpdump into a file, until [`Capture::stop`].
pub struct Capture {
    child: Child,
    file: NamedTempFile,
    messages: Receiver<String>,
}

impl Capture {
    /// Captures in a node's namespace, on one of its interfaces (`eth0` is the link between nodes; `any` is every one).
    pub fn start(lab: &Lab, node: &str, interface: &str, filter: &str) -> Self {
        let netns = lab.status()["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|n| n["name"] == node))
            .and_then(|n| n["netns"].as_str().map(str::to_owned))
            .expect("the node is in the status");
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/run/netns/{netns}"), "tcpdump"]);
        Self::by(command, interface, filter)
    }

    /// Captures with a tcpdump that `command` starts where the interface is.
    pub fn by(mut command: Command, interface: &str, filter: &str) -> Self {
        let file = NamedTempFile::with_prefix("karst-capture-").expect("a temporary file");
        let mut child = command
            // The default ring has a few slots only, each for the largest packet.
            .args(["-U", "-n", "--immediate-mode", "-B", "65536", "-s", "0"])
            .args(["-Z", "root", "-i", interface, "-w"])
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
        assert!(ready, "tcpdump did not start on {interface}");
        let (said, messages) = channel();
        // Keeps reading, so that tcpdump never blocks on its own messages.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _nobody_asks = said.send(line);
            }
        });
        Self {
            child,
            file,
            messages,
        }
    }

    /// Ends the capture when all is written that has passed until now, and returns its bytes (a pcap file). One whose
    /// interface is gone, as that of a node without power, has ended by itself.
    pub fn stop(mut self) -> Vec<u8> {
        if let Some(Counts { received, .. }) = self.counts() {
            eventually("tcpdump writes what it has received", || {
                self.counts().is_none_or(|now| now.seen() >= received)
            });
            self.signal(Signal::INT);
        }
        self.child.wait().expect("tcpdump ends");
        fs::read(self.file.path()).expect("the capture is readable")
    }

    /// What tcpdump says of itself when it is asked; None if it has ended with its interface. One that has ended otherwise
    /// proves nothing.
    fn counts(&self) -> Option<Counts> {
        self.signal(Signal::USR1);
        let mut interface_gone = false;
        loop {
            match self.messages.recv_timeout(PATIENCE) {
                Ok(line) => match Counts::read(&line) {
                    Some(counts) => return Some(counts),
                    None => {
                        eprintln!("{line}");
                        interface_gone |= line.contains("interface disappeared");
                    }
                },
                Err(RecvTimeoutError::Disconnected) => {
                    assert!(interface_gone, "tcpdump ended by itself, see above");
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => panic!("tcpdump says nothing"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        kill_process(pid, signal).expect("tcpdump still runs");
    }
}

/// Packets of a capture: written, received by the filter, dropped by the kernel.
#[derive(Debug)]
struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

impl Counts {
    /// Of a line with all three; what tcpdump says at its end has a line for each.
    fn read(line: &str) -> Option<Self> {
        let words = line.split(|c: char| !c.is_ascii_digit());
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let [captured, received, dropped, ..] = numbers[..] else {
            return None;
        };
        Some(Self {
            captured,
            received,
            dropped,
        })
    }

    /// Written or lost: nothing more will come of them.
    fn seen(&self) -> u64 {
        self.captured + self.dropped
    }
}

/// Whether `needle` is anywhere in a capture.
pub fn contains(capture: &[u8], needle: impl AsRef<[u8]>) -> bool {
    let needle = needle.as_ref();
    capture.windows(needle.len()).any(|window| window == needle)
}
