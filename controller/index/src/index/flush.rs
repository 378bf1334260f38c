//! What is marked is compiled again, and what differs from the last output becomes the delta.

use std::{mem, net::IpAddr, sync::Arc};

use karst_k8s_api::{Kind, ObjectKey, istio::peer_authentication::Mode};
use karst_model::{
    enrollment::NodeWorkload,
    name::{PolicyKey, ServiceKey},
    service::{Service, Visibility},
    workload::Workload,
};

use super::{Claim, Index, NodeRow, apply, key, workloads::Compiled};
use crate::{
    conditions::{Condition, ConditionType, ObjectConditions},
    delta::{Delta, EntryAddresses, NodeChange},
    facts::{EntryFacts, Name, service::ServiceFacts},
    peer_authentication, seals, service_entries, services, workloads,
};

impl Index {
    /// Compiles everything that is marked.
    pub(super) fn flush(&mut self) -> Delta {
        let dirty = mem::take(&mut self.dirty);
        let mut delta = Delta::default();
        self.flush_trust(dirty.trust, &mut delta);
        dirty
            .namespaces
            .iter()
            .for_each(|name| self.flush_namespace(name, &mut delta));
        dirty
            .policies
            .iter()
            .for_each(|name| self.flush_policy(name, &mut delta));
        if !dirty.peers.is_empty() {
            self.flush_static_strict(&mut delta);
            dirty
                .peers
                .iter()
                .for_each(|name| self.flush_peer(name, &mut delta));
        }
        let mut hosts = dirty.hosts;
        hosts.extend(
            dirty
                .services
                .iter()
                .map(|name| services::hostname(&self.config, name)),
        );
        for name in dirty.entries.iter() {
            hosts.extend(
                self.entries
                    .get(name)
                    .map(apply::hosts_of)
                    .into_iter()
                    .flatten(),
            );
        }
        dirty
            .services
            .iter()
            .for_each(|name| self.flush_service(name, &mut delta));
        hosts
            .iter()
            .for_each(|host| self.flush_host(host, &mut delta));
        dirty
            .gateways
            .iter()
            .for_each(|name| self.flush_gateway(name, &mut delta));
        dirty
            .seals
            .iter()
            .for_each(|seal| self.flush_seal(seal, &mut delta));
        self.flush_governing(
            &dirty.policies,
            &[&dirty.services, &dirty.entries],
            &dirty.gateways,
            &mut delta,
        );
        let shared = self.flush_routes(
            dirty.routes,
            &[&dirty.services, &dirty.entries, &dirty.gateways],
            &mut delta,
        );
        self.flush_virtuals(dirty.virtuals, &hosts, shared, &mut delta);
        self.flush_authentications(
            dirty.authentications,
            &[&dirty.services, &dirty.entries],
            &dirty.gateways,
            &mut delta,
        );
        self.flush_limits(
            dirty.limits,
            &[&dirty.services, &dirty.entries, &dirty.gateways],
            &mut delta,
        );
        if !dirty.backing.is_empty() {
            self.collectors_changed();
        }
        self.flush_backing(
            dirty.backing,
            &[&dirty.services, &dirty.entries, &dirty.gateways],
            &mut delta,
        );
        self.flush_recording(
            &[&dirty.services, &dirty.entries, &dirty.gateways],
            &mut delta,
        );
        let mut traffic = dirty.traffic;
        traffic.extend(delta.services.removed.iter().cloned());
        for host in &hosts {
            traffic.extend(
                self.out
                    .services_of
                    .get(host)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
        self.follow_backends(&delta, &mut traffic);
        self.flush_traffic(traffic, dirty.rules, &mut delta);
        dirty
            .slices
            .iter()
            .for_each(|name| self.flush_slice(name, &mut delta));
        dirty
            .entries
            .iter()
            .for_each(|name| self.flush_entry(name, &mut delta));
        dirty
            .machines
            .iter()
            .for_each(|name| self.flush_machine(name, &mut delta));
        dirty
            .pods
            .iter()
            .for_each(|name| self.flush_pod(name, &mut delta));
        for pod_uid in self.capture.unblocked() {
            if let Some(name) = self.pods_by_uid.get(&pod_uid).cloned() {
                self.flush_pod(&name, &mut delta);
            }
        }
        delta
    }

    fn flush_namespace(&mut self, name: &Arc<str>, delta: &mut Delta) {
        let object = ObjectKey::new(Kind::Namespace, "", name);
        let of_waypoint = self.namespace_condition(name);
        let of_release = self.release_condition(name);
        let conditions = of_waypoint.into_iter().chain(of_release).collect();
        self.set_conditions(object, conditions, delta);
    }

    fn flush_policy(&mut self, name: &Name, delta: &mut Delta) {
        let facts = self.policies.get(name);
        let authorization = facts.and_then(|facts| facts.authorization.clone());
        let authorization = authorization.map(|policy| self.by_every_name(policy));
        let has_targets = facts.is_some_and(|facts| facts.request.is_some());
        let conditions = facts
            .map(|facts| facts.conditions.clone())
            .unwrap_or_default();
        if seals::is_reserved(&name.name) {
            return self.set_conditions(key(Kind::AuthorizationPolicy, name), conditions, delta);
        }
        let policy_key = PolicyKey {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        };
        self.out
            .policies
            .set(policy_key, authorization, &mut delta.policies);
        // Of a policy with targets, those are said with its targets.
        if has_targets {
            return;
        }
        self.set_conditions(key(Kind::AuthorizationPolicy, name), conditions, delta);
    }

    /// The static policy is there as soon as any PeerAuthentication is.
    fn flush_static_strict(&mut self, delta: &mut Delta) {
        let root = &self.config.root_namespace;
        let policy = (!self.peers.is_empty()).then(|| peer_authentication::static_strict(root));
        self.out.policies.set(
            peer_authentication::static_strict_key(root),
            policy,
            &mut delta.policies,
        );
    }

    fn flush_peer(&mut self, name: &Name, delta: &mut Delta) {
        let in_root = name.namespace == self.config.root_namespace;
        let facts = self.peers.get(name);
        let converts = facts.filter(|facts| !in_root && !facts.selector.is_empty());
        let policy =
            converts.and_then(|facts| facts.convert(name, self.base_mode(name, facts.mode)));
        let chosen = self.peer_defaults.chosen(&name.namespace);
        let conditions =
            facts.map(|facts| peer_authentication::conditions(facts, name, in_root, chosen));
        let conditions = conditions.unwrap_or_default();
        self.out.policies.set(
            peer_authentication::converted_key(name),
            policy,
            &mut delta.policies,
        );
        self.set_conditions(key(Kind::PeerAuthentication, name), conditions, delta);
    }

    pub(super) fn base_mode(&self, name: &Name, own: Mode) -> Mode {
        if own == Mode::Unset {
            self.default_mode(&name.namespace)
        } else {
            own
        }
    }

    fn flush_service(&mut self, name: &Name, delta: &mut Delta) {
        let facts = self.services.get(name);
        let mut conditions = facts
            .map(|facts| services::conditions(name, facts))
            .unwrap_or_default();
        if facts.is_some() {
            conditions.extend(self.attachment_conditions(name, false));
        }
        self.set_conditions(key(Kind::Service, name), conditions, delta);
    }

    pub(super) fn service_key(&self, name: &Name) -> ServiceKey {
        ServiceKey {
            namespace: name.namespace.clone(),
            hostname: services::hostname(&self.config, name),
        }
    }

    /// All services of one hostname: per namespace the best claim, and of those one is canonical.
    fn flush_host(&mut self, host: &Arc<str>, delta: &mut Delta) {
        let mut compiled: Vec<Service> = self
            .owners(host)
            .filter_map(|claim| self.compile_claim(host, claim))
            .collect();
        let canonical = compiled
            .iter()
            .position(|service| service.visibility == Visibility::Public)
            .unwrap_or(0);
        for (position, service) in compiled.iter_mut().enumerate() {
            service.canonical = position == canonical;
        }
        let keys: Vec<ServiceKey> = compiled.iter().map(|service| service.key.clone()).collect();
        let before = match keys.is_empty() {
            true => self.out.services_of.remove(host),
            false => self.out.services_of.insert(host.clone(), keys.clone()),
        };
        for gone in before
            .into_iter()
            .flatten()
            .filter(|key| !keys.contains(key))
        {
            self.out.services.set(gone, None, &mut delta.services);
        }
        for service in compiled {
            self.out
                .services
                .set(service.key.clone(), Some(service), &mut delta.services);
        }
    }

    /// The claims that count, one for each namespace, best first. A Service of Kubernetes is canonical wherever it is.
    pub(super) fn owners<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Claim> + use<'a> {
        let mut seen: Vec<&Arc<str>> = Vec::new();
        self.hosts
            .get(host)
            .into_iter()
            .flatten()
            .filter(move |claim| {
                let first = !seen.contains(&&claim.name.namespace);
                seen.push(&claim.name.namespace);
                first
            })
    }

    fn compile_claim(&self, host: &Arc<str>, claim: &Claim) -> Option<Service> {
        let key = ServiceKey {
            namespace: claim.name.namespace.clone(),
            hostname: host.clone(),
        };
        if claim.is_entry {
            let facts = self.entries.get(&claim.name)?;
            let allocated = self
                .vips
                .addresses(&apply::claimant(&claim.name, facts, host));
            let service =
                service_entries::service(&claim.name, facts, key, &self.network, allocated);
            return Some(Service {
                waypoint: self.entry_binding(&claim.name).addr().cloned(),
                waypoint_optional: self.does_without_waypoint(&claim.name, true),
                ingress_use_waypoint: self
                    .ingress_uses_waypoint(&facts.labels, &claim.name.namespace),
                ..service
            });
        }
        let facts = self.services.get(&claim.name)?;
        let space = self.space(&claim.name.namespace);
        let traffic_distribution = space.and_then(|space| space.traffic_distribution.as_deref());
        let around = services::Surroundings {
            key,
            network: &self.network,
            traffic_distribution,
        };
        let visibility = services::visibility(&facts.export_to)?;
        let service = services::compile(&claim.name, facts, visibility, &around);
        Some(Service {
            waypoint: self.service_binding(&claim.name).addr().cloned(),
            waypoint_optional: self.does_without_waypoint(&claim.name, false),
            ingress_use_waypoint: self.ingress_uses_waypoint(&facts.labels, &claim.name.namespace),
            ..service
        })
    }

    fn flush_slice(&mut self, name: &Name, delta: &mut Delta) {
        let workloads = self.bare_endpoints(name);
        let names_hosts = self.slices.get(name).is_some_and(|facts| facts.names_hosts);
        let conditions = names_hosts.then(|| {
            let message = "addressType FQDN is not supported: its endpoints are left out";
            Condition::no(ConditionType::Accepted, "UnsupportedValue", message)
        });
        self.set_workloads(key(Kind::EndpointSlice, name), workloads, delta);
        self.set_conditions(
            key(Kind::EndpointSlice, name),
            conditions.into_iter().collect(),
            delta,
        );
    }

    fn flush_entry(&mut self, name: &Name, delta: &mut Delta) {
        let mut conditions = Vec::new();
        let mut made = Vec::new();
        let mut addresses = Vec::new();
        if let Some(facts) = self.entries.get(name) {
            let hosts = apply::hosts_of(facts);
            let keys = self.keys_of_entry(name, facts);
            made = self.entry_workloads(name, facts, &keys);
            let visible = services::visibility(&facts.spec.export_to).is_some();
            let owned = |host: &&Arc<str>| keys.iter().any(|key| key.hostname == **host);
            let taken: Vec<&str> = hosts
                .iter()
                .filter(|host| visible && !owned(host))
                .map(|host| &**host)
                .collect();
            let wanting = hosts
                .iter()
                .filter(|host| visible && service_entries::wants_address(facts, host));
            let bare = wanting.filter(|host| {
                self.vips
                    .addresses(&apply::claimant(name, facts, host))
                    .is_none()
            });
            let bare: Vec<&str> = bare.map(|host| &**host).collect();
            conditions = service_entries::conditions(
                name,
                facts,
                &taken,
                &bare,
                self.entry_binding(name).gateway().is_some(),
            );
            conditions.extend(self.attachment_conditions(name, true));
            addresses = self.addresses_of_entry(name, facts, &keys);
        }
        self.set_entry_addresses(key(Kind::ServiceEntry, name), addresses, delta);
        self.set_workloads(key(Kind::ServiceEntry, name), made, delta);
        self.set_conditions(key(Kind::ServiceEntry, name), conditions, delta);
    }

    /// What the automatic range gives to the hosts that this entry stands for; nothing where somebody else has written
    /// addresses, whose list is one whole.
    fn addresses_of_entry(
        &self,
        name: &Name,
        facts: &EntryFacts,
        keys: &[ServiceKey],
    ) -> Vec<(Arc<str>, IpAddr)> {
        if !facts.assigned.is_empty() {
            return Vec::new();
        }
        let hosts = keys.iter().map(|key| &key.hostname);
        let wanting = hosts.filter(|host| service_entries::wants_address(facts, host));
        wanting
            .filter_map(|host| {
                let claimant = apply::claimant(name, facts, host);
                let addresses = self.vips.addresses(&claimant)?;
                Some(addresses.map(|address| (host.clone(), address)))
            })
            .flatten()
            .collect()
    }

    fn set_entry_addresses(
        &mut self,
        object: ObjectKey,
        addresses: Vec<(Arc<str>, IpAddr)>,
        delta: &mut Delta,
    ) {
        let before = match addresses.is_empty() {
            true => self.out.entry_addresses.remove(&object),
            false => self
                .out
                .entry_addresses
                .insert(object.clone(), addresses.clone()),
        };
        if before.unwrap_or_default() != addresses {
            delta
                .entry_addresses
                .push(EntryAddresses { object, addresses });
        }
    }

    /// Services of the hosts for which this entry stands in its namespace.
    pub(super) fn keys_of_entry(&self, name: &Name, facts: &EntryFacts) -> Vec<ServiceKey> {
        let owns = |host: &Arc<str>| {
            let mut owners = self.owners(host);
            owners.any(|claim| claim.is_entry && claim.name == *name)
        };
        let hosts = apply::hosts_of(facts).into_iter().filter(owns);
        hosts
            .map(|hostname| ServiceKey {
                namespace: name.namespace.clone(),
                hostname,
            })
            .collect()
    }

    fn flush_pod(&mut self, name: &Name, delta: &mut Delta) {
        let Some(pod) = self.pods.get(name) else {
            self.out.workloads.set(
                workloads::pod_uid(&self.config, name),
                None,
                &mut delta.workloads,
            );
            self.set_node_row(name, None, delta);
            return self.set_conditions(key(Kind::Pod, name), Vec::new(), delta);
        };
        let enrolled = self.is_enrolled(name, pod);
        let standing = match self.elsewhere.get(&pod.node) {
            Some(published) => {
                let published = published.get(&pod.uid).copied();
                self.capture.follow(&pod.uid, enrolled, published)
            }
            None => self.capture.settle(&pod.uid, enrolled),
        };
        delta.transitions.extend(standing.begins.clone());
        let Compiled {
            workload,
            row,
            complaint,
        } = self.compile_pod(name, pod, &standing);
        let mut conditions = pod.complaints.clone();
        conditions.extend(complaint);
        self.out.workloads.set(
            workloads::pod_uid(&self.config, name),
            workload,
            &mut delta.workloads,
        );
        self.set_node_row(name, row, delta);
        self.set_conditions(key(Kind::Pod, name), conditions, delta);
    }

    /// Puts the workloads that one object makes in the place of those that it made before.
    pub(super) fn set_workloads(
        &mut self,
        object: ObjectKey,
        workloads: Vec<Workload>,
        delta: &mut Delta,
    ) {
        let uids: Vec<_> = workloads
            .iter()
            .map(|workload| workload.uid.clone())
            .collect();
        let before = match uids.is_empty() {
            true => self.out.workloads_of.remove(&object),
            false => self.out.workloads_of.insert(object, uids.clone()),
        };
        for gone in before
            .into_iter()
            .flatten()
            .filter(|uid| !uids.contains(uid))
        {
            self.out.workloads.set(gone, None, &mut delta.workloads);
        }
        for workload in workloads {
            self.out
                .workloads
                .set(workload.uid.clone(), Some(workload), &mut delta.workloads);
        }
    }

    /// Puts what a pod's node is told. Another node or another UID is another row.
    fn set_node_row(
        &mut self,
        name: &Name,
        row: Option<(Arc<str>, NodeWorkload)>,
        delta: &mut Delta,
    ) {
        let before = self.out.nodes.remove(name);
        if let Some(before) = &before {
            let stays = row
                .as_ref()
                .is_some_and(|(node, now)| *node == before.node && now.pod_uid == before.pod_uid);
            if !stays {
                let (node, pod_uid) = (before.node.clone(), before.pod_uid.clone());
                delta
                    .node_workloads
                    .push(NodeChange::Removed { node, pod_uid });
            }
        }
        let Some((node, workload)) = row else { return };
        let now = NodeRow {
            pod_uid: workload.pod_uid.clone(),
            digest: self.out.workloads.of(&workload),
            node: node.clone(),
        };
        let same = before.is_some_and(|old| old.digest == now.digest && old.node == now.node);
        if !same {
            let workload = Arc::new(workload);
            delta
                .node_workloads
                .push(NodeChange::Updated { node, workload });
        }
        self.out.nodes.insert(name.clone(), now);
    }

    pub(super) fn set_conditions(
        &mut self,
        object: ObjectKey,
        conditions: Vec<Condition>,
        delta: &mut Delta,
    ) {
        let before = self
            .out
            .conditions
            .get(&object)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if before != conditions.as_slice() {
            match conditions.is_empty() {
                true => drop(self.out.conditions.remove(&object)),
                false => drop(
                    self.out
                        .conditions
                        .insert(object.clone(), conditions.clone()),
                ),
            }
            delta
                .conditions
                .push(ObjectConditions { object, conditions });
        }
    }
}

/// Whether a service has endpoints that anybody may see.
pub(super) fn is_in_mesh(facts: &ServiceFacts) -> bool {
    !facts.is_external_name && services::visibility(&facts.export_to).is_some()
}
