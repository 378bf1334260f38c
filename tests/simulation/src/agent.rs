//! An agent without its kernel: what it knows of the mesh, which of its pods it captures, what it reports.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use karst_discovery::{Kind, State, session::Session};
use karst_model::{
    enrollment::{EnrollMode, Plaintext, PodCapture},
    name::PodUid,
};
use karst_proto::{
    core, dialect,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// The agent of one node.
pub struct Agent {
    pub node: &'static str,
    pub state: State,
    session: Session,
    /// Pods that the kernel captures; survives the agent. All of them ran before.
    pub captured: BTreeMap<PodUid, PodCapture>,
    /// What the running report stream has said last; `None` when it has said nothing.
    reported: Option<BTreeMap<PodUid, PodCapture>>,
    /// On the wire, oldest first.
    pub requests: VecDeque<DeltaDiscoveryRequest>,
    pub responses: VecDeque<DeltaDiscoveryResponse>,
    pub reports: VecDeque<BTreeMap<PodUid, PodCapture>>,
}

impl Agent {
    pub fn new(node: &'static str) -> Self {
        Self {
            node,
            state: State::new(),
            session: session(),
            captured: BTreeMap::new(),
            reported: None,
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// A new discovery stream begins; what was under way on the last one is lost.
    pub fn connect(&mut self) {
        self.disconnect();
        self.requests.extend(self.session.start());
    }

    pub fn disconnect(&mut self) {
        self.requests.clear();
        self.responses.clear();
    }

    /// A new report stream will begin; what was under way on the last one is lost.
    pub fn break_reports(&mut self) {
        self.reports.clear();
        self.reported = None;
    }

    /// Starts again with what it finds on disk (names, no versions) and in the kernel (captured pods). Returns the pods
    /// whose plain connections it lets policy decide from now on, since it cannot know for how long they passed.
    pub fn restart(&mut self) -> Vec<PodUid> {
        self.disconnect();
        self.break_reports();
        self.session = session();
        let workloads = self.state.workloads();
        let services = self.state.services();
        let addresses = workloads
            .iter()
            .map(|w| w.uid.0.clone())
            .chain(services.iter().map(|s| Arc::from(s.key.to_string())));
        self.session.hold(Kind::Address, addresses);
        let policies = self.state.policies();
        let policies = policies.iter().map(|p| Arc::from(p.key.to_string()));
        self.session.hold(Kind::Authorization, policies);
        let pods = self.state.node_workloads();
        self.session
            .hold(Kind::NodeWorkload, pods.iter().map(|p| p.pod_uid.0.clone()));
        let mut closed = Vec::new();
        for (uid, capture) in &mut self.captured {
            if std::mem::take(&mut capture.plaintext_open) {
                closed.push(uid.clone());
            }
        }
        closed
    }

    /// Takes a response and answers it.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) {
        let handled = self.session.handle(response);
        self.state.apply(handled.updates);
        self.requests.push_back(handled.reply);
    }

    /// Captures and releases what it should.
    pub fn reconcile(&mut self) {
        let mut captured = BTreeMap::new();
        for pod in self.state.node_workloads() {
            if pod.mode == EnrollMode::Ambient {
                let before = self.captured.get(&pod.pod_uid);
                let plaintext_open = match pod.plaintext {
                    Plaintext::Enforced => false,
                    Plaintext::Entering => before.is_none_or(|before| before.plaintext_open),
                    Plaintext::Leaving => true,
                };
                let capture = PodCapture {
                    generation: pod.generation,
                    plaintext_open,
                };
                captured.insert(pod.pod_uid.clone(), capture);
            }
        }
        self.captured = captured;
    }

    /// Reports what it captures, if it has not done so.
    pub fn report(&mut self) {
        if self.reported.as_ref() != Some(&self.captured) {
            self.reported = Some(self.captured.clone());
            self.reports.push_back(self.captured.clone());
        }
    }
}

fn session() -> Session {
    let node = core::Node {
        user_agent_name: dialect::USER_AGENT.to_owned(),
        ..core::Node::default()
    };
    Session::new(node, &Kind::ALL)
}
