//! The naive evaluator of requests: Istio's reference of AuthorizationPolicy and the section on requests of
//! `docs/design/policy-deviations.md`, written down without an index and sharing nothing with the product but the model.

use std::net::IpAddr;

use karst_model::{
    policy::{IpBlock, StringMatch},
    waypoint_policy::{
        ClaimValues, HeaderValues, PathPattern, RequestAction, RequestClause, RequestMatch,
        RequestRule, WaypointPolicy,
    },
};

use super::cases::Case;

/// What should happen to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) verdict: Outcome,
    pub(crate) audit: bool,
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

pub(crate) fn evaluate(policies: &[&WaypointPolicy], missing: usize, case: &Case) -> Expected {
    use RequestAction::{Allow, Audit, Deny};
    let exists = |action, dry_run| {
        policies
            .iter()
            .any(|p| p.action == action && p.dry_run == dry_run)
    };
    let matches = |action, dry_run| {
        policies
            .iter()
            .any(|p| p.action == action && p.dry_run == dry_run && policy_matches(p, case))
    };
    let audit = matches(Audit, true) || matches(Audit, false);
    let dry_run_deny = matches(Deny, true);
    let expected = |verdict, dry_run_allow| Expected {
        verdict,
        audit,
        dry_run_deny,
        dry_run_allow,
    };
    if matches(Deny, false) {
        return expected(Outcome::DeniedByPolicy, DryRunAllowed::Silent);
    }
    if missing > 0 {
        return expected(Outcome::DeniedByMissing, DryRunAllowed::Silent);
    }
    let dry_run_allow = if matches(Allow, true) {
        DryRunAllowed::Matches
    } else if exists(Allow, true) && !exists(Allow, false) {
        DryRunAllowed::WouldDeny
    } else {
        DryRunAllowed::Silent
    };
    if exists(Allow, false) && !matches(Allow, false) {
        return expected(Outcome::NotAllowed, dry_run_allow);
    }
    expected(Outcome::Allowed, dry_run_allow)
}

pub(crate) fn policy_matches(policy: &WaypointPolicy, case: &Case) -> bool {
    policy
        .rules
        .iter()
        .any(|rule| rule_matches(rule, policy.action, case))
}

pub(crate) fn rule_matches(rule: &RequestRule, action: RequestAction, case: &Case) -> bool {
    rule.clauses
        .iter()
        .all(|clause| clause_matches(clause, action, case))
}

fn clause_matches(clause: &RequestClause, action: RequestAction, case: &Case) -> bool {
    clause.matches.is_empty()
        || clause
            .matches
            .iter()
            .any(|m| match_matches(m, action, case))
}

fn match_matches(m: &RequestMatch, action: RequestAction, case: &Case) -> bool {
    // A match that says nothing is skipped.
    if *m == RequestMatch::default() {
        return false;
    }
    // What cannot be read never lets anybody in and always refuses.
    if unreadable(m) {
        return action != RequestAction::Allow;
    }
    // A positive hit of an ALLOW lets in, a negative hit of a DENY too; the other two refuse.
    let allow = action == RequestAction::Allow;
    let principal = case.source().map(|(principal, ..)| principal);
    let namespace = case
        .source()
        .map_or(String::new(), |(_, namespace, _)| namespace);
    let c = &m.connection;
    group(
        &c.principals,
        &c.not_principals,
        |s, _| principal.as_ref().is_some_and(|value| string(s, value)),
        allow,
    ) && group(
        &c.namespaces,
        &c.not_namespaces,
        |s, _| string(s, &namespace),
        allow,
    ) && group(
        &c.service_accounts,
        &c.not_service_accounts,
        |wanted, _| {
            case.source().is_some_and(|(_, namespace, account)| {
                *wanted.namespace == *namespace && *wanted.service_account == *account
            })
        },
        allow,
    ) && group(
        &c.source_ips,
        &c.not_source_ips,
        |b, _| contains(b, case.connection.source_ip),
        allow,
    ) && group(
        &c.destination_ips,
        &c.not_destination_ips,
        |b, _| contains(b, case.connection.destination.ip()),
        allow,
    ) && group(
        &c.destination_ports,
        &c.not_destination_ports,
        |port, _| *port == case.connection.destination.port(),
        allow,
    ) && group(
        &m.methods,
        &m.not_methods,
        |s, _| string(s, &case.method),
        allow,
    ) && group(
        &m.paths,
        &m.not_paths,
        |pattern, lets_in| path(pattern, &case.path, lets_in),
        allow,
    ) && group(&m.hosts, &m.not_hosts, |s, _| host(s, case), allow)
        && group(
            &m.remote_ips,
            &m.not_remote_ips,
            |b, _| contains(b, case.remote_ip),
            allow,
        )
        && group(
            &m.sni,
            &m.not_sni,
            |s, _| case.sni.as_ref().is_some_and(|sni| name(s, sni)),
            allow,
        )
        && group(
            &m.request_principals,
            &m.not_request_principals,
            |s, _| {
                case.user
                    .as_ref()
                    .is_some_and(|user| string(s, &user.principal))
            },
            allow,
        )
        && group(
            &m.audiences,
            &m.not_audiences,
            |s, _| {
                let audiences = case.user.iter().flat_map(|user| &user.audiences);
                audiences.into_iter().any(|audience| string(s, audience))
            },
            allow,
        )
        && group(
            &m.presenters,
            &m.not_presenters,
            |s, _| {
                let presenter = case.user.as_ref().and_then(|user| user.presenter.as_ref());
                presenter.is_some_and(|presenter| string(s, presenter))
            },
            allow,
        )
        && m.claims.iter().all(|c| {
            group(
                &c.values,
                &c.not_values,
                |s, lets_in| claim(c, s, case, lets_in),
                allow,
            )
        })
        && m.headers.iter().all(|h| {
            group(
                &h.values,
                &h.not_values,
                |s, lets_in| header(h, s, case, lets_in),
                allow,
            )
        })
}

/// `hit` is told whether its hit lets the request in.
fn group<T>(positive: &[T], negative: &[T], hit: impl Fn(&T, bool) -> bool, allow: bool) -> bool {
    (positive.is_empty() || positive.iter().any(|entry| hit(entry, allow)))
        && !negative.iter().any(|entry| hit(entry, !allow))
}

fn unreadable(m: &RequestMatch) -> bool {
    let c = &m.connection;
    let lists = [
        &c.source_ips,
        &c.not_source_ips,
        &c.destination_ips,
        &c.not_destination_ips,
        &m.remote_ips,
        &m.not_remote_ips,
    ];
    c.unreadable
        || lists.iter().any(|list| list.iter().any(too_long))
        || m.headers
            .iter()
            .any(|h| h.values.is_empty() && h.not_values.is_empty())
        || m.claims
            .iter()
            .any(|c| c.path.is_empty() || (c.values.is_empty() && c.not_values.is_empty()))
        || m.paths
            .iter()
            .chain(&m.not_paths)
            .any(|pattern| match pattern {
                PathPattern::Template(text) => !is_template(text),
                PathPattern::Text(_) => false,
            })
}

fn string(s: &StringMatch, value: &str) -> bool {
    match s {
        StringMatch::Exact(e) => value == &**e,
        StringMatch::Prefix(p) => value.starts_with(&**p),
        StringMatch::Suffix(s) => value.ends_with(&**s),
        StringMatch::Presence => !value.is_empty(),
    }
}

/// Names of hosts: without case and final dot.
fn name(s: &StringMatch, value: &str) -> bool {
    let ending = |text: &str| text.to_lowercase().trim_end_matches('.').to_owned();
    let value = value.to_lowercase();
    match s {
        StringMatch::Exact(e) => value == ending(e),
        StringMatch::Prefix(p) => value.starts_with(&p.to_lowercase()),
        StringMatch::Suffix(s) => value.ends_with(&ending(s)),
        StringMatch::Presence => !value.is_empty(),
    }
}

/// With the port that was sent, or without port and final dot.
fn host(s: &StringMatch, case: &Case) -> bool {
    let bare = case
        .authority
        .split(':')
        .next()
        .unwrap()
        .trim_end_matches('.');
    name(s, bare) || name(s, &case.authority)
}

/// All values of a name as one text; what refuses also looks at each line, at each part between commas, and takes a
/// header without a value for one that is there.
fn header(h: &HeaderValues, s: &StringMatch, case: &Case, lets_in: bool) -> bool {
    let lines: Vec<&str> = case
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(&h.name))
        .map(|(_, value)| value.as_str())
        .collect();
    if lines.is_empty() {
        return false;
    }
    let plain = string(s, &lines.join(","));
    if lets_in {
        return plain;
    }
    plain
        || *s == StringMatch::Presence
        || lines.iter().any(|line| string(s, line))
        || lines
            .iter()
            .any(|line| line.split(',').any(|part| string(s, part.trim())))
}

/// Texts, of lists their elements, of `scope` its words; what refuses also reads numbers and truth values as text, scopes
/// as a whole, and takes any claim for one that is there.
fn claim(c: &ClaimValues, s: &StringMatch, case: &Case, lets_in: bool) -> bool {
    let Some(user) = &case.user else {
        return false;
    };
    let at = |wanted: &[&str]| c.path.iter().map(|name| &**name).eq(wanted.iter().copied());
    let found = user.claims.iter().find(|(path, _)| at(path));
    let Some((path, value)) = found else {
        return false;
    };
    let value: serde_json::Value = serde_json::from_str(value).unwrap();
    let all = value
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![value.clone()]);
    let texts: Vec<String> = all
        .iter()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect();
    let words = |text: &String| -> Vec<String> {
        let words = text.split(' ').filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let plain: Vec<String> = match *path == ["scope"] {
        true => texts.iter().flat_map(words).collect(),
        false => texts.clone(),
    };
    if plain.iter().any(|text| string(s, text)) {
        return true;
    }
    let scalar = |one: &serde_json::Value| match one {
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    !lets_in
        && (*s == StringMatch::Presence
            || texts.iter().any(|text| string(s, text))
            || all.iter().filter_map(scalar).any(|text| string(s, &text)))
}

/// Compared as sent on; what refuses also compares with every escape decoded, on both sides, and with the parameters of
/// segments taken away.
fn path(pattern: &PathPattern, path: &str, lets_in: bool) -> bool {
    let one = |pattern: &PathPattern, path: &str| match pattern {
        PathPattern::Text(s) => string(s, path),
        PathPattern::Template(text) => template(text, path),
    };
    let spelled = spell(pattern);
    if lets_in {
        return one(&spelled, path);
    }
    let read = decoded_pattern(&spelled);
    one(&spelled, path)
        || one(&read, &decoded(path))
        || one(&read, &decoded(&without_parameters(path)))
}

/// Only what the cases hold: parameters without a name or named x.
fn without_parameters(path: &str) -> String {
    path.replace(";x", "").replace(';', "").replace("//", "/")
}

/// The pattern in the spelling of normalised paths.
fn spell(pattern: &PathPattern) -> PathPattern {
    match pattern {
        PathPattern::Text(StringMatch::Exact(text)) => {
            PathPattern::Text(StringMatch::Exact(without_dots(&spell_text(text)).into()))
        }
        PathPattern::Text(StringMatch::Prefix(text)) => {
            PathPattern::Text(StringMatch::Prefix(spell_text(text).into()))
        }
        PathPattern::Text(StringMatch::Suffix(text)) => {
            PathPattern::Text(StringMatch::Suffix(spell_text(text).into()))
        }
        PathPattern::Text(StringMatch::Presence) => pattern.clone(),
        PathPattern::Template(text) => {
            let segments = text.split('/').map(|segment| match segment {
                "{*}" | "{**}" => segment.to_owned(),
                literal => spell_text(literal),
            });
            PathPattern::Template(segments.collect::<Vec<_>>().join("/").into())
        }
    }
}

/// Only what the cases hold: escapes of letters, of other characters, doubled slashes.
fn spell_text(text: &str) -> String {
    let mut text = text.replace("%61", "a").replace("%c3%a9", "%C3%A9");
    while text.contains("//") {
        text = text.replace("//", "/");
    }
    text
}

/// Only what the cases hold: a single dot as a segment.
fn without_dots(text: &str) -> String {
    if text.starts_with('/') {
        text.replace("/./", "/")
    } else {
        text.to_owned()
    }
}

fn decoded_pattern(pattern: &PathPattern) -> PathPattern {
    let of = |text: &str| decoded(text).into();
    match pattern {
        PathPattern::Text(StringMatch::Exact(text)) => {
            PathPattern::Text(StringMatch::Exact(of(text)))
        }
        PathPattern::Text(StringMatch::Prefix(text)) => {
            PathPattern::Text(StringMatch::Prefix(of(text)))
        }
        PathPattern::Text(StringMatch::Suffix(text)) => {
            PathPattern::Text(StringMatch::Suffix(of(text)))
        }
        PathPattern::Text(StringMatch::Presence) => pattern.clone(),
        PathPattern::Template(text) => PathPattern::Template(of(text)),
    }
}

/// Only the escapes that the cases hold.
fn decoded(text: &str) -> String {
    text.replace("%40", "@")
        .replace("%C3%A9", "é")
        .replace("%3B", ";")
}

fn is_template(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else {
        return false;
    };
    let segments: Vec<&str> = rest.split('/').collect();
    let operator = |segment: &str| segment == "{*}" || segment == "{**}";
    let clean = |segment: &str| !segment.contains(['*', '{', '}']);
    let after_rest = segments
        .iter()
        .skip_while(|segment| **segment != "{**}")
        .skip(1);
    segments
        .iter()
        .all(|segment| operator(segment) || clean(segment))
        && after_rest.clone().all(|segment| !operator(segment))
}

/// Tries every way to cut the path.
fn template(text: &str, path: &str) -> bool {
    fn matches(pattern: &[char], path: &[char]) -> bool {
        let text: String = pattern.iter().collect();
        if text.starts_with("{**}") {
            return (0..=path.len()).any(|cut| matches(&pattern[4..], &path[cut..]));
        }
        if text.starts_with("{*}") {
            return (1..=path.len())
                .any(|cut| !path[..cut].contains(&'/') && matches(&pattern[3..], &path[cut..]));
        }
        match (pattern, path) {
            ([], []) => true,
            ([p, pattern @ ..], [c, path @ ..]) => p == c && matches(pattern, path),
            _ => false,
        }
    }
    let (pattern, path): (Vec<char>, Vec<char>) = (text.chars().collect(), path.chars().collect());
    matches(&pattern, &path)
}

fn too_long(b: &IpBlock) -> bool {
    b.prefix_len > if b.ip.is_ipv4() { 32 } else { 128 }
}

/// Bit by bit. A v4-mapped range or address counts as IPv4; the families never match one another.
fn contains(b: &IpBlock, ip: IpAddr) -> bool {
    let (block, len) = match b.ip {
        IpAddr::V6(v6) if b.prefix_len >= 96 && v6.to_ipv4_mapped().is_some() => {
            (b.ip.to_canonical(), b.prefix_len - 96)
        }
        other => (other, b.prefix_len),
    };
    let bits = |ip: IpAddr| -> Vec<bool> {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let bits = octets
            .iter()
            .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1));
        bits.collect()
    };
    let (block, ip) = (bits(block), bits(ip.to_canonical()));
    block.len() == ip.len() && block[..len.into()] == ip[..len.into()]
}
