//! One access-log line per connection, with Istio's field names and order, so that tools which read ztunnel's lines
//! read these.
//!
//! The proxies fill a [`Record`] while the connection lives and call [`Record::opened`], [`Record::completed`] or
//! [`Record::failed`] once each. Lines have the log target `access`; absent fields are left out. Byte counts are as the
//! log has them, not as the metrics have them: `bytes_sent` is what this side's peer was sent. An outbound line
//! counts request bytes as sent, an inbound line counts response bytes as sent.

use std::{
    borrow::Cow,
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value as Json, json};
use tracing::{debug, error, info, warn};

use crate::{
    export::nanoseconds,
    format::{FieldValue, Logged},
    trace::Context,
};

/// Which way the connection runs, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Towards a local workload.
    Inbound,
    /// From a local workload.
    Outbound,
    /// Through a waypoint.
    Waypoint,
}

/// The side that opened the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its address and port.
    pub addr: Option<SocketAddr>,
    /// Workload name.
    pub workload: Option<String>,
    /// Workload namespace.
    pub namespace: Option<String>,
    /// SPIFFE ID, only when TLS proved it.
    pub identity: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
}

/// The side that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The address connected to; with HBONE the port is 15008.
    pub addr: Option<SocketAddr>,
    /// The CONNECT authority, only with HBONE.
    pub hbone_addr: Option<String>,
    /// Service host name, when the client asked for a service.
    pub service: Option<String>,
    /// Workload name.
    pub workload: Option<String>,
    /// Workload namespace.
    pub namespace: Option<String>,
    /// SPIFFE ID.
    pub identity: Option<String>,
    /// Cluster.
    pub cluster: Option<String>,
}

/// For whom a waypoint asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Its address and port.
    pub addr: Option<SocketAddr>,
    /// SPIFFE ID.
    pub identity: Option<String>,
}

/// Everything the line of one connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who opened it.
    pub source: Source,
    /// What was asked for.
    pub destination: Destination,
    /// The client behind a waypoint, as the waypoint tells it.
    pub client: Client,
    /// Which way.
    pub direction: Direction,
    /// Bytes sent, see the module's text.
    pub bytes_sent: u64,
    /// Bytes received, see the module's text.
    pub bytes_recv: u64,
    /// How long the connection lived.
    pub duration: Duration,
    /// Why it failed: the whole chain of causes.
    pub error: Option<String>,
    /// As metrics have it.
    pub response_flags: &'static str,
}

impl Direction {
    /// As the log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Waypoint => "waypoint",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Emits the event with the fields that every line has, in order, then those given.
macro_rules! line {
    ($emit:ident, $record:expr, $message:literal $(, $field:ident = $value:expr)*) => {{
        let (src, dst) = (&$record.source, &$record.destination);
        $emit!(
            target: "access",
            {
            src.addr = src.addr.map(tracing::field::display),
            src.workload = src.workload.as_deref(),
            src.namespace = src.namespace.as_deref(),
            src.identity = src.identity.as_deref(),
            src.cluster = src.cluster.as_deref(),
            dst.addr = dst.addr.map(tracing::field::display),
            dst.hbone_addr = dst.hbone_addr.as_deref(),
            dst.service = dst.service.as_deref(),
            dst.workload = dst.workload.as_deref(),
            dst.namespace = dst.namespace.as_deref(),
            dst.identity = dst.identity.as_deref(),
            dst.cluster = dst.cluster.as_deref(),
            client.addr = $record.client.addr.map(tracing::field::display),
            client.identity = $record.client.identity.as_deref(),
            direction = %$record.direction,
            $($field = $value,)*
            },
            $message
        )
    }};
}

impl Record {
    /// An empty record: fields are filled as they become known.
    pub fn new(direction: Direction) -> Self {
        Self {
            source: Source::default(),
            destination: Destination::default(),
            client: Client::default(),
            direction,
            bytes_sent: 0,
            bytes_recv: 0,
            duration: Duration::ZERO,
            error: None,
            response_flags: "-",
        }
    }

    /// The connection passed authorization and reached its destination. Level DEBUG.
    pub fn opened(&self) {
        line!(debug, self, "connection opened");
    }

    /// The connection ended: INFO, or ERROR when it ended by an error.
    pub fn completed(&self) {
        let duration = format!("{}ms", self.duration.as_millis());
        match &self.error {
            None => line!(
                info,
                self,
                "connection complete",
                bytes_sent = self.bytes_sent,
                bytes_recv = self.bytes_recv,
                duration = duration
            ),
            Some(error) => line!(
                error,
                self,
                "connection complete",
                bytes_sent = self.bytes_sent,
                bytes_recv = self.bytes_recv,
                duration = duration,
                error = error
            ),
        }
    }

    /// The connection failed before it was known who talks to whom. Level WARN.
    pub fn failed(&self) {
        line!(
            warn,
            self,
            "connection failed",
            error = self.error.as_deref()
        );
    }
}

/// Names of the fields of a line, in order.
pub const FIELDS: [(&str, &str); 19] = [
    (
        "src.addr",
        "address and port of the side that opened the connection",
    ),
    ("src.workload", "its workload"),
    ("src.namespace", "its namespace"),
    ("src.identity", "its SPIFFE ID, where TLS proved it"),
    ("src.cluster", "its cluster"),
    (
        "dst.addr",
        "address connected to; with HBONE the port is 15008",
    ),
    ("dst.hbone_addr", "authority of the CONNECT request"),
    ("dst.service", "host name of the service that was asked for"),
    ("dst.workload", "workload"),
    ("dst.namespace", "namespace"),
    ("dst.identity", "SPIFFE ID"),
    ("dst.cluster", "cluster"),
    (
        "client.addr",
        "the client behind a waypoint, as the waypoint tells it",
    ),
    ("client.identity", "its SPIFFE ID"),
    ("direction", "`inbound`, `outbound` or `waypoint`"),
    (
        "bytes_sent",
        "outbound: bytes of the request; inbound: of the response",
    ),
    ("bytes_recv", "the other way"),
    ("duration", "milliseconds, with `ms`"),
    (
        "error",
        "why it failed, with all causes; absent if it did not",
    ),
];

impl Record {
    fn values(&self) -> [Option<FieldValue<'_>>; 19] {
        use FieldValue::{Address, Milliseconds, Number, Text};
        fn text(text: &Option<String>) -> Option<FieldValue<'_>> {
            text.as_deref().map(Text)
        }
        let (src, dst, client) = (&self.source, &self.destination, &self.client);
        [
            src.addr.map(Address),
            text(&src.workload),
            text(&src.namespace),
            text(&src.identity),
            text(&src.cluster),
            dst.addr.map(Address),
            text(&dst.hbone_addr),
            text(&dst.service),
            text(&dst.workload),
            text(&dst.namespace),
            text(&dst.identity),
            text(&dst.cluster),
            client.addr.map(Address),
            text(&client.identity),
            Some(Text(self.direction.as_str())),
            Some(Number(self.bytes_sent)),
            Some(Number(self.bytes_recv)),
            Some(Milliseconds(self.duration.as_millis())),
            text(&self.error),
        ]
    }
}

impl Logged for Record {
    fn own(&self) {
        self.completed();
    }

    fn command(&self, name: &str, argument: &str) -> Option<Cow<'_, str>> {
        let text = |text: &Option<String>| text.clone().map(Cow::Owned);
        let (src, dst) = (&self.source, &self.destination);
        let owned = |text: String| Some(Cow::Owned(text));
        match (name, argument) {
            ("START_TIME", _) => owned(crate::logging::time(SystemTime::now() - self.duration)),
            ("PROTOCOL", _) => Some(Cow::Borrowed("TCP")),
            ("RESPONSE_CODE", _) => Some(Cow::Borrowed("0")),
            ("RESPONSE_FLAGS", _) => Some(Cow::Borrowed(self.response_flags)),
            ("CONNECTION_TERMINATION_DETAILS", _) => text(&self.error),
            ("BYTES_RECEIVED", _) => owned(self.bytes_recv.to_string()),
            ("BYTES_SENT", _) => owned(self.bytes_sent.to_string()),
            ("DURATION", _) => owned(self.duration.as_millis().to_string()),
            ("UPSTREAM_HOST", _) => dst.addr.and_then(|addr| owned(addr.to_string())),
            ("UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW", _) => text(&dst.service),
            ("DOWNSTREAM_REMOTE_ADDRESS", _) => src.addr.and_then(|addr| owned(addr.to_string())),
            ("DOWNSTREAM_PEER_URI_SAN", _) => text(&src.identity),
            ("UPSTREAM_PEER_URI_SAN", _) => text(&dst.identity),
            _ => None,
        }
    }

    fn attributes(&self) -> Map<String, Json> {
        let (src, dst) = (&self.source, &self.destination);
        let ip = |addr: Option<SocketAddr>| addr.map(|addr| addr.ip().to_string());
        let port = |addr: Option<SocketAddr>| addr.map(|addr| addr.port());
        let all = json!({
            "connection": {
                "mtls": src.identity.is_some(),
                "uri_san_peer_certificate": src.identity,
                "termination_details": self.error,
                "duration_ms": u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
                "bytes_sent": self.bytes_sent,
                "bytes_received": self.bytes_recv,
            },
            "source": {
                "address": ip(src.addr),
                "port": port(src.addr),
                "workload": src.workload,
                "namespace": src.namespace,
                "principal": src.identity,
            },
            "destination": {
                "address": ip(dst.addr),
                "port": port(dst.addr),
                "service": dst.service,
                "workload": dst.workload,
                "namespace": dst.namespace,
                "principal": dst.identity,
            },
            "response": {"code": 0, "flags": self.response_flags},
            "request": {"protocol": "tcp"},
        });
        match all {
            Json::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn fields(&self, tell: &mut dyn FnMut(&'static str, FieldValue<'_>)) {
        for (&(name, _), value) in FIELDS.iter().zip(self.values()) {
            if let Some(value) = value {
                tell(name, value);
            }
        }
    }

    fn message(&self) -> &'static str {
        "connection complete"
    }

    fn is_error(&self) -> bool {
        self.error.is_some()
    }

    fn ended(&self) -> u64 {
        nanoseconds(SystemTime::now())
    }

    fn context(&self) -> Option<&Context> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::{Format, captured};

    fn record() -> Record {
        let mut record = Record::new(Direction::Outbound);
        record.source.addr = Some("10.0.0.1:4000".parse().unwrap());
        record.source.workload = Some("orders-1".to_owned());
        record.source.identity = Some("spiffe://cluster.local/ns/shop/sa/orders".to_owned());
        record.destination.addr = Some("10.0.0.2:15008".parse().unwrap());
        record.destination.hbone_addr = Some("10.0.0.2:6379".to_owned());
        record.bytes_sent = 3;
        record.bytes_recv = 4;
        record.duration = Duration::from_millis(12);
        record
    }

    fn after_time(line: &str) -> &str {
        line.split_once('\t').unwrap().1
    }

    #[test]
    fn a_text_line_has_the_fields_in_order_and_leaves_absent_ones_out() {
        let line = captured(Format::Text, "info", |_| record().completed());
        assert_eq!(
            after_time(&line),
            "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:4000\tsrc.workload=orders-1\t\
             src.identity=spiffe://cluster.local/ns/shop/sa/orders\tdst.addr=10.0.0.2:15008\t\
             dst.hbone_addr=10.0.0.2:6379\tdirection=outbound\tbytes_sent=3\tbytes_recv=4\tduration=12ms\n"
        );
    }

    #[test]
    fn a_json_line_has_the_fields_in_order() {
        let line = captured(Format::Json, "info", |_| record().completed());
        let at = |key: &str| line.find(&format!("\"{key}\":")).unwrap_or(usize::MAX);
        let order = [
            "src.addr",
            "src.identity",
            "dst.addr",
            "dst.hbone_addr",
            "direction",
            "bytes_sent",
            "bytes_recv",
            "duration",
        ];
        assert!(
            order.windows(2).all(|pair| at(pair[0]) < at(pair[1])),
            "{line}"
        );
        assert!(
            line.contains("\"bytes_sent\":3") && !line.contains("dst.service"),
            "{line}"
        );
    }

    #[test]
    fn an_error_raises_the_level_and_is_the_last_field() {
        let mut record = record();
        record.error = Some("no allow policy matched".to_owned());
        let line = captured(Format::Text, "info", |_| record.completed());
        assert!(after_time(&line).starts_with("error\taccess\t"), "{line}");
        assert!(
            line.ends_with("\terror=\"no allow policy matched\"\n"),
            "{line}"
        );
    }

    #[test]
    fn opening_is_for_debugging_only() {
        assert_eq!(captured(Format::Text, "info", |_| record().opened()), "");
        assert!(
            captured(Format::Text, "access=debug", |_| record().opened())
                .contains("connection opened")
        );
    }
}
