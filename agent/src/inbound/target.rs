//! Where a CONNECT request really goes: always this pod. The authority only chooses among its addresses and ports, or
//! is told to the application where that wants to hear it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use karst_discovery::State;
use karst_hbone::{Authority, InboundRequest, proxy_protocol::Header};
use karst_model::{
    addr::canonical,
    identity::SpiffeId,
    service::Service,
    workload::{ApplicationTunnel, Workload},
};

use crate::error::InboundError;

/// What a request is for, and how the application gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// What policy decides about: an address of this pod.
    pub(crate) destination: SocketAddr,
    pub(crate) handover: Handover,
}

/// How an application gets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// At the destination, as the client's own.
    Plain,
    /// On the pod's loopback, so that nobody else can be at the other end, behind a header of the PROXY protocol that
    /// tells the address that was asked for.
    Proxied { at: SocketAddr, asked: SocketAddr },
}

impl Target {
    /// Finds the target of a request to `own`, that reached it at `local`.
    pub(crate) fn of(
        state: &State,
        own: &Workload,
        local: IpAddr,
        request: &InboundRequest,
    ) -> Result<Self, InboundError> {
        match &request.authority {
            Authority::Addr(addr) => {
                let asked = canonical(*addr);
                let ours = asked.ip() == local;
                match own.application_tunnel {
                    Some(tunnel) => {
                        let destination = SocketAddr::new(local, asked.port());
                        Ok(Self::proxied(tunnel, destination, asked))
                    }
                    None if ours => Ok(Self::plain(asked)),
                    None => Err(InboundError::NotOurs {
                        asked: asked.to_string(),
                    }),
                }
            }
            Authority::Host(host, port) => {
                let unknown = || InboundError::NoSuchService {
                    asked: format!("{host}:{port}"),
                };
                let service = state
                    .service_by_host(host, &own.namespace)
                    .ok_or_else(unknown)?;
                if let Some(tunnel) = own.application_tunnel {
                    let destination = SocketAddr::new(local, *port);
                    let asked = vip(&service, own).map(|ip| SocketAddr::new(ip, *port));
                    let asked = asked.unwrap_or(destination);
                    return Ok(Self::proxied(tunnel, destination, asked));
                }
                let mapped = own
                    .services
                    .get(&service.key)
                    .and_then(|ports| ports.get(port))
                    .copied();
                let declared = service.ports.get(port).map(|declared| declared.target_port);
                match mapped.or(declared) {
                    Some(target) if target != 0 && own.services.contains_key(&service.key) => {
                        Ok(Self::plain(SocketAddr::new(local, target)))
                    }
                    _ => Err(unknown()),
                }
            }
        }
    }

    fn plain(destination: SocketAddr) -> Self {
        Self {
            destination,
            handover: Handover::Plain,
        }
    }

    fn proxied(tunnel: ApplicationTunnel, destination: SocketAddr, asked: SocketAddr) -> Self {
        let ApplicationTunnel::Proxy { port } = tunnel;
        let loopback = match destination {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        let at = SocketAddr::new(loopback, port.unwrap_or_else(|| destination.port()));
        Self {
            destination,
            handover: Handover::Proxied { at, asked },
        }
    }

    /// Where the application is dialled.
    pub(crate) fn dialled(&self) -> SocketAddr {
        match self.handover {
            Handover::Plain => self.destination,
            Handover::Proxied { at, .. } => at,
        }
    }

    /// What is written before the first byte of a connection from `source`, as which `identity` was verified.
    pub(crate) fn header(&self, source: SocketAddr, identity: &SpiffeId) -> Option<Vec<u8>> {
        match self.handover {
            Handover::Plain => None,
            Handover::Proxied { asked, .. } => {
                let header = Header {
                    source,
                    destination: asked,
                    identity: Some(identity.clone()),
                };
                Some(header.encode())
            }
        }
    }
}

/// The address that stands for a service: one of this network first, then IPv4.
fn vip(service: &Service, own: &Workload) -> Option<IpAddr> {
    let vips = service
        .addresses
        .iter()
        .filter(|vip| vip.prefix_len.is_none());
    vips.min_by_key(|vip| (vip.network != own.network, vip.ip.is_ipv6()))
        .map(|vip| vip.ip)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_discovery::Update;
    use karst_hbone::proxy_protocol::{Parsed, parse};
    use karst_model::{addr::Network, service::Vip};

    use super::*;

    fn own(tunnel: Option<ApplicationTunnel>) -> Workload {
        Workload {
            namespace: "shop".into(),
            addresses: vec!["10.0.0.9".parse().unwrap()],
            application_tunnel: tunnel,
            ..Workload::new("c//Pod/shop/w")
        }
    }

    fn request(authority: &str) -> InboundRequest {
        let request = http::Request::connect(authority).body(()).unwrap();
        karst_hbone::request::parse(&request.into_parts().0).unwrap()
    }

    fn target(tunnel: Option<ApplicationTunnel>, authority: &str) -> Result<Target, InboundError> {
        let state = State::new();
        let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
        let vip = |ip: &str| Vip {
            network: Network::default(),
            ip: ip.parse().unwrap(),
            prefix_len: None,
        };
        service.addresses = vec![vip("fd00::5"), vip("10.96.0.5")];
        state.apply([Update::Service(Arc::new(service))]);
        let local = "10.0.0.9".parse().unwrap();
        Target::of(&state, &own(tunnel), local, &request(authority))
    }

    #[test]
    fn without_an_application_tunnel_only_the_pods_own_addresses_are_served() {
        let plain = target(None, "10.0.0.9:80").unwrap();
        assert_eq!(plain.dialled(), "10.0.0.9:80".parse().unwrap());
        assert_eq!(plain.handover, Handover::Plain);
        assert!(matches!(
            target(None, "10.0.0.8:80"),
            Err(InboundError::NotOurs { .. })
        ));
    }

    #[test]
    fn an_application_with_a_tunnel_hears_on_its_loopback_what_was_asked() {
        let identity: SpiffeId = "spiffe://td/ns/shop/sa/front".parse().unwrap();
        let source = "10.0.0.1:4000".parse().unwrap();
        let cases = [
            (Some(15088), "10.0.0.8:80", "127.0.0.1:15088", "10.0.0.8:80"),
            (None, "10.0.0.8:80", "127.0.0.1:80", "10.0.0.8:80"),
            (
                Some(15088),
                "orders.shop.svc.cluster.local:81",
                "127.0.0.1:15088",
                "10.96.0.5:81",
            ),
        ];
        for (port, authority, dialled, asked) in cases {
            let target = target(Some(ApplicationTunnel::Proxy { port }), authority).unwrap();
            assert_eq!(target.dialled(), dialled.parse().unwrap(), "{authority}");
            assert_eq!(
                target.destination.ip(),
                "10.0.0.9".parse::<IpAddr>().unwrap()
            );
            let bytes = target.header(source, &identity).unwrap();
            let wanted = Header {
                source,
                destination: asked.parse().unwrap(),
                identity: Some(identity.clone()),
            };
            let length = bytes.len();
            let parsed = Parsed::Proxied {
                header: wanted,
                length,
            };
            assert_eq!(parse(&bytes), Ok(parsed), "{authority}");
        }
        let unknown = target(
            Some(ApplicationTunnel::Proxy { port: None }),
            "nobody.shop.svc.cluster.local:81",
        );
        assert!(matches!(unknown, Err(InboundError::NoSuchService { .. })));
    }
}
