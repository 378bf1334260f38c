//! One run: a seed, a few hundred steps with faults, then quiet, and the comparison.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karst_discovery::State;
use karst_index::Awaited;
use karst_model::{
    enrollment::{Generation, NodeWorkload},
    name::PodUid,
    policy::Authorization,
    service::Service,
    workload::Workload,
};
use karst_proto::discovery::{DeltaDiscoveryResponse, Resource};
use prost_types::Any;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    agent::Agent,
    check,
    cluster::{Cluster, NODES},
    controller::Controller,
};

/// Steps with faults.
const STEPS: u32 = 400;
/// Rounds after which a mesh without faults has come to rest.
const ROUNDS_MAX: u32 = 200;

/// What may happen to messages. Streams end and programs restart in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// In order, whole: what HTTP/2 and a sound controller give.
    Orderly,
    /// Responses come twice, change places with one of another type, carry garbage and unknown names.
    Hostile,
}

/// The world of one seed.
pub struct Run {
    rng: StdRng,
    wire: Wire,
    cluster: Cluster,
    controller: Controller,
    agents: Vec<Agent>,
    /// Agents that had no stream when this pod was let go.
    unaware_of_release: BTreeMap<PodUid, BTreeSet<&'static str>>,
    /// Agents that had no stream when this pod had entered, or were not waited for, until it is let go.
    unaware_of_entry: BTreeMap<PodUid, BTreeSet<&'static str>>,
}

/// What an agent knows, in an order that can be compared.
type Known = (
    Vec<Arc<Workload>>,
    Vec<Arc<Service>>,
    Vec<Arc<Authorization>>,
    Vec<NodeWorkload>,
);

/// Runs a seed; panics where a rule does not hold.
pub fn run(seed: u64) {
    let mut run = Run::new(seed);
    for _ in 0..STEPS {
        run.step();
        run.check();
    }
    run.come_to_rest();
    run.compare();
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cluster = Cluster::new();
        for _ in 0..rng.random_range(0..20) {
            cluster.edit(&mut rng);
        }
        let wire = match rng.random_bool(0.5) {
            true => Wire::Orderly,
            false => Wire::Hostile,
        };
        let controller = Controller::start(&cluster);
        Self {
            rng,
            wire,
            cluster,
            controller,
            agents: NODES.iter().map(|node| Agent::new(node)).collect(),
            unaware_of_release: BTreeMap::new(),
            unaware_of_entry: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        let agent = self.rng.random_range(0..self.agents.len());
        match self.rng.random_range(0..100) {
            0..10 => {
                let event = self.cluster.edit(&mut self.rng);
                self.controller.take(vec![event]);
            }
            10 => self.restart_controller(),
            11 => {
                self.disconnect(agent);
                for pod in self.agents[agent].restart() {
                    self.unaware_of_entry.insert(pod, NODES.into());
                }
            }
            12..14 => self.disconnect(agent),
            14 => self.agents[agent].break_reports(),
            15..20 => self.connect(agent),
            20..45 => self.deliver_request(agent),
            45..75 => {
                self.deliver_response(agent);
                self.check_policies(agent);
            }
            75..83 => self.agents[agent].reconcile(),
            83..88 => self.agents[agent].report(),
            88..94 => self.deliver_report(agent),
            94..99 => self.finish_transitions(),
            _ => self.give_up_waiting(),
        }
    }

    /// What an agent allows changes only with what it is told.
    fn check_policies(&self, agent: usize) {
        let state = &self.agents[agent].state;
        check::fails_closed(state);
        if self.wire == Wire::Orderly {
            check::names_no_missing_policy(state);
            check::refuses_what_is_always_refused(state);
        }
    }

    fn check(&mut self) {
        let unaware = |of: &BTreeMap<PodUid, BTreeSet<&'static str>>, pod: &PodUid, node: &str| {
            of.get(pod).is_some_and(|nodes| nodes.contains(node))
        };
        check::tunnels_find_a_captured_pod(&self.cluster, &self.agents, |pod, node| {
            unaware(&self.unaware_of_release, pod, node)
        });
        if self.wire == Wire::Orderly {
            check::plain_connections_find_an_open_pod(&self.cluster, &self.agents, |pod, node| {
                unaware(&self.unaware_of_entry, pod, node)
            });
        }
        let agents = &self.agents;
        self.unaware_of_entry
            .retain(|pod, _| agents.iter().any(|agent| agent.captured.contains_key(pod)));
    }

    fn restart_controller(&mut self) {
        let fresh = Controller::start(&Cluster::default());
        let old = std::mem::replace(&mut self.controller, fresh);
        self.controller = old.restart(&self.cluster);
        for agent in &mut self.agents {
            agent.disconnect();
            agent.break_reports();
        }
    }

    fn disconnect(&mut self, agent: usize) {
        self.agents[agent].disconnect();
        self.controller.disconnect(self.agents[agent].node);
    }

    /// Opens a stream where there is none.
    fn connect(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        if !self.controller.is_connected(agent.node) {
            self.controller.connect(agent.node);
            agent.connect();
        }
    }

    fn deliver_request(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        if let Some(request) = agent.requests.pop_front() {
            self.controller.request(agent.node, request);
        }
    }

    /// The server says what it can, and the agent takes the oldest message of that, or what faults made of it.
    fn deliver_response(&mut self, agent: usize) {
        self.serve(agent);
        if self.wire == Wire::Hostile {
            self.disturb(agent);
        }
        if let Some(response) = self.agents[agent].responses.pop_front() {
            self.agents[agent].take(response);
        }
    }

    fn serve(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        while let Some(response) = self.controller.response(agent.node) {
            agent.responses.push_back(response);
        }
    }

    fn disturb(&mut self, agent: usize) {
        let waiting = &mut self.agents[agent].responses;
        match self.rng.random_range(0..20) {
            0 => {
                if let Some(first) = waiting.front().cloned() {
                    waiting.push_front(first);
                }
            }
            1 if waiting.len() > 1 && waiting[0].type_url != waiting[1].type_url => {
                waiting.swap(0, 1);
            }
            2..4 => {
                if let Some(first) = waiting.front_mut() {
                    spoil(first, &mut self.rng);
                }
            }
            4 => waiting.push_front(DeltaDiscoveryResponse {
                type_url: "type.googleapis.com/nobody.asked".into(),
                ..DeltaDiscoveryResponse::default()
            }),
            5 => {
                if let Some(first) = waiting.front_mut() {
                    first.removed_resources.push("nobody/knows.this".into());
                }
            }
            _ => {}
        }
    }

    fn deliver_report(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        if let Some(captured) = agent.reports.pop_front() {
            self.controller.report(agent.node, &captured);
        }
    }

    fn finish_transitions(&mut self) {
        for (begun, asked) in self.controller.finish_transitions() {
            let unasked = NODES.into_iter().filter(|node| !asked.contains(node));
            let unaware = match begun.awaited {
                Awaited::Withdrawing => &mut self.unaware_of_release,
                Awaited::Entering | Awaited::Opening => &mut self.unaware_of_entry,
            };
            unaware.insert(begun.pod_uid, unasked.collect());
        }
    }

    fn give_up_waiting(&mut self) {
        if let Some(pod) = self.controller.give_up_waiting() {
            self.unaware_of_release.insert(pod.clone(), NODES.into());
            self.unaware_of_entry.insert(pod, NODES.into());
        }
    }

    /// No more edits and faults; every stream is opened anew, since what was spoiled is sent again only then.
    fn come_to_rest(&mut self) {
        self.wire = Wire::Orderly;
        for agent in 0..self.agents.len() {
            self.disconnect(agent);
            self.connect(agent);
        }
        for _ in 0..ROUNDS_MAX {
            let mut moved = !self.controller.finish_transitions().is_empty();
            for agent in 0..self.agents.len() {
                self.serve(agent);
                let agent = &mut self.agents[agent];
                agent.reconcile();
                agent.report();
                moved |= !(agent.requests.is_empty()
                    && agent.responses.is_empty()
                    && agent.reports.is_empty());
                while let Some(response) = agent.responses.pop_front() {
                    agent.take(response);
                }
                while let Some(request) = agent.requests.pop_front() {
                    self.controller.request(agent.node, request);
                }
                while let Some(captured) = agent.reports.pop_front() {
                    self.controller.report(agent.node, &captured);
                }
            }
            if !moved {
                return;
            }
        }
        panic!("without faults the mesh does not come to rest in {ROUNDS_MAX} rounds");
    }

    /// Everybody knows what they would know had there been no faults.
    fn compare(&self) {
        let mut calm = Self {
            rng: StdRng::seed_from_u64(0),
            wire: Wire::Orderly,
            cluster: Cluster::default(),
            controller: Controller::start(&self.cluster),
            agents: NODES.iter().map(|node| Agent::new(node)).collect(),
            unaware_of_release: BTreeMap::new(),
            unaware_of_entry: BTreeMap::new(),
        };
        calm.come_to_rest();
        for (agent, expected) in self.agents.iter().zip(&calm.agents) {
            let (found, expected) = (known(&agent.state), known(&expected.state));
            assert_eq!(found.0, expected.0, "workloads at {}", agent.node);
            assert_eq!(found.1, expected.1, "services at {}", agent.node);
            assert_eq!(found.2, expected.2, "policies at {}", agent.node);
            assert_eq!(found.3, expected.3, "own pods at {}", agent.node);
            let published = self.controller.snapshot();
            assert_eq!(found.0.len(), published.workloads.updated.len());
            assert_eq!(found.1.len(), published.services.updated.len());
            assert_eq!(found.2.len(), published.policies.updated.len());
        }
    }
}

fn known(state: &State) -> Known {
    let mut all: Known = (
        state.workloads(),
        state.services(),
        state.policies(),
        state
            .node_workloads()
            .iter()
            .map(without_generation)
            .collect(),
    );
    all.0.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.1.sort_by(|a, b| a.key.cmp(&b.key));
    all.2.sort_by(|a, b| a.key.cmp(&b.key));
    all.3.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
    all
}

/// Generations tell what happened before, which differs.
fn without_generation(pod: &Arc<NodeWorkload>) -> NodeWorkload {
    NodeWorkload {
        generation: Generation::default(),
        ..(**pod).clone()
    }
}

/// One resource becomes something that it is not.
fn spoil(response: &mut DeltaDiscoveryResponse, rng: &mut StdRng) {
    if response.resources.is_empty() {
        return;
    }
    let at = rng.random_range(0..response.resources.len());
    let resource: &mut Resource = &mut response.resources[at];
    match rng.random_range(0..4) {
        0 => resource.resource = None,
        1 => resource.name.push('x'),
        2 => {
            resource.resource = Some(Any {
                type_url: "type.googleapis.com/else".into(),
                value: Vec::new(),
            });
        }
        _ => {
            if let Some(content) = &mut resource.resource {
                content.value = vec![0xff; 9];
            }
        }
    }
}
