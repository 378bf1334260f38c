//! What agents report: which pods of their node are captured.

use std::{pin::Pin, sync::Arc};

use hashbrown::{HashMap, HashSet};
use karst_index::Event;
use karst_model::{
    enrollment::{Generation, PodCapture},
    name::PodUid,
};
use karst_proto::karst::{ReportRequest, ReportResponse, reports_server::Reports};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{caller::Gate, resources::Resources};
use crate::{mesh::Reporter, pods::Pods};

/// Pods that one agent may report before we know them.
const EARLY_MAX: usize = 10_000;
/// Answers on their way to one agent.
const OUTGOING: usize = 8;

/// The service.
pub struct ReportService {
    pub gate: Gate,
    pub pods: Arc<Pods>,
    /// Woken by, when pods may have become known.
    pub resources: Arc<Resources>,
    pub reporter: Reporter,
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Reports for ReportService {
    type ReportStream =
        Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send + 'static>>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let caller = self.gate.agent(request.metadata()).await?;
        let (tx, rx) = mpsc::channel(OUTGOING);
        let node = Node {
            name: caller.node,
            pods: self.pods.clone(),
            resources: self.resources.clone(),
            reporter: self.reporter.clone(),
            early: HashMap::new(),
        };
        let (requests, shutdown) = (request.into_inner(), self.shutdown.clone());
        spawn_connection("report stream", async move {
            let ended = shutdown
                .run_until_cancelled(node.follow(requests, &tx))
                .await;
            if let Some(Err(status)) = ended {
                let _ = tx.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// The reporting node.
struct Node {
    name: String,
    pods: Arc<Pods>,
    resources: Arc<Resources>,
    reporter: Reporter,
    /// Captured pods that we do not know on this node (yet): an agent may be ahead of the files.
    early: HashMap<PodUid, PodCapture>,
}

impl Node {
    async fn follow(
        mut self,
        mut requests: Streaming<ReportRequest>,
        tx: &mpsc::Sender<Result<ReportResponse, Status>>,
    ) -> Result<(), Status> {
        let mut changes = self.resources.changes();
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    let sequence = request.sequence;
                    let (events, unknown_pods) = self.events(request);
                    self.report(events).await?;
                    if tx.send(Ok(ReportResponse { sequence, unknown_pods })).await.is_err() {
                        return Ok(());
                    }
                }
                changed = changes.changed(), if !self.early.is_empty() => {
                    changed.map_err(|_gone| going_down())?;
                    let events = self.arrived();
                    self.report(events).await?;
                }
            }
        }
    }

    async fn report(&self, events: Vec<Event>) -> Result<(), Status> {
        self.reporter
            .report(self.name.as_str().into(), events)
            .await
            .map_err(|_gone| going_down())
    }

    /// The events of a report, and the pods in it that are not of this node: an agent speaks for its own only.
    fn events(&mut self, request: ReportRequest) -> (Vec<Event>, Vec<String>) {
        let own: HashSet<PodUid> = self.pods.of_node(&self.name).into_iter().collect();
        if request.complete {
            self.early.clear();
        }
        let mut events = Vec::new();
        let mut unknown = Vec::new();
        let mut reported = HashSet::new();
        for report in request.pods {
            let capture = report.captured.then_some(PodCapture {
                generation: Generation(report.generation),
                plaintext_open: report.plaintext_open,
            });
            let pod_uid = PodUid(report.pod_uid.as_str().into());
            if own.contains(&pod_uid) {
                reported.insert(pod_uid.clone());
                events.push(Event::Captured { pod_uid, capture });
                continue;
            }
            unknown.push(report.pod_uid);
            match capture {
                Some(capture) if self.early.len() < EARLY_MAX => {
                    self.early.insert(pod_uid, capture);
                }
                Some(_) => {}
                None => drop(self.early.remove(&pod_uid)),
            }
        }
        if request.complete {
            let left_out = own.into_iter().filter(|uid| !reported.contains(uid));
            events.extend(left_out.map(|pod_uid| Event::Captured {
                pod_uid,
                capture: None,
            }));
        }
        (events, unknown)
    }

    /// Early pods that have become known.
    fn arrived(&mut self) -> Vec<Event> {
        let own: HashSet<PodUid> = self.pods.of_node(&self.name).into_iter().collect();
        self.early
            .extract_if(|uid, _| own.contains(uid))
            .map(|(pod_uid, capture)| Event::Captured {
                pod_uid,
                capture: Some(capture),
            })
            .collect()
    }
}

fn going_down() -> Status {
    Status::unavailable("the controller is going down")
}
