//! RequestAuthentications: which waypoints verify tokens by each, with which keys, and what its author is told.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::Kind;
use karst_model::{
    name::{GatewayKey, PolicyKey},
    token::{RequestAuthentication, TokenKeys, TokenRule},
    waypoint_policy::PolicyTarget,
};

use super::{Index, governing::Reached, key};
use crate::{
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    request_authentications::{AuthenticationFacts, FetchedKeys, KeySource, RuleFacts},
    request_policies::TargetRef,
    seals::Standing,
    selector::remove_from,
};

/// Everything that is known of tokens.
#[derive(Debug, Default)]
pub(super) struct Authenticating {
    facts: HashMap<Name, AuthenticationFacts>,
    /// Objects that target one of this name, whatever its kind.
    by_target: HashMap<Name, HashSet<Name>>,
    /// Objects that target a class: every Gateway matters to them.
    of_classes: HashSet<Name>,
    by_source: HashMap<KeySource, HashSet<Name>>,
    fetched: HashMap<KeySource, FetchedKeys>,
    /// The waypoints that were told of each.
    told: HashMap<Name, HashSet<GatewayKey>>,
    /// The sources have changed since they were told.
    other_sources: bool,
}

impl Index {
    pub(super) fn request_authentication(
        &mut self,
        name: &Name,
        after: Option<AuthenticationFacts>,
    ) {
        let known = &mut self.authenticating;
        let before = known.facts.remove(name);
        if let Some(before) = &before {
            for target in &before.targets {
                match named(target) {
                    Some(target) => remove_from(&mut known.by_target, target.clone(), name),
                    None => drop(known.of_classes.remove(name)),
                }
            }
            for source in before.sources() {
                remove_from(&mut known.by_source, source, name);
            }
        }
        if let Some(after) = after {
            for target in &after.targets {
                match named(target) {
                    Some(target) => {
                        let of = known.by_target.entry(target.clone()).or_default();
                        of.insert(name.clone());
                    }
                    None => drop(known.of_classes.insert(name.clone())),
                }
            }
            for source in after.sources() {
                let of = known.by_source.entry(source).or_insert_with(|| {
                    known.other_sources = true;
                    HashSet::new()
                });
                of.insert(name.clone());
            }
            known.facts.insert(name.clone(), after);
        }
        // Only now: an object that comes again, with its status say, keeps the keys that its issuers have.
        for source in before.iter().flat_map(AuthenticationFacts::sources) {
            if !known.by_source.contains_key(&source) {
                known.fetched.remove(&source);
                known.other_sources = true;
            }
        }
        self.seal_authenticated(name);
        self.dirty.authentications.insert(name.clone());
    }

    /// Keys came, or did not.
    pub(super) fn keys(&mut self, source: KeySource, fetched: FetchedKeys) {
        let Some(of) = self.authenticating.by_source.get(&source) else {
            return;
        };
        self.dirty.authentications.extend(of.iter().cloned());
        self.authenticating.fetched.insert(source, fetched);
    }

    /// Everything that is to be fetched.
    pub fn key_sources(&self) -> BTreeSet<KeySource> {
        self.authenticating.by_source.keys().cloned().collect()
    }

    /// Tokens are verified at the waypoint, so nobody may go around it.
    fn seal_authenticated(&mut self, name: &Name) {
        let facts = self.authenticating.facts.get(name);
        let targets = facts.map(|facts| facts.targets.clone()).unwrap_or_default();
        let targets: Vec<PolicyTarget> = targets
            .iter()
            .flat_map(|target| self.policy_targets(target))
            .collect();
        // Beside policies of the same name.
        let sealer = PolicyKey {
            namespace: name.namespace.clone(),
            name: format!("{} (RequestAuthentication)", name.name).into(),
        };
        self.target_policy(&sealer, Standing::InForce, &targets);
    }

    /// An entry has other hosts now, which objects may target.
    pub(super) fn entry_authenticated(&mut self, entry: &Name) {
        let of = self.authenticating.by_target.get(entry);
        let of: Vec<Name> = of.into_iter().flatten().cloned().collect();
        of.iter().for_each(|name| self.seal_authenticated(name));
    }

    /// Compiles what is marked, and what targets objects that are.
    pub(super) fn flush_authentications(
        &mut self,
        mut marked: HashSet<Name>,
        changed: &[&HashSet<Name>],
        gateways: &HashSet<Name>,
        delta: &mut Delta,
    ) {
        let names = changed.iter().flat_map(|names| names.iter());
        for name in names.chain(gateways) {
            let of = self.authenticating.by_target.get(name);
            marked.extend(of.into_iter().flatten().cloned());
        }
        if !gateways.is_empty() {
            marked.extend(self.authenticating.of_classes.iter().cloned());
        }
        for name in &marked {
            self.flush_authentication(name, delta);
        }
        if std::mem::take(&mut self.authenticating.other_sources) {
            delta.key_sources = Some(self.key_sources());
        }
    }

    fn flush_authentication(&mut self, name: &Name, delta: &mut Delta) {
        let object = key(Kind::RequestAuthentication, name);
        let Some(facts) = self.authenticating.facts.get(name) else {
            self.set_conditions(object, Vec::new(), delta);
            return self.tell_authentication(name, None, HashSet::new(), delta);
        };
        let reached: Vec<Reached> = facts.targets.iter().map(|one| self.reach(one)).collect();
        let targets = facts
            .targets
            .iter()
            .flat_map(|one| self.policy_targets(one));
        let authentication = RequestAuthentication {
            key: policy_key(name),
            targets: targets.collect(),
            rules: facts
                .rules
                .iter()
                .map(|rule| self.with_keys(rule))
                .collect(),
        };
        let mut conditions = facts.complaints.clone();
        let holds = reached.iter().all(|one| one.condition.status);
        let verdicts = reached.iter().map(|one| one.condition.clone());
        conditions.extend(verdicts.filter(|one| !one.status || holds));
        conditions.extend(self.keys_condition(facts));
        let waypoints = reached.into_iter().flat_map(|one| one.waypoints).collect();
        self.set_conditions(object, conditions, delta);
        self.tell_authentication(name, Some(authentication), waypoints, delta);
    }

    fn with_keys(&self, rule: &RuleFacts) -> TokenRule {
        let fetched = rule
            .source
            .as_ref()
            .and_then(|source| self.authenticating.fetched.get(source));
        let keys = match fetched {
            None => return rule.rule.clone(),
            Some(fetched) => match (&fetched.keys, &fetched.problem) {
                (Some(text), _) => TokenKeys::Published(text.clone()),
                (None, Some(problem)) => TokenKeys::Missing(problem.clone()),
                (None, None) => return rule.rule.clone(),
            },
        };
        TokenRule {
            keys,
            ..rule.rule.clone()
        }
    }

    /// Whether the keys of all issuers are here.
    fn keys_condition(&self, facts: &AuthenticationFacts) -> Option<Condition> {
        let kind = ConditionType::KeysFetched;
        let (mut failed, mut waiting, mut total) = (Vec::new(), Vec::new(), 0);
        for rule in &facts.rules {
            let Some(source) = &rule.source else {
                continue;
            };
            total += 1;
            let issuer = &rule.rule.issuer;
            match self.authenticating.fetched.get(source) {
                None => waiting.push(format!("issuer {issuer}: not fetched yet")),
                Some(FetchedKeys {
                    keys,
                    problem: Some(problem),
                }) => failed.push(match keys {
                    Some(_) => format!("issuer {issuer}: {problem}; the last good keys are used"),
                    None => format!("issuer {issuer}: {problem}; its tokens are refused"),
                }),
                Some(FetchedKeys { keys: Some(_), .. }) => {}
                Some(_) => waiting.push(format!("issuer {issuer}: not fetched yet")),
            }
        }
        if total == 0 {
            return None;
        }
        Some(match (failed.is_empty(), waiting.is_empty()) {
            (true, true) => Condition::yes(kind, "Fetched", format!("keys of {total} issuers")),
            (true, false) => Condition::no(kind, "Pending", waiting.join("; ")),
            (false, _) => Condition::no(kind, "FetchFailed", failed.join("; ")),
        })
    }

    /// Puts it into the tables of its waypoints, and out of those that it has left.
    fn tell_authentication(
        &mut self,
        name: &Name,
        authentication: Option<RequestAuthentication>,
        waypoints: HashSet<GatewayKey>,
        delta: &mut Delta,
    ) {
        let before = self.authenticating.told.remove(name).unwrap_or_default();
        let table = &mut self.out.request_authentications;
        for left in before.difference(&waypoints) {
            let row = (left.clone(), policy_key(name));
            table.set(row, None, &mut delta.request_authentications);
        }
        for waypoint in &waypoints {
            let row = (waypoint.clone(), policy_key(name));
            table.set(
                row,
                authentication.clone(),
                &mut delta.request_authentications,
            );
        }
        if !waypoints.is_empty() {
            self.authenticating.told.insert(name.clone(), waypoints);
        }
    }
}

/// The object that a target names; none for a class.
fn named(target: &TargetRef) -> Option<&Name> {
    match target {
        TargetRef::Service(name) | TargetRef::Entry(name) | TargetRef::Gateway(name) => Some(name),
        TargetRef::GatewayClass(_) => None,
    }
}

fn policy_key(name: &Name) -> PolicyKey {
    PolicyKey {
        namespace: name.namespace.clone(),
        name: Arc::clone(&name.name),
    }
}
