//! What a TCP port does with a connection: the behaviours that a proxy must carry unchanged.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::{
    bytes_pattern::{Account, Pattern},
    describe::Received,
};

/// Greeting of a server-first protocol.
pub(crate) const BANNER: &[u8] = b"220 karst-echo ready\r\n";

/// Behaviour of a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Says who connected, then echoes: what the Gateway API suite expects.
    Describe,
    /// Echoes and nothing else; ends after the client's FIN.
    Echo,
    /// Speaks first, then echoes.
    Banner,
    /// Waits before it echoes the first byte.
    Slow,
    /// Accepts and closes.
    Close,
    /// Accepts, reads once, resets.
    Reset,
    /// Reads to the client's FIN, then answers `bytes checksum`: needs the client's half close to arrive.
    Count,
    /// Reads a line with a number, sends that many bytes of the pattern, ends.
    Source,
    /// Sends the banner and its FIN at once, goes on reading to the client's FIN: the server's half close.
    Fin,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "describe" => Self::Describe,
            "echo" => Self::Echo,
            "banner" => Self::Banner,
            "slow" => Self::Slow,
            "close" => Self::Close,
            "reset" => Self::Reset,
            "count" => Self::Count,
            "source" => Self::Source,
            "fin" => Self::Fin,
            _ => {
                let expected = "describe, echo, banner, slow, close, reset, count, source or fin";
                return Err(format!("unknown mode {name:?}: expected {expected}"));
            }
        })
    }
}

/// One accepted connection.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) remote: SocketAddr,
    pub(crate) port: u16,
    pub(crate) slow: Duration,
}

impl Connection {
    pub(crate) async fn serve(mut self, mode: Mode) -> std::io::Result<()> {
        match mode {
            Mode::Describe => {
                let lines = self.describe();
                self.stream.write_all(lines.as_bytes()).await?;
                echo(self.stream).await
            }
            Mode::Echo => echo(self.stream).await,
            Mode::Banner => {
                self.stream.write_all(BANNER).await?;
                echo(self.stream).await
            }
            Mode::Slow => {
                tokio::time::sleep(self.slow).await;
                echo(self.stream).await
            }
            Mode::Close => Ok(()),
            Mode::Reset => reset(self.stream).await,
            Mode::Count => count(self.stream).await,
            Mode::Source => source(self.stream).await,
            Mode::Fin => fin(self.stream).await,
        }
    }

    fn describe(&self) -> String {
        let (host, method, url) = ("", "", "");
        Received {
            port: self.port,
            host,
            method,
            proto: "TCP",
            url,
            remote: self.remote,
            headers: None,
        }
        .describe()
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn reset(mut stream: TcpStream) -> std::io::Result<()> {
    let mut first = [0; 1024];
    let _whatever_came = stream.read(&mut first).await?;
    // A linger of zero makes close() send RST instead of FIN.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

async fn count(mut stream: TcpStream) -> std::io::Result<()> {
    let account = read_to_end(&mut stream).await?;
    stream
        .write_all(format!("{} {}\n", account.bytes, account.checksum()).as_bytes())
        .await?;
    stream.shutdown().await
}

/// How long `source` waits for the end of a client that sends no more.
const CLIENTS_END: Duration = Duration::from_secs(1);

/// Ends after its client where that ends too: a stream of HTTP/2 whose server ends first is reset by some proxies (Envoy
/// among them), with what they have not passed on yet.
async fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = stream.split();
    let mut line = String::new();
    BufReader::new((&mut from).take(32))
        .read_line(&mut line)
        .await?;
    let Ok(length) = line.trim().parse::<u64>() else {
        return to
            .write_all(b"expected a line with the number of bytes to send\n")
            .await;
    };
    for piece in Pattern::new(length) {
        to.write_all(&piece).await?;
    }
    let mut nowhere = tokio::io::sink();
    let end = tokio::io::copy(&mut from, &mut nowhere);
    let _stays_open = tokio::time::timeout(CLIENTS_END, end).await;
    to.shutdown().await
}

async fn fin(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(BANNER).await?;
    stream.shutdown().await?;
    let account = read_to_end(&mut stream).await?;
    crate::say(format_args!(
        "fin: {} bytes after our own FIN, checksum {}",
        account.bytes,
        account.checksum()
    ));
    Ok(())
}

async fn read_to_end(stream: &mut TcpStream) -> std::io::Result<Account> {
    let (mut account, mut buffer) = (Account::new(), vec![0; 256 * 1024]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(account),
            n => account.add(&buffer[..n]),
        }
    }
}
