//! From a RateLimit to what a waypoint counts: its rules as model types, and what is wrong with them.
//!
//! A policy with a rule that cannot be used is not used at all, and its condition names the field: half of a policy would
//! refuse requests that its author never meant, or let through what another rule was to stop.

use std::{sync::Arc, time::Duration};

use karst_k8s_api::{
    gateway::route::GATEWAY_GROUP,
    karst::{
        RateLimitSpec, TargetReference,
        rate_limit::{self as source, HeaderStyle, KeyKind, Mode},
    },
};
use karst_model::{
    policy::Match,
    rate_limit::{Enforcement, LimitHeaders, LimitKey, LimitRule},
    route::RouteKind,
    waypoint_policy::{HeaderValues, RequestMatch},
};

use crate::{
    conditions::{Condition, ConditionType},
    facts::Name,
    policies::{Unread, strings},
    references::ISTIO_NETWORKING,
    request_policies::{TargetRef, path_pattern},
};

/// Shortest and longest period.
const PERIOD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));
/// Status of a refusal where none is given.
const TOO_MANY_REQUESTS: u16 = 429;

/// What comes of a policy, before its targets are looked up.
#[derive(Debug, PartialEq)]
pub(crate) struct LimitFacts {
    pub(crate) targets: Vec<LimitTargetRef>,
    pub(crate) enforcement: Enforcement,
    pub(crate) status: u16,
    pub(crate) headers: LimitHeaders,
    /// Empty where one of them cannot be used.
    pub(crate) rules: Vec<LimitRule>,
    /// What is wrong with the policy by itself.
    pub(crate) complaints: Vec<Condition>,
}

/// One target, as the policy names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LimitTargetRef {
    /// As an AuthorizationPolicy may have it, but for classes.
    Object(TargetRef),
    Route(RouteKind, Name),
}

impl LimitTargetRef {
    /// The object that it names.
    pub(crate) fn name(&self) -> &Name {
        match self {
            Self::Route(_, name)
            | Self::Object(
                TargetRef::Service(name) | TargetRef::Entry(name) | TargetRef::Gateway(name),
            ) => name,
            Self::Object(TargetRef::GatewayClass(_)) => unreachable!("a limit targets no class"),
        }
    }
}

impl LimitFacts {
    /// Of a policy in `namespace`.
    pub(crate) fn new(namespace: &Arc<str>, spec: &RateLimitSpec) -> Self {
        let (mut complaints, mut targets) = (Vec::new(), Vec::new());
        for reference in &spec.target_refs {
            match target(namespace, reference) {
                Ok(target) => targets.push(target),
                Err(message) => complaints.push(refused("Invalid", message)),
            }
        }
        if spec.target_refs.is_empty() {
            complaints.push(refused(
                "Invalid",
                "targetRefs is empty: nothing is limited",
            ));
        }
        let mut wrong = Vec::new();
        let rules = rules(&spec.rules, &mut wrong);
        let response = spec.response.clone().unwrap_or_default();
        let status = response.status.unwrap_or(TOO_MANY_REQUESTS);
        if !(400..=599).contains(&status) {
            wrong.push(format!("response.status: {status} is not of 400 to 599"));
        }
        let usable = wrong.is_empty();
        if !usable {
            let message = format!("{}; the policy limits nothing", wrong.join("; "));
            complaints.push(refused("Invalid", message));
        }
        Self {
            targets,
            enforcement: match spec.mode {
                Mode::Enforce => Enforcement::Enforce,
                Mode::Shadow => Enforcement::Shadow,
            },
            status,
            headers: match response.headers.unwrap_or_default() {
                HeaderStyle::Draft => LimitHeaders::Draft,
                HeaderStyle::Legacy => LimitHeaders::Legacy,
                HeaderStyle::Both => LimitHeaders::Both,
                HeaderStyle::None => LimitHeaders::None,
            },
            rules: if usable { rules } else { Vec::new() },
            complaints,
        }
    }
}

/// A condition of a policy that does not hold as written.
pub(crate) fn refused(reason: &'static str, message: impl Into<String>) -> Condition {
    Condition::no(ConditionType::Accepted, reason, message)
}

fn target(namespace: &Arc<str>, reference: &TargetReference) -> Result<LimitTargetRef, String> {
    let name = Name {
        namespace: namespace.clone(),
        name: reference.name.as_str().into(),
    };
    let object = |target| Ok(LimitTargetRef::Object(target));
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "Service") => object(TargetRef::Service(name)),
        (ISTIO_NETWORKING, "ServiceEntry") => object(TargetRef::Entry(name)),
        (GATEWAY_GROUP, "Gateway") => object(TargetRef::Gateway(name)),
        (GATEWAY_GROUP, "HTTPRoute") => Ok(LimitTargetRef::Route(RouteKind::HttpRoute, name)),
        (GATEWAY_GROUP, "GRPCRoute") => Ok(LimitTargetRef::Route(RouteKind::GrpcRoute, name)),
        (group, kind) => Err(format!(
            "targetRef {kind} {} of group {group:?} is none of Service, ServiceEntry, HTTPRoute, GRPCRoute, Gateway: nothing is limited there",
            reference.name
        )),
    }
}

fn rules(sources: &[source::Rule], wrong: &mut Vec<String>) -> Vec<LimitRule> {
    if sources.is_empty() {
        wrong.push("rules is empty".to_owned());
    }
    let mut rules: Vec<LimitRule> = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let at = format!("rules[{index}]");
        let name: Arc<str> = match &source.name {
            Some(name) => name.as_str().into(),
            None => format!("rule-{index}").into(),
        };
        if rules.iter().any(|other| other.name == name) {
            wrong.push(format!("{at}.name: {name:?} is the name of another rule"));
        }
        if source.requests == 0 {
            wrong.push(format!("{at}.requests: at least 1 is needed; to refuse everything write an AuthorizationPolicy"));
        }
        if source.burst == Some(0) {
            wrong.push(format!("{at}.burst: with 0 nothing would pass"));
        }
        let period = source.per.as_ref().map(|text| text.read());
        let period = match period {
            None => Duration::from_secs(1),
            Some(Some(period)) if (PERIOD.0..=PERIOD.1).contains(&period) => period,
            Some(_) => {
                wrong.push(format!("{at}.per: expected a duration of 1ms to 24h"));
                PERIOD.1
            }
        };
        rules.push(LimitRule {
            name,
            matches: matches(&source.matches, &at, wrong),
            requests: source.requests,
            period,
            burst: source.burst.unwrap_or(source.requests),
            keys: keys(&source.key, &at, wrong),
        });
    }
    rules
}

/// None where one of them takes everything.
fn matches(sources: &[source::Match], at: &str, wrong: &mut Vec<String>) -> Vec<RequestMatch> {
    let sources = sources.iter().enumerate();
    let matches: Vec<RequestMatch> = sources
        .map(|(number, source)| one_match(source, &format!("{at}.match[{number}]"), wrong))
        .collect();
    match matches.contains(&RequestMatch::default()) {
        true => Vec::new(),
        false => matches,
    }
}

fn one_match(source: &source::Match, at: &str, wrong: &mut Vec<String>) -> RequestMatch {
    let mut paths = |field: &str, texts: &[String]| {
        let read: Result<Vec<_>, Unread> = texts.iter().map(|text| path_pattern(text)).collect();
        read.unwrap_or_else(|Unread| {
            wrong.push(format!(
                "{at}.{field}: expected paths with `*` at one end at most, or templates"
            ));
            Vec::new()
        })
    };
    let (wanted, excluded) = (
        paths("paths", &source.paths),
        paths("notPaths", &source.not_paths),
    );
    let headers = source.headers.iter().map(|header| HeaderValues {
        name: header.name.to_ascii_lowercase().into(),
        values: strings(&header.values),
        not_values: Vec::new(),
    });
    let headers: Vec<HeaderValues> = headers.collect();
    if headers.iter().any(|header| header.values.is_empty()) {
        wrong.push(format!("{at}.headers: a header needs values; `*` for any"));
    }
    RequestMatch {
        connection: Match {
            principals: strings(&source.principals),
            not_principals: strings(&source.not_principals),
            namespaces: strings(&source.namespaces),
            not_namespaces: strings(&source.not_namespaces),
            ..Match::default()
        },
        methods: strings(&source.methods),
        paths: wanted,
        not_paths: excluded,
        hosts: strings(&source.hosts),
        headers,
        request_principals: strings(&source.request_principals),
        ..RequestMatch::default()
    }
}

fn keys(sources: &[source::Key], at: &str, wrong: &mut Vec<String>) -> Vec<LimitKey> {
    let mut keys = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let name = source.name.as_deref().unwrap_or_default();
        let key = match (source.by, name) {
            (KeyKind::ClientIdentity, "") => LimitKey::Identity,
            (KeyKind::ClientNamespace, "") => LimitKey::Namespace,
            (KeyKind::ClientAddress, "") => LimitKey::Address,
            (KeyKind::Header, name) if is_token(name) => {
                LimitKey::Header(name.to_ascii_lowercase().into())
            }
            (KeyKind::Claim, name) if !name.is_empty() => {
                LimitKey::Claim(name.split('.').map(Into::into).collect())
            }
            (KeyKind::Header | KeyKind::Claim, _) => {
                wrong.push(format!(
                    "{at}.key[{number}].name: the name of a header or claim is needed"
                ));
                continue;
            }
            _ => {
                wrong.push(format!(
                    "{at}.key[{number}].name: is for Header and Claim only"
                ));
                continue;
            }
        };
        keys.push(key);
    }
    keys
}

/// A token of RFC 9110, as names of headers are.
fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}
