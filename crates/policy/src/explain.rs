//! The slow evaluator: walks every policy, rule and match in the order of their keys, and says what was missing.
//!
//! It decides by itself, without the index of [`crate::compile`]: that both agree is part of the tests.

use std::{fmt, net::IpAddr};

use karst_model::{
    name::PolicyKey,
    policy::{Action, Authorization, Clause, IpBlock, Match, Rule, StringMatch},
};
use serde::Serialize;

use crate::{
    compare::{Site, holds},
    connection::{Connection, View},
    decision::{Decision, DenyReason, DryRun, DryRunAllow, RuleRef, Verdict},
    matcher::{
        Block, Entry, OfDestination, OfNamespace, OfPort, OfPrincipal, OfServiceAccount, OfSource,
        is_empty, is_unreadable,
    },
};

/// Entries of a list that the text form shows before it says how many more there are.
const SHOWN: usize = 5;

/// A decision with every policy that was looked at. Its text form is meant for people, its fields for tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub connection: Connection,
    pub decision: Decision,
    /// The rule that allowed it; `None` where it is denied or where no ALLOW policy applies.
    pub allowed_by: Option<RuleRef>,
    /// Policies that apply and have not been received.
    pub missing: Vec<PolicyKey>,
    /// In the order of their keys.
    pub policies: Vec<PolicyTrace>,
}

/// What one policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyTrace {
    pub policy: PolicyKey,
    pub action: Action,
    pub dry_run: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The first rule that matches.
    Matched { rule: usize },
    /// None does; one trace for each rule. A policy without rules never matches.
    NotMatched { rules: Vec<RuleTrace> },
}

/// Why one rule does not match: the first clause that does not hold, with one entry for each of its matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    pub rule: usize,
    pub unmet: Vec<Unmet>,
}

/// Why one match does not hold: its first group that does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Unmet {
    /// None of the values that it wants is there.
    Wants {
        attribute: Attribute,
        any_of: Vec<String>,
        is: Option<String>,
    },
    /// The value is one of those that it leaves out.
    Excludes {
        attribute: Attribute,
        any_of: Vec<String>,
        is: Option<String>,
    },
    /// Part of it cannot be read by this version, so it allows nothing.
    Unreadable,
    /// It names no condition; such a match is skipped.
    Empty,
}

/// What of a connection a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Attribute {
    Namespace,
    Principal,
    SourceIp,
    DestinationIp,
    DestinationPort,
    ServiceAccount,
    Method,
    Path,
    Host,
    /// Values are shown with the header's name.
    Header,
    RemoteIp,
    Sni,
    RequestPrincipal,
    Audience,
    Presenter,
    /// Its values are not shown.
    Claim,
}

/// Evaluates policies, sorted by key, without an index.
pub(crate) fn explain<'a>(
    policies: impl Iterator<Item = &'a Authorization>,
    missing: &[PolicyKey],
    connection: &Connection,
) -> Explanation {
    let view = View::new(connection);
    let policies: Vec<_> = policies.map(|policy| trace(policy, &view)).collect();
    let (decision, allowed_by) = conclude(&policies, missing);
    Explanation {
        connection: connection.clone(),
        decision,
        allowed_by,
        missing: missing.to_vec(),
        policies,
    }
}

/// The order of evaluation: DENY, missing, ALLOW.
fn conclude(traces: &[PolicyTrace], missing: &[PolicyKey]) -> (Decision, Option<RuleRef>) {
    let of = |action, dry_run| {
        traces.iter().filter(move |t| {
            holds(Site::PolicyDenies, t.action == Action::Deny) == (action == Action::Deny)
                && holds(Site::PolicyDryRun, t.dry_run) == dry_run
        })
    };
    let first = |action, dry_run| of(action, dry_run).find_map(PolicyTrace::matched);
    let mut dry_run = DryRun {
        deny: first(Action::Deny, true),
        allow: DryRunAllow::Silent,
    };
    if let Some(rule) = first(Action::Deny, false) {
        return (
            Decision {
                verdict: Verdict::Deny(DenyReason::Policy(rule)),
                dry_run,
            },
            None,
        );
    }
    if holds(Site::Missing, !missing.is_empty()) {
        let key = missing.first().cloned().unwrap_or_else(nameless);
        return (
            Decision {
                verdict: Verdict::Deny(DenyReason::Missing(key)),
                dry_run,
            },
            None,
        );
    }
    let enforced = holds(
        Site::AllowApplies,
        of(Action::Allow, false).next().is_some(),
    );
    dry_run.allow = match first(Action::Allow, true) {
        Some(rule) => DryRunAllow::Matches(rule),
        None if !enforced
            && holds(
                Site::DryRunAllowApplies,
                of(Action::Allow, true).next().is_some(),
            ) =>
        {
            DryRunAllow::WouldDeny
        }
        None => DryRunAllow::Silent,
    };
    let allowed_by = first(Action::Allow, false);
    let verdict = match (enforced, &allowed_by) {
        (true, None) => Verdict::Deny(DenyReason::NotAllowed),
        _ => Verdict::Allow,
    };
    (Decision { verdict, dry_run }, allowed_by)
}

/// Names a missing policy where a mutation test says that there is one.
pub(crate) fn nameless() -> PolicyKey {
    PolicyKey {
        namespace: "".into(),
        name: "".into(),
    }
}

fn trace(policy: &Authorization, view: &View<'_>) -> PolicyTrace {
    let mut rules = Vec::new();
    let mut outcome = None;
    for (index, rule) in policy.rules.iter().enumerate() {
        match failing_clause(rule, policy.action, view) {
            None => {
                outcome = Some(Outcome::Matched { rule: index });
                break;
            }
            Some(unmet) => rules.push(RuleTrace { rule: index, unmet }),
        }
    }
    PolicyTrace {
        policy: policy.key.clone(),
        action: policy.action,
        dry_run: policy.dry_run,
        outcome: outcome.unwrap_or(Outcome::NotMatched { rules }),
    }
}

/// `None` if the rule matches.
fn failing_clause(rule: &Rule, action: Action, view: &View<'_>) -> Option<Vec<Unmet>> {
    let mut clauses = rule
        .clauses
        .iter()
        .map(|clause| unmet_of_clause(clause, action, view));
    let failing = clauses
        .find(|unmet| !holds(Site::ClauseTrue, unmet.is_none()))
        .map(Option::unwrap_or_default);
    if holds(Site::RuleTrue, failing.is_none()) {
        None
    } else {
        Some(failing.unwrap_or_default())
    }
}

/// `None` if the clause holds: it has no matches, or one of them holds.
fn unmet_of_clause(clause: &Clause, action: Action, view: &View<'_>) -> Option<Vec<Unmet>> {
    if holds(Site::ListEmpty, clause.matches.is_empty()) {
        return None;
    }
    clause
        .matches
        .iter()
        .map(|m| unmet(m, action, view))
        .collect()
}

/// `None` if the match holds.
fn unmet(m: &Match, action: Action, view: &View<'_>) -> Option<Unmet> {
    if is_empty(m) {
        return Some(Unmet::Empty);
    }
    if is_unreadable(m) {
        return (!holds(Site::PolicyDenies, action == Action::Deny)).then_some(Unmet::Unreadable);
    }
    unmet_of_connection(m, view)
}

/// The first group of a readable match that does not hold.
pub(crate) fn unmet_of_connection(m: &Match, view: &View<'_>) -> Option<Unmet> {
    let source = |b: &IpBlock| Block::new(b).is_some_and(|b| OfSource(b).hits(view));
    let destination = |b: &IpBlock| Block::new(b).is_some_and(|b| OfDestination(b).hits(view));
    let principal = |s: &StringMatch| OfPrincipal(s).hits(view);
    let namespace = |s: &StringMatch| OfNamespace(s).hits(view);
    let port = |p: &u16| OfPort(*p).hits(view);
    let account = |s: &_| OfServiceAccount(s).hits(view);
    let failing = failing_group(
        Attribute::Namespace,
        &m.namespaces,
        &m.not_namespaces,
        namespace,
        string_text,
    )
    .or_else(|| {
        failing_group(
            Attribute::Principal,
            &m.principals,
            &m.not_principals,
            principal,
            string_text,
        )
    })
    .or_else(|| {
        failing_group(
            Attribute::SourceIp,
            &m.source_ips,
            &m.not_source_ips,
            source,
            block_text,
        )
    })
    .or_else(|| {
        let (wanted, excluded) = (&m.destination_ips, &m.not_destination_ips);
        failing_group(
            Attribute::DestinationIp,
            wanted,
            excluded,
            destination,
            block_text,
        )
    })
    .or_else(|| {
        let (wanted, excluded) = (&m.destination_ports, &m.not_destination_ports);
        failing_group(
            Attribute::DestinationPort,
            wanted,
            excluded,
            port,
            u16::to_string,
        )
    })
    .or_else(|| {
        let (wanted, excluded) = (&m.service_accounts, &m.not_service_accounts);
        failing_group(Attribute::ServiceAccount, wanted, excluded, account, |s| {
            format!("{}/{}", s.namespace, s.service_account)
        })
    });
    failing.map(|f| f.into_unmet(view))
}

/// A group of a match that does not hold, with the list to blame.
struct FailingGroup {
    attribute: Attribute,
    any_of: Vec<String>,
    wanted: bool,
}

impl FailingGroup {
    fn into_unmet(self, view: &View<'_>) -> Unmet {
        let (attribute, any_of, is) = (self.attribute, self.any_of, self.attribute.value(view));
        if self.wanted {
            Unmet::Wants {
                attribute,
                any_of,
                is,
            }
        } else {
            Unmet::Excludes {
                attribute,
                any_of,
                is,
            }
        }
    }
}

fn failing_group<T>(
    attribute: Attribute,
    positive: &[T],
    negative: &[T],
    hits: impl Fn(&T) -> bool,
    show: impl Fn(&T) -> String,
) -> Option<FailingGroup> {
    let failing = |list: &[T], wanted| FailingGroup {
        attribute,
        any_of: list.iter().map(&show).collect(),
        wanted,
    };
    let met = holds(Site::ListEmpty, positive.is_empty())
        || holds(Site::ListHit, positive.iter().any(&hits));
    if !met {
        return Some(failing(positive, true));
    }
    holds(Site::NotListHit, negative.iter().any(&hits)).then(|| failing(negative, false))
}

pub(crate) fn string_text(s: &StringMatch) -> String {
    match s {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

pub(crate) fn block_text(block: &IpBlock) -> String {
    let host_len = if block.ip.is_ipv4() { 32 } else { 128 };
    if block.prefix_len == host_len {
        block.ip.to_string()
    } else {
        format!("{}/{}", block.ip, block.prefix_len)
    }
}

impl PolicyTrace {
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

impl Attribute {
    /// What the connection has there; `None` where it takes an identity and there is none.
    fn value(self, view: &View<'_>) -> Option<String> {
        let ip = |ip: IpAddr| Some(ip.to_string());
        match self {
            Self::Namespace => view.identity().map(|id| id.namespace.to_string()),
            Self::Principal => view.identity().map(|id| id.principal().to_string()),
            Self::ServiceAccount => view
                .identity()
                .map(|id| format!("{}/{}", id.namespace, id.service_account)),
            Self::SourceIp => ip(view.source_ip),
            Self::DestinationIp => ip(view.destination_ip),
            Self::DestinationPort => Some(view.port.to_string()),
            Self::Method
            | Self::Path
            | Self::Host
            | Self::Header
            | Self::RemoteIp
            | Self::Sni
            | Self::RequestPrincipal
            | Self::Audience
            | Self::Presenter
            | Self::Claim => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Principal => "principal",
            Self::ServiceAccount => "service account",
            Self::SourceIp => "source address",
            Self::DestinationIp => "destination address",
            Self::DestinationPort => "destination port",
            Self::Method => "method",
            Self::Path => "path",
            Self::Host => "host",
            Self::Header => "header",
            Self::RemoteIp => "remote address",
            Self::Sni => "server name",
            Self::RequestPrincipal => "request principal",
            Self::Audience => "audience",
            Self::Presenter => "presenter",
            Self::Claim => "claim",
        }
    }

    /// What is said where there is no value.
    fn absent(self) -> &'static str {
        match self {
            Self::Header => "the request has no such header",
            Self::Sni => "the client named no server",
            Self::RequestPrincipal => "the request has no verified token",
            Self::Audience | Self::Presenter | Self::Claim => {
                "the request has no verified token that says so"
            }
            Self::Host => "the request names no host",
            Self::Method | Self::Path => "the connection is no HTTP",
            _ => "the peer has no identity (plain text)",
        }
    }

    /// How the value is introduced.
    fn subject(self) -> &'static str {
        match self {
            Self::Namespace => "the peer is in namespace",
            Self::Principal | Self::ServiceAccount => "the peer is",
            Self::SourceIp => "the peer's address is",
            Self::DestinationIp => "the destination is",
            Self::DestinationPort => "the port is",
            Self::Method | Self::Path | Self::Host | Self::Header => "the request has",
            Self::RemoteIp => "the client's address is",
            Self::Sni => "the client named",
            Self::RequestPrincipal => "the token is of",
            Self::Audience => "the token is for",
            Self::Presenter => "the token was issued to",
            Self::Claim => "the token has",
        }
    }
}

impl fmt::Display for Explanation {
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

impl fmt::Display for PolicyTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match (self.action, self.dry_run) {
            (Action::Allow, false) => "ALLOW",
            (Action::Deny, false) => "DENY",
            (Action::Allow, true) => "ALLOW, dry run",
            (Action::Deny, true) => "DENY, dry run",
        };
        match &self.outcome {
            Outcome::Matched { rule } => {
                writeln!(f, "policy {} rule {rule} matches ({action})", self.policy)
            }
            Outcome::NotMatched { rules } if rules.is_empty() => {
                writeln!(
                    f,
                    "policy {} has no rules, so it never matches ({action})",
                    self.policy
                )
            }
            Outcome::NotMatched { rules } => rules
                .iter()
                .try_for_each(|rule| writeln!(f, "policy {} {rule} ({action})", self.policy)),
        }
    }
}

impl fmt::Display for RuleTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ", self.rule)?;
        for (index, unmet) in self.unmet.iter().take(SHOWN).enumerate() {
            write!(f, "{}{unmet}", if index == 0 { "" } else { "; or " })?;
        }
        more(f, self.unmet.len(), "; or")
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, attribute, any_of, is) = match self {
            Self::Unreadable => {
                return f.write_str(
                    "has a condition that this version cannot read, so it allows nothing",
                );
            }
            Self::Empty => return f.write_str("has a match without conditions, which is skipped"),
            Self::Wants {
                attribute,
                any_of,
                is,
            } => ("wants", attribute, any_of, is),
            Self::Excludes {
                attribute,
                any_of,
                is,
            } => ("excludes", attribute, any_of, is),
        };
        write!(f, "{verb} {} ", attribute.name())?;
        for (index, value) in any_of.iter().take(SHOWN).enumerate() {
            write!(f, "{}{value}", if index == 0 { "" } else { " or " })?;
        }
        more(f, any_of.len(), " or")?;
        match is {
            Some(value) => write!(f, ", {} {value}", attribute.subject()),
            None => write!(f, ", {}", attribute.absent()),
        }
    }
}

fn more(f: &mut fmt::Formatter<'_>, len: usize, joint: &str) -> fmt::Result {
    if len > SHOWN {
        write!(f, "{joint} {} more", len - SHOWN)
    } else {
        Ok(())
    }
}
