//! The controller without its sockets: index, published resources, one session per stream.

use std::collections::BTreeMap;

use karst_controller::{
    mesh::CapturedPods,
    pods::Pods,
    serve::{
        publish::publications,
        resources::{Resources, Revision},
        session::Session,
    },
};
use karst_index::{Awaited, Delta, Event, Index, IndexConfig, Transition};
use karst_model::{
    enrollment::{Generation, PodCapture},
    name::PodUid,
};
use karst_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    encoded,
};
use prost::Message as _;
use tempfile::TempDir;

use crate::cluster::Cluster;

/// The controller.
pub struct Controller {
    index: Index,
    resources: Resources,
    pods: Pods,
    captured: CapturedPods,
    state_dir: TempDir,
    /// By node; a node without a stream is not connected.
    streams: BTreeMap<&'static str, Session>,
    /// Steps that peers must acknowledge up to a revision.
    transitions: Vec<(Transition, Revision)>,
    /// How many controllers there were before.
    starts: u64,
}

impl Controller {
    /// A controller that finds this cluster when it starts.
    pub fn start(cluster: &Cluster) -> Self {
        let state_dir = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(state_dir, cluster, 0)
    }

    /// Ends and starts again: only what is on disk is left.
    pub fn restart(self, cluster: &Cluster) -> Self {
        Self::start_in(self.state_dir, cluster, self.starts + 1)
    }

    fn start_in(state_dir: TempDir, cluster: &Cluster, starts: u64) -> Self {
        let captured = CapturedPods::load(state_dir.path()).expect("a readable folder");
        let mut events = cluster.events();
        events.extend(captured.events());
        let cfg = IndexConfig {
            // The time, in the product.
            first_generation: Generation(starts << 32),
            ..IndexConfig::default()
        };
        let mut controller = Self {
            index: Index::new(cfg),
            resources: Resources::new(),
            pods: Pods::default(),
            captured,
            state_dir,
            streams: BTreeMap::new(),
            transitions: Vec::new(),
            starts,
        };
        controller.take(events);
        controller
    }

    /// Takes events as the owner of the index does.
    pub fn take(&mut self, events: Vec<Event>) {
        let delta = self.index.handle_all(events);
        self.captured.forget_released(&delta.node_workloads);
        self.pods.apply(&delta.node_workloads);
        let revision = self.resources.publish(publications(&delta));
        let begun = delta.transitions.into_iter();
        self.transitions
            .extend(begun.map(|begun| (begun, revision)));
    }

    /// Everything as the index says it now.
    pub fn snapshot(&self) -> Delta {
        self.index.snapshot()
    }

    /// A node's report, which is always complete here: its pods that are captured, and thereby those that are not.
    pub fn report(&mut self, node: &str, captured: &BTreeMap<PodUid, PodCapture>) {
        let own = self.pods.of_node(node);
        let event = |pod_uid: PodUid| Event::Captured {
            capture: captured.get(&pod_uid).copied(),
            pod_uid,
        };
        let events: Vec<Event> = own.into_iter().map(event).collect();
        self.captured.record(&events, &self.index);
        self.take(events);
    }

    pub fn connect(&mut self, node: &'static str) {
        self.streams.insert(node, Session::new(node.into()));
    }

    pub fn disconnect(&mut self, node: &str) {
        self.streams.remove(node);
    }

    pub fn is_connected(&self, node: &str) -> bool {
        self.streams.contains_key(node)
    }

    pub fn request(&mut self, node: &str, request: DeltaDiscoveryRequest) {
        if let Some(session) = self.streams.get_mut(node) {
            session
                .handle(request)
                .expect("an agent asks for no names on demand");
        }
    }

    /// The next response for a node, over the wire's own bytes.
    pub fn response(&mut self, node: &str) -> Option<DeltaDiscoveryResponse> {
        let session = self.streams.get_mut(node)?;
        let response: encoded::DeltaDiscoveryResponse = session
            .next_response(&self.resources.read())
            .expect("far fewer removals than are remembered")?;
        let bytes = response.encode_to_vec();
        Some(DeltaDiscoveryResponse::decode(&*bytes).expect("what was just encoded"))
    }

    /// Goes on with the steps that all peers have acknowledged, and names them with the nodes that were asked.
    pub fn finish_transitions(&mut self) -> Vec<(Transition, Vec<&'static str>)> {
        let acked = |(node, session): (&&'static str, &Session)| {
            session.acked_addresses().map(|acked| (*node, acked))
        };
        let asked: Vec<(&'static str, Revision)> = self.streams.iter().filter_map(acked).collect();
        let awaits_peers = |begun: &Transition| begun.awaited != Awaited::Opening;
        let done = |(begun, revision): &mut (Transition, Revision)| {
            awaits_peers(begun) && asked.iter().all(|(_, acked)| acked >= revision)
        };
        let ready: Vec<Transition> = self
            .transitions
            .extract_if(.., done)
            .map(|(begun, _)| begun)
            .collect();
        if ready.is_empty() {
            return Vec::new();
        }
        self.take(ready.iter().cloned().map(Event::Acknowledged).collect());
        let nodes: Vec<&'static str> = asked.into_iter().map(|(node, _)| node).collect();
        let named = |begun: Transition| (begun, nodes.clone());
        ready.into_iter().map(named).collect()
    }

    /// Waits no longer for the step that began first; names its pod.
    pub fn give_up_waiting(&mut self) -> Option<PodUid> {
        if self.transitions.is_empty() {
            return None;
        }
        let (begun, _) = self.transitions.remove(0);
        let pod = begun.pod_uid.clone();
        self.take(vec![Event::Overdue(begun)]);
        Some(pod)
    }
}
