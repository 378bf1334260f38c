//! `istio.security.Authorization`, read so that what we cannot read fails closed.
//!
//! A field that this version does not know (or a value that it cannot read) makes the smallest part that contains it
//! [`Match::unreadable`]: the match, else the clause, else the rule. Such a part never lets an ALLOW policy match and
//! always lets a DENY policy match. Dropping the field instead, as protobuf decoders do, would widen the policy.
//! A policy whose name, scope or action cannot be read is refused as a whole.

use karst_model::{
    name::PolicyKey,
    policy::{
        Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, ServiceAccountMatch,
        StringMatch,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    address::{ip_from, ip_to, max_prefix, port_from},
    error::decode,
};
use crate::{
    fields::{Field, fields},
    security as wire,
};

/// Extension by which we tell our own decoder that a match is unreadable.
const UNREADABLE: &str = "karst.v1.Unreadable";

/// Field numbers of the containers.
mod number {
    pub(super) const AUTHORIZATION_RULES: u64 = 5;
    pub(super) const AUTHORIZATION_KNOWN_MAX: u64 = 6;
    pub(super) const RULE_CLAUSES: u64 = 1;
    pub(super) const CLAUSE_MATCHES: u64 = 2;
    pub(super) const MATCH_KNOWN_MAX: u64 = 12;
    pub(super) const STRING_MATCH_KNOWN_MAX: u64 = 4;
}

/// Reads a resource of type Authorization.
pub fn decode_authorization(
    bytes: &[u8],
    interner: &mut Interner,
) -> Result<Authorization, ConvertError> {
    let message: wire::Authorization = decode("istio.security.Authorization", bytes)?;
    if message.name.is_empty() {
        return Err(Problem::Missing.at("name"));
    }
    let scope = match wire::Scope::try_from(message.scope) {
        Ok(wire::Scope::Global) => PolicyScope::Global,
        Ok(wire::Scope::Namespace) => PolicyScope::Namespace,
        Ok(wire::Scope::WorkloadSelector) => PolicyScope::WorkloadSelector,
        Err(_) => return Err(Problem::UnknownValue(message.scope).at("scope")),
    };
    let action = match wire::Action::try_from(message.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(Problem::UnknownValue(message.action).at("action")),
    };
    let mut rules: Vec<Rule> = bodies(bytes, number::AUTHORIZATION_RULES)
        .map(|b| rule_from(b, interner))
        .collect();
    if knows_only(bytes, |n| n <= number::AUTHORIZATION_KNOWN_MAX).is_err() {
        rules.iter_mut().for_each(|rule| *rule = unreadable_rule());
    }
    let key = PolicyKey {
        namespace: interner.get(&message.namespace),
        name: interner.get(&message.name),
    };
    Ok(Authorization {
        key,
        scope,
        action,
        dry_run: message.dry_run,
        rules,
    })
}

/// A part holds a field that we do not know, or a value that we cannot read.
pub(super) struct Unreadable;

fn rule_from(bytes: &[u8], interner: &mut Interner) -> Rule {
    if knows_only(bytes, |n| n == number::RULE_CLAUSES).is_err() {
        return unreadable_rule();
    }
    Rule {
        clauses: bodies(bytes, number::RULE_CLAUSES)
            .map(|b| clause_from(b, interner))
            .collect(),
    }
}

fn clause_from(bytes: &[u8], interner: &mut Interner) -> Clause {
    if knows_only(bytes, |n| n == number::CLAUSE_MATCHES).is_err() {
        return Clause {
            matches: vec![unreadable_match()],
        };
    }
    Clause {
        matches: bodies(bytes, number::CLAUSE_MATCHES)
            .map(|b| match_from(b, interner))
            .collect(),
    }
}

fn match_from(bytes: &[u8], interner: &mut Interner) -> Match {
    try_match_from(bytes, interner).unwrap_or_else(|Unreadable| unreadable_match())
}

pub(super) fn try_match_from(bytes: &[u8], interner: &mut Interner) -> Result<Match, Unreadable> {
    knows_only(bytes, |n| n <= number::MATCH_KNOWN_MAX)?;
    // Groups 1 to 4 are string matches, 5 to 8 addresses; their own unknown fields count too.
    for field in fields(bytes).flatten() {
        if let (1..=4, Some(body)) = (field.number, field.bytes) {
            knows_only(body, |n| n <= number::STRING_MATCH_KNOWN_MAX)?;
        }
        if let (5..=8 | 11 | 12, Some(body)) = (field.number, field.bytes) {
            knows_only(body, |n| n <= 2)?;
        }
    }
    let m = wire::Match::decode(bytes).map_err(|_cause| Unreadable)?;
    Ok(Match {
        namespaces: all(m.namespaces, |s| string_from(s, interner))?,
        not_namespaces: all(m.not_namespaces, |s| string_from(s, interner))?,
        principals: all(m.principals, |s| string_from(s, interner))?,
        not_principals: all(m.not_principals, |s| string_from(s, interner))?,
        source_ips: all(m.source_ips, block_from)?,
        not_source_ips: all(m.not_source_ips, block_from)?,
        destination_ips: all(m.destination_ips, block_from)?,
        not_destination_ips: all(m.not_destination_ips, block_from)?,
        destination_ports: all(m.destination_ports, policy_port)?,
        not_destination_ports: all(m.not_destination_ports, policy_port)?,
        service_accounts: all(m.service_accounts, |s| Ok(account_from(&s, interner)))?,
        not_service_accounts: all(m.not_service_accounts, |s| Ok(account_from(&s, interner)))?,
        unreadable: false,
    })
}

/// The contents of every field `number` of `message`, which has been decoded before and so is well formed.
pub(super) fn bodies(message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(message)
        .flatten()
        .filter(move |f| f.number == number)
        .filter_map(|f| f.bytes)
}

pub(super) fn knows_only(message: &[u8], known: impl Fn(u64) -> bool) -> Result<(), Unreadable> {
    let fine = |field: Result<Field<'_>, _>| field.is_ok_and(|f| known(f.number));
    if fields(message).all(fine) {
        Ok(())
    } else {
        Err(Unreadable)
    }
}

pub(super) fn all<T, U>(
    items: Vec<T>,
    convert: impl FnMut(T) -> Result<U, Unreadable>,
) -> Result<Vec<U>, Unreadable> {
    items.into_iter().map(convert).collect()
}

pub(super) fn string_from(
    s: wire::StringMatch,
    interner: &mut Interner,
) -> Result<StringMatch, Unreadable> {
    use wire::string_match::MatchType;
    match s.match_type.ok_or(Unreadable)? {
        MatchType::Exact(text) => Ok(StringMatch::Exact(interner.get(&text))),
        MatchType::Prefix(text) => Ok(StringMatch::Prefix(interner.get(&text))),
        MatchType::Suffix(text) => Ok(StringMatch::Suffix(interner.get(&text))),
        MatchType::Presence(()) => Ok(StringMatch::Presence),
    }
}

/// A mapped IPv4 range (`::ffff:10.0.0.0/104`) becomes an IPv4 range, as addresses do everywhere.
pub(super) fn block_from(block: wire::Address) -> Result<IpBlock, Unreadable> {
    let ip = ip_from(&block.address).map_err(|_cause| Unreadable)?;
    let mapped = block.address.len() == 16 && ip.is_ipv4();
    let length = if mapped {
        block.length.checked_sub(96).ok_or(Unreadable)?
    } else {
        block.length
    };
    let prefix_len = u8::try_from(length)
        .ok()
        .filter(|len| *len <= max_prefix(ip))
        .ok_or(Unreadable)?;
    Ok(IpBlock { ip, prefix_len })
}

fn policy_port(port: u32) -> Result<u16, Unreadable> {
    port_from(port).map_err(|_cause| Unreadable)
}

fn account_from(
    account: &wire::ServiceAccountMatch,
    interner: &mut Interner,
) -> ServiceAccountMatch {
    ServiceAccountMatch {
        namespace: interner.get(&account.namespace),
        service_account: interner.get(&account.service_account),
    }
}

pub(super) fn unreadable_match() -> Match {
    Match {
        unreadable: true,
        ..Match::default()
    }
}

fn unreadable_rule() -> Rule {
    Rule {
        clauses: vec![Clause {
            matches: vec![unreadable_match()],
        }],
    }
}

/// The resource of a policy.
pub fn authorization_to(policy: &Authorization) -> wire::Authorization {
    let scope = match policy.scope {
        PolicyScope::Global => wire::Scope::Global,
        PolicyScope::Namespace => wire::Scope::Namespace,
        PolicyScope::WorkloadSelector => wire::Scope::WorkloadSelector,
    };
    let action = match policy.action {
        Action::Allow => wire::Action::Allow,
        Action::Deny => wire::Action::Deny,
    };
    wire::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        rules: policy
            .rules
            .iter()
            .map(|rule| rule_to(rule, policy.action))
            .collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn rule_to(rule: &Rule, action: Action) -> wire::Rule {
    let clause = |clause: &Clause| wire::Clause {
        matches: clause.matches.iter().map(|m| match_to(m, action)).collect(),
    };
    wire::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

pub(super) fn match_to(m: &Match, action: Action) -> wire::Match {
    let strings = |list: &[StringMatch]| list.iter().map(string_to).collect();
    let blocks = |list: &[IpBlock]| list.iter().map(|block| block_to(*block)).collect();
    let ports = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    let accounts = |list: &[ServiceAccountMatch]| list.iter().map(account_to).collect();
    if m.unreadable {
        return unreadable_to(action);
    }
    wire::Match {
        namespaces: strings(&m.namespaces),
        not_namespaces: strings(&m.not_namespaces),
        principals: strings(&m.principals),
        not_principals: strings(&m.not_principals),
        source_ips: blocks(&m.source_ips),
        not_source_ips: blocks(&m.not_source_ips),
        destination_ips: blocks(&m.destination_ips),
        not_destination_ips: blocks(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        extensions: Vec::new(),
    }
}

/// Unreadable for our decoder by an extension that it does not know, and of the same effect for one that ignores
/// extensions: no connection has port 0, so for ALLOW this matches nothing and for DENY everything.
fn unreadable_to(action: Action) -> wire::Match {
    let mut m = wire::Match::default();
    match action {
        Action::Allow => m.destination_ports.push(0),
        Action::Deny => m.not_destination_ports.push(0),
    }
    m.extensions.push(wire::Extension {
        name: UNREADABLE.to_owned(),
        config: None,
    });
    m
}

pub(super) fn string_to(s: &StringMatch) -> wire::StringMatch {
    use wire::string_match::MatchType;
    let match_type = match s {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    wire::StringMatch {
        match_type: Some(match_type),
    }
}

pub(super) fn block_to(block: IpBlock) -> wire::Address {
    wire::Address {
        address: ip_to(block.ip),
        length: block.prefix_len.into(),
    }
}

fn account_to(account: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}
