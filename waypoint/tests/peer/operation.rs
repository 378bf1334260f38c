//! What happens to live traffic when something else happens: changes, drains, bounds.

use std::{sync::Arc, time::Duration};

use karst_discovery::Update;
use karst_model::protocol::AppProtocol;
use karst_runtime::drain::Outcome;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks, until},
    client::{Client, empty, exchange, read_response, status},
    rig::{World, key, local, rule},
};

#[tokio::test]
async fn a_change_takes_effect_at_once_and_leaves_live_streams_alone() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let mut live = client.connect(vip).await;
        live.write_all(
            b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .await
        .unwrap();
        assert_eq!(status(&read_response(&mut live).await), "101");
        let mut kept = client.connect(vip).await;
        for number in 0..50 {
            let mut not_found = rule(&[]);
            not_found.matches.clear();
            let rules = if number % 2 == 0 {
                vec![not_found]
            } else {
                vec![rule(&[("web", 1)])]
            };
            world.route("r", rules);
            live.write_all(b"ping").await.unwrap();
            let mut back = [0; 4];
            live.read_exact(&mut back).await.unwrap();
            let expected = if number % 2 == 0 { "404" } else { "200" };
            loop {
                kept.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
                    .await
                    .unwrap();
                if status(&read_response(&mut kept).await) == expected {
                    break;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_ends_when_they_have() {
    local(async {
        let mut world = World::start(&["--drain-seconds", "30"]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        io.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nab")
            .await
            .unwrap();
        until(|| world.metric(&["karst_waypoint_connections "]) == 1.0).await;
        let drain = world.drain.take().unwrap();
        let finish = async {
            io.write_all(b"cd").await.unwrap();
            let response = read_response(&mut io).await;
            assert!(response.contains("\nabcd\r\n"), "{response}");
            // The connection ends after the response.
            assert_eq!(io.read(&mut [0; 16]).await.unwrap_or(0), 0);
            until(|| world.metric(&["karst_waypoint_connections "]) == 0.0).await;
            world.mesh.stopped.cancel();
        };
        let (outcome, ()) = tokio::join!(drain.drain(Duration::from_secs(30)), finish);
        assert_eq!(outcome, Outcome::Idle);
    })
    .await;
}

#[tokio::test]
async fn too_many_requests_are_shed_with_a_reason() {
    local(async {
        let world = World::start(&["--max-requests", "2"]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let mut busy = client.connect(vip).await;
        busy.write_all(b"GET /never HTTP/1.1\r\nHost: web\r\n\r\n")
            .await
            .unwrap();
        until(|| app.seen().len() == 1).await;
        let shed = client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(status(&shed), "503", "{shed}");
        assert!(shed.contains("too many requests"), "{shed}");
        world
            .metric_reaches(&["istio_requests_total", "response_flags=\"UO\""], 1.0)
            .await;
        drop(busy);
        world
            .metric_reaches(&["istio_requests_total", "response_flags=\"DC\""], 1.0)
            .await;
        let after = client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(status(&after), "200", "{after}");
    })
    .await;
}

#[tokio::test]
async fn a_service_that_appears_late_is_waited_for() {
    local(async {
        let world = World::start(&[]).await;
        let app = App::new("v1", Speaks::Http1);
        let vip = world.service("web", AppProtocol::Http11);
        world.workload("web", "web-1", &app).await;
        let service = world.state.service(&key("web")).unwrap();
        let gone = Update::Removed(
            karst_discovery::Kind::Address,
            service.key.to_string().into(),
        );
        world.state.apply([gone]);
        let client = Client::new(&world);
        let back = async {
            tokio::task::yield_now().await;
            world.state.apply([Update::Service(Arc::clone(&service))]);
        };
        let (response, ()) =
            tokio::join!(client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"), back);
        assert_eq!(status(&response), "200", "{response}");
    })
    .await;
}

/// Rapid reset (CVE-2023-44487): the connection ends, and others do not notice.
#[tokio::test]
async fn a_client_that_keeps_giving_requests_up_is_let_go() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let (mut send, connection) = h2::client::handshake(client.connect(vip).await)
            .await
            .unwrap();
        let ended = tokio::task::spawn_local(connection);
        for _request in 0..20_000 {
            let request = http::Request::get("http://web/never").body(()).unwrap();
            let Ok(ready) = send.ready().await else {
                break;
            };
            send = ready;
            let Ok((_response, mut stream)) = send.send_request(request, true) else {
                break;
            };
            stream.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        // With GOAWAY, or cut.
        let _ended_somehow = ended.await.unwrap();
        let mut other = client.http2(vip).await;
        let request = http::Request::get("http://web/").body(empty()).unwrap();
        let response = exchange(&mut other, request).await;
        assert_eq!(response.status(), http::StatusCode::OK);
    })
    .await;
}
