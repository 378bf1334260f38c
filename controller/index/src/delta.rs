//! What an event changed, in words of the model.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::HashMap;
use karst_k8s_api::ObjectKey;
use karst_model::{
    enrollment::{Generation, NodeWorkload},
    identity::TrustDomains,
    name::{GatewayKey, PodUid, PolicyKey, ServiceKey, WorkloadUid},
    policy::Authorization,
    rate_limit::RateLimit,
    route::{Route, RouteKey},
    service::Service,
    telemetry::Telemetry,
    token::RequestAuthentication,
    traffic::ServiceTraffic,
    waypoint_policy::WaypointPolicy,
    workload::Workload,
};

use crate::{
    conditions::ObjectConditions, credentials::SecretName, gateways::GatewayStatus,
    request_authentications::KeySource, routes::RouteStatus,
};

/// What differs from the output before. A key is either updated or removed, and only once.
///
/// A consumer that publishes at once should do so in this order, so that no workload ever names a policy that is
/// gone: policy updates, services, workloads, routes, policy removals; node workloads last.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub workloads: Changes<WorkloadUid, Workload>,
    pub services: Changes<ServiceKey, Service>,
    pub policies: Changes<PolicyKey, Authorization>,
    /// Routes by the waypoint that one of their services is bound to.
    pub routes: Changes<(GatewayKey, RouteKey), Route>,
    /// Request policies by the waypoint that enforces them.
    pub waypoint_policies: Changes<(GatewayKey, PolicyKey), WaypointPolicy>,
    /// Rate limits by the waypoint that counts.
    pub rate_limits: Changes<(GatewayKey, PolicyKey), RateLimit>,
    /// What holds for services beyond their routes, by the waypoint that sends requests to them. Before routes, which
    /// name subsets.
    pub traffic: Changes<(GatewayKey, ServiceKey), ServiceTraffic>,
    /// Which tokens requests may carry, by the waypoint that verifies them.
    pub request_authentications: Changes<(GatewayKey, PolicyKey), RequestAuthentication>,
    /// What everybody records, by the resource's name.
    pub telemetries: Changes<Arc<str>, Telemetry>,
    /// The names of the mesh's trust domain, where these have changed. Before policies, which are written for them.
    pub trust_domains: Option<TrustDomains>,
    /// All keys that are to be fetched, where these have changed.
    pub key_sources: Option<BTreeSet<KeySource>>,
    /// All Secrets that are to be read, where these have changed.
    pub secrets: Option<BTreeSet<SecretName>>,
    pub node_workloads: Vec<NodeChange>,
    pub conditions: Vec<ObjectConditions>,
    /// Addresses of the automatic range that hosts of ServiceEntries have; empty: none any more.
    pub entry_addresses: Vec<EntryAddresses>,
    /// Gateways that are waypoints; `None`: it is one no more.
    pub gateways: Vec<(ObjectKey, Option<GatewayStatus>)>,
    /// What routes are told by each of their parents that is ours.
    pub route_statuses: Vec<RouteStatus>,
    /// Steps of pods into and out of the mesh that have just begun and that others must end. Publish this delta first.
    pub transitions: Vec<Transition>,
}

/// What a ServiceEntry's status says of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryAddresses {
    pub object: ObjectKey,
    /// Host and address, in the order of the entry's hosts.
    pub addresses: Vec<(Arc<str>, IpAddr)>,
}

/// A pod's step into or out of the mesh, which ends with an event that repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub pod_uid: PodUid,
    pub awaited: Awaited,
    /// Step of the index in which it began.
    pub since: Generation,
}

/// What a step waits for. After a bound on the wait the answer is `Event::Overdue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The workload has just got its tunnel: `Event::Acknowledged` when every peer has acknowledged the workloads.
    Entering,
    /// The node is asked to let plain connections pass: it answers by its report.
    Opening,
    /// The workload has just lost its tunnel while its node still captures it: `Event::Acknowledged` when every peer
    /// has acknowledged the workloads, and `EnrollMode::Off` comes out of that.
    Withdrawing,
}

/// Updated and removed entries of one table.
#[derive(Clone, Debug)]
pub struct Changes<K, V> {
    pub updated: Vec<(K, Arc<V>)>,
    pub removed: Vec<K>,
}

/// A change of the pods that one node's agent is told about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Updated {
        node: Arc<str>,
        workload: Arc<NodeWorkload>,
    },
    Removed {
        node: Arc<str>,
        pod_uid: PodUid,
    },
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self {
            updated: Vec::new(),
            removed: Vec::new(),
        }
    }
}

impl<K, V> Changes<K, V> {
    pub fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty()
    }
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.routes.is_empty()
            && self.waypoint_policies.is_empty()
            && self.rate_limits.is_empty()
            && self.traffic.is_empty()
            && self.request_authentications.is_empty()
            && self.telemetries.is_empty()
            && self.trust_domains.is_none()
            && self.key_sources.is_none()
            && self.secrets.is_none()
            && self.node_workloads.is_empty()
            && self.conditions.is_empty()
            && self.entry_addresses.is_empty()
            && self.gateways.is_empty()
            && self.route_statuses.is_empty()
            && self.transitions.is_empty()
    }
}

/// The last output of one kind, to tell what differs.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    rows: HashMap<K, Arc<V>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash + Clone, V: PartialEq> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.rows.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.rows.iter()
    }

    /// Puts or (with `None`) removes a row, and records it if that changes anything.
    pub(crate) fn set(&mut self, key: K, value: Option<V>, changes: &mut Changes<K, V>) {
        match value {
            Some(value) if self.rows.get(&key).is_some_and(|old| **old == value) => {}
            Some(value) => {
                let value = Arc::new(value);
                self.rows.insert(key.clone(), value.clone());
                changes.updated.push((key, value));
            }
            None => {
                if self.rows.remove(&key).is_some() {
                    changes.removed.push(key);
                }
            }
        }
    }
}

/// The last output of one kind of which there are many, to tell what differs: of each row only a digest, with a key of
/// this process, so that nobody can make two that are alike.
#[derive(Debug)]
pub(crate) struct Digests<K> {
    rows: HashMap<K, u64>,
    key: RandomState,
}

impl<K> Default for Digests<K> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            key: RandomState::new(),
        }
    }
}

impl<K: Eq + Hash + Clone> Digests<K> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    /// What tells one value from another.
    pub(crate) fn of(&self, value: &impl Hash) -> u64 {
        self.key.hash_one(value)
    }

    /// Puts or (with `None`) removes a row, and records it if that changes anything.
    pub(crate) fn set<V: Hash>(&mut self, key: K, value: Option<V>, changes: &mut Changes<K, V>) {
        match value {
            Some(value) => {
                let digest = self.of(&value);
                if self.rows.get(&key) != Some(&digest) {
                    self.rows.insert(key.clone(), digest);
                    changes.updated.push((key, Arc::new(value)));
                }
            }
            None => {
                if self.rows.remove(&key).is_some() {
                    changes.removed.push(key);
                }
            }
        }
    }
}
