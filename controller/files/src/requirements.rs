//! What the API server would demand of an object and its Rust type does not: required fields, addresses, ports.

use std::net::IpAddr;

use karst_k8s_api::Kind;
use serde_json::Value;

use crate::{problem::Severity, read::Finding, tree::Step};

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
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Deployment => {}
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::WorkloadEntry
        | Kind::DestinationRule
        | Kind::VirtualService
        | Kind::Telemetry => {}
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

fn service_entry(entry: &mut Place<'_>) {
    let mut spec = entry.field("spec");
    spec.require("hosts", "at least one host");
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

/// A value inside an object, its path, and where findings go. A field that is not there is null.
struct Place<'a> {
    value: &'a Value,
    path: Vec<Step>,
    findings: &'a mut Vec<Finding>,
}

impl Place<'_> {
    fn field(&mut self, name: &str) -> Place<'_> {
        let mut path = self.path.clone();
        path.push(Step::Key(name.to_owned()));
        Place {
            value: self.value.get(name).unwrap_or(&Value::Null),
            path,
            findings: self.findings,
        }
    }

    fn each(&mut self, name: &str, mut visit: impl FnMut(&mut Place<'_>)) {
        let list = self.field(name);
        for (index, value) in list.value.as_array().into_iter().flatten().enumerate() {
            let mut path = list.path.clone();
            path.push(Step::Index(index));
            visit(&mut Place {
                value,
                path,
                findings: list.findings,
            });
        }
    }

    fn has(&self, name: &str) -> bool {
        self.value.get(name).is_some()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.value.get(name).and_then(Value::as_str)
    }

    /// The field is there and not empty.
    fn require(&mut self, name: &str, expected: &str) {
        let empty = match self.value.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if empty {
            self.field(name)
                .report(format!("missing field `{name}`, expected {expected}"));
        }
    }

    /// The field is a port number.
    fn port(&mut self, name: &str) {
        let message = match self.value.get(name) {
            None => format!("missing field `{name}`, expected a port from 1 to 65535"),
            Some(Value::Number(number))
                if !number.as_u64().is_some_and(|n| (1..=65535).contains(&n)) =>
            {
                format!("{number}, expected a port from 1 to 65535")
            }
            Some(_) => return,
        };
        self.field(name).report(message);
    }

    /// The field, if there is one, is an IP address.
    fn address(&mut self, name: &str) {
        if self.has(name) {
            self.field(name).is_address();
        }
    }

    /// This value is an IP address.
    fn is_address(&mut self) {
        if let Value::String(text) = self.value
            && text.parse::<IpAddr>().is_err()
        {
            self.report(format!("{text:?}, expected an IP address"));
        }
    }

    fn report(&mut self, message: String) {
        self.findings.push(Finding {
            severity: Severity::Error,
            path: self.path.clone(),
            message,
        });
    }
}
