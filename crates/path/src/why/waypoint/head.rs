//! The head of the request that a question is about, as the waypoint reads it.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Method, Uri, header};
use karst_routing::request::{Request, Scheme, Seen};

use crate::why::{Ask, AskError, AskedRequest};

impl Ask<'_> {
    /// The head of the request as the waypoint reads it.
    pub(in crate::why) fn head(&self, asked: &AskedRequest) -> Result<Request, AskError> {
        let wrong = |why: String| AskError::Request(why);
        let mut built = http::Request::new(());
        *built.method_mut() = Method::from_bytes(asked.method.as_bytes())
            .map_err(|_invalid| wrong(format!("{:?} is no method", asked.method)))?;
        *built.uri_mut() = asked
            .path
            .parse::<Uri>()
            .map_err(|error| wrong(format!("path {:?}: {error}", asked.path)))?;
        let headers = built.headers_mut();
        for (name, value) in &asked.headers {
            let key = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_invalid| wrong(format!("{name:?} is no header's name")))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_invalid| wrong(format!("the value of header {name:?} is none")))?;
            headers.append(key, value);
        }
        if !headers.contains_key(header::HOST) && built.uri().authority().is_none() {
            let host = match (self.host.parse::<IpAddr>(), self.port) {
                (Ok(IpAddr::V6(ip)), port) => format!("[{ip}]:{port}"),
                (_, 80) => self.host_name(),
                (_, port) => format!("{}:{port}", self.host_name()),
            };
            let host = HeaderValue::from_str(&host)
                .map_err(|_invalid| wrong(format!("{host:?} is no host")))?;
            built.headers_mut().insert(header::HOST, host);
        }
        let seen = Seen {
            scheme: Scheme::Http,
            port: self.port,
        };
        Request::new(built.into_parts().0, seen)
            .map_err(|refusal| wrong(format!("the waypoint answers 400: {refusal}")))
    }

    /// What a client would put into its Host header: `NAMESPACE/NAME` as `NAME.NAMESPACE`.
    fn host_name(&self) -> String {
        let parts: Vec<&str> = self.host.split('/').collect();
        match parts[..] {
            [.., namespace, name] if !matches!(namespace, "service" | "svc" | "pod") => {
                format!("{name}.{namespace}")
            }
            [.., name] => name.to_owned(),
            [] => String::new(),
        }
    }
}
