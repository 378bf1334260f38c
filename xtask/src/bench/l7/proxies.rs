//! The proxies, each with one thread, in front of the same nginx.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::super::cpu::ProcessStat;
use crate::{release, shell};

/// How long a proxy may take until it listens.
const START: Duration = Duration::from_secs(20);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Proxy {
    Karst,
    Nginx,
    Haproxy,
    Envoy,
}

impl Proxy {
    pub(super) const ALL: [Self; 4] = [Self::Karst, Self::Nginx, Self::Haproxy, Self::Envoy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Karst => "karst",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }
}

/// A proxy that listens; ended when dropped.
pub(super) struct Running {
    pub(super) proxy: Proxy,
    child: Child,
    pub(super) http1: SocketAddr,
    pub(super) http2: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Asks a process that we started to end, and waits for it; nginx's master takes its worker along.
fn end(child: &mut Child) {
    let pid = child.id().to_string();
    shell::succeeds(Command::new("kill").arg(&pid));
    for _ in 0..50 {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    shell::succeeds(Command::new("kill").args(["-KILL", &pid]));
    child.wait().ok();
}

impl Running {
    /// CPU that the proxy's processes have spent.
    pub(super) fn cpu(&self) -> Result<Duration> {
        Ok(self.stats()?.iter().map(ProcessStat::cpu).sum())
    }

    /// Memory that is resident, in megabytes.
    pub(super) fn memory_mb(&self) -> Result<f64> {
        Ok(self.stats()?.iter().map(ProcessStat::memory_mb).sum())
    }

    /// The process and its children: nginx works in a child of its own.
    fn stats(&self) -> Result<Vec<ProcessStat>> {
        let own = u64::from(self.child.id());
        let entries = fs::read_dir("/proc")?.flatten();
        let of: Vec<ProcessStat> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(ProcessStat::of)
            .filter(|stat| stat.pid == own || stat.parent == own)
            .collect();
        anyhow::ensure!(!of.is_empty(), "{} has ended", self.proxy.name());
        Ok(of)
    }
}

/// The server behind all proxies.
pub(super) struct Backend {
    child: Child,
    http1: SocketAddr,
    http2: SocketAddr,
}

impl Drop for Backend {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// nginx with one worker that answers 1 KB from memory.
pub(super) fn backend() -> Result<Backend> {
    let (http1, http2) = (free()?, free()?);
    let body = "x".repeat(1024);
    let config = format!(
        "daemon off; worker_processes 1; pid {pid}; error_log /dev/null;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 100000000; http2_max_requests 100000000;\n\
           server {{ listen {http1}; listen {http2} http2; location / {{ return 200 \"{body}\"; }} }} }}\n",
        pid = folder()?.join("backend.pid").display(),
    );
    let child = nginx("backend", &config)?;
    let backend = Backend {
        child,
        http1,
        http2,
    };
    listens(http1)?;
    listens(http2)?;
    Ok(backend)
}

/// Starts a proxy.
pub(super) fn start(proxy: Proxy, backend: &Backend) -> Result<Running> {
    let (http1, http2) = (free()?, free()?);
    let child = match proxy {
        Proxy::Karst => karst(http1, http2, backend),
        Proxy::Nginx => nginx_proxy(http1, backend),
        Proxy::Haproxy => haproxy(http1, http2, backend),
        Proxy::Envoy => envoy(http1, http2, backend),
    }
    .with_context(|| format!("starting {}", proxy.name()))?;
    let running = Running {
        proxy,
        child,
        http1,
        http2,
    };
    listens(http1).with_context(|| proxy.name().to_owned())?;
    Ok(running)
}

/// Starts the waypoint with one of the features of its example, for HTTP/1.
pub(super) fn start_with(feature: &str, backend: &Backend) -> Result<Running> {
    let http1 = free()?;
    let example = release::example_path("plain_proxy");
    let mut command = Command::new(example);
    command
        .args(["--threads", "1", "--feature", feature, "--listen"])
        .arg(format!("{http1}=http1:{}", backend.http1));
    let child = spawn(&mut command).with_context(|| format!("feature {feature}"))?;
    let running = Running {
        proxy: Proxy::Karst,
        child,
        http1,
        http2: http1,
    };
    listens(http1).with_context(|| feature.to_owned())?;
    Ok(running)
}

/// Starts the waypoint recording as the example is told, for HTTP/1.
pub(super) fn start_recording(
    record: &str,
    collector: &Collector,
    backend: &Backend,
) -> Result<Running> {
    let http1 = free()?;
    let mut command = Command::new(release::example_path("plain_proxy"));
    command
        .args(["--threads", "1", "--record", record, "--collector"])
        .arg(collector.at.to_string())
        .arg("--listen")
        .arg(format!("{http1}=http1:{}", backend.http1));
    let child = spawn(&mut command).with_context(|| format!("recording {record}"))?;
    let running = Running {
        proxy: Proxy::Karst,
        child,
        http1,
        http2: http1,
    };
    listens(http1).with_context(|| record.to_owned())?;
    Ok(running)
}

/// A collector that takes everything and keeps nothing; ended when dropped.
pub(super) struct Collector {
    child: Child,
    at: SocketAddr,
}

impl Drop for Collector {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// OpenTelemetry's collector, which writes what it gets to nowhere.
pub(super) fn collector(program: &Path) -> Result<Collector> {
    let at = free()?;
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{at}'}}}}}}}}\n\
         exporters: {{file: {{path: /dev/null}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n\
         \x20   traces: {{receivers: [otlp], exporters: [file]}}\n\
         \x20   logs: {{receivers: [otlp], exporters: [file]}}\n\
         \x20   metrics: {{receivers: [otlp], exporters: [file]}}\n"
    );
    let file = write("otelcol.yaml", &config)?;
    let child = spawn(Command::new(program).arg(format!("--config={}", file.display())))?;
    let collector = Collector { child, at };
    listens(at).context("the collector")?;
    Ok(collector)
}

fn karst(http1: SocketAddr, http2: SocketAddr, backend: &Backend) -> Result<Child> {
    let example = release::example_path("plain_proxy");
    spawn(
        Command::new(example)
            .args(["--threads", "1", "--listen"])
            .arg(format!("{http1}=http1:{}", backend.http1))
            .arg("--listen")
            .arg(format!("{http2}=http2:{}", backend.http2)),
    )
}

fn nginx_proxy(http1: SocketAddr, backend: &Backend) -> Result<Child> {
    let config = format!(
        "daemon off; worker_processes 1; pid {pid}; error_log /dev/null;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 100000000;\n\
           upstream backend {{ server {upstream}; keepalive 64; keepalive_requests 100000000; }}\n\
           server {{ listen {http1}; location / {{ proxy_pass http://backend; proxy_http_version 1.1; \
           proxy_set_header Connection \"\"; proxy_buffering on; }} }} }}\n",
        pid = folder()?.join("nginx.pid").display(),
        upstream = backend.http1,
    );
    nginx("nginx", &config)
}

fn nginx(name: &str, config: &str) -> Result<Child> {
    let file = write(&format!("{name}.conf"), config)?;
    spawn(Command::new("nginx").arg("-c").arg(file))
}

fn haproxy(http1: SocketAddr, http2: SocketAddr, backend: &Backend) -> Result<Child> {
    let config = format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend h1\n  bind {http1}\n  default_backend b1\n\
         frontend h2\n  bind {http2} proto h2\n  default_backend b2\n\
         backend b1\n  server s {}\n\
         backend b2\n  server s {} proto h2\n",
        backend.http1, backend.http2
    );
    let file = write("haproxy.cfg", &config)?;
    spawn(Command::new("haproxy").args(["-db", "-f"]).arg(file))
}

fn envoy(http1: SocketAddr, http2: SocketAddr, backend: &Backend) -> Result<Child> {
    let config = serde_json::json!({
        "static_resources": {
            "listeners": [envoy_listener("h1", http1), envoy_listener("h2", http2)],
            "clusters": [
                envoy_cluster("h1", backend.http1, &serde_json::json!({"http_protocol_options": {}})),
                envoy_cluster("h2", backend.http2, &serde_json::json!({"http2_protocol_options": {}})),
            ],
        },
    });
    let file = write("envoy.json", &config.to_string())?;
    let program = shell::root().join("target/tools/envoy-venv/bin/envoy");
    spawn(
        Command::new(program)
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "off",
                "-c",
            ])
            .arg(file),
    )
}

fn envoy_listener(cluster: &str, at: SocketAddr) -> serde_json::Value {
    serde_json::json!({
        "name": cluster,
        "address": socket_address(at),
        "filter_chains": [{"filters": [{
            "name": "http",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": cluster,
                "route_config": {"virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                }]},
                "http_filters": [{
                    "name": "router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        }]}],
    })
}

fn envoy_cluster(name: &str, at: SocketAddr, protocol: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "name": name,
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(at)}}]}],
        },
    })
}

fn socket_address(at: SocketAddr) -> serde_json::Value {
    serde_json::json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| shell::line(command))
}

/// Where the configurations are.
fn folder() -> Result<PathBuf> {
    let folder = shell::root().join("target/bench-l7");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn write(name: &str, text: &str) -> Result<PathBuf> {
    let file = folder()?.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// An address of loopback that nobody listens on.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn listens(at: SocketAddr) -> Result<()> {
    let connected = || TcpStream::connect(at).ok();
    shell::wait_for(&format!("{at} accepts connections"), START, connected).map(drop)
}
