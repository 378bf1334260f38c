//! The socket that `karst-cni` calls: one JSON line asks, one answers. The pod's start waits for the answer.

use std::{io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use karst_model::cni::{Answer, Command as CniCommand, PROTOCOL_VERSION, Request};
use karst_netns::Netns;
use karst_runtime::supervise::{Shutdown, spawn_connection};
use karst_telemetry::error_chain::Chain;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::capture::{Command, pods::KnownNamespace};

/// Longest request; real ones have a few hundred bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// Calls served at once; further ones wait in the socket's backlog.
const MAX_CALLS: usize = 32;

/// How long a call may take to send its line.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// How long a pod's start waits for its capture before the runtime is told to try again.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(10);

/// The listening socket, readable and writable for root alone.
pub(crate) fn listen(run_dir: &std::path::Path) -> io::Result<UnixListener> {
    let path: PathBuf = run_dir.join("cni.sock");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers calls until shutdown.
pub(crate) async fn serve(
    listener: UnixListener,
    commands: mpsc::Sender<Command>,
    shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a CNI call");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let commands = commands.clone();
        spawn_connection("cni call", async move {
            if let Err(error) = call(stream, commands).await {
                tracing::warn!(%error, "a CNI call ended early");
            }
            drop(slot);
        });
    }
}

async fn call(mut stream: UnixStream, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let mut line = String::new();
    let read = BufReader::new((&mut stream).take(MAX_REQUEST))
        .read_line(&mut line)
        .await;
    let answer = match timeout(READ_PATIENCE, async { read }).await {
        Ok(Ok(_)) => respond(&line, &commands).await,
        Ok(Err(error)) => return Err(error),
        Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let mut text = serde_json::to_string(&answer).map_err(io::Error::other)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).await
}

async fn respond(line: &str, commands: &mpsc::Sender<Command>) -> Answer {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => {
            return Answer::failed(format!("the request is not understood: {error}"), false);
        }
    };
    if request.version != PROTOCOL_VERSION {
        let text = format!(
            "karst-cni speaks version {} of the protocol and this agent version {PROTOCOL_VERSION}: \
            install both from one release",
            request.version
        );
        return Answer::failed(text, false);
    }
    match request.command {
        CniCommand::Add => add(request, commands).await,
        CniCommand::Del => delete(request, commands).await,
        CniCommand::Check => check(request, commands).await,
    }
}

async fn add(request: Request, commands: &mpsc::Sender<Command>) -> Answer {
    let opened = Netns::open(&request.netns).and_then(|netns| netns.cookie());
    let cookie = match opened {
        Ok(cookie) => cookie,
        Err(error) => {
            return Answer::failed(
                format!(
                    "cannot enter the network namespace {}: {error}",
                    request.netns
                ),
                false,
            );
        }
    };
    let namespace = KnownNamespace {
        pod_uid: request.pod_uid.as_str().into(),
        path: request.netns.into(),
        cookie,
        addresses: request
            .ips
            .into_iter()
            .map(karst_model::addr::canonical_ip)
            .collect(),
        host_veth: request.host_veth,
        tw_reuse_before: None,
        dns_port: None,
    };
    let (done, answer) = oneshot::channel();
    if commands
        .send(Command::Added { namespace, done })
        .await
        .is_err()
    {
        return Answer::failed("the agent is ending".to_owned(), true);
    }
    match timeout(CAPTURE_PATIENCE, answer).await {
        Ok(Ok(Ok(()))) => Answer::ok(),
        Ok(Ok(Err(error))) => Answer::failed(Chain(&error).to_string(), true),
        Ok(Err(_closed)) => Answer::failed("the agent is ending".to_owned(), true),
        Err(_elapsed) => Answer::failed(
            format!(
                "the pod was not captured within {} s: the controller has not told this node's agent whether pod {} \
                belongs to the mesh, or its capture failed (see the agent's log)",
                CAPTURE_PATIENCE.as_secs(),
                request.pod_uid
            ),
            true,
        ),
    }
}

async fn delete(request: Request, commands: &mpsc::Sender<Command>) -> Answer {
    let (done, answer) = oneshot::channel();
    let command = Command::Deleted {
        pod_uid: request.pod_uid.as_str().into(),
        done,
    };
    if commands.send(command).await.is_err() || answer.await.is_err() {
        return Answer::failed("the agent is ending".to_owned(), true);
    }
    Answer::ok()
}

async fn check(request: Request, commands: &mpsc::Sender<Command>) -> Answer {
    let (done, answer) = oneshot::channel();
    let command = Command::Check {
        pod_uid: request.pod_uid.as_str().into(),
        done,
    };
    if commands.send(command).await.is_err() {
        return Answer::failed("the agent is ending".to_owned(), true);
    }
    match answer.await {
        Ok(Ok(())) => Answer::ok(),
        Ok(Err(error)) => Answer::failed(Chain(&error).to_string(), true),
        Err(_closed) => Answer::failed("the agent is ending".to_owned(), true),
    }
}
