//! `karst.v1.RequestAuthentication`. What cannot be read is refused as a whole: the last good one stays.

use std::{sync::Arc, time::Duration};

use karst_model::{
    name::PolicyKey,
    token::{ClaimHeader, RequestAuthentication, TokenKeys, TokenRule, TokenSource},
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    error::decode,
    route::{duration_from, duration_to},
    waypoint_policy::{target_from, target_to},
    workload::indexed,
};
use crate::karst as wire;

/// Reads a resource of type RequestAuthentication.
pub fn decode_request_authentication(
    bytes: &[u8],
    interner: &mut Interner,
) -> Result<RequestAuthentication, ConvertError> {
    let message: wire::RequestAuthentication = decode("karst.v1.RequestAuthentication", bytes)?;
    if message.name.is_empty() {
        return Err(Problem::Missing.at("name"));
    }
    // What the decoder has dropped is missing from the length; a later version may have meant to narrow something.
    if message.encoded_len() != bytes.len() {
        return Err(Problem::UnknownField.at("rules"));
    }
    let targets = indexed("targets", &message.targets, |target| {
        target_from(target, interner)
    })?;
    let rules = indexed("rules", &message.rules, |rule| rule_from(rule, interner))?;
    Ok(RequestAuthentication {
        key: PolicyKey {
            namespace: interner.get(&message.namespace),
            name: interner.get(&message.name),
        },
        targets,
        rules,
    })
}

fn rule_from(rule: &wire::TokenRule, interner: &mut Interner) -> Result<TokenRule, Problem> {
    use wire::token_rule::Keys;
    if rule.issuer.is_empty() {
        return Err(Problem::Missing);
    }
    let sources: Result<_, Problem> = rule.sources.iter().map(source_from).collect();
    Ok(TokenRule {
        issuer: interner.get(&rule.issuer),
        audiences: texts(&rule.audiences),
        keys: match rule.keys.as_ref().ok_or(Problem::Missing)? {
            Keys::Jwks(text) => TokenKeys::Published(text.as_str().into()),
            Keys::Missing(why) => TokenKeys::Missing(why.as_str().into()),
        },
        sources: sources?,
        forward: rule.forward,
        payload_header: rule.payload_header.as_deref().map(Into::into),
        claim_headers: rule
            .claim_headers
            .iter()
            .map(|claim| ClaimHeader {
                header: claim.header.as_str().into(),
                claim: texts(&claim.claim),
            })
            .collect(),
        space_delimited: texts(&rule.space_delimited),
        clock_skew: match rule.clock_skew {
            Some(skew) => duration_from(skew)?,
            None => Duration::ZERO,
        },
    })
}

fn source_from(source: &wire::TokenSource) -> Result<TokenSource, Problem> {
    use wire::token_source::Kind;
    Ok(match source.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Header(header) => TokenSource::Header {
            name: header.name.as_str().into(),
            prefix: header.prefix.as_str().into(),
        },
        Kind::Param(name) => TokenSource::Param(name.as_str().into()),
        Kind::Cookie(name) => TokenSource::Cookie(name.as_str().into()),
    })
}

fn texts(list: &[String]) -> Vec<Arc<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

/// The resource of a RequestAuthentication.
pub fn request_authentication_to(
    authentication: &RequestAuthentication,
) -> wire::RequestAuthentication {
    wire::RequestAuthentication {
        namespace: authentication.key.namespace.to_string(),
        name: authentication.key.name.to_string(),
        targets: authentication.targets.iter().map(target_to).collect(),
        rules: authentication.rules.iter().map(rule_to).collect(),
    }
}

fn rule_to(rule: &TokenRule) -> wire::TokenRule {
    use wire::token_rule::Keys;
    let strings = |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect();
    wire::TokenRule {
        issuer: rule.issuer.to_string(),
        audiences: strings(&rule.audiences),
        keys: Some(match &rule.keys {
            TokenKeys::Published(text) => Keys::Jwks(text.to_string()),
            TokenKeys::Missing(why) => Keys::Missing(why.to_string()),
        }),
        sources: rule.sources.iter().map(source_to).collect(),
        forward: rule.forward,
        payload_header: rule.payload_header.as_ref().map(ToString::to_string),
        claim_headers: rule
            .claim_headers
            .iter()
            .map(|claim| wire::ClaimHeader {
                header: claim.header.to_string(),
                claim: strings(&claim.claim),
            })
            .collect(),
        space_delimited: strings(&rule.space_delimited),
        clock_skew: Some(duration_to(rule.clock_skew)),
    }
}

fn source_to(source: &TokenSource) -> wire::TokenSource {
    use wire::token_source::Kind;
    let kind = match source {
        TokenSource::Header { name, prefix } => Kind::Header(wire::TokenHeader {
            name: name.to_string(),
            prefix: prefix.to_string(),
        }),
        TokenSource::Param(name) => Kind::Param(name.to_string()),
        TokenSource::Cookie(name) => Kind::Cookie(name.to_string()),
    };
    wire::TokenSource { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use karst_model::{token::CLOCK_SKEW, waypoint_policy::PolicyTarget};

    use super::*;

    fn full() -> RequestAuthentication {
        let rule = |keys| TokenRule {
            issuer: "https://issuer.example".into(),
            audiences: vec!["a".into(), "b".into()],
            keys,
            sources: vec![
                TokenSource::Header {
                    name: "authorization".into(),
                    prefix: "Bearer ".into(),
                },
                TokenSource::Param("access_token".into()),
                TokenSource::Cookie("session".into()),
            ],
            forward: true,
            payload_header: Some("x-payload".into()),
            claim_headers: vec![ClaimHeader {
                header: "x-group".into(),
                claim: vec!["realm".into(), "group".into()],
            }],
            space_delimited: vec!["roles".into()],
            clock_skew: CLOCK_SKEW,
        };
        RequestAuthentication {
            key: "shop/users".parse().unwrap(),
            targets: vec![PolicyTarget::Service("shop/cart".parse().unwrap())],
            rules: vec![
                rule(TokenKeys::Published("{\"keys\":[]}".into())),
                rule(TokenKeys::Missing("not fetched yet".into())),
            ],
        }
    }

    #[test]
    fn a_request_authentication_round_trips_and_later_fields_refuse_it() {
        let mut bytes = request_authentication_to(&full()).encode_to_vec();
        let read = |bytes: &[u8]| decode_request_authentication(bytes, &mut Interner::default());
        assert_eq!(read(&bytes).unwrap(), full());
        bytes.extend([0xf8, 0x06, 0x01]);
        assert!(read(&bytes).is_err());
    }
}
