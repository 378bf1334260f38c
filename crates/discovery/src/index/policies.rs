//! Policies by key and by the namespace that they cover.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;
use karst_model::{
    name::PolicyKey,
    policy::{Authorization, PolicyScope},
    workload::Workload,
};

#[derive(Default)]
pub(crate) struct Policies {
    by_key: HashMap<PolicyKey, Arc<Authorization>>,
    /// Policies of scope namespace under their namespace, of scope global under the empty name.
    by_namespace: HashMap<Arc<str>, BTreeMap<PolicyKey, Arc<Authorization>>>,
}

/// The policies of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoliciesFor {
    /// Global, then of the namespace, then by selector; each policy once.
    pub policies: Vec<Arc<Authorization>>,
    /// Keys that the workload lists and that are not here (yet): until they are, nothing may be allowed.
    pub missing: Vec<PolicyKey>,
}

impl Policies {
    /// Inserts or replaces; whether anything changed.
    pub(super) fn insert(&mut self, policy: Arc<Authorization>) -> bool {
        if self.by_key.get(&policy.key) == Some(&policy) {
            return false;
        }
        self.remove(&policy.key);
        if let Some(namespace) = covered(&policy) {
            self.by_namespace
                .entry(namespace)
                .or_default()
                .insert(policy.key.clone(), policy.clone());
        }
        self.by_key.insert(policy.key.clone(), policy);
        true
    }

    /// Removes by what the policy *was*, as its scope may have changed since.
    pub(super) fn remove(&mut self, key: &PolicyKey) -> bool {
        let Some(old) = self.by_key.remove(key) else {
            return false;
        };
        if let Some(namespace) = covered(&old)
            && let Some(policies) = self.by_namespace.get_mut(&namespace)
        {
            policies.remove(key);
            if policies.is_empty() {
                self.by_namespace.remove(&namespace);
            }
        }
        true
    }

    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Authorization>> {
        self.by_key.get(key)
    }

    pub(crate) fn for_workload(&self, workload: &Workload) -> PoliciesFor {
        let of = |namespace: &str| {
            self.by_namespace
                .get(namespace)
                .into_iter()
                .flat_map(|p| p.values().cloned())
        };
        let mut found = PoliciesFor {
            policies: of("").collect(),
            missing: Vec::new(),
        };
        if !workload.namespace.is_empty() {
            found.policies.extend(of(&workload.namespace));
        }
        let by_scope = found.policies.len();
        for key in &workload.policies {
            match self.by_key.get(key) {
                None => found.missing.push(key.clone()),
                Some(_) if found.policies[..by_scope].iter().any(|p| p.key == *key) => {}
                Some(policy) => found.policies.push(policy.clone()),
            }
        }
        found
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.by_key.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// The namespace whose workloads the policy covers without being listed; empty for all.
fn covered(policy: &Authorization) -> Option<Arc<str>> {
    match policy.scope {
        PolicyScope::Global => Some("".into()),
        PolicyScope::Namespace => Some(policy.key.namespace.clone()),
        PolicyScope::WorkloadSelector => None,
    }
}
