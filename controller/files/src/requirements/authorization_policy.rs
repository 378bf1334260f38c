//! AuthorizationPolicy: what can never match, or would mean something weaker than its author wrote.

use std::net::IpAddr;

use serde_json::Value;

use super::{peer_authentication::selector, place::Place};

/// What a part of requests comes to in a policy for workloads.
const NEEDS_WAYPOINT: &str = "needs a waypoint: give the policy targetRefs; in a policy for workloads an ALLOW rule with it allows nothing, a DENY rule denies without it, which is more";
/// Fields of a source and of an operation that L4 does not read.
const HTTP_SOURCE: [&str; 4] = [
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "trustDomains",
    "notTrustDomains",
];
const HTTP_OPERATION: [&str; 6] = [
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
];
/// Keys of `when` that a waypoint reads beside those of L4.
const WAYPOINT_KEYS: [&str; 4] = [
    "remote.ip",
    "connection.sni",
    "source.serviceAccount",
    "request.auth.principal",
];

/// Who enforces the policy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Enforcer {
    Agent,
    Waypoint,
}

/// Keys of `when` that L4 reads.
const L4_KEYS: [&str; 5] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "destination.ip",
    "destination.port",
];
/// Keys of `when` that belong to requests, and those that start so.
const HTTP_KEYS: [&str; 6] = [
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
    "source.serviceAccount",
];
const HTTP_KEY_STARTS: [&str; 3] = ["request.headers[", "request.auth.claims[", "experimental."];

pub(super) fn check(policy: &mut Place<'_>) {
    let mut spec = policy.field("spec");
    let has_target = spec.says("targetRef") || spec.says("targetRefs");
    let enforcer = match has_target {
        true => Enforcer::Waypoint,
        false => Enforcer::Agent,
    };
    if has_target && spec.field("selector").says("matchLabels") {
        let message = "only one of selector, targetRef and targetRefs can be set";
        spec.field("selector").report(message.to_owned());
    }
    targets(&mut spec);
    selector(&mut spec);
    action(&mut spec, enforcer);
    spec.each("rules", |place| rule(place, enforcer));
}

/// Kinds of targets with their groups, as Istio's API has them.
const TARGETS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

fn targets(spec: &mut Place<'_>) {
    let own = |target: &mut Place<'_>| {
        if target.says("namespace") {
            let message = "a policy targets only its own namespace: leave namespace out";
            target.field("namespace").report(message.to_owned());
        }
        let (group, kind) = (target.text("group"), target.text("kind"));
        let found = (group.unwrap_or_default(), kind.unwrap_or_default());
        if !TARGETS.contains(&found) {
            let (group, kind) = found;
            target.report(format!(
                "{kind:?} of group {group:?}, expected Service of group \"\", ServiceEntry of networking.istio.io, Gateway or GatewayClass of gateway.networking.k8s.io"
            ));
        }
    };
    if spec.says("targetRef") {
        own(&mut spec.field("targetRef"));
    }
    spec.each("targetRefs", own);
}

fn action(spec: &mut Place<'_>, enforcer: Enforcer) {
    let has_rules = spec.says("rules");
    let is_custom = spec.text("action") == Some("CUSTOM");
    if is_custom != spec.says("provider") {
        let message = match is_custom {
            true => {
                "missing: CUSTOM asks an external authorizer, name one of MeshConfig's extensionProviders"
            }
            false => "an external authorizer is asked by action CUSTOM alone",
        };
        return spec.field("provider").report(message.to_owned());
    }
    let message = match spec.text("action") {
        Some("CUSTOM") if enforcer == Enforcer::Agent => {
            "CUSTOM needs targetRefs, as a waypoint asks the external authorizer; use DENY meanwhile"
        }
        Some("DENY") if !has_rules => {
            "DENY without rules denies nothing; `rules: [{}]` denies everything"
        }
        Some("AUDIT") if enforcer == Enforcer::Agent => {
            let message = "AUDIT needs a waypoint: give the policy targetRefs; in a policy for workloads nothing is recorded, and nothing is denied";
            return spec.field("action").warn(message.to_owned());
        }
        _ => return,
    };
    let field = if has_rules { "action" } else { "rules" };
    spec.field(field).report(message.to_owned());
}

fn rule(rule: &mut Place<'_>, enforcer: Enforcer) {
    rule.each("from", |from| {
        let mut source = from.field("source");
        if is_empty(source.value) {
            return source.report("missing or empty, expected at least one of its fields: an empty one would match everybody".to_owned());
        }
        self::source(&mut source);
        needs_waypoint(&mut source, &HTTP_SOURCE, enforcer);
    });
    rule.each("to", |to| {
        let mut operation = to.field("operation");
        if is_empty(operation.value) {
            return operation.report("missing or empty, expected at least one of its fields: an empty one would match everything".to_owned());
        }
        for list in ["ports", "notPorts"] {
            operation.texts(list, port);
        }
        needs_waypoint(&mut operation, &HTTP_OPERATION, enforcer);
    });
    rule.each("when", |condition| when(condition, enforcer));
}

fn needs_waypoint(part: &mut Place<'_>, fields: &[&str], enforcer: Enforcer) {
    for name in fields {
        if enforcer == Enforcer::Agent && part.says(name) {
            part.field(name).warn(NEEDS_WAYPOINT.to_owned());
        }
    }
}

fn source(source: &mut Place<'_>) {
    for list in ["principals", "notPrincipals"] {
        source.texts(list, principal);
    }
    for list in ["namespaces", "notNamespaces"] {
        source.texts(list, pattern);
    }
    for list in ["serviceAccounts", "notServiceAccounts"] {
        source.texts(list, service_account);
    }
    for list in ["ipBlocks", "notIpBlocks"] {
        source.texts(list, ip_block);
    }
    let accounts = source.says("serviceAccounts") || source.says("notServiceAccounts");
    let others = ["principals", "notPrincipals", "namespaces", "notNamespaces"];
    if accounts && others.iter().any(|name| source.says(name)) {
        source.report(
            "serviceAccounts cannot stand beside principals or namespaces: use two sources"
                .to_owned(),
        );
    }
}

fn when(condition: &mut Place<'_>, enforcer: Enforcer) {
    let key = condition.text("key").unwrap_or_default().to_owned();
    let is_http =
        HTTP_KEYS.contains(&&*key) || HTTP_KEY_STARTS.iter().any(|start| key.starts_with(start));
    let by_waypoint = WAYPOINT_KEYS.contains(&&*key) || key.starts_with("request.headers[");
    if is_http && enforcer == Enforcer::Agent {
        let message = format!("{key:?} {NEEDS_WAYPOINT}");
        condition.field("key").warn(message);
    } else if is_http && !by_waypoint {
        let message = format!(
            "{key:?} is not honoured yet: an ALLOW rule with it allows nothing, a DENY rule denies as if it held"
        );
        condition.field("key").warn(message);
    } else if !is_http && !L4_KEYS.contains(&&*key) {
        let message = format!("{key:?}, expected one of {}", L4_KEYS.join(", "));
        return condition.field("key").report(message);
    }
    if !condition.says("values") && !condition.says("notValues") {
        return condition.report(
            "expected values or notValues: without them the condition always holds".to_owned(),
        );
    }
    let check: fn(&mut Place<'_>, &str) = match &*key {
        "source.ip" | "destination.ip" => ip_block,
        "destination.port" => port,
        "source.principal" => principal,
        "source.namespace" => pattern,
        _ => return,
    };
    condition.texts("values", check);
    condition.texts("notValues", check);
}

/// A text with `*` at one end at most; elsewhere it would be compared as a star.
fn pattern(place: &mut Place<'_>, text: &str) {
    let inner = text.strip_prefix('*').unwrap_or(text);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    let both = text.len() > 1 && text.starts_with('*') && text.ends_with('*');
    if text.is_empty() {
        place.report("is empty, expected a name, or `*` for any".to_owned());
    } else if both || inner.contains('*') {
        place.report(format!("{text:?}, expected `*` only at one end"));
    }
}

fn principal(place: &mut Place<'_>, text: &str) {
    const EXPECTED: &str =
        "expected <trust domain>/ns/<namespace>/sa/<service account>, with `*` at most at one end";
    if let Some(rest) = text.strip_prefix("spiffe://") {
        return place.report(format!(
            "principals are written without spiffe://: {rest:?}"
        ));
    }
    let is_whole = !text.contains('*');
    let parts: Vec<&str> = text.split('/').collect();
    let is_identity = matches!(&parts[..], [domain, "ns", namespace, "sa", account]
        if ![domain, namespace, account].iter().any(|part| part.is_empty()));
    match (is_whole, is_identity) {
        (true, false) => place.report(format!(
            "{text:?} is no identity and never matches, {EXPECTED}"
        )),
        _ => pattern(place, text),
    }
}

fn service_account(place: &mut Place<'_>, text: &str) {
    let parts: Vec<&str> = text.split('/').collect();
    let fits = parts.len() <= 2
        && !parts
            .iter()
            .any(|part| part.is_empty() || part.contains('*'));
    if !fits {
        place.report(format!("{text:?}, expected <service account> or <namespace>/<service account>, without wildcards"));
    }
}

fn port(place: &mut Place<'_>, text: &str) {
    if !text.parse::<u16>().is_ok_and(|port| port > 0) {
        place.report(format!("{text:?}, expected a port from 1 to 65535 as text"));
    }
}

fn ip_block(place: &mut Place<'_>, text: &str) {
    let (ip, prefix) = text
        .split_once('/')
        .map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let fits = ip.parse::<IpAddr>().is_ok_and(|ip| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|len| len <= bits))
    });
    if !fits {
        place.report(format!(
            "{text:?}, expected an IP address or a range such as 10.0.0.0/8"
        ));
    }
}

/// No field says anything.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::Null => true,
        _ => false,
    }
}
