//! Connections that are no HTTP.

use karst_model::protocol::{AppProtocol, TunnelProtocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks},
    client::Client,
    rig::{World, fresh_ip, local},
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
