//! The discovery service: drives one [`Session`] per stream.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use karst_proto::{
    discovery::DeltaDiscoveryRequest,
    encoded::{
        DeltaDiscoveryResponse, aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    acks::Acks,
    caller::Gate,
    metrics::ServeMetrics,
    peer::Peer,
    resources::Resources,
    session::{Handled, Session},
};

/// Streams at once.
const STREAMS_MAX: usize = 10_000;
/// Messages between a session and its connection. Each is made only when there is room.
const OUTGOING: usize = 1;

/// The service.
pub struct Discovery {
    pub gate: Gate,
    pub resources: Arc<Resources>,
    pub acks: Arc<Acks>,
    pub metrics: ServeMetrics,
    pub shutdown: Shutdown,
    pub slots: Arc<Semaphore>,
}

impl Discovery {
    pub fn new(
        gate: Gate,
        resources: Arc<Resources>,
        acks: Arc<Acks>,
        metrics: ServeMetrics,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            gate,
            resources,
            acks,
            metrics,
            shutdown,
            slots: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (peer, caller) = self.gate.proxy(request.metadata()).await?;
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            self.metrics.streams_refused.inc();
            return Err(Status::resource_exhausted(
                "too many discovery streams: try another replica",
            ));
        };
        let (tx, rx) = mpsc::channel(OUTGOING);
        let stream = OneStream {
            session: Session::new(peer.clone()),
            proxy: peer,
            refused: BTreeMap::new(),
            peer: caller.to_string(),
            resources: self.resources.clone(),
            acks: self.acks.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        };
        spawn_connection("discovery stream", async move {
            let _slot = slot;
            stream.run(request.into_inner(), tx).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

type Outgoing = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// Longest text of a refusal that is kept, in characters.
const REFUSAL_CHARS_MAX: usize = 300;

/// All refusals of a proxy as one line; nothing where there is none. Types are known ones: the session answers no other.
fn refusals(refused: &BTreeMap<String, String>) -> Option<Arc<str>> {
    let lines = refused.iter().map(|(type_url, message)| {
        let kind = type_url.rsplit('/').next().unwrap_or_default();
        format!("{kind}: {message}")
    });
    let lines: Vec<_> = lines.collect();
    (!lines.is_empty()).then(|| lines.join("; ").into())
}

struct OneStream {
    proxy: Peer,
    /// What the proxy rejects, by type; one of its types is enough to be told.
    refused: BTreeMap<String, String>,
    session: Session,
    /// For the log.
    peer: String,
    resources: Arc<Resources>,
    acks: Arc<Acks>,
    metrics: ServeMetrics,
    shutdown: Shutdown,
}

impl OneStream {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>, tx: Outgoing) {
        self.metrics.streams.inc();
        tracing::info!(peer = self.peer, "discovery stream opened");
        let ended = self.follow(requests, &tx).await;
        self.metrics.streams.dec();
        match ended {
            Ok(()) => tracing::info!(peer = self.peer, "discovery stream closed"),
            Err(status) => {
                tracing::info!(
                    peer = self.peer,
                    reason = status.message(),
                    "discovery stream ended"
                );
                let _ = tx.try_send(Err(status));
            }
        }
    }

    async fn follow(
        &mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        tx: &Outgoing,
    ) -> Result<(), Status> {
        let acks = self.acks.clone();
        let mut ack = None;
        let mut changes = self.resources.changes();
        let shutdown = self.shutdown.clone();
        let mut next = None;
        loop {
            if next.is_none() {
                changes.borrow_and_update();
                next = self.next_response()?;
            }
            if let Some(acked) = self.session.acked_addresses() {
                let ack = ack.get_or_insert_with(|| acks.register(self.proxy.clone()));
                ack.set(acked);
                ack.refuse(refusals(&self.refused));
                ack.hold(self.session.acked_all());
            }
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => self.handle(request)?,
                    None => return Ok(()),
                },
                permit = tx.reserve(), if next.is_some() => match (permit, next.take()) {
                    (Ok(permit), Some(response)) => permit.send(Ok(response)),
                    _ => return Ok(()),
                },
                changed = changes.changed(), if next.is_none() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = shutdown.cancelled() => return Err(Status::unavailable("the controller is going down")),
            }
        }
    }

    fn handle(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        match self
            .session
            .handle(request)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?
        {
            Handled::Nacked(message) => {
                self.metrics.nacks.inc();
                let kept = message.chars().take(REFUSAL_CHARS_MAX).collect();
                self.refused.insert(type_url.clone(), kept);
                tracing::warn!(
                    peer = self.peer,
                    type_url,
                    message,
                    "proxy rejected resources; it keeps their last good form"
                );
            }
            handled => {
                if matches!(handled, Handled::Acked) {
                    self.refused.remove(&type_url);
                }
                tracing::debug!(peer = self.peer, type_url, ?handled, "discovery request");
            }
        }
        Ok(())
    }

    fn next_response(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let next = self
            .session
            .next_response(&self.resources.read())
            .map_err(|error| {
                self.metrics.cut_off.inc();
                Status::aborted(error.to_string())
            })?;
        if let Some(response) = &next {
            self.metrics.responses.inc();
            self.metrics
                .resources_sent
                .inc_by(response.resources.len() as u64);
            self.metrics
                .bytes_sent
                .inc_by(response.resources.iter().map(|r| r.len() as u64).sum());
        }
        Ok(next)
    }
}
