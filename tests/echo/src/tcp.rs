//! One TCP connection with an account of every byte and of how it ended: what tests compare with and without the mesh.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{
    bytes_pattern::{Account, Pattern},
    say,
};

/// What one connection does.
#[derive(Args, Debug)]
pub(crate) struct TcpArgs {
    /// HOST:PORT
    target: String,
    /// Send this many bytes of the test pattern
    #[arg(long, default_value_t = 0)]
    send: u64,
    /// Send this text first
    #[arg(long)]
    text: Option<String>,
    /// When everything is sent: close our half, or keep it open until the server ends, or reset the connection
    #[arg(long, value_enum, default_value_t = Finish::HalfClose)]
    finish: Finish,
    /// Send nothing until this many bytes have come (server-first protocols)
    #[arg(long, default_value_t = 0)]
    wait_for: usize,
    /// Take at most 64 KiB and then pause this many milliseconds, again and again: a slow reader
    #[arg(long)]
    read_pause_ms: Option<u64>,
    /// Print the first bytes received as text
    #[arg(long)]
    show: bool,
    /// Seconds for the whole connection
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Finish {
    HalfClose,
    KeepOpen,
    Reset,
}

/// How the connection ended, from the client's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum End {
    Fin,
    Reset,
    Refused,
    TimedOut,
    Failed,
    /// We reset it ourselves.
    OwnReset,
}

#[derive(Debug, Serialize)]
struct Report {
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    connect_us: u64,
    total_us: u64,
    sent: u64,
    sent_checksum: String,
    received: u64,
    received_checksum: String,
    end: End,
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shown: Option<String>,
}

/// Prints one JSON object; ends with an error only when the arguments make no sense.
pub(crate) async fn run(args: TcpArgs) -> anyhow::Result<()> {
    let mut run = Run {
        sent: Account::new(),
        received: Account::new(),
        head: Vec::new(),
        local: None,
        peer: None,
        connect: Duration::ZERO,
    };
    let started = now();
    let ended = tokio::time::timeout(Duration::from_secs(args.timeout), run.go(&args)).await;
    let (end, error) = match ended {
        Ok(Ok(end)) => (end, None),
        Ok(Err(error)) => (end_of(&error), Some(error.to_string())),
        Err(_elapsed) => (
            End::TimedOut,
            Some(format!("not done after {} s", args.timeout)),
        ),
    };
    let report = Report {
        local: run.local,
        peer: run.peer,
        connect_us: micros(run.connect),
        total_us: micros(started.elapsed()),
        sent: run.sent.bytes,
        sent_checksum: run.sent.checksum(),
        received: run.received.bytes,
        received_checksum: run.received.checksum(),
        end,
        error,
        shown: args
            .show
            .then(|| String::from_utf8_lossy(&run.head).into_owned()),
    };
    say(serde_json::to_string(&report)?);
    Ok(())
}

fn now() -> Instant {
    Instant::now()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn end_of(error: &std::io::Error) -> End {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        ErrorKind::ConnectionRefused => End::Refused,
        ErrorKind::TimedOut => End::TimedOut,
        _ => End::Failed,
    }
}

struct Run {
    sent: Account,
    received: Account,
    head: Vec<u8>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    connect: Duration,
}

impl Run {
    async fn go(&mut self, args: &TcpArgs) -> std::io::Result<End> {
        let started = now();
        let stream = TcpStream::connect(&args.target).await?;
        self.connect = started.elapsed();
        stream.set_nodelay(true)?;
        (self.local, self.peer) = (stream.local_addr().ok(), stream.peer_addr().ok());
        if args.finish == Finish::Reset {
            // A linger of zero makes close() send RST instead of FIN.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        let (mut from, mut to) = stream.into_split();
        let Self {
            sent,
            received,
            head,
            ..
        } = self;
        read_at_least(&mut from, args.wait_for, received, head).await?;
        if args.finish == Finish::Reset {
            send(&mut to, args, sent).await?;
            return Ok(End::OwnReset);
        }
        // Both directions at once: an echo would otherwise stop when its buffers are full.
        let (_sent, end) = tokio::try_join!(
            send(&mut to, args, sent),
            receive(&mut from, received, head, args.read_pause_ms)
        )?;
        Ok(end)
    }
}

async fn send(to: &mut OwnedWriteHalf, args: &TcpArgs, sent: &mut Account) -> std::io::Result<()> {
    let text = args
        .text
        .clone()
        .unwrap_or_default()
        .replace("\\n", "\n")
        .into_bytes();
    for piece in std::iter::once(text.into()).chain(Pattern::new(args.send)) {
        to.write_all(&piece).await?;
        sent.add(&piece);
    }
    if args.finish == Finish::HalfClose {
        to.shutdown().await
    } else {
        Ok(())
    }
}

async fn read_at_least(
    from: &mut OwnedReadHalf,
    count: usize,
    received: &mut Account,
    head: &mut Vec<u8>,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while received.bytes < count as u64 {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            n => keep(&buffer[..n], received, head),
        }
    }
    Ok(())
}

async fn receive(
    from: &mut OwnedReadHalf,
    received: &mut Account,
    head: &mut Vec<u8>,
    pause_ms: Option<u64>,
) -> std::io::Result<End> {
    let mut buffer = vec![0; if pause_ms.is_some() { 64 } else { 256 } * 1024];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(End::Fin),
            n => keep(&buffer[..n], received, head),
        }
        if let Some(pause) = pause_ms {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

/// Adds to the account, and keeps at most the first 512 bytes for `--show`.
fn keep(data: &[u8], received: &mut Account, head: &mut Vec<u8>) {
    received.add(data);
    let room = 512_usize.saturating_sub(head.len());
    head.extend_from_slice(&data[..data.len().min(room)]);
}
