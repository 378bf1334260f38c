//! Why a request is allowed or denied: every policy, rule and match in the order of their keys, without the index.

use std::{fmt, sync::Arc};

use karst_model::{
    name::PolicyKey,
    policy::{IpBlock, StringMatch},
    waypoint_policy::{PathPattern, RequestAction, RequestClause, RequestMatch, WaypointPolicy},
};
use serde::Serialize;

use super::{
    Phase, RequestDecision,
    matcher::{Compiled, Meaning, RequestAttribute, Rule, Rules},
    view::View,
};
use crate::{
    compare::{RequestSite, holds_request},
    decision::{DenyReason, DryRun, DryRunAllow, RuleRef, Verdict},
    explain::{Attribute, Outcome, RuleTrace, Unmet, block_text, string_text, unmet_of_connection},
};

/// A decision with every policy that was looked at. Its text form is meant for people, its fields for tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestExplanation {
    pub decision: RequestDecision,
    /// The rule that allowed it; `None` where it is denied or where no ALLOW policy applies.
    pub allowed_by: Option<RuleRef>,
    /// Policies that apply and have not been received.
    pub missing: Vec<PolicyKey>,
    /// In the order of their keys.
    pub policies: Vec<RequestTrace>,
}

/// What one policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestTrace {
    pub policy: PolicyKey,
    pub action: RequestAction,
    pub dry_run: bool,
    pub outcome: Outcome,
}

pub(super) fn explain(
    policies: &[Arc<WaypointPolicy>],
    rules: &Rules,
    missing: &[PolicyKey],
    view: &View<'_>,
) -> RequestExplanation {
    let traces: Vec<(Phase, RequestTrace)> = policies
        .iter()
        .enumerate()
        .map(|(index, policy)| {
            (
                Phase::of(policy),
                trace(policy, rules.of_policy(index), view),
            )
        })
        .collect();
    let (decision, allowed_by) = conclude(&traces, missing, view.is_request());
    RequestExplanation {
        decision,
        allowed_by,
        missing: missing.to_vec(),
        policies: traces.into_iter().map(|(_, trace)| trace).collect(),
    }
}

/// The order of evaluation: AUDIT decides nothing, then DENY, missing, ALLOW.
fn conclude(
    traces: &[(Phase, RequestTrace)],
    missing: &[PolicyKey],
    is_request: bool,
) -> (RequestDecision, Option<RuleRef>) {
    let of = |wanted| traces.iter().filter(move |(phase, _)| *phase == wanted);
    let first = |wanted| of(wanted).find_map(|(_, trace)| trace.matched());
    let unasked = || first(Phase::Custom).filter(|_| !is_request);
    let denied = match first(Phase::Deny).or_else(unasked) {
        Some(rule) => Some(DenyReason::Policy(rule)),
        None => missing.first().cloned().map(DenyReason::Missing),
    };
    let enforced = holds_request(RequestSite::AllowApplies, of(Phase::Allow).next().is_some());
    let only_dry_run = !enforced
        && holds_request(
            RequestSite::DryRunAllowApplies,
            of(Phase::DryRunAllow).next().is_some(),
        );
    let dry_run_allow = match first(Phase::DryRunAllow) {
        _ if denied.is_some() => DryRunAllow::Silent,
        Some(rule) => DryRunAllow::Matches(rule),
        None if only_dry_run => DryRunAllow::WouldDeny,
        None => DryRunAllow::Silent,
    };
    let allowed_by = first(Phase::Allow).filter(|_| denied.is_none());
    let verdict = match denied {
        Some(reason) => Verdict::Deny(reason),
        None if enforced && allowed_by.is_none() => Verdict::Deny(DenyReason::NotAllowed),
        None => Verdict::Allow,
    };
    let decision = RequestDecision {
        verdict,
        audit: first(Phase::Audit),
        dry_run: DryRun {
            deny: first(Phase::DryRunDeny),
            allow: dry_run_allow,
        },
    };
    (decision, allowed_by)
}

fn trace<'a>(
    policy: &WaypointPolicy,
    compiled: impl Iterator<Item = &'a Rule>,
    view: &View<'_>,
) -> RequestTrace {
    let mut rules = Vec::new();
    let mut outcome = None;
    for (index, (written, rule)) in policy.rules.iter().zip(compiled).enumerate() {
        let mut clauses = written.clauses.iter().zip(&rule.clauses);
        let failing =
            clauses.find_map(|(written, compiled)| failing_clause(written, compiled, view));
        match failing {
            None => {
                outcome = Some(Outcome::Matched { rule: index });
                break;
            }
            Some(unmet) => rules.push(RuleTrace { rule: index, unmet }),
        }
    }
    RequestTrace {
        policy: policy.key.clone(),
        action: policy.action,
        dry_run: policy.dry_run,
        outcome: outcome.unwrap_or(Outcome::NotMatched { rules }),
    }
}

/// `None` if the clause holds: it has no matches, or one of them holds.
fn failing_clause(
    written: &RequestClause,
    compiled: &[Compiled],
    view: &View<'_>,
) -> Option<Vec<Unmet>> {
    if compiled.is_empty() || compiled.iter().any(|m| m.holds(view)) {
        return None;
    }
    let matches = written.matches.iter().zip(compiled);
    Some(
        matches
            .filter_map(|(m, compiled)| unmet(m, compiled, view))
            .collect(),
    )
}

/// Why a match does not hold.
fn unmet(m: &RequestMatch, compiled: &Compiled, view: &View<'_>) -> Option<Unmet> {
    match compiled.meaning {
        Meaning::Empty => return Some(Unmet::Empty),
        Meaning::Unreadable => return Some(Unmet::Unreadable),
        Meaning::Readable => {}
    }
    if let Some(unmet) = unmet_of_connection(&m.connection, &view.connection) {
        return Some(unmet);
    }
    let (group, wanted) = compiled.failing(view)?;
    let attribute = attribute(&group.attribute);
    let any_of = written(&group.attribute, wanted, m);
    let is = value(&group.attribute, view);
    Some(match wanted {
        true => Unmet::Wants {
            attribute,
            any_of,
            is,
        },
        false => Unmet::Excludes {
            attribute,
            any_of,
            is,
        },
    })
}

fn attribute(of: &RequestAttribute) -> Attribute {
    match of {
        RequestAttribute::Method => Attribute::Method,
        RequestAttribute::Path => Attribute::Path,
        RequestAttribute::Host => Attribute::Host,
        RequestAttribute::Header(_) => Attribute::Header,
        RequestAttribute::RemoteIp => Attribute::RemoteIp,
        RequestAttribute::Sni => Attribute::Sni,
        RequestAttribute::RequestPrincipal => Attribute::RequestPrincipal,
        RequestAttribute::Audience => Attribute::Audience,
        RequestAttribute::Presenter => Attribute::Presenter,
        RequestAttribute::Claim(_) => Attribute::Claim,
    }
}

/// A list of a match as its author wrote it.
fn written(of: &RequestAttribute, wanted: bool, m: &RequestMatch) -> Vec<String> {
    fn pick<'a, T>(wanted: bool, yes: &'a [T], no: &'a [T]) -> &'a [T] {
        if wanted { yes } else { no }
    }
    let texts = |yes: &[StringMatch], no: &[StringMatch]| {
        pick(wanted, yes, no).iter().map(string_text).collect()
    };
    match of {
        RequestAttribute::Method => texts(&m.methods, &m.not_methods),
        RequestAttribute::Host => texts(&m.hosts, &m.not_hosts),
        RequestAttribute::Sni => texts(&m.sni, &m.not_sni),
        RequestAttribute::RequestPrincipal => {
            texts(&m.request_principals, &m.not_request_principals)
        }
        RequestAttribute::Audience => texts(&m.audiences, &m.not_audiences),
        RequestAttribute::Presenter => texts(&m.presenters, &m.not_presenters),
        RequestAttribute::Claim(path) => {
            let named = m.claims.iter().filter(|claim| claim.path == *path);
            let values = named.flat_map(|claim| pick(wanted, &claim.values, &claim.not_values));
            let path = path.join(".");
            values
                .map(|value| format!("{path}: {}", string_text(value)))
                .collect()
        }
        RequestAttribute::Path => {
            let paths = pick(wanted, &m.paths, &m.not_paths).iter();
            paths
                .map(|path| match path {
                    PathPattern::Text(text) => string_text(text),
                    PathPattern::Template(template) => template.to_string(),
                })
                .collect()
        }
        RequestAttribute::RemoteIp => {
            let blocks: &[IpBlock] = pick(wanted, &m.remote_ips, &m.not_remote_ips);
            blocks.iter().map(block_text).collect()
        }
        RequestAttribute::Header(name) => {
            let named = m
                .headers
                .iter()
                .filter(|header| header.name.eq_ignore_ascii_case(name));
            let values = named.flat_map(|header| pick(wanted, &header.values, &header.not_values));
            values
                .map(|value| match is_secret(name) {
                    true => format!("{name}: {HIDDEN}"),
                    false => format!("{name}: {}", string_text(value)),
                })
                .collect()
        }
    }
}

/// Stands for what whoever reads a log need not know.
const HIDDEN: &str = "(hidden)";

/// Whether the values of a header let whoever knows them act as somebody.
fn is_secret(name: &str) -> bool {
    const SECRET: [&str; 5] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "x-auth-token",
    ];
    SECRET.contains(&name)
}

/// What the request has there.
fn value(of: &RequestAttribute, view: &View<'_>) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match of {
        RequestAttribute::Method if view.is_request() => Some(text(view.method())),
        RequestAttribute::Path if view.is_request() => Some(text(view.path())),
        RequestAttribute::Method | RequestAttribute::Path => None,
        RequestAttribute::Host => Some(text(view.host())).filter(|host| !host.is_empty()),
        RequestAttribute::Header(name) => view.header(name).map(|value| match is_secret(name) {
            true => format!("{name}: {HIDDEN}"),
            false => format!("{name}: {}", text(&value)),
        }),
        RequestAttribute::RemoteIp => Some(view.remote_ip.to_string()),
        RequestAttribute::Sni => view.sni().map(text),
        RequestAttribute::RequestPrincipal => view.request_principal().map(text),
        RequestAttribute::Audience => {
            let audiences: Vec<&str> = view.token()?.audiences().collect();
            (!audiences.is_empty()).then(|| audiences.join(", "))
        }
        RequestAttribute::Presenter => view.token()?.presenter().map(str::to_owned),
        // Who reads the log need not know what is said of the user.
        RequestAttribute::Claim(path) => {
            let claim = view.token()?.claim(path);
            claim.map(|_| format!("another {}", path.join(".")))
        }
    }
}

impl RequestTrace {
    fn matched(&self) -> Option<RuleRef> {
        match self.outcome {
            Outcome::Matched { rule } => Some(RuleRef {
                policy: self.policy.clone(),
                rule,
            }),
            Outcome::NotMatched { .. } => None,
        }
    }
}

impl fmt::Display for RequestExplanation {
    /// One line for the verdict, then one for each policy, or for each rule of a policy that does not match.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.decision.verdict, &self.allowed_by) {
            (Verdict::Allow, Some(rule)) => writeln!(f, "allowed: {rule} matches")?,
            (Verdict::Allow, None) => writeln!(
                f,
                "allowed: no ALLOW policy applies and no DENY policy matches"
            )?,
            (Verdict::Deny(reason), _) => writeln!(f, "denied: {reason}")?,
        }
        for key in &self.missing {
            writeln!(f, "policy {key} applies and has not been received yet")?;
        }
        self.policies
            .iter()
            .try_for_each(|policy| write!(f, "{policy}"))
    }
}

impl fmt::Display for RequestTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            RequestAction::Allow => "ALLOW",
            RequestAction::Deny => "DENY",
            RequestAction::Audit => "AUDIT",
            RequestAction::Custom => "CUSTOM",
        };
        let dry_run = if self.dry_run { ", dry run" } else { "" };
        let policy = &self.policy;
        match &self.outcome {
            Outcome::Matched { rule } => {
                writeln!(f, "policy {policy} rule {rule} matches ({action}{dry_run})")
            }
            Outcome::NotMatched { rules } if rules.is_empty() => writeln!(
                f,
                "policy {policy} has no rules, so it never matches ({action}{dry_run})"
            ),
            Outcome::NotMatched { rules } => rules
                .iter()
                .try_for_each(|rule| writeln!(f, "policy {policy} {rule} ({action}{dry_run})")),
        }
    }
}
