//! `karst.v1.WaypointPolicy`, read so that what we cannot read fails closed, as at L4 (see [`super::policy`]).
//!
//! Its connection part is `istio.security.Match`, so the same rules hold for its fields. What this version does not know
//! outside of that part makes every rule unreadable: such a rule never lets an ALLOW policy match and always lets a DENY
//! policy match. A policy without a readable key, target or action is refused as a whole.

use karst_model::{
    name::PolicyKey,
    policy::{Action, Match},
    waypoint_policy::{
        ClaimValues, HeaderValues, PathPattern, PolicyTarget, RequestAction, RequestClause,
        RequestMatch, RequestRule, WaypointPolicy,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    error::decode,
    external::{authorizer_from, authorizer_to},
    policy::{
        Unreadable, all, block_from, block_to, match_to, string_from, string_to, try_match_from,
        unreadable_match,
    },
    workload::indexed,
};
use crate::{karst as wire, security};

/// Reads a resource of type WaypointPolicy.
pub fn decode_waypoint_policy(
    bytes: &[u8],
    interner: &mut Interner,
) -> Result<WaypointPolicy, ConvertError> {
    let message: wire::WaypointPolicy = decode("karst.v1.WaypointPolicy", bytes)?;
    if message.name.is_empty() {
        return Err(Problem::Missing.at("name"));
    }
    let action = action_from(message.action)?;
    let targets = indexed("targets", &message.targets, |target| {
        target_from(target, interner)
    })?;
    if targets.is_empty() {
        return Err(Problem::Missing.at("targets"));
    }
    // What the decoder has dropped is missing from the length.
    let complete = message.encoded_len() == bytes.len();
    let key = PolicyKey {
        namespace: interner.get(&message.namespace),
        name: interner.get(&message.name),
    };
    let rules = message.rules.into_iter().map(|rule| match complete {
        true => rule_from(rule, interner),
        false => unreadable_rule(),
    });
    let rules = rules.collect();
    let provider = message
        .provider
        .and_then(|provider| authorizer_from(provider, interner).ok());
    Ok(WaypointPolicy {
        key,
        targets,
        action,
        provider: provider.map(Into::into),
        dry_run: message.dry_run,
        rules,
    })
}

fn action_from(action: i32) -> Result<RequestAction, ConvertError> {
    match wire::RequestAction::try_from(action) {
        Ok(wire::RequestAction::RequestAllow) => Ok(RequestAction::Allow),
        Ok(wire::RequestAction::RequestDeny) => Ok(RequestAction::Deny),
        Ok(wire::RequestAction::RequestAudit) => Ok(RequestAction::Audit),
        Ok(wire::RequestAction::RequestCustom) => Ok(RequestAction::Custom),
        Ok(wire::RequestAction::Unspecified) | Err(_) => {
            Err(Problem::UnknownValue(action).at("action"))
        }
    }
}

pub(super) fn target_from(
    target: &wire::PolicyTarget,
    interner: &mut Interner,
) -> Result<PolicyTarget, Problem> {
    use wire::policy_target::Kind;
    Ok(match target.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Service(name) => PolicyTarget::Service(name.parse()?),
        Kind::Gateway(gateway) => PolicyTarget::Gateway {
            namespace: interner.get(&gateway.namespace),
            name: interner.get(&gateway.name),
        },
        Kind::GatewayClass(name) => PolicyTarget::GatewayClass(interner.get(name)),
    })
}

fn rule_from(rule: wire::RequestRule, interner: &mut Interner) -> RequestRule {
    let clause = |clause: wire::RequestClause| RequestClause {
        matches: clause
            .matches
            .into_iter()
            .map(|m| request_match_from(m, interner))
            .collect(),
    };
    RequestRule {
        clauses: rule.clauses.into_iter().map(clause).collect(),
    }
}

/// A match, or one that is unreadable as a whole.
pub(super) fn request_match_from(m: wire::RequestMatch, interner: &mut Interner) -> RequestMatch {
    match_from(m, interner).unwrap_or_else(|Unreadable| unreadable())
}

fn match_from(m: wire::RequestMatch, interner: &mut Interner) -> Result<RequestMatch, Unreadable> {
    let connection = match m.connection {
        Some(connection) => try_match_from(&connection.encode_to_vec(), interner)?,
        None => Match::default(),
    };
    let mut strings =
        |list: Vec<security::StringMatch>| all(list, |text| string_from(text, interner));
    Ok(RequestMatch {
        connection,
        methods: strings(m.methods)?,
        not_methods: strings(m.not_methods)?,
        hosts: strings(m.hosts)?,
        not_hosts: strings(m.not_hosts)?,
        sni: strings(m.sni)?,
        not_sni: strings(m.not_sni)?,
        request_principals: strings(m.request_principals)?,
        not_request_principals: strings(m.not_request_principals)?,
        audiences: strings(m.audiences)?,
        not_audiences: strings(m.not_audiences)?,
        presenters: strings(m.presenters)?,
        not_presenters: strings(m.not_presenters)?,
        remote_ips: all(m.remote_ips, block_from)?,
        not_remote_ips: all(m.not_remote_ips, block_from)?,
        paths: all(m.paths, |path| path_from(path, interner))?,
        not_paths: all(m.not_paths, |path| path_from(path, interner))?,
        headers: all(m.headers, |header| header_from(header, interner))?,
        claims: all(m.claims, |claim| claim_from(claim, interner))?,
    })
}

fn path_from(path: wire::PathPattern, interner: &mut Interner) -> Result<PathPattern, Unreadable> {
    use wire::path_pattern::Kind;
    Ok(match path.kind.ok_or(Unreadable)? {
        Kind::Text(text) => PathPattern::Text(string_from(text, interner)?),
        Kind::Template(template) => PathPattern::Template(template.into()),
    })
}

fn header_from(
    header: wire::HeaderValues,
    interner: &mut Interner,
) -> Result<HeaderValues, Unreadable> {
    Ok(HeaderValues {
        name: interner.get(&header.name),
        values: all(header.values, |text| string_from(text, interner))?,
        not_values: all(header.not_values, |text| string_from(text, interner))?,
    })
}

fn claim_from(
    claim: wire::ClaimValues,
    interner: &mut Interner,
) -> Result<ClaimValues, Unreadable> {
    Ok(ClaimValues {
        path: claim.path.iter().map(|name| interner.get(name)).collect(),
        values: all(claim.values, |text| string_from(text, interner))?,
        not_values: all(claim.not_values, |text| string_from(text, interner))?,
    })
}

fn unreadable() -> RequestMatch {
    RequestMatch {
        connection: unreadable_match(),
        ..RequestMatch::default()
    }
}

fn unreadable_rule() -> RequestRule {
    RequestRule {
        clauses: vec![RequestClause {
            matches: vec![unreadable()],
        }],
    }
}

/// The resource of a policy.
pub fn waypoint_policy_to(policy: &WaypointPolicy) -> wire::WaypointPolicy {
    let action = match policy.action {
        RequestAction::Allow => wire::RequestAction::RequestAllow,
        RequestAction::Deny => wire::RequestAction::RequestDeny,
        RequestAction::Audit => wire::RequestAction::RequestAudit,
        RequestAction::Custom => wire::RequestAction::RequestCustom,
    };
    // An audit that matches too much harms nobody.
    let strictness = match policy.action {
        RequestAction::Allow => Action::Allow,
        RequestAction::Deny | RequestAction::Audit | RequestAction::Custom => Action::Deny,
    };
    let clause = |clause: &RequestClause| wire::RequestClause {
        matches: clause
            .matches
            .iter()
            .map(|m| request_match_to(m, strictness))
            .collect(),
    };
    let rule = |rule: &RequestRule| wire::RequestRule {
        clauses: rule.clauses.iter().map(clause).collect(),
    };
    wire::WaypointPolicy {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        targets: policy.targets.iter().map(target_to).collect(),
        action: action.into(),
        provider: policy.provider.as_deref().map(authorizer_to),
        dry_run: policy.dry_run,
        rules: policy.rules.iter().map(rule).collect(),
    }
}

pub(super) fn target_to(target: &PolicyTarget) -> wire::PolicyTarget {
    use wire::policy_target::Kind;
    let kind = match target {
        PolicyTarget::Service(service) => Kind::Service(service.to_string()),
        PolicyTarget::Gateway { namespace, name } => Kind::Gateway(wire::GatewayTarget {
            namespace: namespace.to_string(),
            name: name.to_string(),
        }),
        PolicyTarget::GatewayClass(name) => Kind::GatewayClass(name.to_string()),
    };
    wire::PolicyTarget { kind: Some(kind) }
}

pub(super) fn request_match_to(m: &RequestMatch, action: Action) -> wire::RequestMatch {
    let strings = |list: &[_]| list.iter().map(string_to).collect();
    let blocks = |list: &[_]| list.iter().map(|block| block_to(*block)).collect();
    let paths = |list: &[PathPattern]| list.iter().map(path_to).collect();
    let header = |header: &HeaderValues| wire::HeaderValues {
        name: header.name.to_string(),
        values: strings(&header.values),
        not_values: strings(&header.not_values),
    };
    let claim = |claim: &ClaimValues| wire::ClaimValues {
        path: claim.path.iter().map(ToString::to_string).collect(),
        values: strings(&claim.values),
        not_values: strings(&claim.not_values),
    };
    wire::RequestMatch {
        connection: (m.connection != Match::default()).then(|| match_to(&m.connection, action)),
        methods: strings(&m.methods),
        not_methods: strings(&m.not_methods),
        paths: paths(&m.paths),
        not_paths: paths(&m.not_paths),
        hosts: strings(&m.hosts),
        not_hosts: strings(&m.not_hosts),
        headers: m.headers.iter().map(header).collect(),
        remote_ips: blocks(&m.remote_ips),
        not_remote_ips: blocks(&m.not_remote_ips),
        sni: strings(&m.sni),
        not_sni: strings(&m.not_sni),
        request_principals: strings(&m.request_principals),
        not_request_principals: strings(&m.not_request_principals),
        audiences: strings(&m.audiences),
        not_audiences: strings(&m.not_audiences),
        presenters: strings(&m.presenters),
        not_presenters: strings(&m.not_presenters),
        claims: m.claims.iter().map(claim).collect(),
    }
}

fn path_to(path: &PathPattern) -> wire::PathPattern {
    use wire::path_pattern::Kind;
    let kind = match path {
        PathPattern::Text(text) => Kind::Text(string_to(text)),
        PathPattern::Template(template) => Kind::Template(template.to_string()),
    };
    wire::PathPattern { kind: Some(kind) }
}
