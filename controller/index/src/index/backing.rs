//! HealthChecks and BackendTLSPolicies: which services they hold for, where their roots come from, and what their authors
//! are told.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{Kind, k8s_openapi::api::core::v1::ConfigMap};
use karst_model::{
    name::ServiceKey,
    traffic::{ServiceTraffic, TrustAnchors},
};

use super::{Index, apply, key};
use crate::{
    backend_policies::{
        BackendPolicies, BackendTarget, BackendTlsFacts, CheckFacts, ROOTS_KEY, RootsOf,
    },
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    rate_limits::refused,
    request_policies::TargetRef,
    routes::RouteStatus,
    selector::remove_from,
};

/// How a certificate begins and ends in PEM.
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Everything that is known of policies for backends.
#[derive(Debug, Default)]
pub(super) struct Backing {
    checks: HashMap<Name, CheckFacts>,
    tls: HashMap<Name, BackendTlsFacts>,
    /// Policies that target an object of this name, whatever its kind.
    by_target: HashMap<Name, HashSet<(Kind, Name)>>,
    /// Roots by ConfigMap, and who refers to each.
    roots: HashMap<Name, Arc<str>>,
    by_roots: HashMap<Name, HashSet<Name>>,
    /// What was said last of each BackendTLSPolicy.
    said: HashMap<Name, RouteStatus>,
}

impl Backing {
    pub(super) fn tls(&self, policy: &Name) -> Option<&BackendTlsFacts> {
        self.tls.get(policy)
    }

    /// The policies with TLS for an object of this name, the oldest first; of the same age, by name.
    pub(super) fn tls_by_age(
        &self,
        target: &Name,
    ) -> impl Iterator<Item = (&Name, &BackendTlsFacts)> {
        let of = self.by_target.get(target).into_iter().flatten();
        let of = of.filter(|(kind, _)| *kind == Kind::BackendTlsPolicy);
        let mut of: Vec<_> = of
            .filter_map(|(_, name)| Some((name, self.tls.get(name)?)))
            .collect();
        of.sort_by_key(|(name, facts)| (facts.created, *name));
        of.into_iter()
    }

    /// Whether that is new.
    pub(super) fn say(&mut self, policy: &Name, status: &RouteStatus) -> bool {
        let nothing = status.parents.is_empty();
        match self.said.get(policy) {
            Some(before) if before == status => return false,
            None if nothing => return false,
            _ => {}
        }
        match nothing {
            true => drop(self.said.remove(policy)),
            false => drop(self.said.insert(policy.clone(), status.clone())),
        }
        true
    }

    /// What was said last, of every policy.
    pub(super) fn statuses(&self) -> impl Iterator<Item = &RouteStatus> {
        self.said.values()
    }
}

impl Index {
    pub(super) fn health_check(&mut self, name: &Name, after: Option<CheckFacts>) {
        let targets =
            |facts: Option<&CheckFacts>| facts.map_or(Vec::new(), |facts| facts.targets.clone());
        let after_targets = targets(after.as_ref());
        let before = match after {
            Some(after) => self.backing.checks.insert(name.clone(), after),
            None => self.backing.checks.remove(name),
        };
        let policy = (Kind::HealthCheck, name.clone());
        self.retarget(&policy, &targets(before.as_ref()), &after_targets);
    }

    pub(super) fn backend_tls(&mut self, name: &Name, after: Option<BackendTlsFacts>) {
        let targets = |facts: Option<&BackendTlsFacts>| {
            facts.map_or(Vec::new(), |facts| facts.targets.clone())
        };
        let after_targets = targets(after.as_ref());
        for map in maps(after.as_ref()) {
            let of = self.backing.by_roots.entry(map.clone()).or_default();
            of.insert(name.clone());
        }
        let stays: Vec<Name> = maps(after.as_ref()).to_vec();
        let before = match after {
            Some(after) => self.backing.tls.insert(name.clone(), after),
            None => self.backing.tls.remove(name),
        };
        for map in maps(before.as_ref())
            .iter()
            .filter(|map| !stays.contains(map))
        {
            remove_from(&mut self.backing.by_roots, map.clone(), name);
        }
        let policy = (Kind::BackendTlsPolicy, name.clone());
        self.retarget(&policy, &targets(before.as_ref()), &after_targets);
    }

    /// A ConfigMap may hold roots.
    pub(super) fn roots(&mut self, name: &Name, after: Option<&ConfigMap>) {
        let data = after.and_then(|map| map.data.as_ref());
        let pem = data.and_then(|data| data.get(ROOTS_KEY));
        let known = &mut self.backing.roots;
        let before = match pem {
            Some(pem) => known.insert(name.clone(), pem.as_str().into()),
            None => known.remove(name),
        };
        if before.as_deref() == pem.map(String::as_str) {
            return;
        }
        let of = self.backing.by_roots.get(name);
        let of: Vec<Name> = of.into_iter().flatten().cloned().collect();
        for policy in of {
            let targets = self.backing.tls.get(&policy);
            let targets = targets.map(|facts| facts.targets.clone());
            self.mark_backends(&targets.unwrap_or_default());
            self.dirty.backing.insert((Kind::BackendTlsPolicy, policy));
        }
    }

    fn retarget(
        &mut self,
        policy: &(Kind, Name),
        before: &[BackendTarget],
        after: &[BackendTarget],
    ) {
        let by_target = &mut self.backing.by_target;
        for target in before {
            remove_from(by_target, target.name.clone(), policy);
        }
        for target in after {
            let of = by_target.entry(target.name.clone()).or_default();
            of.insert(policy.clone());
        }
        // Those for the same targets may hold now, or no more.
        for target in before.iter().chain(after) {
            let others = self.backing.by_target.get(&target.name);
            self.dirty
                .backing
                .extend(others.into_iter().flatten().cloned());
        }
        self.mark_backends(before);
        self.mark_backends(after);
        self.dirty.backing.insert(policy.clone());
    }

    /// What holds for these may differ.
    fn mark_backends(&mut self, targets: &[BackendTarget]) {
        for target in targets {
            let keys = self.keys_of_backend(target);
            self.dirty.traffic.extend(keys);
        }
    }

    fn keys_of_backend(&self, target: &BackendTarget) -> Vec<ServiceKey> {
        if !target.is_entry {
            return vec![self.service_key(&target.name)];
        }
        let hosts = self.entries.get(&target.name).map(apply::hosts_of);
        let service = |hostname| ServiceKey {
            namespace: target.name.namespace.clone(),
            hostname,
        };
        hosts.into_iter().flatten().map(service).collect()
    }

    /// Puts the policies of a service's backends over what DestinationRules say of it.
    pub(super) fn put_backend_policies(
        &self,
        service: &ServiceKey,
        (name, is_entry): (&Name, bool),
        traffic: &mut Option<ServiceTraffic>,
    ) {
        let policies = self.backend_policies(name, is_entry);
        if policies.is_empty() {
            return;
        }
        let traffic = traffic.get_or_insert_with(|| ServiceTraffic {
            service: service.clone(),
            scopes: Vec::new(),
            subsets: Vec::new(),
            sources: Vec::new(),
        });
        policies.apply(traffic);
    }

    /// The oldest policy first; of the same age, by name.
    fn backend_policies(&self, name: &Name, is_entry: bool) -> BackendPolicies {
        let mut found = BackendPolicies::default();
        let of = self.backing.by_target.get(name);
        let mut of: Vec<&(Kind, Name)> = of.into_iter().flatten().collect();
        of.sort_by_key(|(kind, name)| {
            let created = self.backing.tls.get(name).map(|facts| facts.created);
            (*kind, created, name.clone())
        });
        for (kind, policy) in of {
            let targets = |targets: &[BackendTarget]| -> Vec<Option<u16>> {
                let own = targets.iter();
                let own = own.filter(|one| one.name == *name && one.is_entry == is_entry);
                own.filter_map(|one| self.port_of(one)).collect()
            };
            let source = format!("{kind}/{}/{}", policy.namespace, policy.name);
            match kind {
                Kind::HealthCheck => {
                    let Some(facts) = self.backing.checks.get(policy) else {
                        continue;
                    };
                    let Some(check) = &facts.check else { continue };
                    for port in targets(&facts.targets) {
                        found.checks.push((port, check.clone()));
                    }
                }
                _ => {
                    let Some(facts) = self.backing.tls.get(policy) else {
                        continue;
                    };
                    for port in targets(&facts.targets) {
                        found.tls.push((port, facts.tls(self.anchors(facts))));
                    }
                }
            }
            found.sources.push(source.into());
        }
        found
    }

    /// The port that a target names; `None`: it has no such port.
    pub(super) fn port_of(&self, target: &BackendTarget) -> Option<Option<u16>> {
        let Some(wanted) = target.port.as_deref() else {
            return Some(None);
        };
        let found = match target.is_entry {
            false => {
                let facts = self.services.get(&target.name)?;
                let port = facts.ports.iter().find(|port| *port.name == *wanted);
                port.map(|port| port.number)
            }
            true => {
                let facts = self.entries.get(&target.name)?;
                let port = facts.spec.ports.iter().find(|port| port.name == wanted);
                port.map(|port| port.number)
            }
        };
        found.map(Some)
    }

    /// The roots that are there; connections fail where there are none.
    pub(super) fn anchors(&self, facts: &BackendTlsFacts) -> Result<TrustAnchors, String> {
        let maps = match &facts.roots {
            RootsOf::System => return Ok(TrustAnchors::System),
            RootsOf::ConfigMaps(maps) => maps,
        };
        let known = maps.iter().filter_map(|map| self.root(map).ok());
        let pem: Vec<&str> = known.collect();
        if pem.is_empty() {
            let mut missing = self.missing_roots(facts);
            missing.extend(facts.invalid_kind.clone());
            return Err(format!("{}: connections fail", missing.join("; ")));
        }
        Ok(TrustAnchors::Pem(pem.join("\n").into()))
    }

    /// Why roots that a policy names cannot be had.
    pub(super) fn missing_roots(&self, facts: &BackendTlsFacts) -> Vec<String> {
        let maps = maps(Some(facts)).iter();
        maps.filter_map(|map| self.root(map).err()).collect()
    }

    fn root(&self, map: &Name) -> Result<&str, String> {
        let Name { namespace, name } = map;
        let roots = self.backing.roots.get(map).ok_or_else(|| {
            format!("ConfigMap {namespace}/{name} is not there, or has no {ROOTS_KEY}")
        })?;
        match roots.contains(PEM_BEGIN) && roots.contains(PEM_END) {
            true => Ok(roots),
            false => Err(format!(
                "{ROOTS_KEY} of ConfigMap {namespace}/{name} holds no certificate as PEM"
            )),
        }
    }

    /// Tells the authors of what is marked, and of what targets objects that are.
    pub(super) fn flush_backing(
        &mut self,
        mut policies: HashSet<(Kind, Name)>,
        changed: &[&HashSet<Name>],
        delta: &mut Delta,
    ) {
        for name in changed.iter().flat_map(|names| names.iter()) {
            let of = self.backing.by_target.get(name);
            policies.extend(of.into_iter().flatten().cloned());
        }
        for (kind, name) in policies {
            let (complaints, targets, roots) = match kind {
                Kind::HealthCheck => match self.backing.checks.get(&name) {
                    Some(facts) => (facts.complaints.clone(), facts.targets.clone(), None),
                    None => (Vec::new(), Vec::new(), None),
                },
                _ => match self.backing.tls.get(&name) {
                    Some(facts) => {
                        let why = self.anchors(facts).err();
                        (facts.complaints.clone(), facts.targets.clone(), why)
                    }
                    None => (Vec::new(), Vec::new(), None),
                },
            };
            let mut conditions = complaints;
            if let Some(why) = roots.filter(|_| conditions.is_empty()) {
                conditions.push(refused("ResolvedRefs", why));
            }
            let verdicts: Vec<Condition> =
                targets.iter().map(|target| self.backed(target)).collect();
            let holds = conditions.is_empty() && verdicts.iter().all(|one| one.status);
            conditions.extend(verdicts.into_iter().filter(|one| !one.status || holds));
            self.set_conditions(key(kind, &name), conditions, delta);
            if kind == Kind::BackendTlsPolicy {
                self.flush_ancestors(&name, delta);
            }
        }
    }

    pub(super) fn backed(&self, target: &BackendTarget) -> Condition {
        let reached = self.reach(&target_reference(target)).condition;
        if reached.status && self.port_of(target).is_none() {
            let port = target.port.as_deref().unwrap_or_default();
            let name = &target.name;
            return refused(
                "TargetNotFound",
                format!("{}/{} has no port named {port}", name.namespace, name.name),
            );
        }
        Condition {
            kind: ConditionType::Accepted,
            ..reached
        }
    }
}

pub(super) fn target_reference(target: &BackendTarget) -> TargetRef {
    match target.is_entry {
        true => TargetRef::Entry(target.name.clone()),
        false => TargetRef::Service(target.name.clone()),
    }
}

fn maps(facts: Option<&BackendTlsFacts>) -> &[Name] {
    match facts.map(|facts| &facts.roots) {
        Some(RootsOf::ConfigMaps(maps)) => maps,
        Some(RootsOf::System) | None => &[],
    }
}
