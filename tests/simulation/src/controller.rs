//! The controller without its sockets: index, published resources, one session per stream.

use std::collections::{BTreeMap, BTreeSet};

use karst_controller::{
    mesh::CapturedPods,
    pods::Pods,
    serve::{
        publish::publications,
        resources::{Resources, Revision},
        session::Session,
    },
};
use karst_index::{Delta, Event, Index, IndexConfig, NodeChange};
use karst_model::{enrollment::EnrollMode, name::PodUid};
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
    /// Pods last reported as captured.
    reported: BTreeSet<PodUid>,
    /// Pods whose node was told to capture them at some time.
    enrolled: BTreeSet<PodUid>,
    let_go_unreported: BTreeSet<PodUid>,
}

impl Controller {
    /// A controller that finds this cluster when it starts.
    pub fn start(cluster: &Cluster) -> Self {
        let state_dir = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(state_dir, cluster)
    }

    /// Ends and starts again: only what is on disk is left.
    pub fn restart(self, cluster: &Cluster) -> Self {
        let released = self.index.snapshot().node_workloads.into_iter();
        let released = released.filter_map(|change| match change {
            NodeChange::Updated { workload, .. } if workload.mode == EnrollMode::Off => {
                Some(workload.pod_uid.clone())
            }
            _ => None,
        });
        let released = released.filter(|uid| self.enrolled.contains(uid));
        let mut let_go: BTreeSet<PodUid> = released.collect();
        let_go.extend(self.let_go_unreported);
        let mut next = Self::start_in(self.state_dir, cluster);
        next.let_go_unreported.extend(let_go);
        next.enrolled.extend(self.enrolled);
        next
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
            reported: BTreeSet::new(),
            enrolled: BTreeSet::new(),
            let_go_unreported: BTreeSet::new(),
        };
        controller.take(events);
        controller
    }

    /// Takes events as the owner of the index does.
    pub fn take(&mut self, events: Vec<Event>) {
        let delta = self.index.handle_all(events);
        for change in &delta.node_workloads {
            let NodeChange::Updated { workload, .. } = change else {
                continue;
            };
            let uid = &workload.pod_uid;
            match workload.mode {
                EnrollMode::Ambient => drop(self.enrolled.insert(uid.clone())),
                EnrollMode::Off if self.enrolled.contains(uid) && !self.reported.contains(uid) => {
                    self.let_go_unreported.insert(uid.clone());
                }
                EnrollMode::Off => {}
            }
        }
        self.pods.apply(&delta.node_workloads);
        let revision = self.resources.publish(publications(&delta));
        if !delta.withdrawing.is_empty() {
            self.withdrawing.push((delta.withdrawing, revision));
        }
    }

    /// Pods whose node was told to let them go before it had reported their capture. That report may still be under way
    /// and count for a later enrolment: the one case in which a pod is published for a moment while its node releases
    /// and captures it again. A restart of the controller between the two does the same, since it keeps no memory of
    /// what it has told.
    pub fn let_go_unreported(&self) -> &BTreeSet<PodUid> {
        &self.let_go_unreported
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
        for event in &events {
            if let Event::Captured { pod_uid, captured } = event {
                match captured {
                    true => drop(self.reported.insert(pod_uid.clone())),
                    false => drop(self.reported.remove(pod_uid)),
                }
            }
        }
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
