//! From a RequestAuthentication to what a waypoint verifies tokens by, and which keys are to be fetched for it.

use std::{collections::BTreeSet, sync::Arc};

use karst_k8s_api::istio::request_authentication::{JwtRule, RequestAuthenticationSpec};
use karst_model::token::{CLOCK_SKEW, ClaimHeader, TokenKeys, TokenRule, TokenSource};
use karst_policy::token::KeySet;

use crate::{
    conditions::Condition,
    request_policies::{TargetRef, refused, target},
};

/// Where an issuer's keys are published.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// A JWK set at this address.
    Uri(Arc<str>),
    /// Wherever the issuer's `/.well-known/openid-configuration` says.
    Issuer(Arc<str>),
}

/// What fetching has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchedKeys {
    /// A JWK set that can be used: the last good one.
    pub keys: Option<Arc<str>>,
    /// Why the last attempt failed, if it did.
    pub problem: Option<Arc<str>>,
}

/// What comes of one object, before its targets and keys are looked up.
#[derive(Debug)]
pub(crate) struct AuthenticationFacts {
    pub(crate) targets: Vec<TargetRef>,
    pub(crate) rules: Vec<RuleFacts>,
    pub(crate) complaints: Vec<Condition>,
}

/// One issuer.
#[derive(Debug)]
pub(crate) struct RuleFacts {
    /// With the keys as far as the object has them.
    pub(crate) rule: TokenRule,
    /// Where they are to be fetched, unless the object has them.
    pub(crate) source: Option<KeySource>,
}

impl AuthenticationFacts {
    pub(crate) fn new(
        namespace: &Arc<str>,
        spec: &RequestAuthenticationSpec,
        root_namespace: &str,
    ) -> Self {
        let mut complaints = Vec::new();
        let mut targets = Vec::new();
        for reference in spec.target_ref.iter().chain(&spec.target_refs) {
            match target(namespace, reference, root_namespace) {
                Ok(target) => targets.push(target),
                Err(message) => complaints.push(refused("Invalid", message)),
            }
        }
        let has_selector = spec.selector.is_some();
        if targets.is_empty() && complaints.is_empty() {
            let message = "tokens are verified by waypoints: name a Service, ServiceEntry, Gateway or GatewayClass in targetRefs; the object has no effect";
            complaints.push(refused("UnsupportedValue", message.to_owned()));
        } else if has_selector {
            let message = "selector and targetRefs exclude each other: the selector has no effect";
            complaints.push(refused("Invalid", message.to_owned()));
        }
        let mut wrong = Vec::new();
        let rules = spec.jwt_rules.iter().enumerate();
        let rules = rules
            .filter_map(|(index, rule)| RuleFacts::new(index, rule, &mut wrong))
            .collect();
        if !wrong.is_empty() {
            complaints.push(refused("UnsupportedValue", wrong.join("; ")));
        }
        Self {
            targets,
            rules,
            complaints,
        }
    }

    /// What is to be fetched.
    pub(crate) fn sources(&self) -> BTreeSet<KeySource> {
        let sources = self.rules.iter().filter_map(|rule| rule.source.clone());
        sources.collect()
    }
}

impl RuleFacts {
    fn new(index: usize, rule: &JwtRule, wrong: &mut Vec<String>) -> Option<Self> {
        let path = format!("jwtRules[{index}]");
        let issuer = rule.issuer.as_deref().unwrap_or_default();
        if issuer.is_empty() {
            wrong.push(format!(
                "{path}.issuer is missing: the rule believes nobody"
            ));
            return None;
        }
        let (keys, source) = keys(&path, issuer, rule, wrong);
        let mut header = |field: &str, name: &str| match header_name(name) {
            Some(name) => Some(name),
            None => {
                wrong.push(format!(
                    "{path}.{field}: {name:?} is no header that may be set; it is not"
                ));
                None
            }
        };
        let payload = rule.output_payload_to_header.as_deref();
        let payload_header = payload.and_then(|name| header("outputPayloadToHeader", name));
        let claims = rule.output_claim_to_headers.iter().filter_map(|claim| {
            Some(ClaimHeader {
                header: header("outputClaimToHeaders", &claim.header)?,
                claim: claim.claim.split('.').map(Into::into).collect(),
            })
        });
        let claim_headers = claims.collect();
        Some(Self {
            rule: TokenRule {
                issuer: issuer.into(),
                audiences: texts(&rule.audiences),
                keys,
                sources: sources(rule),
                forward: rule.forward_original_token.unwrap_or(false),
                payload_header,
                claim_headers,
                space_delimited: texts(&rule.space_delimited_claims),
                clock_skew: CLOCK_SKEW,
            },
            source,
        })
    }
}

fn texts(list: &[String]) -> Vec<Arc<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

/// The keys in the object, or where they are.
fn keys(
    path: &str,
    issuer: &str,
    rule: &JwtRule,
    wrong: &mut Vec<String>,
) -> (TokenKeys, Option<KeySource>) {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let to_fetch = || TokenKeys::Missing("not fetched yet".into());
    if let Some(text) = given(&rule.jwks) {
        return match KeySet::read(&text) {
            Ok(_) => (TokenKeys::Published(text.into()), None),
            Err(error) => {
                wrong.push(format!(
                    "{path}.jwks: {error}; tokens of {issuer} are refused"
                ));
                (TokenKeys::Missing(error.to_string().into()), None)
            }
        };
    }
    match given(&rule.jwks_uri).or_else(|| given(&rule.jwks_uri_snake)) {
        Some(uri) => (to_fetch(), Some(KeySource::Uri(uri.into()))),
        None => (to_fetch(), Some(KeySource::Issuer(issuer.into()))),
    }
}

/// Where tokens are; without a word the header of authorization and the parameter of OAuth.
fn sources(rule: &JwtRule) -> Vec<TokenSource> {
    let headers = rule.from_headers.iter().map(|header| TokenSource::Header {
        name: header.name.to_ascii_lowercase().into(),
        prefix: header.prefix.as_deref().unwrap_or_default().into(),
    });
    let params = rule.from_params.iter();
    let params = params.map(|name| TokenSource::Param(name.as_str().into()));
    let cookies = rule.from_cookies.iter();
    let cookies = cookies.map(|name| TokenSource::Cookie(name.as_str().into()));
    let named: Vec<TokenSource> = headers.chain(params).chain(cookies).collect();
    if !named.is_empty() {
        return named;
    }
    vec![
        TokenSource::Header {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        },
        TokenSource::Param("access_token".into()),
    ]
}

/// A header that a waypoint may set, in lower case: none that says how the message is sent, or to whom.
fn header_name(name: &str) -> Option<Arc<str>> {
    const FRAMING: [&str; 9] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    ];
    let name = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$&'*+^`|~%".contains(&byte);
    let fits = !name.is_empty() && name.bytes().all(is_token) && !FRAMING.contains(&&*name);
    fits.then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(yaml: &str) -> AuthenticationFacts {
        let spec: RequestAuthenticationSpec = serde_json::from_str(yaml).unwrap();
        AuthenticationFacts::new(&"shop".into(), &spec, "istio-system")
    }

    #[test]
    fn what_the_object_leaves_out_is_written_out() {
        let facts = facts(
            r#"{"targetRefs":[{"kind":"Service","name":"cart","group":""}],
                "jwtRules":[{"issuer":"https://a"},{"issuer":"b","jwksUri":"https://b/keys","fromHeaders":[{"name":"X-Token"}],
                 "outputPayloadToHeader":"Host","outputClaimToHeaders":[{"header":"X-Group","claim":"realm.group"}]}]}"#,
        );
        let [first, second] = &facts.rules[..] else {
            panic!("{facts:?}")
        };
        assert_eq!(first.source, Some(KeySource::Issuer("https://a".into())));
        assert_eq!(first.rule.sources.len(), 2);
        assert_eq!(second.source, Some(KeySource::Uri("https://b/keys".into())));
        assert_eq!(
            second.rule.sources,
            [TokenSource::Header {
                name: "x-token".into(),
                prefix: "".into()
            }]
        );
        assert_eq!(second.rule.payload_header, None);
        assert_eq!(
            second.rule.claim_headers[0].claim,
            ["realm".into(), "group".into()]
        );
        let [complaint] = &facts.complaints[..] else {
            panic!("{facts:?}")
        };
        assert!(
            complaint.message.contains("\"Host\" is no header"),
            "{complaint:?}"
        );
    }

    #[test]
    fn an_object_that_nobody_can_enforce_says_so() {
        for yaml in [
            r#"{"jwtRules":[{"issuer":"a","jwks":"{}"}]}"#,
            r#"{"selector":{"matchLabels":{"a":"b"}},"jwtRules":[]}"#,
            r#"{"targetRefs":[{"kind":"Pod","name":"a","group":""}],"jwtRules":[{"jwks":"x"}]}"#,
        ] {
            let facts = facts(yaml);
            assert!(facts.targets.is_empty());
            assert!(facts.complaints.iter().all(|one| !one.status) && !facts.complaints.is_empty());
        }
    }
}
