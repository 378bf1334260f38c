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
use karst_index::{Delta, Event, Index, IndexConfig};
use karst_model::name::PodUid;
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
    /// Pods whose peers must acknowledge this revision before they are released.
    withdrawing: Vec<(Vec<PodUid>, Revision)>,
}

impl Controller {
    /// A controller that finds this cluster when it starts.
    pub fn start(cluster: &Cluster) -> Self {
        let state_dir = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(state_dir, cluster)
    }

    /// Ends and starts again: only what is on disk is left.
    pub fn restart(self, cluster: &Cluster) -> Self {
        Self::start_in(self.state_dir, cluster)
    }

    fn start_in(state_dir: TempDir, cluster: &Cluster) -> Self {
        let captured = CapturedPods::load(state_dir.path()).expect("a readable folder");
        let mut events = cluster.events();
        events.extend(captured.events());
        let mut controller = Self {
            index: Index::new(IndexConfig::default()),
            resources: Resources::new(),
            pods: Pods::default(),
            captured,
            state_dir,
            streams: BTreeMap::new(),
            withdrawing: Vec::new(),
        };
        controller.take(events);
        controller
    }

    /// Takes events as the owner of the index does.
    pub fn take(&mut self, events: Vec<Event>) {
        let delta = self.index.handle_all(events);
        self.pods.apply(&delta.node_workloads);
        let revision = self.resources.publish(publications(&delta));
        if !delta.withdrawing.is_empty() {
            self.withdrawing.push((delta.withdrawing, revision));
        }
    }

    /// Everything as the index says it now.
    pub fn snapshot(&self) -> Delta {
        self.index.snapshot()
    }

    /// A node's report, which is always complete here: its pods that are captured, and thereby those that are not.
    pub fn report(&mut self, node: &str, captured: &[PodUid]) {
        let own = self.pods.of_node(node);
        let event = |pod_uid: PodUid| Event::Captured {
            captured: captured.contains(&pod_uid),
            pod_uid,
        };
        let events: Vec<Event> = own.into_iter().map(event).collect();
        self.captured.record(&events);
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

    /// Lets the pods go whose peers have all acknowledged, and names them with the nodes that were asked.
    pub fn finish_withdrawals(&mut self) -> Vec<(PodUid, Vec<&'static str>)> {
        let acked = |(node, session): (&&'static str, &Session)| {
            session.acked_addresses().map(|acked| (*node, acked))
        };
        let asked: Vec<(&'static str, Revision)> = self.streams.iter().filter_map(acked).collect();
        let done = |revision: Revision| asked.iter().all(|(_, acked)| *acked >= revision);
        let (ready, waiting) = std::mem::take(&mut self.withdrawing)
            .into_iter()
            .partition(|(_, revision)| done(*revision));
        self.withdrawing = waiting;
        let ready: Vec<(Vec<PodUid>, Revision)> = ready;
        let pods: Vec<PodUid> = ready.into_iter().flat_map(|(pods, _)| pods).collect();
        if pods.is_empty() {
            return Vec::new();
        }
        let withdrawn = |pod_uid: &PodUid| Event::Withdrawn {
            pod_uid: pod_uid.clone(),
        };
        self.take(pods.iter().map(withdrawn).collect());
        let nodes: Vec<&'static str> = asked.into_iter().map(|(node, _)| node).collect();
        pods.into_iter().map(|pod| (pod, nodes.clone())).collect()
    }
}
