//! WorkloadEntries: workloads that are no pods. They are endpoints of the Services and ServiceEntries of their namespace
//! that pick their labels. Nothing of Karst runs there, so that no policy of theirs is Karst's to enforce.

use std::{collections::BTreeMap, sync::Arc};

use karst_k8s_api::{
    Kind, istio::WorkloadEntrySpec, k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use karst_model::{
    name::ServiceKey,
    service::PortMap,
    workload::{Workload, WorkloadType},
};

use super::{Index, flush::is_in_mesh, key};
use crate::{
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    selector::{Labels, matches},
    service_entries, services,
    shared::Shared,
};

/// What the index keeps of a WorkloadEntry.
#[derive(Debug, PartialEq)]
pub(super) struct MachineFacts {
    /// Those of the object and of its spec; the spec's win.
    labels: Arc<Labels>,
    spec: WorkloadEntrySpec,
}

impl MachineFacts {
    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    pub(super) fn new(meta: ObjectMeta, spec: WorkloadEntrySpec, shared: &mut Shared) -> Self {
        let mut labels = meta.labels.unwrap_or_default();
        labels.extend(spec.labels.clone());
        Self {
            labels: shared.labels(Some(labels)),
            spec,
        }
    }
}

impl Index {
    pub(super) fn machine(&mut self, name: &Name, after: Option<MachineFacts>) {
        if let Some(before) = self.machines.remove(name) {
            let machines = &mut self.space_mut(&name.namespace).machines;
            machines.remove(&name.name, &before.labels);
        }
        match after {
            Some(after) => {
                let machines = &mut self.space_mut(&name.namespace).machines;
                machines.insert(&name.name, &after.labels);
                self.machines.insert(name.clone(), after);
            }
            None => self.tidy_space(&name.namespace),
        }
        self.dirty.machines.insert(name.clone());
    }

    /// WorkloadEntries of a namespace that a selector picks; the empty one picks all.
    pub(super) fn mark_selected_machines(&mut self, namespace: &Arc<str>, selector: &Labels) {
        let space = self.spaces.get(namespace);
        let candidates = space
            .into_iter()
            .flat_map(|space| space.machines.candidates(selector));
        let names = candidates.map(|name| Name::new(namespace, name));
        self.dirty.machines.extend(names);
    }

    pub(super) fn flush_machine(&mut self, name: &Name, delta: &mut Delta) {
        let made = self.workload_of_machine(name);
        let unreachable = self
            .machines
            .get(name)
            .filter(|facts| !service_entries::is_reachable(&facts.spec));
        let complaint = unreachable.map(|facts| {
            let message = format!(
                "address {:?} cannot be reached over TCP: nobody is sent there",
                facts.spec.address
            );
            Condition::no(ConditionType::Accepted, "AddressNotReachable", message)
        });
        let object = key(Kind::WorkloadEntry, name);
        self.set_workloads(object.clone(), made.into_iter().collect(), delta);
        self.set_conditions(object, complaint.into_iter().collect(), delta);
    }

    pub(super) fn all_machines(&self) -> impl Iterator<Item = Workload> {
        let names = self.machines.keys();
        names.filter_map(|name| self.workload_of_machine(name))
    }

    fn workload_of_machine(&self, name: &Name) -> Option<Workload> {
        let facts = self.machines.get(name)?;
        if !service_entries::is_reachable(&facts.spec) {
            return None;
        }
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            self.config.cluster_id, name.namespace, name.name
        );
        let mut workload = Workload {
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            trust_domain: self.config.trust_domain.clone(),
            network: self.network.clone(),
            workload_type: WorkloadType::Pod,
            workload_name: name.name.clone(),
            canonical_name: name.name.clone(),
            cluster_id: self.config.cluster_id.clone(),
            services: self.services_of_machine(name, facts),
            ..Workload::new(&uid)
        };
        service_entries::describe(&mut workload, &facts.spec, &facts.labels);
        workload.labels = self.traffic.label_keys.pick(&facts.labels, &workload);
        Some(workload)
    }

    fn services_of_machine(
        &self,
        name: &Name,
        facts: &MachineFacts,
    ) -> BTreeMap<ServiceKey, PortMap> {
        let mut found = BTreeMap::new();
        let Some(space) = self.space(&name.namespace) else {
            return found;
        };
        for service in space.services.candidates(&facts.labels) {
            let service = Name::new(&name.namespace, service);
            let picking = self
                .services
                .get(&service)
                .filter(|service| is_in_mesh(service) && matches(&service.selector, &facts.labels));
            if let Some(picking) = picking {
                let ports = services::ports_at_machine(picking, &facts.spec);
                found.insert(self.service_key(&service), ports);
            }
        }
        for entry in space.entries.candidates(&facts.labels) {
            let entry = Name::new(&name.namespace, entry);
            let picking = self.entries.get(&entry).filter(|entry| {
                let selector = entry.selector();
                selector.is_some_and(|selector| matches(selector, &facts.labels))
            });
            if let Some(picking) = picking {
                let ports = service_entries::ports_at_machine(picking, &facts.spec);
                let keys = self.keys_of_entry(&entry, picking);
                found.extend(keys.into_iter().map(|key| (key, ports.clone())));
            }
        }
        found
    }
}
