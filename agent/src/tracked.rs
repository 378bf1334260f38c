//! One connection from its start to its end, as metrics and access log tell it: every path through the proxies ends in
//! exactly one of [`Tracked::refuse`] and [`Tracked::finish`].

use std::{net::SocketAddr, sync::Arc, time::Instant};

use karst_hbone::{End, Flag};
use karst_model::workload::Workload;
use karst_telemetry::{
    access_log::{Client, Destination, Direction, Record, Source},
    error_chain::Chain,
    format::Logged as _,
    hub::{Hub, Recording},
    metrics::tcp::{Handles, Peer, Reporter, ResponseFlags, TcpLabels, TcpMetrics},
    observed::{self, Ended},
    settings::Side,
};

use crate::metrics::response_flags;

/// A connection that is being served.
pub(crate) struct Tracked<'a> {
    metrics: &'a TcpMetrics,
    /// What the Telemetry API asks for; nothing beyond our own where it is not known whose the connection is.
    recording: Option<Arc<Recording>>,
    labels: TcpLabels,
    record: Record,
    open: Option<Open>,
    since: Instant,
}

/// What a connection carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// From client to server.
    pub(crate) request: u64,
    /// From server to client.
    pub(crate) response: u64,
}

/// Counts a connection as closed when it goes, however that happens.
struct Open {
    handles: Handles,
    sockets: prometheus_client::metrics::gauge::Gauge,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.handles.closed.inc();
        self.sockets.dec();
    }
}

impl<'a> Tracked<'a> {
    /// Starts the record of a connection from `client` to `target`.
    pub(crate) fn start(
        metrics: &'a TcpMetrics,
        labels: TcpLabels,
        client: SocketAddr,
        target: SocketAddr,
    ) -> Self {
        let direction = match labels.reporter {
            Reporter::Source => Direction::Outbound,
            Reporter::Destination | Reporter::Waypoint => Direction::Inbound,
        };
        let mut record = Record::new(direction);
        record.source = Source {
            addr: Some(client),
            ..source(&labels.source)
        };
        record.destination = Destination {
            addr: Some(target),
            service: text(&labels.service.host),
            ..destination(&labels.destination)
        };
        let since = Instant::now();
        Self {
            metrics,
            recording: None,
            labels,
            record,
            open: None,
            since,
        }
    }

    /// Records as is asked for the local workload, which is on this side.
    pub(crate) fn recorded_for(mut self, hub: &Hub, own: Option<&Workload>, side: Side) -> Self {
        self.recording = own.map(|own| {
            let label = |key: &str| own.label(key).map(|value| &**value);
            hub.for_workload(&own.namespace, label, side)
        });
        self
    }

    /// Names the authority of the tunnel and the address that it goes to.
    pub(crate) fn through_tunnel(&mut self, addr: SocketAddr, authority: String) {
        self.record.destination.addr = Some(addr);
        self.record.destination.hbone_addr = Some(authority);
    }

    /// Names the client for whom a waypoint asks.
    pub(crate) fn on_behalf_of(&mut self, client: &karst_hbone::Client) {
        self.record.client = Client {
            addr: client.addr,
            identity: client.identity.as_ref().map(ToString::to_string),
        };
    }

    /// The connection reached its destination.
    pub(crate) fn opened(&mut self) {
        let handles = match &self.recording {
            Some(recording) => {
                let attributes = || self.record.attributes();
                let plan = &recording.plan.metrics;
                self.metrics.handles_for(&self.labels, plan, &attributes)
            }
            None => self.metrics.handles(&self.labels),
        };
        let sockets = self.metrics.sockets_open(self.labels.reporter);
        handles.opened.inc();
        sockets.inc();
        self.open = Some(Open { handles, sockets });
        self.record.opened();
    }

    /// The connection was not made.
    pub(crate) fn refuse(mut self, error: &dyn std::error::Error, flag: Flag) {
        self.record.response_flags = response_flags(flag).as_str();
        self.fail(response_flags(flag));
        self.record.error = Some(Chain(error).to_string());
        self.record.failed();
        self.observe(response_flags(flag), Bytes::default());
    }

    /// The connection is over. `cut_because` is set when policy ended it.
    pub(crate) fn finish(mut self, bytes: Bytes, end: &End, cut_because: Option<&str>) {
        let Bytes { request, response } = bytes;
        (self.record.bytes_sent, self.record.bytes_recv) = match self.labels.reporter {
            Reporter::Source => (request, response),
            Reporter::Destination | Reporter::Waypoint => (response, request),
        };
        self.record.duration = self.since.elapsed();
        self.record.error = describe(end, cut_because);
        if matches!(end, End::Cut) {
            self.record.response_flags = ResponseFlags::Deny.as_str();
            self.fail(ResponseFlags::Deny);
        }
        match &self.recording {
            Some(recording) => recording.log(&self.record),
            None => self.record.completed(),
        }
        let flag = match end {
            End::Cut => ResponseFlags::Deny,
            _ => ResponseFlags::None,
        };
        self.observe(flag, bytes);
        if let Some(Open { handles, .. }) = &self.open {
            handles.received.inc_by(request);
            handles.sent.inc_by(response);
        }
    }

    fn observe(&self, flag: ResponseFlags, bytes: Bytes) {
        let ended = Ended {
            flag: flag.as_str(),
            denied: flag == ResponseFlags::Deny,
            request_bytes: bytes.request,
            response_bytes: bytes.response,
        };
        observed::connection(&self.record, &self.labels, ended);
    }

    fn fail(&self, response_flags: ResponseFlags) {
        self.metrics.failed(&TcpLabels {
            response_flags,
            ..self.labels.clone()
        });
    }
}

fn describe(end: &End, cut_because: Option<&str>) -> Option<String> {
    match end {
        End::Finished => None,
        End::App(error) => Some(format!("the application's side ended it: {error}")),
        End::Upstream(error) => Some(format!("the other side ended it: {error}")),
        End::Tunnel(error) => Some(Chain(error).to_string()),
        End::Cut => Some(format!(
            "closed because policy changed: {}",
            cut_because.unwrap_or("no longer allowed")
        )),
    }
}

fn text(value: &Arc<str>) -> Option<String> {
    (!value.is_empty()).then(|| value.to_string())
}

fn source(peer: &Peer) -> Source {
    Source {
        addr: None,
        workload: text(&peer.workload),
        namespace: text(&peer.namespace),
        identity: text(&peer.principal),
        cluster: text(&peer.cluster),
    }
}

fn destination(peer: &Peer) -> Destination {
    let Source {
        workload,
        namespace,
        identity,
        cluster,
        ..
    } = source(peer);
    Destination {
        workload,
        namespace,
        identity,
        cluster,
        ..Destination::default()
    }
}
