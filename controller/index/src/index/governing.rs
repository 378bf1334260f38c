//! Request policies: which waypoints enforce each, and what its author is told.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{Kind, gateway::gateway_class::WAYPOINT_CLASS};
use karst_model::{
    external::ExternalAuthorizer,
    name::{GatewayKey, PolicyKey, ServiceKey},
    waypoint_policy::{PolicyTarget, WaypointPolicy},
};

use super::{Index, apply, key};
use crate::{
    authorizers,
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    policies::PolicyFacts,
    request_policies::{TargetRef, refused},
    seals::Standing,
    selector::remove_from,
    services,
    waypoints::Binding,
};

/// Who depends on what.
#[derive(Debug, Default)]
pub(super) struct Governing {
    /// Policies that target an object of this name, whatever its kind.
    by_target: HashMap<Name, HashSet<Name>>,
    /// Policies that target a class: every Gateway matters to them.
    of_classes: HashSet<Name>,
    /// Policies with action CUSTOM: the mesh configuration and every service may matter to them.
    custom: HashSet<Name>,
    /// The waypoints that were told of each policy.
    told: HashMap<Name, HashSet<GatewayKey>>,
}

/// What one target comes to.
pub(super) struct Reached {
    pub(super) waypoints: Vec<GatewayKey>,
    pub(super) condition: Condition,
}

impl Index {
    /// Takes the targets of a policy that has changed from `before`.
    pub(super) fn govern(&mut self, policy: &Name, before: Option<&PolicyFacts>) {
        self.governing.custom.remove(policy);
        let facts = self.policies.get(policy);
        if facts.is_some_and(|facts| facts.provider().is_some()) {
            self.governing.custom.insert(policy.clone());
        }
        for target in targets(before) {
            match named(target) {
                Some(name) => remove_from(&mut self.governing.by_target, name.clone(), policy),
                None => drop(self.governing.of_classes.remove(policy)),
            }
        }
        let after: Vec<TargetRef> = targets(self.policies.get(policy)).to_vec();
        for target in targets(before).iter().chain(&after) {
            // Its status and its seal speak of the policy, also where nobody sees the object.
            match target {
                TargetRef::Service(name) => self.mark_service(name),
                TargetRef::Entry(name) => self.mark_entry(name),
                TargetRef::Gateway(_) | TargetRef::GatewayClass(_) => {}
            }
        }
        for target in &after {
            match named(target) {
                Some(name) => {
                    let of = self.governing.by_target.entry(name.clone()).or_default();
                    of.insert(policy.clone());
                }
                None => drop(self.governing.of_classes.insert(policy.clone())),
            }
        }
        self.seal_targets(policy);
    }

    /// An entry has other hosts now, which policies may target.
    pub(super) fn entry_governed(&mut self, entry: &Name) {
        let policies = self.governing.by_target.get(entry);
        let policies: Vec<Name> = policies.into_iter().flatten().cloned().collect();
        policies.iter().for_each(|policy| self.seal_targets(policy));
    }

    /// Seals what an enforced policy targets; what one in dry run would seal is said. An audit protects nothing that could be
    /// gone around.
    fn seal_targets(&mut self, policy: &Name) {
        let facts = self.policies.get(policy);
        let standing = facts.and_then(PolicyFacts::seals);
        let refs = targets(facts.filter(|_| standing.is_some())).to_vec();
        let targets: Vec<PolicyTarget> = refs
            .iter()
            .flat_map(|target| self.policy_targets(target))
            .collect();
        let standing = standing.unwrap_or(Standing::InForce);
        self.target_policy(&policy_key(policy), standing, &targets);
    }

    /// Compiles what is marked, and what targets objects that are.
    pub(super) fn flush_governing(
        &mut self,
        policies: &HashSet<Name>,
        changed: &[&HashSet<Name>],
        gateways: &HashSet<Name>,
        delta: &mut Delta,
    ) {
        let mut all = policies.clone();
        for name in changed
            .iter()
            .flat_map(|names| names.iter())
            .chain(gateways)
        {
            let of = self.governing.by_target.get(name);
            all.extend(of.into_iter().flatten().cloned());
        }
        if changed.iter().any(|names| !names.is_empty()) {
            all.extend(self.governing.custom.iter().cloned());
        }
        if !gateways.is_empty() {
            all.extend(self.governing.of_classes.iter().cloned());
        }
        all.iter().for_each(|name| self.flush_governed(name, delta));
    }

    fn flush_governed(&mut self, name: &Name, delta: &mut Delta) {
        let facts = self.policies.get(name);
        let request = facts.and_then(|facts| Some((facts, facts.request.as_ref()?)));
        let Some((facts, request)) = request else {
            return self.tell_policy(name, None, HashSet::new(), delta);
        };
        let reached: Vec<Reached> = request.targets.iter().map(|one| self.reach(one)).collect();
        let targets = request
            .targets
            .iter()
            .flat_map(|one| self.policy_targets(one));
        let (provider, problem) = match &request.provider {
            None => (None, None),
            Some(name) => match self.authorizer(name) {
                Ok(provider) => (Some(Arc::new(provider)), None),
                Err(problem) => (None, Some(unasked(name, &problem))),
            },
        };
        let policy = WaypointPolicy {
            key: policy_key(name),
            targets: targets.collect(),
            action: request.action,
            provider,
            dry_run: facts.dry_run,
            rules: self.rules_by_every_name(&request.rules),
        };
        let mut conditions = request.complaints.clone();
        conditions.extend(problem);
        let holds = reached.iter().all(|one| one.condition.status);
        let verdicts = reached.iter().map(|one| &one.condition);
        // What does not hold is said; that the rest does would only be read as that all does.
        conditions.extend(verdicts.filter(|one| !one.status || holds).cloned());
        if facts.dry_run && conditions.iter().all(|one| one.status) {
            conditions.truncate(1);
            conditions.iter_mut().for_each(|one| {
                one.message = format!("only logged: dry run; {}", one.message);
            });
        }
        let waypoints = reached.into_iter().flat_map(|one| one.waypoints).collect();
        let object = key(Kind::AuthorizationPolicy, name);
        self.set_conditions(object, conditions, delta);
        self.tell_policy(name, Some(policy), waypoints, delta);
    }

    /// Everybody with action CUSTOM, since the mesh configuration has changed.
    pub(super) fn providers_changed(&mut self) {
        let custom = self.governing.custom.iter().cloned();
        self.dirty.policies.extend(custom);
    }

    /// The authorizer that the mesh configuration calls so.
    fn authorizer(&self, name: &str) -> Result<ExternalAuthorizer, String> {
        let providers = &self.mesh_config().extension_providers;
        let provider = providers.iter().find(|one| one.name == name);
        let provider = provider.ok_or("the mesh configuration has no provider of this name")?;
        authorizers::read(provider, |namespace, host| {
            let found = self.hosts.get(host)?.iter();
            let mut found = found.map(|claim| &claim.name.namespace);
            let namespace = found.find(|of| namespace.is_none_or(|wanted| *wanted == ***of))?;
            Some(ServiceKey {
                namespace: namespace.clone(),
                hostname: host.into(),
            })
        })
    }

    /// Puts the policy into the tables of its waypoints, and out of those that it has left.
    fn tell_policy(
        &mut self,
        name: &Name,
        policy: Option<WaypointPolicy>,
        waypoints: HashSet<GatewayKey>,
        delta: &mut Delta,
    ) {
        let before = self.governing.told.remove(name).unwrap_or_default();
        let table = &mut self.out.waypoint_policies;
        for left in before.difference(&waypoints) {
            let row = (left.clone(), policy_key(name));
            table.set(row, None, &mut delta.waypoint_policies);
        }
        for waypoint in &waypoints {
            let row = (waypoint.clone(), policy_key(name));
            table.set(row, policy.clone(), &mut delta.waypoint_policies);
        }
        if !waypoints.is_empty() {
            self.governing.told.insert(name.clone(), waypoints);
        }
    }

    /// A target in the words of the model, whether or not it is there.
    pub(super) fn policy_targets(&self, target: &TargetRef) -> Vec<PolicyTarget> {
        match target {
            TargetRef::Service(name) => vec![PolicyTarget::Service(ServiceKey {
                namespace: name.namespace.clone(),
                hostname: services::hostname(&self.config, name),
            })],
            TargetRef::Entry(name) => {
                let hosts = self.entries.get(name).map(apply::hosts_of);
                let hosts = hosts.into_iter().flatten();
                let service = |hostname| ServiceKey {
                    namespace: name.namespace.clone(),
                    hostname,
                };
                hosts
                    .map(|host| PolicyTarget::Service(service(host)))
                    .collect()
            }
            TargetRef::Gateway(name) => vec![PolicyTarget::Gateway {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            }],
            TargetRef::GatewayClass(class) => vec![PolicyTarget::GatewayClass(class.clone())],
        }
    }

    /// The waypoints that enforce a policy for one target.
    pub(super) fn reach(&self, target: &TargetRef) -> Reached {
        match target {
            TargetRef::Service(name) => match self.services.contains_key(name) {
                true => bound("Service", name, self.service_binding(name)),
                false => missing("Service", name),
            },
            TargetRef::Entry(name) => match self.entries.contains_key(name) {
                true => bound("ServiceEntry", name, self.entry_binding(name)),
                false => missing("ServiceEntry", name),
            },
            TargetRef::Gateway(name) => match self.waypoints.gateway(name) {
                Some(gateway) if self.waypoints.is_waypoint(gateway) => {
                    accepted(vec![gateway_key(name)])
                }
                Some(_) => {
                    let message = format!(
                        "Gateway {}/{} is no waypoint: the policy is not enforced there",
                        name.namespace, name.name
                    );
                    nowhere("Invalid", message)
                }
                None => missing("Gateway", name),
            },
            TargetRef::GatewayClass(class) => {
                let of_class = self.waypoints.all().filter(|(_, one)| one.class == *class);
                let waypoints: Vec<GatewayKey> =
                    of_class.map(|(name, _)| gateway_key(name)).collect();
                match waypoints.is_empty() && **class != *WAYPOINT_CLASS {
                    true => {
                        let message =
                            format!("no waypoint is of class {class}: the policy is not enforced");
                        nowhere("TargetNotFound", message)
                    }
                    false => accepted(waypoints),
                }
            }
        }
    }
}

/// What the author of a CUSTOM policy is told when nobody can be asked.
fn unasked(name: &str, problem: &str) -> Condition {
    refused(
        "ProviderNotFound",
        format!("provider {name:?}: {problem}; what the rules match is denied"),
    )
}

fn targets(facts: Option<&PolicyFacts>) -> &[TargetRef] {
    let request = facts.and_then(|facts| facts.request.as_ref());
    request
        .map(|request| request.targets.as_slice())
        .unwrap_or_default()
}

/// The object that a target names; none for a class.
fn named(target: &TargetRef) -> Option<&Name> {
    match target {
        TargetRef::Service(name) | TargetRef::Entry(name) | TargetRef::Gateway(name) => Some(name),
        TargetRef::GatewayClass(_) => None,
    }
}

fn accepted(mut waypoints: Vec<GatewayKey>) -> Reached {
    waypoints.sort();
    let names: Vec<String> = waypoints.iter().map(ToString::to_string).collect();
    let message = match names.is_empty() {
        true => "enforced by every waypoint of the class".to_owned(),
        false => format!("enforced by waypoint {}", names.join(", ")),
    };
    Reached {
        waypoints,
        condition: Condition::yes(ConditionType::WaypointAccepted, "Accepted", message),
    }
}

fn nowhere(reason: &'static str, message: String) -> Reached {
    Reached {
        waypoints: Vec::new(),
        condition: refused(reason, message),
    }
}

fn missing(kind: &str, name: &Name) -> Reached {
    let message = format!("there is no {kind} {}/{}", name.namespace, name.name);
    nowhere("TargetNotFound", message)
}

/// A target that a waypoint may be bound to. Without one the seal refuses its traffic.
fn bound(kind: &str, name: &Name, binding: Binding) -> Reached {
    if let Some(gateway) = binding.gateway() {
        return accepted(vec![gateway_key(gateway)]);
    }
    let message = format!(
        "{kind} {}/{} is bound to no waypoint, and nobody else can enforce the policy: label it, or its namespace, with istio.io/use-waypoint",
        name.namespace, name.name
    );
    nowhere("AncestorNotBound", message)
}

fn policy_key(name: &Name) -> PolicyKey {
    PolicyKey {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

fn gateway_key(name: &Name) -> GatewayKey {
    GatewayKey {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}
