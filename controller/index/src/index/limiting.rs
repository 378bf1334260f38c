//! Rate limits: which waypoints count each, and what its author is told.

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::Kind;
use karst_model::{
    name::{GatewayKey, PolicyKey},
    rate_limit::{LimitScope, LimitTarget, RateLimit},
    route::{RouteKey, RouteKind},
    waypoint_policy::PolicyTarget,
};

use super::{Index, governing::Reached, key};
use crate::{
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    rate_limits::{LimitFacts, LimitTargetRef, refused},
    selector::remove_from,
};

/// Everything that is known of rate limits.
#[derive(Debug, Default)]
pub(super) struct Limiting {
    facts: HashMap<Name, LimitFacts>,
    /// Limits that target an object of this name, whatever its kind.
    by_target: HashMap<Name, HashSet<Name>>,
    /// Limits that target routes, whose waypoints may change with any service.
    of_routes: HashSet<Name>,
    /// The waypoints that were told of each.
    told: HashMap<Name, HashSet<GatewayKey>>,
}

impl Index {
    pub(super) fn rate_limit(&mut self, name: &Name, after: Option<LimitFacts>) {
        let known = &mut self.limiting;
        if let Some(before) = known.facts.remove(name) {
            for target in &before.targets {
                remove_from(&mut known.by_target, target.name().clone(), name);
            }
            known.of_routes.remove(name);
        }
        if let Some(after) = after {
            for target in &after.targets {
                let of = known.by_target.entry(target.name().clone()).or_default();
                of.insert(name.clone());
                if matches!(target, LimitTargetRef::Route(..)) {
                    known.of_routes.insert(name.clone());
                }
            }
            known.facts.insert(name.clone(), after);
        }
        self.dirty.limits.insert(name.clone());
    }

    /// Compiles what is marked, and what targets objects that are. Routes have been told before.
    pub(super) fn flush_limits(
        &mut self,
        mut limits: HashSet<Name>,
        changed: &[&HashSet<Name>],
        delta: &mut Delta,
    ) {
        let names = changed.iter().flat_map(|names| names.iter());
        for name in names {
            let of = self.limiting.by_target.get(name);
            limits.extend(of.into_iter().flatten().cloned());
        }
        if !delta.routes.is_empty() || !delta.route_statuses.is_empty() {
            limits.extend(self.limiting.of_routes.iter().cloned());
        }
        limits.iter().for_each(|name| self.flush_limit(name, delta));
    }

    fn flush_limit(&mut self, name: &Name, delta: &mut Delta) {
        let object = key(Kind::RateLimit, name);
        let Some(facts) = self.limiting.facts.get(name) else {
            self.set_conditions(object, Vec::new(), delta);
            return self.tell_limit(name, None, HashSet::new(), delta);
        };
        let mut conditions = facts.complaints.clone();
        if facts.rules.is_empty() {
            self.set_conditions(object, conditions, delta);
            return self.tell_limit(name, None, HashSet::new(), delta);
        }
        let reached: Vec<Reached> = facts.targets.iter().map(|one| self.reach_of(one)).collect();
        let targets = facts.targets.iter().flat_map(|one| self.limit_targets(one));
        let limit = RateLimit {
            key: policy_key(name),
            targets: targets.collect(),
            enforcement: facts.enforcement,
            scope: LimitScope::Process,
            status: facts.status,
            headers: facts.headers,
            rules: self.limits_by_every_name(&facts.rules),
        };
        let holds = reached.iter().all(|one| one.condition.status);
        let verdicts = reached.iter().map(|one| Condition {
            kind: ConditionType::Accepted,
            ..one.condition.clone()
        });
        conditions.extend(verdicts.filter(|one| !one.status || holds));
        let waypoints = reached.into_iter().flat_map(|one| one.waypoints).collect();
        self.set_conditions(object, conditions, delta);
        self.tell_limit(name, Some(limit), waypoints, delta);
    }

    /// Every limit is to be compiled again.
    pub(super) fn every_limit(&mut self) {
        self.dirty
            .limits
            .extend(self.limiting.facts.keys().cloned());
    }

    /// Puts the limit into the tables of its waypoints, and out of those that it has left.
    fn tell_limit(
        &mut self,
        name: &Name,
        limit: Option<RateLimit>,
        waypoints: HashSet<GatewayKey>,
        delta: &mut Delta,
    ) {
        let before = self.limiting.told.remove(name).unwrap_or_default();
        let table = &mut self.out.rate_limits;
        for left in before.difference(&waypoints) {
            let row = (left.clone(), policy_key(name));
            table.set(row, None, &mut delta.rate_limits);
        }
        for waypoint in &waypoints {
            let row = (waypoint.clone(), policy_key(name));
            table.set(row, limit.clone(), &mut delta.rate_limits);
        }
        if !waypoints.is_empty() {
            self.limiting.told.insert(name.clone(), waypoints);
        }
    }

    /// A target in the words of the model, whether or not it is there.
    fn limit_targets(&self, target: &LimitTargetRef) -> Vec<LimitTarget> {
        match target {
            LimitTargetRef::Route(kind, name) => vec![LimitTarget::Route(route_key(*kind, name))],
            LimitTargetRef::Object(target) => {
                let targets = self.policy_targets(target).into_iter();
                let targets = targets.filter_map(|target| match target {
                    PolicyTarget::Service(service) => Some(LimitTarget::Service(service)),
                    PolicyTarget::Gateway { namespace, name } => {
                        Some(LimitTarget::Gateway { namespace, name })
                    }
                    PolicyTarget::GatewayClass(_) => None,
                });
                targets.collect()
            }
        }
    }

    /// The waypoints that count for one target.
    fn reach_of(&self, target: &LimitTargetRef) -> Reached {
        let (kind, name) = match target {
            LimitTargetRef::Object(target) => return self.reach(target),
            LimitTargetRef::Route(kind, name) => (*kind, name),
        };
        let shown = format!("{} {}/{}", kind.as_str(), name.namespace, name.name);
        let nowhere = |reason, message| Reached {
            waypoints: Vec::new(),
            condition: refused(reason, message),
        };
        match self.routes.waypoints_of(&route_key(kind, name)) {
            None => nowhere("TargetNotFound", format!("there is no {shown}")),
            Some(waypoints) if waypoints.is_empty() => nowhere(
                "AncestorNotBound",
                format!("{shown} is followed by no waypoint, and nobody else counts requests"),
            ),
            Some(waypoints) => {
                let mut waypoints: Vec<GatewayKey> = waypoints.into_iter().collect();
                waypoints.sort();
                let names: Vec<String> = waypoints.iter().map(ToString::to_string).collect();
                let message = format!("enforced by waypoint {}", names.join(", "));
                Reached {
                    waypoints,
                    condition: Condition::yes(ConditionType::Accepted, "Accepted", message),
                }
            }
        }
    }
}

fn route_key(kind: RouteKind, name: &Name) -> RouteKey {
    RouteKey {
        kind,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

fn policy_key(name: &Name) -> PolicyKey {
    PolicyKey {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}
