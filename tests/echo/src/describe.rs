//! The KEY=value lines that say what the server received. The Gateway API mesh suite parses exactly these names, so
//! they are a contract: ServiceVersion, ServicePort, Host, URL, Method, Proto, IP, RequestHeader, Hostname.

use std::{fmt::Write as _, net::SocketAddr};

use http::HeaderMap;

/// One request, or one TCP connection, as the server saw it.
pub(crate) struct Received<'a> {
    pub(crate) port: u16,
    pub(crate) host: &'a str,
    pub(crate) method: &'a str,
    pub(crate) proto: &'a str,
    pub(crate) url: &'a str,
    pub(crate) remote: SocketAddr,
    pub(crate) headers: Option<&'a HeaderMap>,
}

impl Received<'_> {
    /// The lines, each ended by a newline.
    pub(crate) fn describe(&self) -> String {
        let mut lines = format!(
            "ServiceVersion={}\nServicePort={}\nHost={}\nURL={}\nMethod={}\nProto={}\nIP={}\n",
            std::env::var("SERVICE_VERSION").unwrap_or_default(),
            self.port,
            self.host,
            self.url,
            self.method,
            self.proto,
            self.remote.ip().to_canonical(),
        );
        for (name, value) in sorted(self.headers) {
            let _ = writeln!(lines, "RequestHeader={name}:{value}");
        }
        let _ = writeln!(lines, "Hostname={}", hostname());
        lines
    }
}

/// By name; the values of a name in the order in which they came.
fn sorted(headers: Option<&HeaderMap>) -> Vec<(String, String)> {
    let mut all: Vec<_> = headers
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != http::header::HOST)
        .map(|(name, value)| {
            (
                canonical(name.as_str()),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

/// `x-request-id` -> `X-Request-Id`, the spelling that the suite's own server uses.
pub(crate) fn canonical(name: &str) -> String {
    name.split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| {
                first.to_ascii_uppercase().to_string() + letters.as_str()
            })
        })
        .collect::<Vec<_>>()
        .join("-")
}

/// The pod's name: in a pod the host name is the pod's.
pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_what_was_received() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        headers.append("x-b", "second".parse().unwrap());
        headers.append("x-b", "first".parse().unwrap());
        headers.insert("host", "hidden".parse().unwrap());
        let received = Received {
            port: 80,
            host: "web",
            method: "GET",
            proto: "HTTP/1.1",
            url: "/p?q",
            remote: "[::ffff:10.1.2.3]:9".parse().unwrap(),
            headers: Some(&headers),
        };
        let lines = received.describe();
        for expected in [
            "ServicePort=80\n",
            "Host=web\n",
            "URL=/p?q\n",
            "IP=10.1.2.3\n",
            "RequestHeader=X-A:1\n",
            "RequestHeader=X-B:second\nRequestHeader=X-B:first\n",
        ] {
            assert!(lines.contains(expected), "{expected:?} missing in {lines}");
        }
        assert!(!lines.contains("hidden"));
    }
}
