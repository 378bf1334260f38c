//! The naive evaluator: authorization as `ambient-facts.md` 4.2 and 4.3 and `docs/design/policy-deviations.md` state
//! it, written before the implementation and sharing nothing with it but the model. Slow and plain on purpose.

use std::net::IpAddr;

use karst_model::policy::{
    Action, Authorization, Clause, IpBlock, Match, Rule, ServiceAccountMatch, StringMatch,
};

use super::Connection;

/// What should happen to a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) verdict: Outcome,
    pub(crate) dry_run_deny: bool,
    pub(crate) dry_run_allow: DryRunAllowed,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    DeniedByPolicy,
    DeniedByMissing,
    NotAllowed,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DryRunAllowed {
    Silent,
    Matches,
    WouldDeny,
}

/// Section 4.2.
pub(crate) fn evaluate(policies: &[&Authorization], missing: usize, c: &Connection) -> Expected {
    let matches = |action: Action, dry_run: bool| {
        policies
            .iter()
            .any(|p| p.action == action && p.dry_run == dry_run && policy_matches(p, c))
    };
    let exists = |action: Action, dry_run: bool| {
        policies
            .iter()
            .any(|p| p.action == action && p.dry_run == dry_run)
    };

    // 1. dry-run DENY that match: log only.
    let dry_run_deny = matches(Action::Deny, true);
    let early = |verdict| Expected {
        verdict,
        dry_run_deny,
        dry_run_allow: DryRunAllowed::Silent,
    };
    // 2. any enforced DENY matches: deny.
    if matches(Action::Deny, false) {
        return early(Outcome::DeniedByPolicy);
    }
    // Deviation: a policy that is listed and not received denies.
    if missing > 0 {
        return early(Outcome::DeniedByMissing);
    }
    // 3. dry-run ALLOW.
    let dry_run_allow = if matches(Action::Allow, true) {
        DryRunAllowed::Matches
    } else if exists(Action::Allow, true) && !exists(Action::Allow, false) {
        DryRunAllowed::WouldDeny
    } else {
        DryRunAllowed::Silent
    };
    // 4. no enforced ALLOW applies: allow. 5. any matches: allow; otherwise deny.
    let verdict = if !exists(Action::Allow, false) || matches(Action::Allow, false) {
        Outcome::Allowed
    } else {
        Outcome::NotAllowed
    };
    Expected {
        verdict,
        dry_run_deny,
        dry_run_allow,
    }
}

/// Policy = OR of rules; no rules never match.
pub(crate) fn policy_matches(policy: &Authorization, c: &Connection) -> bool {
    policy
        .rules
        .iter()
        .any(|rule| rule_matches(rule, policy.action, c))
}

/// Rule = AND of clauses; a rule without clauses matches everything.
pub(crate) fn rule_matches(rule: &Rule, action: Action, c: &Connection) -> bool {
    rule.clauses
        .iter()
        .all(|clause| clause_matches(clause, action, c))
}

/// Clause = OR of matches; without matches it is true.
fn clause_matches(clause: &Clause, action: Action, c: &Connection) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| match_matches(m, action, c))
}

fn match_matches(m: &Match, action: Action, c: &Connection) -> bool {
    // An empty match is skipped.
    if *m == Match::default() {
        return false;
    }
    // Deviation: what cannot be read never helps an ALLOW rule and never hinders a DENY rule.
    let blocks = [
        &m.source_ips,
        &m.not_source_ips,
        &m.destination_ips,
        &m.not_destination_ips,
    ];
    if m.unreadable || blocks.iter().any(|list| list.iter().any(too_long)) {
        return action == Action::Deny;
    }
    let principal = c
        .source
        .as_ref()
        .map(|id| id.to_string().trim_start_matches("spiffe://").to_owned());
    let namespace = c
        .source
        .as_ref()
        .map(|id| id.namespace.to_string())
        .unwrap_or_default();

    let namespace_hit = |s: &StringMatch| string_matches(s, &namespace);
    let principal_hit = |s: &StringMatch| principal.as_ref().is_some_and(|p| string_matches(s, p));
    let source_hit = |b: &IpBlock| contains(b, c.source_ip);
    let destination_hit = |b: &IpBlock| contains(b, c.destination.ip());
    let port_hit = |p: &u16| *p == c.destination.port();
    let account_hit = |s: &ServiceAccountMatch| {
        c.source.as_ref().is_some_and(|id| {
            id.namespace == s.namespace && id.service_account == s.service_account
        })
    };

    group(&m.namespaces, &m.not_namespaces, namespace_hit)
        && group(&m.principals, &m.not_principals, principal_hit)
        && group(&m.source_ips, &m.not_source_ips, source_hit)
        && group(&m.destination_ips, &m.not_destination_ips, destination_hit)
        && group(&m.destination_ports, &m.not_destination_ports, port_hit)
        && group(&m.service_accounts, &m.not_service_accounts, account_hit)
}

/// (positive list empty or any hit) and (no hit in the negative list).
fn group<T>(positive: &[T], negative: &[T], hit: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hit)) && !negative.iter().any(&hit)
}

fn string_matches(s: &StringMatch, value: &str) -> bool {
    match s {
        StringMatch::Exact(e) => value == &**e,
        StringMatch::Prefix(p) => value.starts_with(&**p),
        StringMatch::Suffix(s) => value.ends_with(&**s),
        StringMatch::Presence => !value.is_empty(),
    }
}

fn too_long(b: &IpBlock) -> bool {
    b.prefix_len > if b.ip.is_ipv4() { 32 } else { 128 }
}

/// Bit by bit. A v4-mapped range or address counts as IPv4; the families never match one another.
fn contains(b: &IpBlock, ip: IpAddr) -> bool {
    let (block, len) = match b.ip {
        IpAddr::V6(v6) if b.prefix_len >= 96 && v6.to_ipv4_mapped().is_some() => {
            (IpAddr::V4(v6.to_ipv4_mapped().unwrap()), b.prefix_len - 96)
        }
        other => (other, b.prefix_len),
    };
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    let (block, ip) = (bits(block), bits(ip));
    block.len() == ip.len() && block[..len.into()] == ip[..len.into()]
}

fn bits(ip: IpAddr) -> Vec<bool> {
    let octets = match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    octets
        .iter()
        .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1))
        .collect()
}
