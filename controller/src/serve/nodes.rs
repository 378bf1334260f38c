//! Agents that can be asked: each keeps a stream open here, on which it gets questions and sends answers.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use karst_proto::reads::{NodeAnswer, NodeQuestion, Subject, node_reads_server::NodeReads};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::caller::Gate;

/// Questions that wait for one agent; more are not asked.
const QUESTIONS_MAX: usize = 16;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A question on its way to an agent.
struct Asked {
    subject: Subject,
    answer: oneshot::Sender<NodeAnswer>,
}

/// The connected agents by node.
#[derive(Default)]
pub struct Nodes {
    connected: Mutex<BTreeMap<String, mpsc::Sender<Asked>>>,
}

/// Why an agent's answer is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("the agent is asked too much at once")]
    Busy,
    #[error("the agent's stream ended")]
    Gone,
    #[error("the agent did not answer within {} s", PATIENCE.as_secs())]
    Late,
}

impl Nodes {
    /// Asks every connected agent at the same time.
    pub async fn ask(&self, subject: Subject) -> Vec<(String, Result<NodeAnswer, NoAnswer>)> {
        let nodes = self.lock().clone();
        let answers = nodes.into_iter().map(|(node, questions)| async move {
            let (answer, answered) = oneshot::channel();
            if questions.try_send(Asked { subject, answer }).is_err() {
                return (node, Err(NoAnswer::Busy));
            }
            let answer = match tokio::time::timeout(PATIENCE, answered).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_dropped)) => Err(NoAnswer::Gone),
                Err(_elapsed) => Err(NoAnswer::Late),
            };
            (node, answer)
        });
        join_all(answers).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::Sender<Asked>>> {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's latest stream is the one that is asked.
    fn enter(&self, node: &str) -> mpsc::Receiver<Asked> {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        self.lock().insert(node.to_owned(), questions);
        asked
    }

    /// Leaves, unless a later stream of the same node has taken the place.
    fn leave(&self, node: &str) {
        let mut connected = self.lock();
        if connected.get(node).is_some_and(mpsc::Sender::is_closed) {
            connected.remove(node);
        }
    }
}

/// The service.
pub struct NodeReadService {
    pub gate: Gate,
    pub nodes: Arc<Nodes>,
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl NodeReads for NodeReadService {
    type AnswerStream = Pin<Box<dyn Stream<Item = Result<NodeQuestion, Status>> + Send + 'static>>;

    async fn answer(
        &self,
        request: Request<Streaming<NodeAnswer>>,
    ) -> Result<Response<Self::AnswerStream>, Status> {
        let caller = self.gate.agent(request.metadata()).await?;
        let (tx, rx) = mpsc::channel(1);
        let (nodes, shutdown) = (self.nodes.clone(), self.shutdown.clone());
        let answers = request.into_inner();
        spawn_connection("questions to an agent", async move {
            let asked = nodes.enter(&caller.node);
            // Its end is the agent's to repair: it opens another stream.
            let _ended = shutdown
                .run_until_cancelled(converse(answers, asked, &tx))
                .await;
            nodes.leave(&caller.node);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

async fn converse(
    mut answers: Streaming<NodeAnswer>,
    mut asked: mpsc::Receiver<Asked>,
    questions: &mpsc::Sender<Result<NodeQuestion, Status>>,
) {
    let mut next = 0;
    let mut waiting: HashMap<u64, oneshot::Sender<NodeAnswer>> = HashMap::new();
    loop {
        tokio::select! {
            answer = answers.message() => {
                let Ok(Some(answer)) = answer else { return };
                if let Some(waiter) = waiting.remove(&answer.id) {
                    // Whoever asked has lost patience.
                    let _nobody_waits = waiter.send(answer);
                }
            }
            question = asked.recv(), if waiting.len() < QUESTIONS_MAX => {
                let Some(Asked { subject, answer }) = question else { return };
                waiting.retain(|_id, waiter| !waiter.is_closed());
                next += 1;
                waiting.insert(next, answer);
                let question = NodeQuestion { id: next, subject: subject.into() };
                if questions.send(Ok(question)).await.is_err() {
                    return;
                }
            }
        }
    }
}
