//! Tells the controller what this program saw: denials, failures, and who talks to whom. Bounded at both ends; what
//! cannot be told is forgotten here and stays counted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use karst_proto::reads::{
    Edge, FailingCollector, Incident, IncidentKind, Observation, Peer,
    observations_client::ObservationsClient,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{
    error_chain::Chain,
    hub::Hub,
    observed::{self, Batch, EdgeKey, End, Observed, Traffic},
};
use tokio::sync::mpsc;

use crate::Link;

/// Between two messages.
const INTERVAL: Duration = Duration::from_secs(2);
/// Incidents of one message.
const INCIDENTS_MAX: usize = 500;
/// Failing collectors of one message, and the longest text about one.
const COLLECTORS_MAX: usize = 64;
const ERROR_BYTES_MAX: usize = 512;
/// First and longest pause between streams.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Tells until shutdown, over as many streams as it takes.
pub async fn observe(link: Link, observed: Arc<Observed>, hub: Arc<Hub>, shutdown: Shutdown) {
    let mut teller = Teller {
        program: program(),
        sequence: 0,
        last_totals: (0, 0, 0),
        unanswered: None,
        last_failing: Vec::new(),
        observed,
        hub,
    };
    let mut pause = BACKOFF.0;
    loop {
        tokio::select! {
            ended = teller.stream(&link) => match ended {
                Ok(()) => pause = BACKOFF.0,
                Err(error) => tracing::debug!(error = %Chain(&error), "the stream of observations ended"),
            },
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
            () = shutdown.cancelled() => return,
        }
    }
}

/// A name that no other start of any program has.
fn program() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |since| since.as_nanos());
    format!("{nanoseconds:x}-{:x}", std::process::id())
}

struct Teller {
    program: String,
    sequence: u64,
    last_totals: (u64, u64, u64),
    /// What the controller may not have: it is sent again.
    unanswered: Option<Observation>,
    last_failing: Vec<FailingCollector>,
    observed: Arc<Observed>,
    hub: Arc<Hub>,
}

impl Teller {
    async fn stream(&mut self, link: &Link) -> Result<(), tonic::Status> {
        let (messages, outgoing) = mpsc::channel(1);
        let mut client = ObservationsClient::new(link.channel());
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let mut answers = client
            .observe(link.authorized(outgoing))
            .await?
            .into_inner();
        loop {
            let Some(message) = self.next().await else {
                continue;
            };
            if messages.send(message).await.is_err() {
                return Ok(());
            }
            let Some(_answer) = answers.message().await? else {
                return Ok(());
            };
            self.unanswered = None;
        }
    }

    /// The next message: one that was not answered, else what is new after a while, if there is anything.
    async fn next(&mut self) -> Option<Observation> {
        if let Some(again) = &self.unanswered {
            return Some(again.clone());
        }
        tokio::time::sleep(INTERVAL).await;
        let batch = self.observed.take(INCIDENTS_MAX);
        let totals = (batch.denied_total, batch.failed_total, batch.overflow_total);
        let failing = failing(&self.hub);
        let is_old = totals == self.last_totals && failing == self.last_failing;
        if batch.incidents.is_empty() && batch.edges.is_empty() && is_old {
            return None;
        }
        self.last_totals = totals;
        self.last_failing.clone_from(&failing);
        self.sequence += 1;
        let mut message = message(batch, self.program.clone(), self.sequence);
        message.failing_collectors = failing;
        self.unanswered = Some(message.clone());
        Some(message)
    }
}

/// Collectors that do not take what is sent.
fn failing(hub: &Hub) -> Vec<FailingCollector> {
    let failing = hub.failing().into_iter().take(COLLECTORS_MAX);
    let failing = failing.map(|(provider, error)| FailingCollector {
        provider: provider.to_string(),
        error: error[..error.floor_char_boundary(ERROR_BYTES_MAX)].to_owned(),
    });
    failing.collect()
}

fn message(batch: Batch, program: String, sequence: u64) -> Observation {
    Observation {
        program,
        sequence,
        incidents: batch.incidents.into_iter().map(incident).collect(),
        denied_total: batch.denied_total,
        failed_total: batch.failed_total,
        edges: batch
            .edges
            .iter()
            .map(|(key, traffic)| edge(key, traffic))
            .collect(),
        edges_overflow_total: batch.overflow_total,
        failing_collectors: Vec::new(),
    }
}

fn incident(one: observed::Incident) -> Incident {
    let request = one.request.map(|request| *request).unwrap_or_default();
    let kind = match one.kind {
        observed::IncidentKind::Denied => IncidentKind::Denied,
        observed::IncidentKind::Failed => IncidentKind::Failed,
    };
    Incident {
        at: one.at,
        number: one.number,
        kind: kind.into(),
        direction: one.direction.to_string(),
        source: Some(peer(one.source)),
        destination: Some(peer(one.destination)),
        service: one.service,
        flag: one.flag,
        reason: one.reason,
        method: request.method,
        path: request.path,
        host: request.host,
        status: request.status.into(),
        route: request.route,
        trace_id: request.trace_id,
    }
}

fn peer(end: End) -> Peer {
    Peer {
        namespace: end.namespace,
        workload: end.workload,
        identity: end.identity,
        address: end.addr.map(|addr| addr.to_string()).unwrap_or_default(),
    }
}

fn edge(key: &EdgeKey, traffic: &Traffic) -> Edge {
    Edge {
        direction: key.direction.to_string(),
        source_namespace: key.source_namespace.to_string(),
        source_workload: key.source_workload.to_string(),
        source_identity: key.source_identity.to_string(),
        destination_namespace: key.destination_namespace.to_string(),
        destination_workload: key.destination_workload.to_string(),
        service: key.service.to_string(),
        port: key.port.into(),
        mutual_tls: key.mutual_tls,
        connections: traffic.connections,
        requests: traffic.requests,
        denied: traffic.denied,
        failed: traffic.failed,
        request_bytes: traffic.request_bytes,
        response_bytes: traffic.response_bytes,
    }
}
