//! The call to the agent: one line each way over its Unix socket, with a bound on the time.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use karst_model::cni::{Answer, KNOWN_NAMESPACES_FILE, KnownNamespaces, PROTOCOL_VERSION, Request};

/// Longest that the agent may think: more than its own limit for a capture (10 s), less than the runtime's patience.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How often an agent that is away is looked for.
const LOOK_PERIOD: Duration = Duration::from_millis(50);
/// Longest answer.
const ANSWER_LIMIT: u64 = 64 << 10;
/// Longest file of known namespaces.
const KNOWN_LIMIT: u64 = 4 << 20;

/// The agent's socket.
pub(crate) fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Waits until something listens on the agent's socket, at most so long: an agent that is being replaced is back within
/// seconds, and the runtime would try again only after a quarter of a minute.
pub(crate) fn wait_for(run_dir: &Path, patience: Duration) {
    let end = Instant::now() + patience;
    while is_there(run_dir).is_err() && Instant::now() < end {
        std::thread::sleep(LOOK_PERIOD);
    }
}

/// Asks the agent. An error means that it is not there, or gave no answer that can be read.
pub(crate) fn ask(run_dir: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket(run_dir))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_LIMIT)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the socket without an answer",
        ));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Whether something listens on the agent's socket.
pub(crate) fn is_there(run_dir: &Path) -> io::Result<()> {
    UnixStream::connect(socket(run_dir)).map(drop)
}

/// Whether the agent left word that pods of this namespace are not enrolled. Anything unreadable means no.
pub(crate) fn known_not_enrolled(run_dir: &Path, namespace: &str) -> bool {
    let read = || -> io::Result<KnownNamespaces> {
        let mut text = Vec::new();
        std::fs::File::open(run_dir.join(KNOWN_NAMESPACES_FILE))?
            .take(KNOWN_LIMIT)
            .read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().is_ok_and(|known| {
        known.version == PROTOCOL_VERSION && known.not_enrolled.iter().any(|name| name == namespace)
    })
}
