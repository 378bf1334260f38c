//! What a client's agent decides about a service behind a waypoint: the tunnel to a replica, a refusal, or the way around
//! where somebody has written that the service matters more.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use karst_discovery::{State, Update};
use karst_model::{
    addr::Network,
    name::ServiceKey,
    protocol::{AppProtocol, HBONE_PORT, TunnelProtocol},
    service::{Service, ServicePort, Vip},
    workload::{GatewayAddr, GatewayDestination, Health, Workload},
};
use karst_path::outbound::{Hop, Refused, Way, resolve};

use crate::draw::Draw;

const VIP: [u8; 4] = [10, 96, 0, 1];
const ENDPOINT: [u8; 4] = [10, 0, 0, 1];
const REPLICA: [u8; 4] = [10, 0, 0, 9];

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
    }
}

fn pod(name: &str, ip: [u8; 4], of: &ServiceKey, health: Health) -> Workload {
    Workload {
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![ip.into()],
        tunnel: TunnelProtocol::Hbone,
        health,
        services: BTreeMap::from([(of.clone(), BTreeMap::from([(80, 8080)]))]),
        ..Workload::new(&format!("c//Pod/shop/{name}"))
    }
}

/// Service `orders` with one endpoint, behind waypoint `w` whose only replica is as healthy as said.
fn decided(replica: Health, waypoint_optional: bool) -> Result<Way<()>, Refused> {
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    let orders = Service {
        addresses: vec![Vip {
            network: Network::default(),
            ip: VIP.into(),
            prefix_len: None,
        }],
        ports: BTreeMap::from([(80, port)]),
        waypoint: Some(GatewayAddr {
            destination: GatewayDestination::Service(key("w")),
            hbone_port: HBONE_PORT,
        }),
        waypoint_optional,
        ..Service::new("shop", &key("orders").hostname)
    };
    let own = Service {
        ports: orders.ports.clone(),
        ..Service::new("shop", &key("w").hostname)
    };
    let state = State::new();
    let client = pod("client", [10, 0, 0, 7], &key("none"), Health::Healthy);
    state.apply([
        Update::Service(Arc::new(orders)),
        Update::Service(Arc::new(own)),
        Update::Workload(Arc::new(pod(
            "orders-0",
            ENDPOINT,
            &key("orders"),
            Health::Healthy,
        ))),
        Update::Workload(Arc::new(pod("w-0", REPLICA, &key("w"), replica))),
        Update::Workload(Arc::new(client.clone())),
    ]);
    let choose = Draw::of(7);
    resolve(
        &state,
        &Network::default(),
        &choose,
        &client,
        (VIP, 80).into(),
    )
}

fn tunnel(way: Way<()>) -> (SocketAddr, SocketAddr) {
    match way.hop {
        Hop::Tunnel(tunnel) => (tunnel.addr, tunnel.target),
        Hop::Direct { addr } => panic!("plainly to {addr}"),
    }
}

#[test]
fn a_ready_waypoint_is_the_way_whatever_the_service_says() {
    for optional in [false, true] {
        let way = decided(Health::Healthy, optional).unwrap();
        let to_replica = ((REPLICA, HBONE_PORT).into(), (VIP, 80).into());
        assert_eq!(tunnel(way), to_replica, "optional: {optional}");
    }
}

#[test]
fn without_a_ready_replica_the_service_is_refused() {
    let refused = decided(Health::Unhealthy, false).unwrap_err();
    assert!(matches!(refused, Refused::Waypoint { .. }), "{refused}");
    assert!(
        refused.to_string().contains("w.shop.svc.cluster.local"),
        "{refused}"
    );
}

#[test]
fn a_service_that_needs_its_waypoint_only_when_ready_is_reached_without() {
    let way = decided(Health::Unhealthy, true).unwrap();
    assert!(way.waypoint.is_none());
    let to_endpoint = ((ENDPOINT, HBONE_PORT).into(), (ENDPOINT, 8080).into());
    assert_eq!(tunnel(way), to_endpoint);
}
