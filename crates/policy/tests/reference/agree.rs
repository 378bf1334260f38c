//! Compares one decision of the product, both ways, with the naive evaluator's.

use std::sync::Arc;

use karst_model::policy::{Action, Authorization};

use super::{
    Compiled, Connection, Decision, DenyReason, DryRunAllow, RuleRef, Verdict,
    cases::PolicySet,
    naive::{self, DryRunAllowed, Expected, Outcome},
};

/// The product's two evaluators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evaluator {
    Decide,
    Explain,
}

/// `Err` says where the evaluator differs from the naive one.
pub(crate) fn check(
    evaluator: Evaluator,
    set: &PolicySet,
    compiled: &Compiled,
    connection: &Connection,
) -> Result<(), String> {
    let policies: Vec<&Authorization> = set.policies.iter().map(Arc::as_ref).collect();
    let expected = naive::evaluate(&policies, set.missing.len(), connection);
    if evaluator == Evaluator::Decide {
        return check_decision(set, &compiled.decide(connection), &expected, connection);
    }
    let explanation = compiled.explain(connection);
    check_decision(set, &explanation.decision, &expected, connection)?;
    match &explanation.allowed_by {
        Some(rule) => check_rule(set, rule, Action::Allow, false, connection),
        None => Ok(()),
    }
}

fn check_decision(
    set: &PolicySet,
    decision: &Decision,
    expected: &Expected,
    connection: &Connection,
) -> Result<(), String> {
    let verdict = match &decision.verdict {
        Verdict::Allow => Outcome::Allowed,
        Verdict::Deny(DenyReason::Policy(_)) => Outcome::DeniedByPolicy,
        Verdict::Deny(DenyReason::Missing(_)) => Outcome::DeniedByMissing,
        Verdict::Deny(DenyReason::NotAllowed) => Outcome::NotAllowed,
    };
    let dry_run_allow = match &decision.dry_run.allow {
        DryRunAllow::Silent => DryRunAllowed::Silent,
        DryRunAllow::Matches(_) => DryRunAllowed::Matches,
        DryRunAllow::WouldDeny => DryRunAllowed::WouldDeny,
    };
    let found = Expected {
        verdict,
        dry_run_deny: decision.dry_run.deny.is_some(),
        dry_run_allow,
    };
    if found != *expected {
        return Err(format!(
            "{found:?}, but the naive evaluator says {expected:?}"
        ));
    }
    if let Verdict::Deny(DenyReason::Policy(rule)) = &decision.verdict {
        check_rule(set, rule, Action::Deny, false, connection)?;
    }
    if let Some(rule) = &decision.dry_run.deny {
        check_rule(set, rule, Action::Deny, true, connection)?;
    }
    if let DryRunAllow::Matches(rule) = &decision.dry_run.allow {
        check_rule(set, rule, Action::Allow, true, connection)?;
    }
    Ok(())
}

/// The rule that a decision names must be of the right kind and match.
fn check_rule(
    set: &PolicySet,
    named: &RuleRef,
    action: Action,
    dry_run: bool,
    connection: &Connection,
) -> Result<(), String> {
    let policy = set
        .policies
        .iter()
        .find(|policy| policy.key == named.policy);
    let right = policy.is_some_and(|policy| {
        policy.action == action
            && policy.dry_run == dry_run
            && policy
                .rules
                .get(named.rule)
                .is_some_and(|rule| naive::rule_matches(rule, action, connection))
    });
    if right {
        Ok(())
    } else {
        Err(format!("{named} is named and does not match"))
    }
}
