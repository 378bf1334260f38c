//! What goes through unchanged: methods, bodies, trailers, header case, sizes, upgrades.

use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use karst_model::protocol::{AppProtocol, TunnelProtocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks},
    client::{Client, empty, exchange, full, read_response, status},
    rig::{World, fresh_ip, local},
};

#[tokio::test]
async fn a_request_reaches_the_workload_and_its_answer_comes_back() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let response = client
            .raw(
                vip,
                "GET /a?b=%20 HTTP/1.1\r\nHost: Web.Shop\r\nX-CamelCase: 1\r\n\r\n",
            )
            .await;
        assert_eq!(status(&response), "200", "{response}");
        assert!(response.ends_with("v1"), "{response}");
        let seen = &app.seen()[0];
        assert_eq!(seen.uri, "/a?b=%20");
        assert_eq!(seen.headers["host"], "Web.Shop");
        world
            .metric_reaches(
                &[
                    "istio_requests_total{reporter=\"waypoint\"",
                    "response_code=\"200\"",
                    "source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"",
                    "destination_workload=\"web-1\"",
                    "destination_service=\"web.shop.svc.cluster.local\"",
                    "connection_security_policy=\"mutual_tls\"",
                ],
                1.0,
            )
            .await;
    })
    .await;
}

#[tokio::test]
async fn requests_of_one_connection_share_one_upstream_connection() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        for path in ["/", "/status/204", "/", "/status/304", "/"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n");
            io.write_all(request.as_bytes()).await.unwrap();
            let expected = path.strip_prefix("/status/").unwrap_or("200");
            let response = read_response(&mut io).await;
            assert_eq!(status(&response), expected, "{response}");
        }
        assert_eq!(app.connections.get(), 1);
    })
    .await;
}

/// Case on HTTP/1, and the order of values per name.
#[tokio::test]
async fn headers_keep_case_and_order() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let ip = fresh_ip();
        let app = App::new(
            "",
            Speaks::Bytes("HTTP/1.1 200 OK\r\nX-ReSp: 1\r\nX-resp: 2\r\nContent-Length: 0\r\n\r\n"),
        );
        app.listen((ip, 8080).into()).await;
        world.add_workload("web", "plain", ip, TunnelProtocol::None);
        let response = Client::new(&world)
            .raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert!(
            response.contains("X-ReSp: 1\r\nX-resp: 2\r\n"),
            "{response}"
        );
    })
    .await;
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let request = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
                       Trailer: x-sum\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
        let response = Client::new(&world).raw(vip, request).await;
        assert_eq!(status(&response), "200", "{response}");
        assert!(response.contains("abcde"), "{response}");
        assert!(response.to_lowercase().contains("x-sum: 5"), "{response}");
        assert_eq!(app.seen()[0].body, "abcde");
    })
    .await;
}

#[tokio::test]
async fn old_clients_and_expectations_are_served() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let old = client.raw(vip, "GET /old HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200"), "{old}");
        let host = app.seen()[0].headers["host"].clone();
        assert_eq!(host, "web.shop.svc.cluster.local");

        let mut io = client.connect(vip).await;
        let head =
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        io.write_all(head.as_bytes()).await.unwrap();
        let interim = read_response(&mut io).await;
        assert_eq!(status(&interim), "100", "{interim}");
        io.write_all(b"body").await.unwrap();
        let response = read_response(&mut io).await;
        assert!(response.contains("\nbody\r\n"), "{response}");
    })
    .await;
}

/// The endpoint decides about the body before it is sent.
#[tokio::test]
async fn an_expectation_goes_to_the_endpoint() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let head = "POST /refuse-body HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\
                    Expect: 100-continue\r\n\r\n";
        let refused = Client::new(&world).raw(vip, head).await;
        assert_eq!(status(&refused), "417", "{refused}");
    })
    .await;
}

#[tokio::test]
async fn large_headers_pass_and_larger_ones_are_431() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let request = |size: usize| {
            let value = "a".repeat(size);
            format!("GET / HTTP/1.1\r\nHost: web\r\nX-Large: {value}\r\n\r\n")
        };
        let fits = client.raw(vip, request(95 << 10)).await;
        assert_eq!(status(&fits), "200", "{fits}");
        assert_eq!(app.seen()[0].headers["x-large"].len(), 95 << 10);
        let too_large = client.raw(vip, request(300 << 10)).await;
        assert_eq!(status(&too_large), "431", "{too_large}");
        assert_eq!(app.seen().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let mut io = Client::new(&world).connect(vip).await;
        io.write_all(
            b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .await
        .unwrap();
        let head = read_response(&mut io).await;
        assert_eq!(status(&head), "101", "{head}");
        assert!(head.to_lowercase().contains("upgrade: echo"), "{head}");
        for round in [&b"ping"[..], b"pong"] {
            io.write_all(round).await.unwrap();
            let mut back = [0; 4];
            io.read_exact(&mut back).await.unwrap();
            assert_eq!(back, round);
        }
    })
    .await;
}

#[tokio::test]
async fn grpc_keeps_its_trailers_over_http2() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Grpc);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let mut send = Client::new(&world).http2(vip).await;
        let trailers = HeaderMap::from_iter([(
            "grpc-status".parse().unwrap(),
            HeaderValue::from_static("0"),
        )]);
        let frames = [
            Ok(Frame::data("message".into())),
            Ok(Frame::trailers(trailers)),
        ];
        let request = Request::post("http://web.shop:80/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(BoxBody::new(StreamBody::new(futures_util::stream::iter(
                frames,
            ))))
            .unwrap();
        let response = exchange(&mut send, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "message");
        let seen = &app.seen()[0];
        assert_eq!(seen.version, Version::HTTP_2);
        assert_eq!(seen.uri.authority().unwrap(), "web.shop:80");
        assert_eq!(seen.headers["te"], "trailers");
        world
            .metric_reaches(
                &[
                    "istio_requests_total",
                    "request_protocol=\"grpc\"",
                    "grpc_response_status=\"0\"",
                ],
                1.0,
            )
            .await;
    })
    .await;
}

#[tokio::test]
async fn what_the_waypoint_refuses_a_grpc_client_sees_as_a_grpc_status() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Grpc);
        let mut send = Client::new(&world).http2(vip).await;
        let request = Request::post("http://web.shop:80/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .body(full("message"))
            .unwrap();
        let response = exchange(&mut send, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
    })
    .await;
}

#[tokio::test]
async fn many_streams_of_one_client_share_one_upstream_connection() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let send = Client::new(&world).http2(vip).await;
        let all = (0..50).map(|number| {
            let mut send = send.clone();
            async move {
                let request = Request::get(format!("http://web/{number}"))
                    .body(empty())
                    .unwrap();
                let response = send.send_request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                response.into_body().collect().await.unwrap();
            }
        });
        futures_util::future::join_all(all).await;
        assert_eq!(app.seen().len(), 50);
        assert_eq!(app.connections.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_protocol_of_an_undeclared_port_is_found_out() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Unknown);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let response = Client::new(&world)
            .raw(vip, "GET /x HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(status(&response), "200", "{response}");
        world
            .metric_reaches(&["istio_requests_total", "response_code=\"200\""], 1.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn head_has_headers_and_no_body() {
    for speaks in [Speaks::Http1, Speaks::Http2] {
        local(async move {
            let world = World::start(&[]).await;
            let protocol = match speaks {
                Speaks::Http2 => AppProtocol::Http2,
                _ => AppProtocol::Unknown,
            };
            let vip = world.service("web", protocol);
            let app = App::new("v1", speaks);
            world.workload("web", "web-1", &app).await;
            let client = Client::new(&world);
            let one = client
                .raw(
                    vip,
                    "HEAD / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
                )
                .await;
            assert!(one.ends_with("\r\n\r\n"), "{one}");
            assert_eq!(status(&one), "200", "{one}");
            if speaks == Speaks::Http2 {
                let mut send = client.http2(vip).await;
                let request = Request::head("http://web/").body(empty()).unwrap();
                let response = exchange(&mut send, request).await;
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(response.into_body().to_bytes(), "");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_http_gets_no_answer_where_http2_is_declared() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        let answer = Client::new(&world)
            .raw(vip, "INVALID CONNECTION PREFACE\r\n\r\n")
            .await;
        assert_eq!(answer, "");
    })
    .await;
}
