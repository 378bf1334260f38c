//! Which version of HTTP an endpoint is asked with, and requests that become something else than HTTP across versions.

use http::{Method, Request, StatusCode, Version};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use karst_model::{
    policy::StringMatch,
    protocol::AppProtocol,
    waypoint_policy::{PathPattern, RequestAction, RequestMatch},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks},
    client::{Body, Client, empty, exchange, full, status},
    policy::policy_named,
    rig::{World, local},
};

/// An application that knows only HTTP/1 and says so works whatever its clients speak.
#[tokio::test]
async fn a_port_declared_http_is_asked_with_http1() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let mut send = Client::new(&world).http2(vip).await;
        let request = Request::get("http://web/").body(empty()).unwrap();
        let response = exchange(&mut send, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(app.seen()[0].version, Version::HTTP_11);
        assert_eq!(app.seen()[0].headers["host"], "web");
    })
    .await;
}

/// Nobody can answer gRPC over HTTP/1, so whoever declared HTTP there meant HTTP/2.
#[tokio::test]
async fn grpc_is_asked_with_http2_also_where_http_is_declared() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let mut send = Client::new(&world).http2(vip).await;
        let request = Request::post("http://web/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .body(full("message"))
            .unwrap();
        let response = exchange(&mut send, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(app.seen()[0].version, Version::HTTP_2);
    })
    .await;
}

/// CONNECT with a protocol (RFC 8441).
fn websocket(path: &str) -> Request<Body> {
    let mut request = Request::connect(format!("http://web{path}"))
        .header("sec-websocket-version", "13")
        .body(empty())
        .unwrap();
    let protocol = Protocol::from_static("websocket");
    request.extensions_mut().insert(protocol);
    request
}

#[tokio::test]
async fn a_websocket_of_http2_reaches_an_application_of_http1() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let mut send = Client::new(&world).http2(vip).await;
        // The waypoint's settings are here with the first answer.
        let first = Request::get("http://web/").body(empty()).unwrap();
        exchange(&mut send, first).await;
        let response = send.send_request(websocket("/chat?room=1")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(name), "{name}");
        }
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut back = [0; 4];
        for round in [b"ping", b"pong"] {
            io.write_all(round).await.unwrap();
            io.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, round);
        }
        let seen = app.seen().pop().unwrap();
        assert_eq!((seen.method, seen.version), (Method::GET, Version::HTTP_11));
        assert_eq!(seen.uri, "/chat?room=1");
        assert_eq!(seen.headers["upgrade"], "websocket");
        assert_eq!(seen.headers["connection"], "Upgrade");
        assert_eq!(seen.headers["sec-websocket-version"], "13");
        let key = seen.headers["sec-websocket-key"].to_str().unwrap();
        assert!(key.len() == 24 && key.ends_with("=="), "{key}");

        // An application that does not want to: its client is not told that it has its WebSocket.
        let response = send.send_request(websocket("/refuse")).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    })
    .await;
}

/// The same request in the other version's words: a policy on GET holds for it.
#[tokio::test]
async fn a_policy_sees_a_websocket_of_http2_as_the_get_that_it_is() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let get = RequestMatch {
            methods: vec![StringMatch::Exact("GET".into())],
            paths: vec![PathPattern::Text(StringMatch::Prefix("/chat".into()))],
            ..RequestMatch::default()
        };
        let deny = policy_named("guard", "web", RequestAction::Deny, get);
        world.state.apply([deny]);
        let mut send = Client::new(&world).http2(vip).await;
        let first = Request::get("http://web/").body(empty()).unwrap();
        assert_eq!(exchange(&mut send, first).await.status(), StatusCode::OK);
        let response = send.send_request(websocket("/chat")).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(app.seen().len(), 1);
    })
    .await;
}

/// A proxy is an application too.
#[tokio::test]
async fn connect_goes_through_and_carries_bytes() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("proxy", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        io.write_all(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert_eq!(status(&head), "200", "{head}");
        let mut back = [0; 4];
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        let seen = app.seen().pop().unwrap();
        assert_eq!(seen.method, Method::CONNECT);
        assert_eq!(seen.uri, "example.com:443");
        drop(io);
        // The endpoint's connection was the tunnel's: the next request gets another.
        let next = client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n");
        assert_eq!(status(&next.await), "200");

        let mut send = client.http2(vip).await;
        let request = Request::connect("example.com:443").body(empty()).unwrap();
        let response = send.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"pong").await.unwrap();
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"pong");
    })
    .await;
}
