//! One access-log line per request, beside [`crate::access_log`], which has one per connection; the same target
//! (`access`), the same names for the same things.

use std::{net::SocketAddr, time::Duration};

use tracing::{info, warn};

use crate::metrics::{
    http::{RequestFlag, RequestProtocol},
    tcp::{Peer, ServiceLabels},
};

/// Everything that the line of one request says. Empty text is left out.
#[derive(Clone, Debug)]
pub struct RequestLine<'a> {
    pub client: SocketAddr,
    pub source: &'a Peer,
    pub destination: &'a Peer,
    pub service: &'a ServiceLabels,
    /// The endpoint that the last try went to.
    pub endpoint: Option<SocketAddr>,
    pub method: &'a str,
    /// As the client sent it, query included.
    pub path: &'a str,
    pub authority: &'a str,
    pub protocol: RequestProtocol,
    /// HTTP version of the client's side: `HTTP/1.1`.
    pub version: &'static str,
    /// 0: no response was sent.
    pub status: u16,
    pub grpc_status: Option<u32>,
    pub flag: RequestFlag,
    /// Route and rule that matched.
    pub route: &'a str,
    /// Tries, the first one included.
    pub tries: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub duration: Duration,
    pub user_agent: &'a str,
    pub request_id: &'a str,
    pub trace: &'a str,
    /// Why the waypoint answered itself, or what broke.
    pub cause: &'a str,
}

fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Whether lines of requests that went well are wanted at all.
pub fn is_wanted() -> bool {
    tracing::enabled!(target: "access", tracing::Level::INFO)
}

/// Emits the event with the fields that every line has, in order, then those given.
macro_rules! line {
    ($emit:ident, $line:expr, $duration:expr $(, $field:ident = $value:expr)*) => {{
        let line = $line;
        $emit!(
            target: "access",
            {
            src.addr = %line.client,
            src.workload = known(&line.source.workload),
            src.namespace = known(&line.source.namespace),
            src.identity = known(&line.source.principal),
            dst.addr = line.endpoint.map(tracing::field::display),
            dst.service = known(&line.service.host),
            dst.workload = known(&line.destination.workload),
            dst.namespace = known(&line.destination.namespace),
            dst.identity = known(&line.destination.principal),
            direction = "waypoint",
            protocol = line.protocol.as_str(),
            version = line.version,
            method = line.method,
            authority = known(line.authority),
            path = line.path,
            status = line.status,
            grpc_status = line.grpc_status,
            response_flags = line.flag.as_str(),
            route = known(line.route),
            tries = line.tries,
            bytes_recv = line.request_bytes,
            bytes_sent = line.response_bytes,
            duration = $duration,
            user_agent = known(line.user_agent),
            request_id = known(line.request_id),
            traceparent = known(line.trace),
            $($field = $value,)*
            },
            "request complete"
        )
    }};
}

impl RequestLine<'_> {
    /// INFO, or WARN where the waypoint or the endpoint did not do what was asked.
    pub fn emit(&self) {
        let duration = format!("{}us", self.duration.as_micros());
        if self.flag == RequestFlag::None && self.cause.is_empty() {
            line!(info, self, duration);
        } else {
            line!(warn, self, duration, cause = known(self.cause));
        }
    }
}
