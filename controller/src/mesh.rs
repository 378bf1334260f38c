//! The owner of the index: everything that happens comes here, one at a time, and what it changes goes out at once.
//!
//! ```text
//!   objects       ─┐
//!   agent reports ─┼─► Command ──► Index (pure) ──Delta──► Pods, Resources (published), Problems
//!   acknowledged  ─┘                                          │
//!        ▲──────── all agents acknowledged, or 5 s ───────────┘ pods that get or lose their tunnel
//! ```

mod captured;
mod records;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use karst_ca::authorize::{Account, MeshTrust, OwnAccounts};
use karst_index::{
    Delta, Event, Index, IndexConfig, KeySource, NodeChange, SecretName, Transition,
};
use karst_runtime::supervise::spawn_connection;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    captured::CapturedPods,
    records::{Published, RecordBook},
};
use crate::{
    deploy::Waypoints,
    pods::Pods,
    problems::Problems,
    serve::{acks::Acks, metrics::ServeMetrics, publish::publications, resources::Resources},
    status::Statuses,
};

/// Commands waiting for the index.
pub const COMMANDS_MAX: usize = 1024;
/// Longest wait for agents to acknowledge that a pod takes HBONE, or no more.
const TRANSITION_PATIENCE: Duration = Duration::from_secs(5);
/// Within which other replicas have published what we have, and their agents have taken it: added to the wait for the
/// acknowledgements of our own agents.
const SPREAD: Duration = Duration::from_secs(1);

/// Something for the index's owner to do.
pub enum Command {
    /// Objects have changed.
    Objects(Vec<Event>),
    /// What a node's agent reports; answered when it is published.
    Report {
        node: Arc<str>,
        events: Vec<Event>,
        done: oneshot::Sender<()>,
    },
    /// Another replica serves this node, and has published these of its pods.
    Elsewhere {
        node: Arc<str>,
        published: Published,
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
    pub async fn report(&self, node: Arc<str>, events: Vec<Event>) -> Result<(), Gone> {
        let (done, published) = oneshot::channel();
        let report = Command::Report { node, events, done };
        self.0.send(report).await.map_err(|_closed| Gone)?;
        published.await.map_err(|_dropped| Gone)
    }
}

/// What the owner's work is seen in.
#[derive(Clone)]
pub struct Outputs {
    pub resources: Arc<Resources>,
    pub pods: Arc<Pods>,
    pub acks: Arc<Acks>,
    /// Service accounts of waypoints.
    pub waypoints: OwnAccounts,
    /// The names of the mesh's trust domain, for whoever gives out identities.
    pub trust: MeshTrust,
    pub problems: Arc<Problems>,
    pub statuses: Arc<Statuses>,
    /// Keys of token issuers that are to be fetched.
    pub key_sources: Arc<watch::Sender<BTreeSet<KeySource>>>,
    /// Secrets that are to be read.
    pub secrets: Arc<watch::Sender<BTreeSet<SecretName>>>,
    /// Gateways that are deployed.
    pub deployments: Arc<Waypoints>,
    pub metrics: ServeMetrics,
}

/// Where it is remembered which pods are reached by HBONE: a restart must not publish them as plaintext.
pub enum Memory {
    /// On this machine's disk.
    Disk(CapturedPods),
    /// Where all replicas see it.
    Shared(Arc<RecordBook>),
}

/// The index and its inputs.
pub struct Mesh {
    index: Index,
    memory: Memory,
    /// Nodes whose agents report to us.
    here: BTreeSet<Arc<str>>,
    /// Nodes that another replica serves, or served last.
    elsewhere: BTreeSet<Arc<str>>,
    outputs: Outputs,
    commands: mpsc::Sender<Command>,
}

impl Mesh {
    /// `commands`: the way back in, for what must wait.
    pub fn new(
        cfg: IndexConfig,
        memory: Memory,
        outputs: Outputs,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            index: Index::new(cfg),
            memory,
            here: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
            outputs,
            commands,
        }
    }

    /// The first objects of all kinds, together with what was captured when the last controller ended, as one step, so
    /// that no captured pod is published as plaintext in between.
    pub fn start(&mut self, mut objects: Vec<Event>) {
        if let Memory::Disk(captured) = &self.memory {
            objects.extend(captured.events());
        }
        self.apply(objects);
    }

    /// Takes commands until there can be no more.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Objects(events) => self.apply(events),
                Command::Report { node, events, done } => {
                    self.report(node, events);
                    // Nobody waits any more: then nobody is to be told.
                    let _ = done.send(());
                }
                Command::Elsewhere { node, published } => self.served_elsewhere(node, published),
                Command::Transitions(events) => self.apply(events),
            }
        }
    }

    fn report(&mut self, node: Arc<str>, mut events: Vec<Event>) {
        match &mut self.memory {
            Memory::Disk(captured) => captured.record(&events, &self.index),
            Memory::Shared(_) if self.here.insert(node.clone()) => {
                self.elsewhere.remove(&node);
                events.insert(0, Event::NodeHere { node: node.clone() });
            }
            Memory::Shared(_) => {}
        }
        self.apply(events);
        self.remember(&node);
    }

    fn served_elsewhere(&mut self, node: Arc<str>, published: Published) {
        if let Memory::Shared(book) = &self.memory {
            book.forget(&node);
        }
        self.here.remove(&node);
        self.elsewhere.insert(node.clone());
        let published = published.into_iter().collect();
        self.apply(vec![Event::NodeElsewhere { node, published }]);
    }

    /// Lets other replicas know how the pods of a node stand, if it is ours.
    fn remember(&self, node: &Arc<str>) {
        if let Memory::Shared(book) = &self.memory
            && self.here.contains(node)
        {
            book.set(node, self.index.published(node));
        }
    }

    fn apply(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut touched = nodes_of(&events, &self.index);
        self.outputs.statuses.observe(&events);
        self.outputs.deployments.observe(&events);
        let delta = self.index.handle_all(events);
        if delta.is_empty() {
            let revision = self.outputs.resources.read().revision();
            return self.outputs.statuses.published(&delta, revision);
        }
        // Before its node hears of it: what it says afterwards about the old enrolment is worth nothing.
        if let Memory::Disk(captured) = &mut self.memory {
            captured.forget_released(&delta.node_workloads);
        }
        touched.extend(delta.node_workloads.iter().map(|change| match change {
            NodeChange::Updated { node, .. } | NodeChange::Removed { node, .. } => node.clone(),
        }));
        self.outputs.pods.apply(&delta.node_workloads);
        admit_waypoints(&self.outputs.waypoints, &delta);
        if let Some(domains) = &delta.trust_domains {
            tracing::info!(own = %domains.own, aliases = ?domains.aliases, "trust domain of the mesh");
            // Before anybody hears of it and asks for such an identity.
            self.outputs.trust.set(domains.clone());
        }
        self.outputs.deployments.said(&delta.gateways);
        if let Some(sources) = &delta.key_sources {
            self.outputs.key_sources.send_replace(sources.clone());
        }
        if let Some(secrets) = &delta.secrets {
            self.outputs.secrets.send_replace(secrets.clone());
        }
        let revision = self.outputs.resources.publish(publications(&delta));
        self.outputs.problems.set_conditions(&delta.conditions);
        self.outputs.statuses.published(&delta, revision);
        log(&delta, revision);
        touched.iter().for_each(|node| self.remember(node));
        if !delta.transitions.is_empty() {
            self.await_transitions(delta.transitions, revision);
        }
    }

    /// Ends the steps of pods into and out of the mesh: when peers have acknowledged them, and at last in any case.
    fn await_transitions(&self, begun: Vec<Transition>, revision: u64) {
        let (outputs, commands) = (self.outputs.clone(), self.commands.clone());
        let spread = match self.elsewhere.is_empty() {
            true => Duration::ZERO,
            false => SPREAD,
        };
        let (patience, spread) = (
            tokio::time::sleep(TRANSITION_PATIENCE),
            tokio::time::sleep(spread),
        );
        spawn_connection("transition", async move {
            let reached = outputs.acks.reached(revision, TRANSITION_PATIENCE).await;
            if reached {
                spread.await;
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

/// A waypoint may have the identity of the service account that is named like its Gateway.
fn admit_waypoints(accounts: &OwnAccounts, delta: &Delta) {
    for (gateway, status) in &delta.gateways {
        let account = Account {
            namespace: gateway.namespace.to_string(),
            service_account: gateway.name.to_string(),
        };
        match status {
            Some(_) => accounts.insert(account),
            None => accounts.remove(&account),
        }
    }
}

/// The nodes of the pods that events are about.
fn nodes_of(events: &[Event], index: &Index) -> BTreeSet<Arc<str>> {
    let pods = events.iter().filter_map(|event| match event {
        Event::Captured { pod_uid, .. } => Some(pod_uid),
        Event::Acknowledged(transition) | Event::Overdue(transition) => Some(&transition.pod_uid),
        _ => None,
    });
    pods.filter_map(|uid| index.node_of(uid))
        .map(Arc::from)
        .collect()
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
