//! nginx and HAProxy as applications that write down what they understood.

use std::{
    fs,
    io::{Read as _, Seek as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::net::TcpStream;

/// A request as the application understood it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) path: String,
    /// The value of the forbidden header; empty: it has none.
    pub(super) secret: String,
}

/// A program that answers every request with 200.
pub(super) struct Reader {
    pub(super) name: &'static str,
    pub(super) addr: SocketAddr,
    child: Child,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Reader {
    pub(super) fn nginx(addr: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; error_log {at}/error.log; pid {at}/pid;
             events {{ worker_connections 1024; }}
             http {{
               log_format read '$request_method $request_uri [$http_x_admin]';
               access_log {at}/log read;
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
               uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
               client_body_timeout 1s; client_header_timeout 1s; lingering_close off;
               keepalive_requests 1000000;
               server {{ listen {addr} backlog=4096; location / {{ return 200 ok; }} }}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-e").arg(folder.path().join("error.log"));
        command.arg("-c").arg(file);
        Self::start("nginx", addr, command, folder)
    }

    pub(super) fn haproxy(addr: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global\n  log stdout format raw local0\n  maxconn 2000\ndefaults\n  mode http\n  timeout client 5s\n  \
             timeout connect 1s\n  timeout server 5s\n  timeout http-request 1s\n  timeout http-keep-alive 60s\n\
             frontend f\n  bind {addr}\n  log global\n  option http-buffer-request\n  \
             http-request capture req.hdr(x-admin) len 20\n  \
             log-format \"%HM %HU [%[capture.req.hdr(0)]]\"\n  \
             http-request return status 200 content-type text/plain string ok\n"
        );
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Self::start("haproxy", addr, command, folder)
    }

    fn start(
        name: &'static str,
        addr: SocketAddr,
        mut command: Command,
        folder: tempfile::TempDir,
    ) -> Self {
        let log = folder.path().join("log");
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name} does not start ({error}): `cargo xtask setup` installs it")
            });
        Self {
            name,
            addr,
            child,
            log,
            folder,
        }
    }

    /// Waits until it listens.
    pub(super) async fn is_up(&self) {
        for _ in 0..500 {
            if TcpStream::connect(self.addr).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let said = fs::read_to_string(self.folder.path().join("error.log"));
        panic!("{} does not listen on {}: {said:?}", self.name, self.addr);
    }

    /// What it has understood, once a request for `last` is among it.
    pub(super) async fn requests_until(&self, last: &str) -> Vec<Request> {
        let last = format!(" {last} ");
        for _ in 0..500 {
            let text = self.read();
            if text.contains(&last) {
                return text.lines().filter_map(request).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} has not written down {last}", self.name);
    }

    fn read(&self) -> String {
        let mut file = fs::File::open(&self.log).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `METHOD PATH [SECRET]`; the path may hold spaces.
fn request(line: &str) -> Option<Request> {
    let (_method, rest) = line.split_once(' ')?;
    let (path, secret) = rest.rsplit_once(" [")?;
    let secret = secret.trim_end_matches(']');
    Some(Request {
        path: path.to_owned(),
        secret: if secret == "-" { "" } else { secret }.to_owned(),
    })
}
