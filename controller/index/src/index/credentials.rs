//! Which Secrets are to be read for which services at which waypoints, what reading them has come to, and what the authors
//! of DestinationRules are told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use karst_model::name::{GatewayKey, ServiceKey};

use super::Index;
use crate::{
    conditions::{Condition, ConditionType},
    credentials::{LookedUp, Lookup, ReadSecret, SecretName},
    delta::Delta,
    destination_rules::RuleFacts,
    selector::remove_from,
};

/// Problems that one condition tells.
const TOLD_MAX: usize = 3;

/// A service at a waypoint.
type Place = (ServiceKey, GatewayKey);

/// Everything that is known of Secrets.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    read: HashMap<SecretName, ReadSecret>,
    looked_up: HashMap<Place, LookedUp>,
    by_secret: HashMap<SecretName, HashSet<Place>>,
    /// Others are to be read than were told.
    others: bool,
}

impl Credentials {
    /// For waypoints of a namespace.
    pub(super) fn lookup(&self, namespace: &str) -> Lookup<'_> {
        Lookup::new(&self.read, namespace)
    }

    /// What a service at a waypoint needs from now on.
    pub(super) fn refer(&mut self, place: &Place, after: LookedUp) {
        for secret in &after.secrets {
            let of = self.by_secret.entry(secret.clone()).or_insert_with(|| {
                self.others = true;
                HashSet::new()
            });
            of.insert(place.clone());
        }
        let stays = after.secrets.clone();
        let before = match after.named.is_empty() {
            true => self.looked_up.remove(place),
            false => self.looked_up.insert(place.clone(), after),
        };
        for secret in before.into_iter().flat_map(|before| before.secrets) {
            if !stays.contains(&secret) {
                remove_from(&mut self.by_secret, secret, place);
                self.others = true;
            }
        }
    }

    /// By `credentialName`, with what is wrong.
    fn named(&self, place: &Place) -> Option<&BTreeMap<Arc<str>, Option<String>>> {
        self.looked_up.get(place).map(|one| &one.named)
    }
}

impl Index {
    /// A Secret was read, or cannot be.
    pub(super) fn secret(&mut self, secret: SecretName, read: ReadSecret) {
        let known = &mut self.traffic.credentials;
        let of = known.by_secret.get(&secret).into_iter().flatten();
        let services = of.map(|(service, _)| service.clone());
        self.dirty.traffic.extend(services);
        known.read.insert(secret, read);
    }

    /// Every Secret that is to be read.
    pub fn secrets(&self) -> BTreeSet<SecretName> {
        let known = &self.traffic.credentials;
        known.by_secret.keys().cloned().collect()
    }

    /// Forgets what nobody needs, and says what is to be read where that has changed.
    pub(super) fn flush_credentials(&mut self, delta: &mut Delta) {
        let known = &mut self.traffic.credentials;
        let wanted = &known.by_secret;
        known.read.retain(|secret, _| wanted.contains_key(secret));
        if std::mem::take(&mut known.others) {
            delta.secrets = Some(self.secrets());
        }
    }

    /// Whether the Secrets that a rule names can be used where it holds; nothing where it names none.
    pub(super) fn credential_condition(
        &self,
        facts: &RuleFacts,
        uses: &BTreeSet<Place>,
    ) -> Option<Condition> {
        let names = facts.secrets();
        if names.is_empty() {
            return None;
        }
        let known = &self.traffic.credentials;
        let named = uses.iter().filter_map(|place| known.named(place)).flatten();
        let own: Vec<_> = named.filter(|(name, _)| names.contains(*name)).collect();
        let wrong = own.iter().filter_map(|(_, problem)| problem.as_deref());
        let wrong: BTreeSet<&str> = wrong.collect();
        let kind = ConditionType::ResolvedRefs;
        if wrong.is_empty() {
            let message = "the Secrets that it names are in use";
            return (!own.is_empty()).then(|| Condition::yes(kind, "ResolvedRefs", message));
        }
        let told: Vec<&str> = wrong.into_iter().take(TOLD_MAX).collect();
        Some(Condition::no(
            kind,
            "InvalidCertificateRef",
            told.join("; "),
        ))
    }
}
