//! `karst.v1.RateLimit`. What cannot be read is refused as a whole, and the last good one stays; a match with a part that
//! this version does not know counts more requests rather than fewer.

use karst_model::{
    name::PolicyKey,
    policy::Action,
    rate_limit::{
        Enforcement, LimitHeaders, LimitKey, LimitRule, LimitScope, LimitTarget, RateLimit,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    error::decode,
    route::{duration_from, duration_to},
    waypoint_policy::{request_match_from, request_match_to},
    workload::indexed,
};
use crate::karst as wire;

/// Reads a resource of type RateLimit.
pub fn decode_rate_limit(bytes: &[u8], interner: &mut Interner) -> Result<RateLimit, ConvertError> {
    let message: wire::RateLimit = decode("karst.v1.RateLimit", bytes)?;
    if message.name.is_empty() {
        return Err(Problem::Missing.at("name"));
    }
    if message.encoded_len() != bytes.len() {
        return Err(Problem::UnknownField.at("rules"));
    }
    let status = u16::try_from(message.status)
        .ok()
        .filter(|status| (400..=599).contains(status))
        .ok_or_else(|| Problem::Status(message.status).at("status"))?;
    let headers = headers_from(message.headers).map_err(|problem| problem.at("headers"))?;
    if message.scope != i32::from(wire::LimitScope::Process) {
        return Err(Problem::UnknownValue(message.scope).at("scope"));
    }
    Ok(RateLimit {
        key: PolicyKey {
            namespace: interner.get(&message.namespace),
            name: interner.get(&message.name),
        },
        targets: indexed("targets", &message.targets, |target| {
            target_from(target, interner)
        })?,
        enforcement: match message.shadow {
            true => Enforcement::Shadow,
            false => Enforcement::Enforce,
        },
        scope: LimitScope::Process,
        status,
        headers,
        rules: indexed("rules", &message.rules, |rule| rule_from(rule, interner))?,
    })
}

fn headers_from(headers: i32) -> Result<LimitHeaders, Problem> {
    Ok(match wire::LimitHeaders::try_from(headers) {
        Ok(wire::LimitHeaders::Draft) => LimitHeaders::Draft,
        Ok(wire::LimitHeaders::Legacy) => LimitHeaders::Legacy,
        Ok(wire::LimitHeaders::Both) => LimitHeaders::Both,
        Ok(wire::LimitHeaders::None) => LimitHeaders::None,
        Err(_unknown) => return Err(Problem::UnknownValue(headers)),
    })
}

fn target_from(
    target: &wire::LimitTarget,
    interner: &mut Interner,
) -> Result<LimitTarget, Problem> {
    use wire::limit_target::Kind;
    Ok(match target.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Service(name) => LimitTarget::Service(name.parse()?),
        Kind::Gateway(gateway) => LimitTarget::Gateway {
            namespace: interner.get(&gateway.namespace),
            name: interner.get(&gateway.name),
        },
        Kind::Route(key) => LimitTarget::Route(key.parse()?),
    })
}

fn rule_from(rule: &wire::LimitRule, interner: &mut Interner) -> Result<LimitRule, Problem> {
    let period = duration_from(rule.period.ok_or(Problem::Missing)?)?;
    if rule.requests == 0 || rule.burst == 0 || period.is_zero() {
        return Err(Problem::Missing);
    }
    let keys: Result<_, Problem> = rule.keys.iter().map(key_from).collect();
    Ok(LimitRule {
        name: interner.get(&rule.name),
        matches: rule
            .matches
            .iter()
            .map(|m| request_match_from(m.clone(), interner))
            .collect(),
        requests: rule.requests,
        period,
        burst: rule.burst,
        keys: keys?,
    })
}

fn key_from(key: &wire::LimitKey) -> Result<LimitKey, Problem> {
    use wire::limit_key::Kind;
    Ok(match key.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Identity(()) => LimitKey::Identity,
        Kind::Namespace(()) => LimitKey::Namespace,
        Kind::Address(()) => LimitKey::Address,
        Kind::Header(name) => LimitKey::Header(name.as_str().into()),
        Kind::Claim(claim) => {
            LimitKey::Claim(claim.path.iter().map(|part| part.as_str().into()).collect())
        }
    })
}

/// The resource of a limit.
pub fn rate_limit_to(limit: &RateLimit) -> wire::RateLimit {
    let headers = match limit.headers {
        LimitHeaders::Draft => wire::LimitHeaders::Draft,
        LimitHeaders::Legacy => wire::LimitHeaders::Legacy,
        LimitHeaders::Both => wire::LimitHeaders::Both,
        LimitHeaders::None => wire::LimitHeaders::None,
    };
    let scope = match limit.scope {
        LimitScope::Process => wire::LimitScope::Process,
    };
    wire::RateLimit {
        namespace: limit.key.namespace.to_string(),
        name: limit.key.name.to_string(),
        targets: limit.targets.iter().map(target_to).collect(),
        shadow: limit.enforcement == Enforcement::Shadow,
        status: limit.status.into(),
        headers: headers.into(),
        rules: limit.rules.iter().map(rule_to).collect(),
        scope: scope.into(),
    }
}

fn target_to(target: &LimitTarget) -> wire::LimitTarget {
    use wire::limit_target::Kind;
    let kind = match target {
        LimitTarget::Service(service) => Kind::Service(service.to_string()),
        LimitTarget::Gateway { namespace, name } => Kind::Gateway(wire::GatewayTarget {
            namespace: namespace.to_string(),
            name: name.to_string(),
        }),
        LimitTarget::Route(key) => Kind::Route(key.to_string()),
    };
    wire::LimitTarget { kind: Some(kind) }
}

fn rule_to(rule: &LimitRule) -> wire::LimitRule {
    // As in a DENY policy: what an older reader does not know, it counts.
    let matches = rule.matches.iter();
    wire::LimitRule {
        name: rule.name.to_string(),
        matches: matches.map(|m| request_match_to(m, Action::Deny)).collect(),
        requests: rule.requests,
        period: Some(duration_to(rule.period)),
        burst: rule.burst,
        keys: rule.keys.iter().map(key_to).collect(),
    }
}

fn key_to(key: &LimitKey) -> wire::LimitKey {
    use wire::limit_key::Kind;
    let kind = match key {
        LimitKey::Identity => Kind::Identity(()),
        LimitKey::Namespace => Kind::Namespace(()),
        LimitKey::Address => Kind::Address(()),
        LimitKey::Header(name) => Kind::Header(name.to_string()),
        LimitKey::Claim(path) => Kind::Claim(wire::Claim {
            path: path.iter().map(ToString::to_string).collect(),
        }),
    };
    wire::LimitKey { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use karst_model::{policy::StringMatch, waypoint_policy::RequestMatch};

    use super::*;

    fn limit() -> RateLimit {
        RateLimit {
            key: "shop/orders".parse().unwrap(),
            targets: vec![
                LimitTarget::Service("shop/orders.shop.svc.cluster.local".parse().unwrap()),
                LimitTarget::Gateway {
                    namespace: "shop".into(),
                    name: "waypoint".into(),
                },
                LimitTarget::Route("HTTPRoute/shop/orders".parse().unwrap()),
            ],
            enforcement: Enforcement::Shadow,
            scope: LimitScope::Process,
            status: 429,
            headers: LimitHeaders::Both,
            rules: vec![LimitRule {
                name: "writes".into(),
                matches: vec![RequestMatch {
                    methods: vec![StringMatch::Exact("POST".into())],
                    ..RequestMatch::default()
                }],
                requests: 10,
                period: Duration::from_millis(1500),
                burst: 20,
                keys: vec![
                    LimitKey::Identity,
                    LimitKey::Namespace,
                    LimitKey::Address,
                    LimitKey::Header("x-tenant".into()),
                    LimitKey::Claim(vec!["org".into(), "id".into()]),
                ],
            }],
        }
    }

    #[test]
    fn comes_back_as_it_went() {
        let bytes = rate_limit_to(&limit()).encode_to_vec();
        let read = decode_rate_limit(&bytes, &mut Interner::default()).unwrap();
        assert_eq!(read, limit());
    }

    #[test]
    fn what_could_divide_by_zero_or_answer_nonsense_is_refused() {
        let refused = |change: &dyn Fn(&mut wire::RateLimit)| {
            let mut message = rate_limit_to(&limit());
            change(&mut message);
            decode_rate_limit(&message.encode_to_vec(), &mut Interner::default())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&|m| m.rules[0].requests = 0).contains("rules[0]"));
        assert!(refused(&|m| m.rules[0].burst = 0).contains("rules[0]"));
        assert!(refused(&|m| m.rules[0].period = None).contains("rules[0]"));
        assert!(refused(&|m| m.status = 200).contains("status"));
        assert!(refused(&|m| m.headers = 9).contains("headers"));
        assert!(refused(&|m| m.scope = 9).contains("scope"));
        assert!(refused(&|m| m.name.clear()).contains("name"));
    }
}
