//! Everything the agent looks up, kept consistent under updates that come in any order. Pure; [`crate::State`] locks it.

mod endpoints;
mod policies;
mod rate_limits;
mod request_authentications;
mod routes;
mod services;
mod telemetry;
mod traffic;
mod workloads;

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use karst_model::{
    enrollment::NodeWorkload,
    identity::TrustDomains,
    name::{PodUid, WorkloadUid},
    workload::Workload,
};

pub use self::policies::PoliciesFor;
use self::{
    endpoints::Endpoints,
    policies::Policies,
    rate_limits::RateLimits,
    request_authentications::RequestAuthentications,
    routes::{Routes, WaypointPolicies},
    services::Services,
    telemetry::Telemetries,
    traffic::Traffic,
    workloads::Workloads,
};
use crate::{
    state::Change,
    update::{Kind, Update},
};

#[derive(Default)]
pub(crate) struct Index {
    pub(crate) workloads: Workloads,
    pub(crate) services: Services,
    pub(crate) endpoints: Endpoints,
    pub(crate) policies: Policies,
    pub(crate) node_workloads: HashMap<PodUid, Arc<NodeWorkload>>,
    pub(crate) routes: Routes,
    pub(crate) waypoint_policies: WaypointPolicies,
    pub(crate) traffic: Traffic,
    pub(crate) telemetries: Telemetries,
    pub(crate) request_authentications: RequestAuthentications,
    pub(crate) rate_limits: RateLimits,
    pub(crate) trust_domains: Option<Arc<TrustDomains>>,
}

/// How much the state holds; for metrics and dumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    pub node_workloads: usize,
    pub routes: usize,
    pub waypoint_policies: usize,
    pub traffic: usize,
    pub telemetries: usize,
    pub request_authentications: usize,
    pub rate_limits: usize,
}

impl Index {
    /// Applies one update and adds what it changed to `changes`. An update that changes nothing adds nothing.
    pub(crate) fn apply(&mut self, update: Update, changes: &mut HashSet<Change>) {
        match update {
            Update::Workload(workload) => {
                let old = self.workloads.insert(workload.clone());
                if old.as_ref() == Some(&workload) {
                    return;
                }
                self.replace_endpoint(old.as_ref(), Some(&workload), changes);
            }
            Update::Service(service) => {
                let old = self.services.insert(service.clone());
                if old.as_ref() == Some(&service) {
                    return;
                }
                for service in old.iter().chain([&service]) {
                    changes.extend(service.addresses.iter().map(Change::of_vip));
                }
                changes.insert(Change::Service(service.key.clone()));
            }
            Update::Policy(policy) => {
                let key = policy.key.clone();
                if self.policies.insert(policy) {
                    changes.insert(Change::Policy(key));
                }
            }
            Update::NodeWorkload(pod) => {
                let uid = pod.pod_uid.clone();
                if self
                    .node_workloads
                    .insert(uid.clone(), pod.clone())
                    .as_ref()
                    != Some(&pod)
                {
                    changes.insert(Change::NodeWorkload(uid));
                }
            }
            Update::Route(route) => self.routes.insert(route, changes),
            Update::Telemetry(one) => self.telemetries.insert(one, changes),
            Update::WaypointPolicy(policy) => self.waypoint_policies.insert(policy, changes),
            Update::ServiceTraffic(traffic) => self.traffic.insert(traffic, changes),
            Update::TrustDomains(domains) => self.trust(Some(domains), changes),
            Update::RateLimit(limit) => self.rate_limits.insert(limit, changes),
            Update::RequestAuthentication(one) => {
                self.request_authentications.insert(one, changes);
            }
            Update::Removed(kind, name) => self.remove(kind, name, changes),
        }
    }

    fn remove(&mut self, kind: Kind, name: Arc<str>, changes: &mut HashSet<Change>) {
        match kind {
            Kind::Address => self.remove_address(name, changes),
            Kind::Authorization => {
                if let Ok(key) = name.parse()
                    && self.policies.remove(&key)
                {
                    changes.insert(Change::Policy(key));
                }
            }
            Kind::NodeWorkload => {
                let uid = PodUid(name);
                if self.node_workloads.remove(&uid).is_some() {
                    changes.insert(Change::NodeWorkload(uid));
                }
            }
            Kind::Route => {
                if let Ok(key) = name.parse() {
                    self.routes.remove(&key, changes);
                }
            }
            Kind::Telemetry => self.telemetries.remove(&name, changes),
            Kind::TrustDomains => self.trust(None, changes),
            Kind::ServiceTraffic => {
                if let Ok(key) = name.parse() {
                    self.traffic.remove(&key, changes);
                }
            }
            Kind::WaypointPolicy => {
                if let Ok(key) = name.parse() {
                    self.waypoint_policies.remove(&key, changes);
                }
            }
            Kind::RateLimit => {
                if let Ok(key) = name.parse() {
                    self.rate_limits.remove(&key, changes);
                }
            }
            Kind::RequestAuthentication => {
                if let Ok(key) = name.parse() {
                    self.request_authentications.remove(&key, changes);
                }
            }
        }
    }

    fn trust(&mut self, domains: Option<Arc<TrustDomains>>, changes: &mut HashSet<Change>) {
        if self.trust_domains != domains {
            self.trust_domains = domains;
            changes.insert(Change::TrustDomains);
        }
    }

    /// A name is tried as a workload first, then as a service: the wire does not say which it was.
    fn remove_address(&mut self, name: Arc<str>, changes: &mut HashSet<Change>) {
        if let Some(old) = self.workloads.remove(&WorkloadUid(name.clone())) {
            self.replace_endpoint(Some(&old), None, changes);
        } else if let Ok(key) = name.parse()
            && let Some(old) = self.services.remove(&key)
        {
            changes.extend(old.addresses.iter().map(Change::of_vip));
            changes.insert(Change::Service(key));
        }
    }

    fn replace_endpoint(
        &mut self,
        old: Option<&Arc<Workload>>,
        new: Option<&Arc<Workload>>,
        changes: &mut HashSet<Change>,
    ) {
        for workload in old.into_iter().chain(new) {
            changes.insert(Change::Workload(workload.uid.clone()));
            changes.extend(workloads::indexed_addresses(workload).map(Change::Address));
            changes.extend(workload.services.keys().cloned().map(Change::Endpoints));
        }
        if let Some(old) = old {
            for key in old.services.keys() {
                self.endpoints.remove(key, &old.uid);
            }
        }
        if let Some(new) = new {
            for key in new.services.keys() {
                self.endpoints.insert(key, new.clone());
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            workloads: self.workloads.len(),
            services: self.services.len(),
            policies: self.policies.len(),
            node_workloads: self.node_workloads.len(),
            routes: self.routes.len(),
            waypoint_policies: self.waypoint_policies.len(),
            traffic: self.traffic.len(),
            telemetries: self.telemetries.len(),
            request_authentications: self.request_authentications.len(),
            rate_limits: self.rate_limits.len(),
        }
    }
}

#[cfg(test)]
mod tests;
