//! Rules for connections: by the server name of TLS, by addresses and ports, by who sends.

use karst_k8s_api::istio::virtual_service::{RouteDestination, TcpRoute, TlsRoute};
use karst_model::{
    policy::IpBlock,
    route::{ConnectionMatch, HostMatch, TcpRule, TlsRule, WeightedBackend},
};

use super::{Findings, MESH, World, destinations, matches, values};
use crate::facts::Name;

pub(super) fn tls(
    owner: &Name,
    sources: &[TlsRoute],
    world: &World<'_>,
    findings: &mut Findings,
) -> Vec<TlsRule> {
    let mut rules = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let place = format!("tls[{index}]");
        let of_mesh = source
            .r#match
            .iter()
            .filter(|one| is_of_mesh(&one.gateways));
        let mut taken = Vec::new();
        for (index, one) in of_mesh.enumerate() {
            let place = format!("{place}.match[{index}]");
            let hosts = one.sni_hosts.iter().map(|host| server_name(host));
            let lowered = connection(
                &place,
                (one.port, &one.destination_subnets, None),
                matches::from(one.source_namespace.as_ref(), &one.source_labels),
            );
            match lowered {
                Ok(_) if one.sni_hosts.is_empty() => {
                    findings.faults.push(format!("{place}.sniHosts is empty"));
                }
                Ok(lowered) => taken.push(ConnectionMatch {
                    // `*` takes every name.
                    hosts: match one.sni_hosts.iter().any(|host| host == "*") {
                        true => Vec::new(),
                        false => hosts.collect(),
                    },
                    ..lowered
                }),
                Err(message) => findings.faults.push(message),
            }
        }
        if taken.is_empty() {
            if source.r#match.is_empty() {
                findings.faults.push(format!("{place} has no match"));
            }
            continue;
        }
        rules.push(TlsRule {
            matches: taken,
            backends: backends(&place, owner, &source.route, world, findings),
            ..TlsRule::default()
        });
    }
    rules
}

pub(super) fn tcp(
    owner: &Name,
    sources: &[TcpRoute],
    world: &World<'_>,
    findings: &mut Findings,
) -> Vec<TcpRule> {
    let mut rules = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let place = format!("tcp[{index}]");
        let of_mesh = source
            .r#match
            .iter()
            .filter(|one| is_of_mesh(&one.gateways));
        let mut taken = Vec::new();
        for (index, one) in of_mesh.enumerate() {
            let lowered = connection(
                &format!("{place}.match[{index}]"),
                (
                    one.port,
                    &one.destination_subnets,
                    one.source_subnet.as_ref(),
                ),
                matches::from(one.source_namespace.as_ref(), &one.source_labels),
            );
            match lowered {
                Ok(lowered) => taken.push(lowered),
                Err(message) => findings.faults.push(message),
            }
        }
        if taken.is_empty() && !source.r#match.is_empty() {
            continue;
        }
        rules.push(TcpRule {
            matches: taken,
            backends: backends(&place, owner, &source.route, world, findings),
            ..TcpRule::default()
        });
    }
    rules
}

fn is_of_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|one| one == MESH)
}

fn server_name(text: &str) -> HostMatch {
    match text.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(text.into()),
    }
}

fn connection(
    place: &str,
    (port, destinations, client): (Option<u32>, &[String], Option<&String>),
    source: karst_model::route::SourceMatch,
) -> Result<ConnectionMatch, String> {
    let blocks = destinations
        .iter()
        .map(|text| block(&format!("{place}.destinationSubnets"), text));
    let client = client.filter(|text| !text.is_empty());
    Ok(ConnectionMatch {
        hosts: Vec::new(),
        port: values::port(&format!("{place}.port"), port)?,
        destinations: blocks.collect::<Result<_, _>>()?,
        client: client
            .map(|text| block(&format!("{place}.sourceSubnet"), text))
            .transpose()?,
        source,
    })
}

/// An address or a range of them.
fn block(field: &str, text: &str) -> Result<IpBlock, String> {
    let net = text.parse::<ipnet::IpNet>().ok();
    let net = net.or_else(|| text.parse::<std::net::IpAddr>().ok().map(Into::into));
    net.map(|net| IpBlock {
        ip: net.network(),
        prefix_len: net.prefix_len(),
    })
    .ok_or_else(|| format!("{field}: {text:?} is no address and no range of addresses"))
}

/// Connections of a rule whose destinations cannot be used are refused.
fn backends(
    place: &str,
    owner: &Name,
    sources: &[RouteDestination],
    world: &World<'_>,
    findings: &mut Findings,
) -> Vec<WeightedBackend> {
    let field = format!("{place}.route");
    if sources.is_empty() {
        findings.faults.push(format!("{field} is empty"));
        return Vec::new();
    }
    let asked: Vec<Option<i32>> = sources.iter().map(|one| one.weight).collect();
    let weights = match destinations::weights(&field, &asked) {
        Ok(weights) => weights,
        Err(message) => {
            findings.faults.push(message);
            return Vec::new();
        }
    };
    let all = sources.iter().zip(weights).enumerate();
    all.map(|(index, (source, weight))| {
        let here = format!("{field}[{index}]");
        WeightedBackend {
            backend: destinations::backend(&here, &source.destination, owner, world, findings),
            weight,
            filters: Vec::new(),
        }
    })
    .collect()
}
