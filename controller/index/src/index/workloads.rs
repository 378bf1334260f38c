//! What pods, endpoints and entries become: the workloads that others are told of, and what a pod's own node is told.

use std::{collections::BTreeMap, sync::Arc};

use karst_k8s_api::{istio::peer_authentication::Mode, labels};
use karst_model::{
    enrollment::NodeWorkload,
    name::{PolicyKey, ServiceKey, WorkloadUid},
    service::PortMap,
    workload::Workload,
};

use super::{Index, flush::is_in_mesh};
use crate::{
    capture::{Capture, Standing},
    conditions::{Condition, ConditionType},
    delta::NodeChange,
    facts::{EntryFacts, Name, pod::PodFacts, service::ServiceFacts},
    peer_authentication,
    selector::{Labels, matches},
    service_entries, services,
    workloads::{self, BareEndpoint, Surroundings},
};

/// What comes of a pod.
pub(super) struct Compiled {
    pub(super) workload: Option<Workload>,
    pub(super) row: Option<(Arc<str>, NodeWorkload)>,
    /// What of its wishes does not hold.
    pub(super) complaint: Option<Condition>,
}

impl Index {
    /// What a pod is to others and to its node, as it stands.
    pub(super) fn compile_pod(&self, name: &Name, pod: &PodFacts, standing: &Standing) -> Compiled {
        let services = self.services_of_pod(name, pod);
        let mut policies = self.policies_of_pod(name, pod);
        let behind = self.behind(name, pod, &services, &policies);
        policies.extend(behind.policies);
        policies.sort();
        let around = Surroundings {
            services,
            policies,
            waypoint: behind.waypoint,
            sealed: behind.sealed,
            application_tunnel: self.application_tunnel(name, pod),
            locality: self.nodes.get(&pod.node).cloned().unwrap_or_default(),
            network: self.network.clone(),
            hbone: standing.hbone,
        };
        let row = workloads::for_node(
            &self.config,
            name,
            pod,
            standing,
            self.mesh_config().registry_only,
        );
        let mut workload = workloads::of_pod(&self.config, name, pod, around);
        if let Some(workload) = &mut workload {
            workload.labels = self.traffic.label_keys.pick(&pod.labels, workload);
        }
        Compiled {
            workload,
            row: row.map(|workload| (pod.node.clone(), workload)),
            complaint: behind.condition,
        }
    }

    /// Whether a pod should be in the mesh, which may be about to be taken away.
    pub(super) fn is_enrolled(&self, name: &Name, pod: &PodFacts) -> bool {
        let of_namespace = self
            .space(&name.namespace)
            .and_then(|space| space.labels.as_ref());
        !self.releases_all && workloads::is_enrolled(&self.config, name, pod, of_namespace)
    }

    /// What the namespace of the installation is told while it lets every pod go.
    pub(super) fn release_condition(&self, namespace: &Arc<str>) -> Option<Condition> {
        let told = self.releases_all && *namespace == self.config.install_namespace;
        told.then(|| {
            let message = format!(
                "label {}={} takes every pod of the cluster out of the mesh, as an uninstallation does; without the label they come back",
                labels::RELEASE,
                labels::RELEASE_ALL
            );
            Condition::no(ConditionType::Accepted, "EveryPodReleased", message)
        })
    }

    /// A pod as it was flushed last.
    fn compile_again(&self, name: &Name, pod: &PodFacts) -> Compiled {
        let standing = match self.elsewhere.get(&pod.node) {
            Some(published) => {
                let published = published.get(&pod.uid).copied();
                Capture::followed(self.is_enrolled(name, pod), published)
            }
            None => self.capture.now(&pod.uid),
        };
        self.compile_pod(name, pod, &standing)
    }

    /// Every workload that holds now. They are compiled again, as only their digests are kept.
    pub(super) fn all_workloads(&self) -> Vec<(WorkloadUid, Arc<Workload>)> {
        let pods = self.pods.iter();
        let pods = pods.filter_map(|(name, pod)| self.compile_again(name, pod).workload);
        let bare = self
            .slices
            .keys()
            .flat_map(|name| self.bare_endpoints(name));
        let of_entries = self
            .entries
            .iter()
            .flat_map(|(name, facts)| self.workloads_of_entry(name, facts));
        let all = pods
            .chain(bare)
            .chain(of_entries)
            .chain(self.all_machines());
        all.map(|workload| (workload.uid.clone(), Arc::new(workload)))
            .filter(|(uid, _)| self.out.workloads.contains(uid))
            .collect()
    }

    /// What every node is told now.
    pub(super) fn all_node_rows(&self) -> Vec<NodeChange> {
        let rows = self.pods.iter();
        let rows = rows.filter_map(|(name, pod)| self.compile_again(name, pod).row);
        rows.map(|(node, workload)| NodeChange::Updated {
            node,
            workload: Arc::new(workload),
        })
        .collect()
    }

    fn workloads_of_entry(&self, name: &Name, facts: &EntryFacts) -> Vec<Workload> {
        let keys = self.keys_of_entry(name, facts);
        self.entry_workloads(name, facts, &keys)
    }

    fn services_of_pod(&self, name: &Name, pod: &PodFacts) -> BTreeMap<ServiceKey, PortMap> {
        let mut services: BTreeMap<ServiceKey, PortMap> = BTreeMap::new();
        if let Some(space) = self.space(&name.namespace) {
            for service in space.services.candidates(&pod.labels) {
                let service = Name::new(&name.namespace, service);
                let Some(facts) = self
                    .services
                    .get(&service)
                    .filter(|facts| is_in_mesh(facts))
                else {
                    continue;
                };
                if matches(&facts.selector, &pod.labels) {
                    services.insert(
                        self.service_key(&service),
                        services::ports_at_pod(facts, pod),
                    );
                }
            }
            for entry in space.entries.candidates(&pod.labels) {
                let entry = Name::new(&name.namespace, entry);
                let Some(facts) = self.entries.get(&entry) else {
                    continue;
                };
                if facts
                    .selector()
                    .is_some_and(|selector| matches(selector, &pod.labels))
                {
                    let ports = service_entries::ports_at_pod(facts, pod);
                    services.extend(
                        self.keys_of_entry(&entry, facts)
                            .into_iter()
                            .map(|key| (key, ports.clone())),
                    );
                }
            }
        }
        for slice in self.slices_by_pod.get(name).into_iter().flatten() {
            let slice = Name::new(&name.namespace, slice);
            let Some(facts) = self.slices.get(&slice) else {
                continue;
            };
            let service = Name::new(&slice.namespace, &facts.service);
            // Where there is a selector it decides: a slice may lag behind the labels.
            let without_selector =
                |service: &&ServiceFacts| is_in_mesh(service) && service.selector.is_empty();
            if let Some(selected) = self.services.get(&service).filter(without_selector) {
                let ports = services::ports_at_slice(selected, &facts.ports);
                services
                    .entry(self.service_key(&service))
                    .or_default()
                    .extend(ports);
            }
        }
        services
    }

    /// Keys of the selector policies that pick a pod, in order.
    fn policies_of_pod(&self, name: &Name, pod: &PodFacts) -> Vec<PolicyKey> {
        let mut keys = Vec::new();
        for namespace in self.policy_namespaces(&name.namespace) {
            let Some(space) = self.space(namespace) else {
                continue;
            };
            for policy in space.policies.candidates(&pod.labels) {
                let facts = self.policies.get(&Name::new(namespace, policy));
                if facts.is_some_and(|facts| matches(&facts.selector, &pod.labels)) {
                    keys.push(PolicyKey {
                        namespace: namespace.clone(),
                        name: policy.clone(),
                    });
                }
            }
        }
        keys.extend(self.strictness_of_pod(name, pod));
        keys.sort();
        keys
    }

    /// The policy that PeerAuthentication puts on a pod: that of the oldest one that picks it, else of its namespace.
    fn strictness_of_pod(&self, name: &Name, pod: &PodFacts) -> Option<PolicyKey> {
        let peers = self.space(&name.namespace).map(|space| &space.peers);
        let candidates = peers
            .into_iter()
            .flat_map(|peers| peers.candidates(&pod.labels));
        let candidates = candidates.map(|peer| Name::new(&name.namespace, peer));
        let picking = candidates.filter_map(|peer| {
            self.peers
                .get(&peer)
                .map(|facts| (facts.created, peer, facts))
        });
        let picking = picking.filter(|(_, _, facts)| matches(&facts.selector, &pod.labels));
        let oldest = picking.min_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mode = match oldest {
            Some((_, peer, facts)) => {
                let base = self.base_mode(&peer, facts.mode);
                if facts.convert(&peer, base).is_some() {
                    return Some(peer_authentication::converted_key(&peer));
                }
                base
            }
            None => self.default_mode(&name.namespace),
        };
        (mode == Mode::Strict)
            .then(|| peer_authentication::static_strict_key(&self.config.root_namespace))
    }

    /// Workloads of a slice's endpoints that are no pods.
    pub(super) fn bare_endpoints(&self, name: &Name) -> Vec<Workload> {
        let Some(slice) = self.slices.get(name) else {
            return Vec::new();
        };
        let service_name = Name::new(&name.namespace, &slice.service);
        let Some(service) = self
            .services
            .get(&service_name)
            .filter(|facts| is_in_mesh(facts))
        else {
            return Vec::new();
        };
        let ports = services::ports_at_slice(service, &slice.ports);
        let mut workloads: Vec<Workload> = Vec::new();
        for endpoint in slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.pod.is_none())
        {
            for ip in endpoint.addresses.iter().copied() {
                let service = (self.service_key(&service_name), ports.clone());
                let locality = self.nodes.get(&endpoint.node);
                let bare = BareEndpoint {
                    slice: name,
                    endpoint,
                    ip,
                    locality,
                    network: &self.network,
                    service,
                };
                let mut workload = workloads::of_endpoint(&self.config, bare);
                let told = &self.traffic.label_keys;
                workload.labels = told.pick(&Labels::new(), &workload);
                if workloads.iter().all(|other| other.uid != workload.uid) {
                    workloads.push(workload);
                }
            }
        }
        workloads
    }

    pub(super) fn entry_workloads(
        &self,
        name: &Name,
        facts: &EntryFacts,
        keys: &[ServiceKey],
    ) -> Vec<Workload> {
        let told = &self.traffic.label_keys;
        service_entries::workloads(&self.config, name, facts, (keys, told), &self.network)
    }
}
