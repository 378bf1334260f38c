//! Connections that are no HTTP.

use karst_model::{
    protocol::{AppProtocol, TunnelProtocol},
    route::{HostMatch, RouteKind, RouteRules, TlsRule},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks},
    client::Client,
    rig::{World, fresh_ip, local, rule},
};

async fn speaks(protocol: AppProtocol) {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("db", protocol);
        world
            .workload("db", "db-1", &App::new("hello", Speaks::ServerFirst))
            .await;
        let mut io = Client::new(&world).connect(vip).await;
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
        io.write_all(b"GET? no").await.unwrap();
        io.shutdown().await.unwrap();
        let mut back = String::new();
        io.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "GET? no");
        let labels = [
            "istio_tcp_sent_bytes_total{reporter=\"waypoint\"",
            "destination_workload=\"db-1\"",
        ];
        world.metric_reaches(&labels, 12.0).await;
    })
    .await;
}

#[tokio::test]
async fn a_declared_tcp_port_is_relayed() {
    speaks(AppProtocol::Tcp).await;
}

/// The client says nothing before the server has.
#[tokio::test]
async fn a_server_that_speaks_first_is_not_waited_for() {
    speaks(AppProtocol::Unknown).await;
}

#[tokio::test]
async fn a_workload_outside_the_mesh_is_reached_without_a_tunnel() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("db", AppProtocol::Tcp);
        let ip = fresh_ip();
        App::new("plain", Speaks::ServerFirst)
            .listen((ip, 8080).into())
            .await;
        world.add_workload("db", "db-1", ip, TunnelProtocol::None);
        let mut io = Client::new(&world).connect(vip).await;
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"plain");
    })
    .await;
}

#[tokio::test]
async fn what_this_waypoint_does_not_serve_is_refused() {
    local(async {
        let world = World::start(&[]).await;
        let client = Client::new(&world);
        let error = client.try_connect("10.9.9.9:80".parse().unwrap()).await;
        assert!(matches!(error, Err(karst_hbone::OpenError::Status(404))));
    })
    .await;
}

/// A ClientHello with this server name.
pub(crate) fn hello(name: &str) -> Vec<u8> {
    let mut sni = vec![0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0];
    sni.push(name.len() as u8);
    sni.extend(name.as_bytes());
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, sni.len() as u8]);
    body.extend(sni);
    let mut record = vec![
        0x16,
        3,
        1,
        0,
        body.len() as u8 + 4,
        1,
        0,
        0,
        body.len() as u8,
    ];
    record.extend(body);
    record
}

#[tokio::test]
async fn tls_goes_where_its_server_name_is_routed() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Tls);
        world.service("one", AppProtocol::Tls);
        world
            .workload("one", "one-1", &App::new("first", Speaks::ServerFirst))
            .await;
        let rule = TlsRule {
            hosts: vec![HostMatch::Exact("one.test".into())],
            backends: rule(&[("one", 1)]).backends,
            ..TlsRule::default()
        };
        world.attach(RouteKind::TlsRoute, "tls", RouteRules::Tls(vec![rule]));
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        io.write_all(&hello("one.test")).await.unwrap();
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"first");
        let mut other = client.connect(vip).await;
        other.write_all(&hello("two.test")).await.unwrap();
        assert!(other.read_exact(&mut greeting).await.is_err());
    })
    .await;
}
