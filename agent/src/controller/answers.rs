//! Answers the controller's questions about this node: what runs here, which certificates, which connections.
//!
//! Nothing is sent unasked: somebody who looks costs the node something, nobody costs nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use karst_link::Link;
use karst_proto::reads::{
    LiveConnection, NodeAnswer, NodeCertificate, NodeQuestion, NodeStatus, Subject,
    node_reads_client::NodeReadsClient,
};
use karst_runtime::{build_info::BUILD, supervise::Shutdown};
use karst_telemetry::error_chain::Chain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{capture::CapturedWatch, mesh::Mesh};

/// First and longest pause between streams.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Certificates, and connections, in one answer.
const SHOWN_MAX: usize = 2000;

/// Answers until shutdown, over as many streams as it takes.
pub(crate) async fn run(link: Link, mesh: Arc<Mesh>, captured: CapturedWatch, shutdown: Shutdown) {
    let node = Answers {
        mesh,
        captured,
        started: started_now(),
    };
    let mut pause = BACKOFF.0;
    loop {
        tokio::select! {
            ended = node.stream(&link) => match ended {
                Ok(()) => pause = BACKOFF.0,
                Err(error) => tracing::debug!(error = %Chain(&error), "the stream of questions ended"),
            },
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
            () = shutdown.cancelled() => return,
        }
    }
}

fn started_now() -> Instant {
    Instant::now()
}

struct Answers {
    mesh: Arc<Mesh>,
    captured: CapturedWatch,
    started: Instant,
}

impl Answers {
    async fn stream(&self, link: &Link) -> Result<(), tonic::Status> {
        let (answers, outgoing) = mpsc::channel(1);
        answers
            .try_send(NodeAnswer::default())
            .map_err(|_full| tonic::Status::internal("answer queue"))?;
        let mut client = NodeReadsClient::new(link.channel());
        let mut questions = client
            .answer(link.authorized(ReceiverStream::new(outgoing)))
            .await?
            .into_inner();
        while let Some(question) = questions.message().await? {
            if answers.send(self.answer(&question)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, question: &NodeQuestion) -> NodeAnswer {
        let mut answer = NodeAnswer {
            id: question.id,
            ..NodeAnswer::default()
        };
        match question.subject() {
            Subject::Status => answer.status = Some(self.status()),
            Subject::Connections => {
                let total = self.mesh.live.len();
                answer.connections_total = u64::try_from(total).unwrap_or(u64::MAX);
                answer.connections = self.connections();
            }
        }
        answer
    }

    fn status(&self) -> NodeStatus {
        let captured = self.captured.borrow().as_ref().map_or(0, |pods| pods.len());
        NodeStatus {
            version: BUILD.to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            pods_captured: u64::try_from(captured).unwrap_or(u64::MAX),
            certificates: self.certificates(),
            pods_leaving: u64::try_from(self.mesh.metrics.leaving_pods.get()).unwrap_or(0),
        }
    }

    fn certificates(&self) -> Vec<NodeCertificate> {
        let statuses = self.mesh.identities.statuses();
        let shown = statuses.into_iter().take(SHOWN_MAX);
        shown
            .map(|status| {
                let leaf = status.cert_chain.first();
                let of_leaf = |field: fn(&karst_identity::store::CertificateStatus) -> &String| {
                    leaf.map(field).cloned().unwrap_or_default()
                };
                NodeCertificate {
                    identity: status.identity.clone(),
                    serial_number: of_leaf(|leaf| &leaf.serial_number),
                    valid_from: of_leaf(|leaf| &leaf.valid_from),
                    expires: of_leaf(|leaf| &leaf.expiration_time),
                    last_error: status.last_error.clone().unwrap_or_default(),
                    pods: u64::try_from(status.references).unwrap_or(u64::MAX),
                }
            })
            .collect()
    }

    fn connections(&self) -> Vec<LiveConnection> {
        let shown = self.mesh.live.show(SHOWN_MAX).into_iter();
        shown
            .map(|shown| LiveConnection {
                destination: shown.destination,
                target: shown.target,
                source: shown.source,
                source_identity: shown.source_identity.unwrap_or_default(),
                age_seconds: shown.age_seconds,
                request_bytes: shown.request_bytes,
                response_bytes: shown.response_bytes,
            })
            .collect()
    }
}
