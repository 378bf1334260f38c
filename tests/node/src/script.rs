//! A Python program that runs in a pod and talks with its test line by line: sockets as applications make them, without
//! a line of `unsafe` here.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{lab::Lab, wait::PATIENCE};

/// A running program; killed when dropped.
pub struct Script {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Script {
    /// Starts `python3 -c program args...` in a pod. What it writes to standard error shows up with the test's output.
    pub fn start(lab: &Lab, pod: &str, program: &str, args: &[&str]) -> Self {
        let command = [&["python3", "-u", "-c", program], args].concat();
        Self::follow(pod, lab.spawn(pod, &command))
    }

    /// Starts the program outside of every pod, as root of the machine.
    pub fn on_host(program: &str, args: &[&str]) -> Self {
        let child = Command::new("python3")
            .args(["-u", "-c", program])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        Self::follow("host", child)
    }

    fn follow(name: &str, mut child: Child) -> Self {
        let input = child.stdin.take().expect("piped");
        let (output, errors) = (
            child.stdout.take().expect("piped"),
            child.stderr.take().expect("piped"),
        );
        let (tx, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let name = name.to_owned();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                eprintln!("{name}: {line}");
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    /// Sends the program a line.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the program reads");
    }

    /// The next line that the program prints.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the program prints a line")
    }

    /// The next line, if one comes within `patience`.
    pub fn line_within(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Asks and waits for the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Microseconds since 1970, on the clock of every program of a test.
pub fn now_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    u64::try_from(since.as_micros()).expect("centuries fit")
}

/// Asks for addresses and ports, and says how a connection to each went: `ok` with the first bytes that came back to
/// ours, or what failed. One line each: `HOST PORT [TEXT]`.
pub const PROBER: &str = r#"
import socket, sys
for line in sys.stdin:
    host, port, text = (line.split() + ["probe"])[:3]
    try:
        with socket.create_connection((host, int(port)), timeout=4) as s:
            s.sendall(text.encode())
            got = s.recv(1000)
        print("ok" if got == text.encode() else "ended", flush=True)
    except OSError as error:
        print("failed", type(error).__name__, flush=True)
"#;
