//! The API server through `kubectl proxy`: one request a connection, so that a change can be timed from the moment it
//! is sent. kubectl itself takes longer to start than what is measured.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A running `kubectl proxy`.
pub(super) struct Api {
    proxy: Child,
    addr: String,
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// How a body is to be understood.
pub(super) enum Body<'a> {
    None,
    Json(&'a Value),
    MergePatch(&'a Value),
}

impl Api {
    pub(super) fn start(mut kubectl: Command) -> Result<Self> {
        kubectl.args(["proxy", "--port", "0"]);
        let mut proxy = kubectl
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl proxy")?;
        let addr = said(proxy.stdout.take())?;
        Ok(Self { proxy, addr })
    }

    /// Sends a request; the answer's body. Anything but success is an error.
    pub(super) fn call(&self, method: &str, path: &str, body: &Body<'_>) -> Result<Value> {
        let mut stream = self.send(method, path, body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("the answer has no end of its head")?;
        if !matches!(head.split(' ').nth(1), Some("200" | "201")) {
            bail!(
                "{method} {path}: {}: {body}",
                head.lines().next().unwrap_or("")
            );
        }
        serde_json::from_str(body).with_context(|| format!("reading the answer to {method} {path}"))
    }

    /// Follows a watch; `each` gets every event and says whether it has seen enough.
    pub(super) fn watch(&self, path: &str, mut each: impl FnMut(&Value) -> bool) -> Result<()> {
        let stream = self.send("GET", path, &Body::None)?;
        for line in BufReader::new(stream).lines() {
            // Head, empty line and (HTTP/1.0 has no chunks) one event a line.
            if let Ok(event) = serde_json::from_str::<Value>(&line?)
                && each(&event)
            {
                return Ok(());
            }
        }
        bail!("the watch of {path} ended")
    }

    /// HTTP/1.0, so that the body ends with the connection.
    fn send(&self, method: &str, path: &str, body: &Body<'_>) -> Result<TcpStream> {
        let (kind, text) = match body {
            Body::None => ("application/json", String::new()),
            Body::Json(value) => ("application/json", value.to_string()),
            Body::MergePatch(value) => ("application/merge-patch+json", value.to_string()),
        };
        let mut stream = TcpStream::connect(&self.addr)?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )?;
        Ok(stream)
    }
}

/// The address in `Starting to serve on 127.0.0.1:41231`.
fn said(output: Option<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    BufReader::new(output.context("its output is piped")?).read_line(&mut line)?;
    let addr = line.trim().rsplit(' ').next().unwrap_or_default();
    if addr.contains(':') {
        return Ok(addr.to_owned());
    }
    bail!("kubectl proxy said {line:?} instead of its address")
}
