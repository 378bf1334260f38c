//! Resources and agents' answers as readers see them. Pure.

use std::{net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use karst_proto::{
    discovery,
    reads::{LiveConnection, NodeCertificate, NodeStatus},
    security::Authorization,
    workload::{Address, Service, Workload, address},
};
use prost::Message as _;
use serde_json::{Value, json};

use crate::serve::resources::{TableKey, Tables};

/// All entries of a kind, in the order of their names.
pub(super) fn table(kind: &str, tables: &Tables, namespace: Option<&str>) -> Vec<Value> {
    let addresses = || contents::<Address>(tables, &TableKey::Address);
    let workloads = || {
        addresses()
            .into_iter()
            .filter_map(|address| match address.r#type {
                Some(address::Type::Workload(workload)) => Some(workload),
                _ => None,
            })
    };
    let items: Vec<Value> = match kind {
        "workloads" => workloads().map(|found| workload(&found)).collect(),
        "services" => {
            let endpoints = endpoints(workloads());
            let services = addresses()
                .into_iter()
                .filter_map(|address| match address.r#type {
                    Some(address::Type::Service(service)) => Some(service),
                    _ => None,
                });
            services.map(|found| service(&found, &endpoints)).collect()
        }
        "policies" => {
            let workloads: Vec<Workload> = workloads().collect();
            contents::<Authorization>(tables, &TableKey::Authorization)
                .iter()
                .map(|found| policy(found, &workloads))
                .collect()
        }
        _ => Vec::new(),
    };
    within(items, namespace)
}

/// The items of `namespace`, sorted.
pub(super) fn within(mut items: Vec<Value>, namespace: Option<&str>) -> Vec<Value> {
    if let Some(namespace) = namespace {
        items.retain(|item| item["namespace"] == namespace);
    }
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    items.sort_by_cached_key(|item| {
        (
            text(item, "namespace"),
            text(item, "name"),
            text(item, "node"),
        )
    });
    items
}

fn contents<M: prost::Message + Default>(tables: &Tables, key: &TableKey) -> Vec<M> {
    let Some(table) = tables.table(key) else {
        return Vec::new();
    };
    let live = table.since(0).filter_map(|(_, _, live)| live);
    let decoded = live.filter_map(|live| {
        let resource = discovery::Resource::decode(live.encoded.as_ref()).ok()?;
        M::decode(resource.resource?.value.as_slice()).ok()
    });
    decoded.collect()
}

/// Endpoints, and how many of them are healthy, by `namespace/hostname`.
fn endpoints(workloads: impl Iterator<Item = Workload>) -> HashMap<String, (usize, usize)> {
    let mut count: HashMap<String, (usize, usize)> = HashMap::new();
    for workload in workloads {
        let healthy = usize::from(workload.status == 0);
        for service in workload.services.into_keys() {
            let (all, ready) = count.entry(service).or_default();
            *all += 1;
            *ready += healthy;
        }
    }
    count
}

fn workload(found: &Workload) -> Value {
    json!({
        "namespace": found.namespace,
        "name": found.name,
        "uid": found.uid,
        "node": found.node,
        "addresses": addresses(found.addresses.iter().map(Vec::as_slice)),
        "serviceAccount": found.service_account,
        "identity": format!("spiffe://{}/ns/{}/sa/{}", trust_domain(found), found.namespace, found.service_account),
        "protocol": match found.tunnel_protocol { 1 => "HBONE", _ => "TCP" },
        "healthy": found.status == 0,
        "hostNetwork": found.network_mode == 1,
        "services": found.services.keys().collect::<Vec<_>>(),
        "policies": found.authorization_policies,
    })
}

/// Empty on the wire is the default.
fn trust_domain(found: &Workload) -> &str {
    match found.trust_domain.as_str() {
        "" => karst_model::identity::DEFAULT_TRUST_DOMAIN,
        other => other,
    }
}

fn service(found: &Service, endpoints: &HashMap<String, (usize, usize)>) -> Value {
    let key = format!("{}/{}", found.namespace, found.hostname);
    let (all, healthy) = endpoints.get(&key).copied().unwrap_or_default();
    let ports = found
        .ports
        .iter()
        .map(|port| json!({"port": port.service_port, "targetPort": port.target_port}));
    json!({
        "namespace": found.namespace,
        "name": found.name,
        "hostname": found.hostname,
        "addresses": addresses(found.addresses.iter().map(|address| address.address.as_slice())),
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": all,
        "healthyEndpoints": healthy,
    })
}

fn policy(found: &Authorization, workloads: &[Workload]) -> Value {
    let key = format!("{}/{}", found.namespace, found.name);
    let covered = |workload: &&Workload| match found.scope {
        0 => true,
        1 => workload.namespace == found.namespace,
        _ => workload.authorization_policies.contains(&key),
    };
    json!({
        "namespace": found.namespace,
        "name": found.name,
        "scope": match found.scope { 0 => "mesh", 1 => "namespace", _ => "selector" },
        "action": match found.action { 0 => "ALLOW", _ => "DENY" },
        "rules": found.rules.len(),
        "dryRun": found.dry_run,
        "workloads": workloads.iter().filter(covered).count(),
    })
}

fn addresses<'a>(bytes: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    bytes
        .filter_map(address)
        .map(|address| address.to_string())
        .collect()
}

/// `behind`: published changes that the node has not acknowledged; none known before its first acknowledgement.
pub(super) fn agent(
    node: &str,
    status: &NodeStatus,
    behind: Option<u64>,
    refused: Option<Arc<str>>,
) -> Value {
    let held = status
        .certificates
        .iter()
        .filter(|certificate| !certificate.expires.is_empty());
    // RFC 3339 in UTC sorts as text.
    let shortest = held.min_by(|one, other| one.expires.cmp(&other.expires));
    let failing = status
        .certificates
        .iter()
        .filter(|certificate| !certificate.last_error.is_empty());
    json!({
        "node": node,
        "version": status.version,
        "uptimeSeconds": status.uptime_seconds,
        "podsCaptured": status.pods_captured,
        "podsLeaving": status.pods_leaving,
        "changesBehind": behind,
        "refused": refused,
        "certificates": status.certificates.len(),
        "certificatesFailing": failing.count(),
        "shortestCertificate": shortest.map(|shortest| json!({
            "identity": shortest.identity,
            "expires": shortest.expires,
        })),
    })
}

pub(super) fn certificate(node: &str, found: &NodeCertificate) -> Value {
    json!({
        "namespace": namespace_of(&found.identity),
        "name": found.identity,
        "node": node,
        "serialNumber": found.serial_number,
        "validFrom": found.valid_from,
        "expires": found.expires,
        "lastError": found.last_error,
        "pods": found.pods,
    })
}

/// `x` of `spiffe://td/ns/x/sa/y`.
fn namespace_of(identity: &str) -> &str {
    let (_, rest) = identity.split_once("/ns/").unwrap_or_default();
    rest.split('/').next().unwrap_or_default()
}

pub(super) fn connection(node: &str, found: &LiveConnection) -> Value {
    // cluster//Pod/namespace/name
    let mut parts = found.destination.rsplit('/');
    let (name, namespace) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    json!({
        "namespace": namespace,
        "name": name,
        "node": node,
        "target": found.target,
        "source": found.source,
        "sourceIdentity": found.source_identity,
        "mutualTls": !found.source_identity.is_empty(),
        "ageSeconds": found.age_seconds,
        "requestBytes": found.request_bytes,
        "responseBytes": found.response_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_certificate_is_shown() {
        let certificate = |identity: &str, expires: &str| NodeCertificate {
            identity: identity.to_owned(),
            expires: expires.to_owned(),
            ..NodeCertificate::default()
        };
        let status = NodeStatus {
            certificates: vec![
                certificate("b", "2026-01-02T00:00:00Z"),
                certificate("a", "2026-01-01T00:00:00Z"),
                certificate("none yet", ""),
            ],
            ..NodeStatus::default()
        };
        let shown = agent("n1", &status, Some(0), Some("a policy".into()));
        assert_eq!(shown["shortestCertificate"]["identity"], "a");
    }

    #[test]
    fn a_namespace_s_reader_sees_that_namespace_only() {
        let connection_to = |destination: &str| {
            connection(
                "n1",
                &LiveConnection {
                    destination: destination.to_owned(),
                    ..LiveConnection::default()
                },
            )
        };
        let items = vec![
            connection_to("c//Pod/shop/a-0"),
            connection_to("c//Pod/bank/b-0"),
        ];
        let seen = within(items, Some("shop"));
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0]["name"], "a-0");
        assert_eq!(namespace_of("spiffe://td/ns/shop/sa/x"), "shop");
    }

    #[test]
    fn endpoints_are_counted_by_service() {
        let workload = |status: i32| Workload {
            status,
            services: [(
                "shop/a.shop.svc.cluster.local".to_owned(),
                Default::default(),
            )]
            .into(),
            ..Workload::default()
        };
        let endpoints = endpoints([workload(0), workload(1)].into_iter());
        assert_eq!(endpoints["shop/a.shop.svc.cluster.local"], (2, 1));
    }
}
