//! One access-log line per connection, with Istio's field names and order, so that tools which read ztunnel's lines
//! read these.
//!
//! The proxies fill a [`Record`] while the connection lives and call [`Record::opened`], [`Record::completed`] or
//! [`Record::failed`] once each. Lines have the log target `access`; absent fields are left out. Byte counts are as the
//! log has them, not as the metrics have them: `bytes_sent` is what this side's peer was sent. An outbound line
//! counts request bytes as sent, an inbound line counts response bytes as sent.

use std::{fmt, net::SocketAddr, time::Duration};

use tracing::{debug, error, info, warn};

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
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Waypoint => "waypoint",
        })
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
