//! Compares one decision of the product about a request, both ways, with the naive evaluator's.

use std::sync::Arc;

use karst_model::waypoint_policy::{RequestAction, WaypointPolicy};

use super::{
    Asked, DenyReason, DryRunAllow, RequestDecision, RequestPolicies, RuleRef, Verdict,
    cases::{Case, PolicySet},
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
    compiled: &RequestPolicies,
    case: &Case,
) -> Result<(), String> {
    let policies: Vec<&WaypointPolicy> = set.policies.iter().map(Arc::as_ref).collect();
    let expected = naive::evaluate(&policies, set.missing.len(), case);
    let request = case.request();
    let asked = Asked {
        request: &request,
        connection: &case.connection,
        remote_ip: case.remote_ip,
        sni: case.sni.as_deref(),
    };
    if evaluator == Evaluator::Decide {
        return check_decision(set, &compiled.decide(&asked), &expected, case);
    }
    let explanation = compiled.explain(&asked);
    check_decision(set, &explanation.decision, &expected, case)?;
    match &explanation.allowed_by {
        Some(rule) => check_rule(set, rule, RequestAction::Allow, case),
        None => Ok(()),
    }
}

fn check_decision(
    set: &PolicySet,
    decision: &RequestDecision,
    expected: &Expected,
    case: &Case,
) -> Result<(), String> {
    let found = Expected {
        verdict: match &decision.verdict {
            Verdict::Allow => Outcome::Allowed,
            Verdict::Deny(DenyReason::Policy(_)) => Outcome::DeniedByPolicy,
            Verdict::Deny(DenyReason::Missing(_)) => Outcome::DeniedByMissing,
            Verdict::Deny(DenyReason::NotAllowed) => Outcome::NotAllowed,
        },
        audit: decision.audit.is_some(),
        dry_run_deny: decision.dry_run.deny.is_some(),
        dry_run_allow: match &decision.dry_run.allow {
            DryRunAllow::Silent => DryRunAllowed::Silent,
            DryRunAllow::Matches(_) => DryRunAllowed::Matches,
            DryRunAllow::WouldDeny => DryRunAllowed::WouldDeny,
        },
    };
    if found != *expected {
        return Err(format!(
            "{found:?}, but the naive evaluator says {expected:?}"
        ));
    }
    if let Verdict::Deny(DenyReason::Policy(rule)) = &decision.verdict {
        check_rule(set, rule, RequestAction::Deny, case)?;
    }
    if let Some(rule) = &decision.audit {
        check_rule(set, rule, RequestAction::Audit, case)?;
    }
    if let Some(rule) = &decision.dry_run.deny {
        check_rule(set, rule, RequestAction::Deny, case)?;
    }
    if let DryRunAllow::Matches(rule) = &decision.dry_run.allow {
        check_rule(set, rule, RequestAction::Allow, case)?;
    }
    Ok(())
}

/// The rule that a decision names must be of the right kind and match.
fn check_rule(
    set: &PolicySet,
    named: &RuleRef,
    action: RequestAction,
    case: &Case,
) -> Result<(), String> {
    let policy = set
        .policies
        .iter()
        .find(|policy| policy.key == named.policy);
    let rule = policy
        .filter(|policy| policy.action == action)
        .and_then(|policy| policy.rules.get(named.rule));
    match rule.is_some_and(|rule| naive::rule_matches(rule, action, case)) {
        true => Ok(()),
        false => Err(format!("{named} is named and does not match")),
    }
}
