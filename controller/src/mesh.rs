//! The owner of the index: everything that happens comes here, one at a time, and what it changes goes out at once.
//!
//! ```text
//!   objects       ─┐
//!   agent reports ─┼─► Command ──► Index (pure) ──Delta──► Pods, Resources (published), Problems
//!   acknowledged  ─┘                                          │
//!        ▲──────── all agents acknowledged, or 5 s ───────────┘ pods that get or lose their tunnel
//! ```

mod captured;

use std::{sync::Arc, time::Duration};

use karst_index::{Delta, Event, Index, IndexConfig, Transition};
use karst_runtime::supervise::spawn_connection;
use tokio::sync::{mpsc, oneshot};

pub use self::captured::CapturedPods;
use crate::{
    pods::Pods,
    problems::Problems,
    serve::{acks::Acks, metrics::ServeMetrics, publish::publications, resources::Resources},
    status::Statuses,
};

/// Commands waiting for the index.
pub const COMMANDS_MAX: usize = 1024;
/// Longest wait for agents to acknowledge that a pod takes HBONE, or no more.
const TRANSITION_PATIENCE: Duration = Duration::from_secs(5);

/// Something for the index's owner to do.
pub enum Command {
    /// Objects have changed.
    Objects(Vec<Event>),
    /// What an agent reports; answered when it is published.
    Report {
        events: Vec<Event>,
        done: oneshot::Sender<()>,
    },
    /// What was waited for is there, or the wait is over.
    Transitions(Vec<Event>),
}

/// Hands reports to the owner. Cheap to clone.
#[derive(Clone)]
pub struct Reporter(pub mpsc::Sender<Command>);

/// The owner has ended: the program is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller is going down")]
pub struct Gone;

impl Reporter {
    /// Returns when the events are applied and their effect is published.
    pub async fn report(&self, events: Vec<Event>) -> Result<(), Gone> {
        let (done, published) = oneshot::channel();
        self.0
            .send(Command::Report { events, done })
            .await
            .map_err(|_closed| Gone)?;
        published.await.map_err(|_dropped| Gone)
    }
}

/// What the owner's work is seen in.
#[derive(Clone)]
pub struct Outputs {
    pub resources: Arc<Resources>,
    pub pods: Arc<Pods>,
    pub acks: Arc<Acks>,
    pub problems: Arc<Problems>,
    pub statuses: Arc<Statuses>,
    pub metrics: ServeMetrics,
}

/// The index and its inputs.
pub struct Mesh {
    index: Index,
    captured: CapturedPods,
    outputs: Outputs,
    commands: mpsc::Sender<Command>,
}

impl Mesh {
    /// `commands`: the way back in, for what must wait.
    pub fn new(
        cfg: IndexConfig,
        captured: CapturedPods,
        outputs: Outputs,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            index: Index::new(cfg),
            captured,
            outputs,
            commands,
        }
    }

    /// The first objects of all kinds, together with what was captured when the last controller ended, as one step, so
    /// that no captured pod is published as plaintext in between.
    pub fn start(&mut self, mut objects: Vec<Event>) {
        objects.extend(self.captured.events());
        self.apply(objects);
    }

    /// Takes commands until there can be no more.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Objects(events) => self.apply(events),
                Command::Report { events, done } => {
                    self.captured.record(&events, &self.index);
                    self.apply(events);
                    // Nobody waits any more: then nobody is to be told.
                    let _ = done.send(());
                }
                Command::Transitions(events) => self.apply(events),
            }
        }
    }

    fn apply(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.outputs.statuses.observe(&events);
        let delta = self.index.handle_all(events);
        if delta.is_empty() {
            let revision = self.outputs.resources.read().revision();
            return self.outputs.statuses.published(&[], revision);
        }
        // Before its node hears of it: what it says afterwards about the old enrolment is worth nothing.
        self.captured.forget_released(&delta.node_workloads);
        self.outputs.pods.apply(&delta.node_workloads);
        let revision = self.outputs.resources.publish(publications(&delta));
        self.outputs.problems.set_conditions(&delta.conditions);
        self.outputs.statuses.published(&delta.conditions, revision);
        log(&delta, revision);
        if !delta.transitions.is_empty() {
            self.await_transitions(delta.transitions, revision);
        }
    }

    /// Ends the steps of pods into and out of the mesh: when peers have acknowledged them, and at last in any case.
    fn await_transitions(&self, begun: Vec<Transition>, revision: u64) {
        let (outputs, commands) = (self.outputs.clone(), self.commands.clone());
        let patience = tokio::time::sleep(TRANSITION_PATIENCE);
        spawn_connection("transition", async move {
            let reached = outputs.acks.reached(revision, TRANSITION_PATIENCE).await;
            if reached {
                let acknowledged = begun.iter().cloned().map(Event::Acknowledged).collect();
                let _ = commands.send(Command::Transitions(acknowledged)).await;
            } else {
                outputs.metrics.withdrawals_timed_out.inc();
                tracing::warn!(
                    pods = ?begun.iter().map(|begun| &begun.pod_uid).collect::<Vec<_>>(),
                    "not every agent acknowledged in time that these pods enter or leave the mesh: going on"
                );
            }
            patience.await;
            let overdue = begun.into_iter().map(Event::Overdue).collect();
            let _ = commands.send(Command::Transitions(overdue)).await;
        });
    }
}

fn log(delta: &Delta, revision: u64) {
    tracing::info!(
        revision,
        workloads = delta.workloads.updated.len(),
        workloads_removed = delta.workloads.removed.len(),
        services = delta.services.updated.len(),
        services_removed = delta.services.removed.len(),
        policies = delta.policies.updated.len(),
        policies_removed = delta.policies.removed.len(),
        node_workloads = delta.node_workloads.len(),
        "published"
    );
}
