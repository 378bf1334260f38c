//! The names of the mesh's trust domain: taken from the mesh configuration, and told to everybody.

use karst_model::{
    policy::{Authorization, Clause},
    rate_limit::LimitRule,
    waypoint_policy::RequestRule,
};

use super::Index;
use crate::{
    conditions::{Condition, ConditionType},
    delta::Delta,
    trust_domains,
};

impl Index {
    /// Takes what the mesh configuration says. With other names every policy is another.
    pub(super) fn trust_configured(&mut self) {
        let home = self.config.trust_domain.clone();
        if !self.trust.configure(&home, &self.recording.mesh_config) {
            return;
        }
        self.dirty.trust = true;
        self.dirty.policies.extend(self.policies.keys().cloned());
        let gateways = self.waypoints.all().map(|(name, _)| name.clone());
        self.dirty.gateways.extend(gateways);
        let services = self.services.keys().map(|name| (name.clone(), false));
        self.dirty.seals.extend(services);
        let entries = self.entries.keys().map(|name| (name.clone(), true));
        self.dirty.seals.extend(entries);
        self.every_limit();
    }

    pub(super) fn flush_trust(&self, is_dirty: bool, delta: &mut Delta) {
        delta.trust_domains = is_dirty.then(|| self.trust.now().clone());
    }

    /// What the author of the mesh configuration is told of it.
    pub(super) fn trust_condition(&self) -> Option<Condition> {
        let names = self.trust.now();
        if names.aliases.is_empty() {
            return None;
        }
        let aliases: Vec<&str> = names.aliases.iter().map(|one| &*one.0).collect();
        let message = format!(
            "certificates are issued in trust domain {}; these names are the same to every peer and policy: {}",
            names.own,
            aliases.join(", ")
        );
        Some(Condition::yes(
            ConditionType::Accepted,
            "TrustDomain",
            message,
        ))
    }

    /// A policy with its principals by every name of the mesh.
    pub(super) fn by_every_name(&self, mut policy: Authorization) -> Authorization {
        let clauses = policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses);
        let matches = clauses.flat_map(|clause: &mut Clause| &mut clause.matches);
        matches.for_each(|part| trust_domains::write_out(self.trust.now(), part));
        policy
    }

    /// The same of rules about requests.
    pub(super) fn rules_by_every_name(&self, rules: &[RequestRule]) -> Vec<RequestRule> {
        let mut rules = rules.to_vec();
        let clauses = rules.iter_mut().flat_map(|rule| &mut rule.clauses);
        let matches = clauses.flat_map(|clause| &mut clause.matches);
        matches.for_each(|one| trust_domains::write_out(self.trust.now(), &mut one.connection));
        rules
    }

    /// The same of rules that count.
    pub(super) fn limits_by_every_name(&self, rules: &[LimitRule]) -> Vec<LimitRule> {
        let mut rules = rules.to_vec();
        let matches = rules.iter_mut().flat_map(|rule| &mut rule.matches);
        matches.for_each(|one| trust_domains::write_out(self.trust.now(), &mut one.connection));
        rules
    }
}
