//! What the API server would demand of an object and its Rust type does not: required fields, addresses, ports.

mod authorization_policy;
mod keys;
mod own_policies;
mod peer_authentication;
mod place;
mod unhonoured;

use std::net::IpAddr;

use karst_k8s_api::Kind;
use serde_json::Value;

use self::place::Place;
use crate::read::Finding;

/// Adds what is wrong with an object of this kind.
pub(crate) fn check(kind: Kind, object: &Value, findings: &mut Vec<Finding>) {
    let mut root = Place {
        value: object,
        path: Vec::new(),
        findings,
    };
    match kind {
        Kind::Pod => pod(&mut root),
        Kind::Service => service(&mut root),
        Kind::EndpointSlice => endpoint_slice(&mut root),
        Kind::ServiceEntry => service_entry(&mut root),
        Kind::WorkloadEntry => workload_entry(&mut root),
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Deployment
        | Kind::GatewayClass
        | Kind::Gateway
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::ReferenceGrant
        | Kind::BackendTlsPolicy => {}
        Kind::RateLimit => own_policies::rate_limit(&mut root),
        Kind::HealthCheck => own_policies::health_check(&mut root),
        Kind::AuthorizationPolicy => authorization_policy::check(&mut root),
        Kind::PeerAuthentication => peer_authentication::check(&mut root),
        Kind::RequestAuthentication
        | Kind::DestinationRule
        | Kind::VirtualService
        | Kind::Telemetry => {}
    }
    check_meaning(kind, object, findings);
}

/// The part of [`check`] that the API server does not do: what is set and not honoured, and keys that mean nothing.
pub(crate) fn check_meaning(kind: Kind, object: &Value, findings: &mut Vec<Finding>) {
    unhonoured::check(kind, object, findings);
    let mut root = Place {
        value: object,
        path: Vec::new(),
        findings,
    };
    keys::check(&mut root.field("metadata"));
    if kind == Kind::Deployment {
        keys::check(&mut root.field("spec").field("template").field("metadata"));
    }
}

fn pod(pod: &mut Place<'_>) {
    pod.field("spec")
        .require("containers", "at least one container");
    pod.field("spec").each("containers", |container| {
        container.require("name", "the container's name");
        container.each("ports", |port| port.port("containerPort"));
    });
    pod.field("status").each("podIPs", |ip| ip.address("ip"));
}

fn service(service: &mut Place<'_>) {
    let mut spec = service.field("spec");
    spec.each("ports", |port| port.port("port"));
    match (spec.text("type"), spec.text("clusterIP")) {
        (Some("ExternalName"), _) => {
            spec.require("externalName", "the name that this service stands for")
        }
        (_, Some("None")) => {}
        _ => spec.require("ports", "at least one port"),
    }
    spec.each("clusterIPs", |ip| match ip.value.as_str() {
        Some("None") => {}
        _ => ip.is_address(),
    });
}

fn endpoint_slice(slice: &mut Place<'_>) {
    slice.require("addressType", "IPv4, IPv6 or FQDN");
    let is_ip = match slice.text("addressType") {
        Some("FQDN") => false,
        Some("IPv4" | "IPv6") | None => true,
        Some(other) => {
            let message = format!("{other:?}, expected IPv4, IPv6 or FQDN");
            slice.field("addressType").report(message);
            true
        }
    };
    slice.each("endpoints", |endpoint| {
        endpoint.require("addresses", "at least one address");
        if is_ip {
            endpoint.each("addresses", |address| address.is_address());
        }
    });
    slice.each("ports", |port| {
        if port.has("port") {
            port.port("port")
        }
    });
}

fn workload_entry(root: &mut Place<'_>) {
    let mut spec = root.field("spec");
    let address = spec.text("address").unwrap_or_default().to_owned();
    let mut place = spec.field("address");
    if address.is_empty() {
        place.report("an address is needed: an IP, or a name to resolve".to_owned());
    } else {
        is_unix_socket(&mut place, &address);
    }
}

/// Reports an address that nobody else can reach; whether it is one.
fn is_unix_socket(place: &mut Place<'_>, address: &str) -> bool {
    let is_one = address.starts_with("unix:");
    if is_one {
        place.report(
            "a Unix socket cannot be reached from another pod: expected an IP address or a name"
                .to_owned(),
        );
    }
    is_one
}

fn service_entry(entry: &mut Place<'_>) {
    let mut spec = entry.field("spec");
    spec.require("hosts", "at least one host");
    spec.texts("hosts", |place, host| {
        let name = host.strip_prefix("*.").unwrap_or(host);
        if !is_object_name(&name.to_ascii_lowercase()) {
            let message = format!("{host:?}, expected a DNS name, with `*.` at most at its start");
            place.report(message);
        }
    });
    if spec.says("endpoints") && spec.field("workloadSelector").says("labels") {
        spec.field("workloadSelector")
            .report("only one of workloadSelector and endpoints can be set".to_owned());
    }
    let is_static = spec.text("resolution") == Some("STATIC");
    if spec.says("endpoints") && spec.text("resolution").is_none_or(|text| text == "NONE") {
        let message =
            "resolution NONE takes no endpoints: use STATIC for IP addresses, DNS for names";
        spec.field("endpoints").report(message.to_owned());
    }
    spec.each("endpoints", |endpoint| {
        let address = endpoint.text("address").unwrap_or_default().to_owned();
        let mut place = endpoint.field("address");
        if is_unix_socket(&mut place, &address) {
            return;
        }
        if is_static && !address.is_empty() && address.parse::<IpAddr>().is_err() {
            place.report(format!(
                "{address:?}, expected an IP address, since resolution is STATIC"
            ));
        }
    });
    spec.each("ports", |port| {
        port.port("number");
        port.require("name", "the port's name");
    });
    spec.each("addresses", |address| {
        let text = address.value.as_str().unwrap_or_default();
        let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
        let prefix = text.split_once('/').map(|(_, prefix)| prefix.parse::<u8>());
        let fits = match (ip.parse::<IpAddr>(), prefix) {
            (Ok(_), None) => true,
            (Ok(ip), Some(Ok(prefix))) => prefix <= if ip.is_ipv4() { 32 } else { 128 },
            _ => false,
        };
        if !fits {
            address.report(format!(
                "{text:?}, expected an IP address or a range such as 10.0.0.0/8"
            ));
        }
    });
}

/// Whether a text can name an object: DNS subdomain of RFC 1123, at most 253 characters.
pub(crate) fn is_object_name(text: &str) -> bool {
    let inner = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    let outer = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.len() <= 253
        && text.bytes().all(inner)
        && outer(text.bytes().next())
        && outer(text.bytes().last())
}

/// Kubernetes takes `cpu: 1` for the quantity `"1"`; its Rust type takes only text.
pub(crate) fn quantities_as_text(value: &mut Value) {
    const QUANTITIES: [&str; 4] = ["limits", "requests", "capacity", "allocatable"];
    match value {
        Value::Array(items) => items.iter_mut().for_each(quantities_as_text),
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::Object(amounts) if QUANTITIES.contains(&key.as_str()) => {
                        for amount in amounts.values_mut().filter(|amount| amount.is_number()) {
                            *amount = amount.to_string().into();
                        }
                    }
                    field => quantities_as_text(field),
                }
            }
        }
        _ => {}
    }
}
