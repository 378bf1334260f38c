//! The policies of one workload, ready to decide.

use std::sync::Arc;

use karst_model::{name::PolicyKey, policy::Authorization};

use crate::{
    compare::{Site, holds},
    connection::{Connection, View},
    decision::{Decision, DenyReason, DryRun, DryRunAllow, RuleRef, Verdict},
    explain::{self, Explanation},
    index::{Hits, Index, Phase, Place},
};

/// All policies that apply to one workload. Immutable: a change of policies compiles a new one.
#[derive(Debug)]
pub struct Compiled {
    /// Sorted by key, so that the outcome does not depend on the order in which they came.
    policies: Vec<Arc<Authorization>>,
    missing: Vec<PolicyKey>,
    index: Index,
    /// Whether ALLOW policies apply, even such without rules.
    allow_applies: bool,
    dry_run_allow_applies: bool,
}

impl Compiled {
    /// Compiles the policies that [`crate::applies`] says yes to. `missing` are keys that the workload lists and that
    /// have not been received: they deny everything until they come.
    pub fn compile(
        policies: impl Iterator<Item = Arc<Authorization>>,
        missing: &[PolicyKey],
    ) -> Self {
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        let index = Index::new(policies.iter().map(AsRef::as_ref));
        let applies = |phase| policies.iter().any(|policy| Phase::of(policy) == phase);
        let (allow_applies, dry_run_allow_applies) =
            (applies(Phase::Allow), applies(Phase::DryRunAllow));
        Self {
            policies,
            missing: missing.to_vec(),
            index,
            allow_applies,
            dry_run_allow_applies,
        }
    }

    /// Whether the connection may go on. Does not allocate when it may.
    pub fn decide(&self, connection: &Connection) -> Decision {
        let view = View::new(connection);
        let hits = self.index.hits(&view);
        let matching = |phase| {
            self.index
                .matching(phase, &hits, &view)
                .map(|place| self.rule_ref(place))
        };
        let mut dry_run = DryRun {
            deny: matching(Phase::DryRunDeny),
            allow: DryRunAllow::Silent,
        };
        if let Some(rule) = matching(Phase::Deny) {
            return Decision {
                verdict: Verdict::Deny(DenyReason::Policy(rule)),
                dry_run,
            };
        }
        if holds(Site::Missing, !self.missing.is_empty()) {
            let key = self
                .missing
                .first()
                .cloned()
                .unwrap_or_else(explain::nameless);
            return Decision {
                verdict: Verdict::Deny(DenyReason::Missing(key)),
                dry_run,
            };
        }
        dry_run.allow = self.dry_run_allow(&hits, &view);
        Decision {
            verdict: self.allow(&hits, &view),
            dry_run,
        }
    }

    fn allow(&self, hits: &Hits, view: &View<'_>) -> Verdict {
        let applies = holds(Site::AllowApplies, self.allow_applies);
        if !applies || self.index.matching(Phase::Allow, hits, view).is_some() {
            return Verdict::Allow;
        }
        Verdict::Deny(DenyReason::NotAllowed)
    }

    fn dry_run_allow(&self, hits: &Hits, view: &View<'_>) -> DryRunAllow {
        if !holds(Site::DryRunAllowApplies, self.dry_run_allow_applies) {
            return DryRunAllow::Silent;
        }
        match self.index.matching(Phase::DryRunAllow, hits, view) {
            Some(place) => DryRunAllow::Matches(self.rule_ref(place)),
            None if holds(Site::AllowApplies, self.allow_applies) => DryRunAllow::Silent,
            None => DryRunAllow::WouldDeny,
        }
    }

    fn rule_ref(&self, place: Place) -> RuleRef {
        RuleRef {
            policy: self.policies[place.policy as usize].key.clone(),
            rule: place.rule as usize,
        }
    }

    /// The same decision, with what every policy says about it. Takes time and memory in proportion to the policies.
    pub fn explain(&self, connection: &Connection) -> Explanation {
        explain::explain(
            self.policies.iter().map(AsRef::as_ref),
            &self.missing,
            connection,
        )
    }

    /// How many policies apply.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}
