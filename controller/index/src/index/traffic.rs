//! DestinationRules: which services they hold for at which waypoints, who must be told when one changes, and the labels of
//! endpoints that rules refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{Kind, labels};
use karst_model::{
    name::{GatewayKey, ServiceKey},
    route::{Backend, HttpFilter, HttpRule, Route, RouteKey, RouteRules, WeightedBackend},
    traffic::ServiceTraffic,
    workload::Workload,
};

use super::{Claim, Index, credentials::Credentials, key};
use crate::{
    conditions::{Condition, ConditionType},
    credentials::{LookedUp, Lookup},
    delta::Delta,
    destination_rules::{self, RuleFacts, Rules},
    facts::Name,
    selector::Labels,
};

/// Waypoints that one condition names.
const NAMED_MAX: usize = 3;

/// Everything that is known of DestinationRules.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    rules: Rules,
    /// The services that each route sends to, and how many routes of a waypoint send to each service.
    backends: HashMap<(GatewayKey, RouteKey), Vec<ServiceKey>>,
    senders: HashMap<ServiceKey, BTreeMap<GatewayKey, usize>>,
    /// The rules that hold for a service at a waypoint, and the same the other way round.
    chosen: HashMap<(ServiceKey, GatewayKey), Vec<Name>>,
    uses: HashMap<Name, BTreeSet<(ServiceKey, GatewayKey)>>,
    /// The waypoints that were told of each service.
    told: HashMap<ServiceKey, BTreeSet<GatewayKey>>,
    pub(super) label_keys: LabelKeys,
    pub(super) credentials: Credentials,
}

/// Keys of labels that rules refer to, with the number of references.
#[derive(Debug, Default)]
pub(crate) struct LabelKeys(BTreeMap<Arc<str>, usize>);

impl LabelKeys {
    /// What is told of a workload's labels. Where it lies counts as a label too.
    pub(crate) fn pick(&self, own: &Labels, workload: &Workload) -> Arc<[(Arc<str>, Arc<str>)]> {
        let value = |key: &str| {
            let own = own.get(key).map(|value| Arc::from(value.as_str()));
            own.or_else(|| place(key, workload))
        };
        let keys = self.0.keys();
        keys.filter_map(|key| Some((key.clone(), value(key)?)))
            .collect()
    }
}

/// What a label of Kubernetes says of where a workload lies.
fn place(key: &str, workload: &Workload) -> Option<Arc<str>> {
    let value = match key {
        labels::REGION => &workload.locality.region,
        labels::ZONE => &workload.locality.zone,
        labels::SUBZONE => &workload.locality.subzone,
        labels::NETWORK => &workload.network.0,
        labels::CLUSTER => &workload.cluster_id,
        labels::HOSTNAME => &workload.node,
        _ => return None,
    };
    (!value.is_empty()).then(|| value.clone())
}

impl Index {
    pub(super) fn destination_rule(&mut self, name: &Name, after: Option<RuleFacts>) {
        let keys = |facts: Option<&RuleFacts>| facts.map(RuleFacts::label_keys).unwrap_or_default();
        let keys_after = keys(after.as_ref());
        let mut hosts: Vec<Arc<str>> = after.iter().map(|facts| facts.host.clone()).collect();
        let before = self.traffic.rules.set(name, after);
        hosts.extend(before.as_ref().map(|facts| facts.host.clone()));
        self.refer_labels(&keys(before.as_ref()), &keys_after);
        for host in hosts {
            self.mark_covered(&host);
            self.mark_senders(&host);
        }
        self.dirty.rules.insert(name.clone());
        self.collectors_changed();
    }

    /// Other collectors may be sent to: what rules are told depends on it.
    pub(super) fn collectors_differ(&mut self) {
        let rules = self.traffic.rules.names().cloned();
        self.dirty.rules.extend(rules);
    }

    /// The services that a rule's host stands for. Those that come in the same step are marked anyway.
    fn mark_covered(&mut self, host: &str) {
        let covered: Vec<ServiceKey> = match host.starts_with('*') {
            true => {
                let known = self.out.services_of.iter();
                let known = known.filter(|(hostname, _)| destination_rules::covers(host, hostname));
                known.flat_map(|(_, keys)| keys.iter().cloned()).collect()
            }
            false => self.out.services_of.get(host).cloned().unwrap_or_default(),
        };
        self.dirty.traffic.extend(covered);
    }

    /// Rules refer to labels no more, and to others: what has them is told anew.
    pub(super) fn refer_labels(&mut self, before: &[Arc<str>], after: &[Arc<str>]) {
        let keys = &mut self.traffic.label_keys.0;
        let mut changed: Vec<Arc<str>> = Vec::new();
        for key in after {
            let count = keys.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                changed.push(key.clone());
            }
        }
        for key in before {
            if let Some(count) = keys.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    keys.remove(key);
                    changed.push(key.clone());
                }
            }
        }
        if !changed.is_empty() {
            self.mark_labelled(&changed);
        }
    }

    fn mark_labelled(&mut self, keys: &[Arc<str>]) {
        let of_places = [
            labels::REGION,
            labels::ZONE,
            labels::SUBZONE,
            labels::NETWORK,
            labels::CLUSTER,
            labels::HOSTNAME,
        ];
        let all = keys.iter().any(|key| of_places.contains(&&**key));
        let has = |labels: &Labels| all || keys.iter().any(|key| labels.contains_key(&**key));
        let pods = self.pods.iter().filter(|(_, pod)| has(&pod.labels));
        self.dirty.pods.extend(pods.map(|(name, _)| name.clone()));
        let machines = self.machines.iter();
        let machines = machines.filter(|(_, machine)| has(machine.labels()));
        self.dirty
            .machines
            .extend(machines.map(|(name, _)| name.clone()));
        let entries = self.entries.iter();
        let entries = entries.filter(|(_, entry)| {
            let endpoints = &entry.spec.endpoints;
            all || endpoints.iter().any(|endpoint| has(&endpoint.labels))
        });
        self.dirty
            .entries
            .extend(entries.map(|(name, _)| name.clone()));
        if all {
            self.dirty.slices.extend(self.slices.keys().cloned());
        }
    }

    /// Whether a service has a subset, as waypoints of a namespace see it.
    pub(super) fn has_subset(&self, service: &ServiceKey, client: &str, subset: &str) -> bool {
        let root = &self.config.root_namespace;
        let rules = self.traffic.rules.choose(service, client, root);
        destination_rules::merge(&rules).has_subset(subset)
    }

    /// Routes that changed send to other services now: their waypoints need the rules of these.
    pub(super) fn follow_backends(&mut self, delta: &Delta, traffic: &mut HashSet<ServiceKey>) {
        let removed = delta.routes.removed.iter().map(|row| (row, Vec::new()));
        let updated = delta.routes.updated.iter();
        let updated = updated.map(|(row, route)| (row, backends(route)));
        for (row, after) in removed.chain(updated) {
            let known = &mut self.traffic;
            let before = match after.is_empty() {
                true => known.backends.remove(row),
                false => known.backends.insert(row.clone(), after.clone()),
            };
            for service in &after {
                let senders = known.senders.entry(service.clone()).or_default();
                *senders.entry(row.0.clone()).or_default() += 1;
            }
            for service in before.iter().flatten() {
                let Some(senders) = known.senders.get_mut(service) else {
                    continue;
                };
                if let Some(count) = senders.get_mut(&row.0) {
                    *count -= 1;
                }
                senders.retain(|_, count| *count > 0);
                if senders.is_empty() {
                    known.senders.remove(service);
                }
            }
            traffic.extend(before.into_iter().flatten().chain(after));
        }
    }

    /// Compiles what holds for these services again, and what their rules are told.
    pub(super) fn flush_traffic(
        &mut self,
        services: HashSet<ServiceKey>,
        mut rules: HashSet<Name>,
        delta: &mut Delta,
    ) {
        for service in &services {
            self.flush_service_traffic(service, &mut rules, delta);
            rules.extend(self.traffic.rules.covering(&service.hostname).cloned());
        }
        self.flush_credentials(delta);
        rules.iter().for_each(|name| self.flush_rule(name, delta));
    }

    fn flush_service_traffic(
        &mut self,
        service: &ServiceKey,
        rules: &mut HashSet<Name>,
        delta: &mut Delta,
    ) {
        let waypoints = self.waypoints_to(service);
        let before = self.traffic.told.remove(service).unwrap_or_default();
        for left in before.difference(&waypoints) {
            let place = (service.clone(), left.clone());
            self.traffic.credentials.refer(&place, LookedUp::default());
            self.tell_traffic(service, left, None, Vec::new(), rules, delta);
        }
        for waypoint in &waypoints {
            let mut lookup = self.traffic.credentials.lookup(&waypoint.namespace);
            let (traffic, chosen) = self.compile_traffic(service, &waypoint.namespace, &mut lookup);
            let (place, looked_up) = ((service.clone(), waypoint.clone()), lookup.done());
            self.traffic.credentials.refer(&place, looked_up);
            self.tell_traffic(service, waypoint, traffic, chosen, rules, delta);
        }
        if !waypoints.is_empty() {
            self.traffic.told.insert(service.clone(), waypoints);
        }
    }

    fn tell_traffic(
        &mut self,
        service: &ServiceKey,
        waypoint: &GatewayKey,
        traffic: Option<ServiceTraffic>,
        chosen: Vec<Name>,
        rules: &mut HashSet<Name>,
        delta: &mut Delta,
    ) {
        let known = &mut self.traffic;
        let place = (service.clone(), waypoint.clone());
        let before = match chosen.is_empty() {
            true => known.chosen.remove(&place),
            false => known.chosen.insert(place.clone(), chosen.clone()),
        };
        for name in before.into_iter().flatten() {
            if let Some(uses) = known.uses.get_mut(&name) {
                uses.remove(&place);
                if uses.is_empty() {
                    known.uses.remove(&name);
                }
            }
            rules.insert(name);
        }
        for name in chosen {
            known
                .uses
                .entry(name.clone())
                .or_default()
                .insert(place.clone());
            rules.insert(name);
        }
        let row = (waypoint.clone(), service.clone());
        self.out.traffic.set(row, traffic, &mut delta.traffic);
    }

    /// The waypoints that send requests to a service: its own, and those of routes that name it.
    fn waypoints_to(&self, service: &ServiceKey) -> BTreeSet<GatewayKey> {
        let claim = self.claim_of(service);
        let binding = claim.map(|claim| match claim.is_entry {
            true => self.entry_binding(&claim.name),
            false => self.service_binding(&claim.name),
        });
        let own = binding.and_then(|binding| binding.gateway().cloned());
        let own = own.map(|name| GatewayKey {
            namespace: name.namespace,
            name: name.name,
        });
        let senders = self.traffic.senders.get(service).into_iter().flatten();
        let senders = senders.map(|(waypoint, _)| waypoint.clone());
        match claim {
            Some(_) => own.into_iter().chain(senders).collect(),
            None => BTreeSet::new(),
        }
    }

    /// The object that a service comes from.
    fn claim_of(&self, service: &ServiceKey) -> Option<&Claim> {
        let mut owners = self.owners(&service.hostname);
        owners.find(|claim| claim.name.namespace == service.namespace)
    }

    /// What holds for a service at waypoints of a namespace, and the rules that say so.
    pub(super) fn compile_traffic(
        &self,
        service: &ServiceKey,
        client: &str,
        lookup: &mut Lookup<'_>,
    ) -> (Option<ServiceTraffic>, Vec<Name>) {
        let root = &self.config.root_namespace;
        let rules = self.traffic.rules.choose(service, client, root);
        let known = self.out.services.get(service);
        let sans = known
            .map(|known| known.subject_alt_names.clone())
            .unwrap_or_default();
        let mut traffic = match rules.is_empty() {
            true => None,
            false => Some(destination_rules::merge(&rules).lower(service, &sans, lookup)),
        };
        if let Some(claim) = self.claim_of(service) {
            self.put_backend_policies(service, (&claim.name, claim.is_entry), &mut traffic);
        }
        let chosen = rules.into_iter().map(|(name, _)| name.clone()).collect();
        (traffic, chosen)
    }

    /// What a rule's author is told.
    fn flush_rule(&mut self, name: &Name, delta: &mut Delta) {
        let facts = self.traffic.rules.get(name);
        let conditions = facts.map(|facts| self.rule_conditions(name, facts));
        let object = key(Kind::DestinationRule, name);
        self.set_conditions(object, conditions.unwrap_or_default(), delta);
    }

    fn rule_conditions(&self, name: &Name, facts: &RuleFacts) -> Vec<Condition> {
        let accepted =
            |reason, message: String| Condition::no(ConditionType::Accepted, reason, message);
        let faults = facts.faults.iter();
        let mut conditions: Vec<Condition> = faults
            .map(|fault| {
                let holds = fault.field.ends_with("insecureSkipVerify");
                let reason = if holds { "Unverified" } else { "Invalid" };
                accepted(reason, format!("{}: {}", fault.field, fault.message))
            })
            .collect();
        if facts.selects {
            let message = "workloadSelector picks clients that have a proxy of their own, and a waypoint is nobody's: the rule holds nowhere".to_owned();
            conditions.push(accepted("UnsupportedValue", message));
            return conditions;
        }
        match self.traffic.uses.get(name) {
            Some(uses) => {
                conditions.extend(self.overruled_parts(name, uses));
                conditions.extend(self.credential_condition(facts, uses));
                conditions.push(held(uses));
            }
            None => conditions.push(self.unused(facts)),
        }
        conditions
    }

    /// Parts that an older rule of the same host has.
    fn overruled_parts(
        &self,
        name: &Name,
        uses: &BTreeSet<(ServiceKey, GatewayKey)>,
    ) -> Vec<Condition> {
        let Some((service, waypoint)) = uses.first() else {
            return Vec::new();
        };
        let root = &self.config.root_namespace;
        let rules = self
            .traffic
            .rules
            .choose(service, &waypoint.namespace, root);
        let left_out = destination_rules::merge(&rules).left_out;
        let own = left_out.into_iter().filter(|(of, _)| *of == name);
        own.map(|(_, fault)| {
            let message = format!("{}: {}", fault.field, fault.message);
            Condition::no(ConditionType::Accepted, "Conflicted", message)
        })
        .collect()
    }

    /// Why a rule holds nowhere.
    fn unused(&self, facts: &RuleFacts) -> Condition {
        let host = &facts.host;
        let mut covered = self.out.services_of.iter();
        let covered = match host.starts_with('*') {
            true => covered.any(|(hostname, _)| destination_rules::covers(host, hostname)),
            false => self.out.services_of.contains_key(host),
        };
        if !covered {
            let message = format!("no service has the host {host}");
            return Condition::no(ConditionType::Accepted, "HostNotFound", message);
        }
        let collectors = self.collectors_of(|hostname| destination_rules::covers(host, hostname));
        if !collectors.is_empty() {
            let message = format!(
                "its tls holds for what agents and waypoints send to collector {}",
                collectors.join(", ")
            );
            return Condition::yes(ConditionType::WaypointAccepted, "Accepted", message);
        }
        let told = self.traffic.told.iter();
        let at_waypoints = told
            .clone()
            .any(|(service, _)| destination_rules::covers(host, &service.hostname));
        let (reason, message) = match at_waypoints {
            false => (
                "AncestorNotBound",
                format!(
                    "no service of host {host} is bound to a waypoint, and nobody else follows the rule: label the service, or its namespace, with istio.io/use-waypoint"
                ),
            ),
            true => (
                "Overruled",
                format!(
                    "another DestinationRule holds for host {host} at every waypoint: of the waypoint's namespace first, then of the service's, then of the root namespace, and the exact host before wildcards"
                ),
            ),
        };
        Condition::no(ConditionType::WaypointAccepted, reason, message)
    }
}

/// Where a rule holds.
fn held(uses: &BTreeSet<(ServiceKey, GatewayKey)>) -> Condition {
    let waypoints: BTreeSet<&GatewayKey> = uses.iter().map(|(_, waypoint)| waypoint).collect();
    let named: Vec<String> = waypoints
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let more = match waypoints.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!("holds at waypoint {}{more}", named.join(", "));
    Condition::yes(ConditionType::WaypointAccepted, "Accepted", message)
}

/// The services that a route sends to, mirrors included, each once.
fn backends(route: &Route) -> Vec<ServiceKey> {
    let mut found: Vec<ServiceKey> = match &route.rules {
        RouteRules::Http(rules) => {
            let of_rule = |rule: &HttpRule| {
                let of_backends = rule.backends.iter().flat_map(|one| mirrors(&one.filters));
                let all = of_backends.chain(mirrors(&rule.filters));
                all.chain(weighted(&rule.backends)).collect::<Vec<_>>()
            };
            rules.iter().flat_map(of_rule).collect()
        }
        RouteRules::Tls(rules) => rules
            .iter()
            .flat_map(|rule| weighted(&rule.backends))
            .collect(),
        RouteRules::Tcp(rules) => rules
            .iter()
            .flat_map(|rule| weighted(&rule.backends))
            .collect(),
    };
    found.sort();
    found.dedup();
    found
}

fn weighted(backends: &[WeightedBackend]) -> impl Iterator<Item = ServiceKey> {
    backends.iter().filter_map(|one| service(&one.backend))
}

fn mirrors(filters: &[HttpFilter]) -> impl Iterator<Item = ServiceKey> {
    filters.iter().filter_map(|filter| match filter {
        HttpFilter::Mirror(mirror) => service(&mirror.backend),
        _ => None,
    })
}

fn service(backend: &Backend) -> Option<ServiceKey> {
    match backend {
        Backend::Service { service, .. } => Some(service.clone()),
        Backend::Invalid(_) => None,
    }
}
