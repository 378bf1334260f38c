//! `istio.workload.Address` and the pieces that workloads and services share: addresses, gateways, ports.

use std::{fmt::Display, net::IpAddr};

use karst_model::{
    addr::{Network, NetworkAddr, canonical_ip},
    name::ServiceKey,
    protocol::AppProtocol,
    service::Service,
    workload::{GatewayAddr, GatewayDestination, Workload},
};

use super::{
    ConvertError, Interner, Problem,
    error::decode,
    service::{service_aliases, service_from},
    workload::{workload_aliases, workload_from},
};
use crate::workload as wire;

/// What a resource of type Address holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "moved into an Arc right after decoding"
)]
pub enum Address {
    Workload(Workload),
    Service(Service),
}

/// Reads a resource of type Address.
pub fn decode_address(bytes: &[u8], interner: &mut Interner) -> Result<Address, ConvertError> {
    match decode::<wire::Address>("istio.workload.Address", bytes)?.r#type {
        Some(wire::address::Type::Workload(workload)) => {
            workload_from(workload, interner).map(Address::Workload)
        }
        Some(wire::address::Type::Service(service)) => {
            service_from(service, interner).map(Address::Service)
        }
        None => Err(Problem::Missing.at("workload or service")),
    }
}

/// Names beside its own under which a resource can be asked for: `<network>/<ip>`.
pub fn address_aliases(address: &Address) -> Vec<String> {
    match address {
        Address::Workload(workload) => workload_aliases(workload),
        Address::Service(service) => service_aliases(service),
    }
}

/// Reads 4 or 16 bytes.
pub(super) fn ip_from(bytes: &[u8]) -> Result<IpAddr, Problem> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes)
        .map(|v6| canonical_ip(IpAddr::from(v6)))
        .map_err(|_long| Problem::AddressLength(bytes.len()))
}

pub(super) fn ip_to(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Longest prefix of an address.
pub(super) fn max_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

pub(super) fn port_from(port: u32) -> Result<u16, Problem> {
    u16::try_from(port).map_err(|_over| Problem::Port(port))
}

pub(super) fn app_protocol_from(value: i32) -> AppProtocol {
    // A protocol of a newer version is a hint that we lack, not an error.
    match wire::AppProtocol::try_from(value).unwrap_or(wire::AppProtocol::Unknown) {
        wire::AppProtocol::Unknown => AppProtocol::Unknown,
        wire::AppProtocol::Http11 => AppProtocol::Http11,
        wire::AppProtocol::Http2 => AppProtocol::Http2,
        wire::AppProtocol::Grpc => AppProtocol::Grpc,
        wire::AppProtocol::Tcp => AppProtocol::Tcp,
        wire::AppProtocol::Tls => AppProtocol::Tls,
    }
}

pub(super) fn app_protocol_to(protocol: AppProtocol) -> wire::AppProtocol {
    match protocol {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    }
}

/// Reads a gateway address; `field` names it in errors.
pub(super) fn gateway_from(
    field: impl Display,
    gateway: wire::GatewayAddress,
    interner: &mut Interner,
) -> Result<GatewayAddr, ConvertError> {
    use wire::gateway_address::Destination;
    let destination = match gateway.destination {
        None => return Err(Problem::Missing.at(format_args!("{field}.destination"))),
        Some(Destination::Hostname(name)) if name.hostname.is_empty() => {
            return Err(Problem::Missing.at(format_args!("{field}.hostname")));
        }
        Some(Destination::Hostname(name)) => GatewayDestination::Service(ServiceKey {
            namespace: interner.get(&name.namespace),
            hostname: interner.get(&name.hostname),
        }),
        Some(Destination::Address(addr)) => {
            let ip = ip_from(&addr.address).map_err(|p| p.at(format_args!("{field}.address")))?;
            GatewayDestination::Address(NetworkAddr::new(Network(interner.get(&addr.network)), ip))
        }
    };
    let hbone_port = port_from(gateway.hbone_mtls_port)
        .map_err(|p| p.at(format_args!("{field}.hbone_mtls_port")))?;
    Ok(GatewayAddr {
        destination,
        hbone_port,
    })
}

pub(super) fn gateway_to(gateway: &GatewayAddr) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Service(key) => Destination::Hostname(wire::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(addr) => Destination::Address(wire::NetworkAddress {
            network: addr.network.0.to_string(),
            address: ip_to(addr.ip),
            length: None,
        }),
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: gateway.hbone_port.into(),
    }
}
