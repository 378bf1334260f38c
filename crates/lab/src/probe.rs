//! Readiness probes, as the kubelet does them: from the node's namespace, at the pod's address.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use karst_k8s_api::k8s_openapi::{
    api::core::v1::{Container, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::services::named_port;

/// What to try.
#[derive(Clone, Debug)]
enum Check {
    Tcp(SocketAddr),
    Http {
        addr: SocketAddr,
        path: String,
        host: String,
    },
    Exec(Vec<String>),
}

/// One container's readiness.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    check: Check,
    pub(crate) period: Duration,
    timeout: Duration,
    failures_to_unready: u32,
    failures: u32,
    pub(crate) ready: bool,
    /// Why the last try failed.
    pub(crate) reason: String,
}

impl Readiness {
    /// The container's readiness probe, `None` without one. Errors name the field.
    pub(crate) fn of(container: &Container, pod: IpAddr) -> Result<Option<Self>, String> {
        let Some(probe) = &container.readiness_probe else {
            return Ok(None);
        };
        let seconds = |value: Option<i32>, default: u64| {
            value
                .and_then(|value| u64::try_from(value).ok())
                .unwrap_or(default)
                .max(1)
        };
        Ok(Some(Self {
            check: check(probe, container, pod).map_err(|error| {
                format!("container {:?}: readinessProbe: {error}", container.name)
            })?,
            period: Duration::from_secs(seconds(probe.period_seconds, 1)),
            timeout: Duration::from_secs(seconds(probe.timeout_seconds, 1)),
            failures_to_unready: probe
                .failure_threshold
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(3),
            failures: 0,
            ready: false,
            reason: "not probed yet".to_owned(),
        }))
    }

    /// Tries once. Call it inside the node's namespace; `enter` is what runs a command in the container.
    pub(crate) fn probe(&mut self, enter: &[String]) {
        match self.check.try_once(self.timeout, enter) {
            Ok(()) => (self.ready, self.failures) = (true, 0),
            Err(reason) => {
                self.failures += 1;
                self.reason = reason;
                if self.failures >= self.failures_to_unready {
                    self.ready = false;
                }
            }
        }
    }
}

fn check(probe: &Probe, container: &Container, pod: IpAddr) -> Result<Check, String> {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_range| format!("port {number} is out of range"))
        }
        IntOrString::String(name) => named_port(std::iter::once(container), name)
            .ok_or_else(|| format!("no port named {name:?}")),
    };
    if let Some(http) = &probe.http_get {
        let addr = SocketAddr::new(pod, port(&http.port)?);
        let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
        return Ok(Check::Http {
            addr,
            path,
            host: http.host.clone().unwrap_or_else(|| addr.to_string()),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Check::Tcp(SocketAddr::new(pod, port(&tcp.port)?)));
    }
    let exec = probe.exec.as_ref().and_then(|exec| exec.command.clone());
    exec.map(Check::Exec)
        .ok_or_else(|| "expected httpGet, tcpSocket or exec".to_owned())
}

impl Check {
    fn try_once(&self, timeout: Duration, enter: &[String]) -> Result<(), String> {
        match self {
            Self::Tcp(addr) => TcpStream::connect_timeout(addr, timeout)
                .map(drop)
                .map_err(|error| format!("{addr}: {error}")),
            Self::Http { addr, path, host } => http(*addr, path, host, timeout)
                .map_err(|error| format!("http {addr}{path}: {error}")),
            Self::Exec(command) => exec(&[enter, command].concat(), timeout),
        }
    }
}

fn http(addr: SocketAddr, path: &str, host: &str, timeout: Duration) -> Result<(), String> {
    let mut stream =
        TcpStream::connect_timeout(&addr, timeout).map_err(|error| error.to_string())?;
    let io = |error: std::io::Error| error.to_string();
    stream.set_read_timeout(Some(timeout)).map_err(io)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/lab\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut head = [0; 64];
    let length = stream.read(&mut head).map_err(io)?;
    let line = String::from_utf8_lossy(&head[..length]).into_owned();
    let status: Option<u16> = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("status {code}")),
        None => Err("no HTTP answer".to_owned()),
    }
}

fn exec(command: &[String], timeout: Duration) -> Result<(), String> {
    let Some((program, args)) = command.split_first() else {
        return Err("no command".to_owned());
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{}: {status}", command.join(" "))),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _already_gone = child.kill();
                let _reaped = child.wait();
                return Err(format!(
                    "{}: not done within {} s",
                    command.join(" "),
                    timeout.as_secs()
                ));
            }
        }
    }
}
