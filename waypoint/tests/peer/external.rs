//! External authorizers, played by the test: HTTP and gRPC, what they may change, and what happens when they do not answer.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use karst_discovery::Update;
use karst_model::{
    external::{AuthorizerProtocol, CheckedBody, ExternalAuthorizer, HttpAuthorizer},
    policy::StringMatch,
    protocol::{AppProtocol, TunnelProtocol},
    waypoint_policy::{RequestAction, RequestMatch, WaypointPolicy},
};
use karst_proto::{
    core::{HeaderValue, HeaderValueOption},
    external_auth::{
        CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
        check_response::HttpResponse,
    },
    http_status::HttpStatus,
    rpc::Status,
};
use prost::Message as _;
use tokio::net::TcpListener;

use crate::{
    app::{App, Local, Speaks},
    client::{Client, status},
    policy::policy_named,
    rig::{World, fresh_ip, key, local, spiffe},
};

type Answer = Response<BoxBody<Bytes, Infallible>>;
type Script = Box<dyn Fn(&Request<Bytes>) -> Option<Answer>>;

/// An authorizer that answers by script; no answer: it never does.
struct Authorizer {
    script: RefCell<Script>,
    asked: RefCell<Vec<Request<Bytes>>>,
}

impl Authorizer {
    async fn start(world: &World, protocol: AppProtocol, script: Script) -> Rc<Self> {
        world.service("auth", protocol);
        let ip = fresh_ip();
        let listener = TcpListener::bind(SocketAddr::from((ip, 8080)))
            .await
            .unwrap();
        world.agent(ip, &spiffe("shop", "auth-1")).await;
        world.add_workload("auth", "auth-1", ip, TunnelProtocol::Hbone);
        let authorizer = Rc::new(Self {
            script: RefCell::new(script),
            asked: RefCell::default(),
        });
        let served = authorizer.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let authorizer = served.clone();
                let service = service_fn(move |request| authorizer.clone().answer(request));
                let io = TokioIo::new(stream);
                tokio::task::spawn_local(async move {
                    let _ended = match protocol {
                        AppProtocol::Grpc => {
                            http2::Builder::new(Local)
                                .serve_connection(io, service)
                                .await
                        }
                        _ => http1::Builder::new().serve_connection(io, service).await,
                    };
                });
            }
        });
        authorizer
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let request = Request::from_parts(parts, body);
        let answer = (self.script.borrow())(&request);
        self.asked.borrow_mut().push(request);
        match answer {
            Some(answer) => Ok(answer),
            None => std::future::pending().await,
        }
    }
}

fn text(status: u16, headers: &[(&str, &str)], body: &'static str) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response
        .body(BoxBody::new(Full::new(Bytes::from_static(body.as_bytes()))))
        .unwrap()
}

fn grpc(message: &CheckResponse) -> Answer {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = Full::new(framed.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Response::builder()
        .header("content-type", "application/grpc")
        .body(BoxBody::new(body))
        .unwrap()
}

fn provider(protocol: AuthorizerProtocol) -> ExternalAuthorizer {
    ExternalAuthorizer {
        name: "ask".into(),
        service: key("auth"),
        port: 80,
        timeout: Duration::from_secs(10),
        fail_open: false,
        status_on_error: 503,
        clear_route_cache: false,
        body: None,
        protocol,
    }
}

/// A CUSTOM policy that asks about everything that is no GET of `/free`.
fn custom(provider: ExternalAuthorizer) -> Update {
    let matches = RequestMatch {
        not_paths: vec![karst_model::waypoint_policy::PathPattern::Text(
            StringMatch::Exact("/free".into()),
        )],
        ..RequestMatch::default()
    };
    match policy_named("ask", "web", RequestAction::Custom, matches) {
        Update::WaypointPolicy(policy) => Update::WaypointPolicy(Arc::new(WaypointPolicy {
            provider: Some(Arc::new(provider)),
            ..(*policy).clone()
        })),
        other => other,
    }
}

fn http_provider() -> HttpAuthorizer {
    HttpAuthorizer {
        path_prefix: "/check".into(),
        include_headers: vec![StringMatch::Exact("x-ext".into())],
        additional_headers: vec![("x-mesh".into(), "karst".into())],
        upstream_on_allow: vec![StringMatch::Presence],
        downstream_on_allow: vec![StringMatch::Exact("x-told".into())],
        downstream_on_deny: vec![StringMatch::Exact("x-why".into())],
    }
}

#[tokio::test]
async fn an_authorizer_over_http_decides_and_may_not_reframe_the_request() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let script: Script = Box::new(|request| {
            let yes = request.headers().get("x-ext").is_some_and(|value| value == "yes");
            Some(match yes {
                true => text(200, &[("x-user", "alice"), ("upgrade", "h2c"), ("x-told", "hi")], ""),
                false => text(403, &[("x-why", "no"), ("x-other", "secret")], "not you"),
            })
        });
        let authorizer = Authorizer::start(&world, AppProtocol::Http11, script).await;
        world.state.apply([custom(provider(AuthorizerProtocol::Http(http_provider())))]);
        let client = Client::new(&world);
        let ask = async |path: &str, ext: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nX-Ext: {ext}\r\nX-Private: p\r\nX-User: mallory\r\n\r\n");
            client.raw(vip, request).await
        };
        let allowed = ask("/a?b=c", "yes").await;
        assert_eq!(status(&allowed), "200", "{allowed}");
        assert!(allowed.to_lowercase().contains("x-told: hi"), "{allowed}");
        let seen = app.seen();
        assert_eq!(seen[0].headers["x-user"], "alice");
        assert!(!seen[0].headers.contains_key("upgrade"));
        assert_eq!(seen[0].headers["host"], "web");

        let denied = ask("/a", "no").await;
        assert_eq!(status(&denied), "403", "{denied}");
        assert!(denied.ends_with("not you") && denied.to_lowercase().contains("x-why: no"), "{denied}");
        assert!(!denied.contains("secret"), "{denied}");
        assert_eq!(status(&ask("/free", "no").await), "200", "no rule matches: nobody is asked");

        {
            let asked = authorizer.asked.borrow();
            assert_eq!(asked.len(), 2);
            assert_eq!(asked[0].uri(), "/check/a?b=c");
            assert_eq!(asked[0].headers()["host"], "web");
            assert_eq!(asked[0].headers()["x-mesh"], "karst");
            assert!(!asked[0].headers().contains_key("x-private"));
        }
        world.metric_reaches(&["karst_waypoint_external_denied"], 1.0).await;
        world.metric_reaches(&["karst_waypoint_external_headers_refused"], 1.0).await;
    })
    .await;
}

fn option(name: &str, value: &str, append: bool) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.into(),
            value: value.into(),
            ..HeaderValue::default()
        }),
        append: Some(append),
        ..HeaderValueOption::default()
    }
}

#[tokio::test]
async fn an_authorizer_over_grpc_sees_the_body_and_changes_headers() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let script: Script = Box::new(|request| {
            let asked = CheckRequest::decode(request.body().slice(5..)).unwrap();
            let attributes = asked.attributes.unwrap();
            let http = attributes.request.unwrap().http.unwrap();
            assert!(attributes.source.unwrap().principal.ends_with("/sa/front"));
            assert_eq!(http.headers[":path"], "/pay?now=1");
            let response = match http.body.as_str() {
                "good" => HttpResponse::OkResponse(OkHttpResponse {
                    headers: vec![option("x-user", "alice", false), option("host", "evil", false)],
                    headers_to_remove: vec!["x-private".into(), "host".into()],
                    response_headers_to_add: vec![option("x-told", "hi", true)],
                    query_parameters_to_remove: vec!["now".into()],
                    ..OkHttpResponse::default()
                }),
                _ => HttpResponse::DeniedResponse(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 402 }),
                    headers: vec![option("x-why", "poor", false)],
                    body: "pay first".into(),
                }),
            };
            let code = if http.body == "good" { 0 } else { 7 };
            Some(grpc(&CheckResponse {
                status: Some(Status {
                    code,
                    ..Status::default()
                }),
                http_response: Some(response),
            }))
        });
        Authorizer::start(&world, AppProtocol::Grpc, script).await;
        world.state.apply([custom(ExternalAuthorizer {
            body: Some(CheckedBody {
                max_bytes: 8,
                allow_partial: false,
                pack_as_bytes: false,
            }),
            ..provider(AuthorizerProtocol::Grpc)
        })]);
        let client = Client::new(&world);
        let pay = async |body: &str| {
            let length = body.len();
            let request = format!("POST /pay?now=1 HTTP/1.1\r\nHost: web\r\nX-Private: p\r\nContent-Length: {length}\r\n\r\n{body}");
            client.raw(vip, request).await
        };
        let allowed = pay("good").await;
        assert_eq!(status(&allowed), "200", "{allowed}");
        assert!(allowed.to_lowercase().contains("x-told: hi"), "{allowed}");
        let denied = pay("bad").await;
        assert_eq!(status(&denied), "402", "{denied}");
        assert!(denied.ends_with("pay first") && denied.contains("x-why: poor"), "{denied}");
        assert_eq!(status(&pay("longer than eight").await), "413");
        let seen = app.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].body.as_ref(), seen[0].uri.to_string()), (&b"good"[..], "/pay".to_owned()));
        assert_eq!((&seen[0].headers["x-user"], &seen[0].headers["host"]), (&"alice".parse().unwrap(), &"web".parse().unwrap()));
        assert!(!seen[0].headers.contains_key("x-private"));
    })
    .await;
}

#[tokio::test]
async fn an_authorizer_that_does_not_answer_fails_closed_or_open_as_its_provider_says() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let authorizer = Authorizer::start(&world, AppProtocol::Grpc, Box::new(|_| None)).await;
        let client = Client::new(&world);
        let get = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
        let scripts: [(&str, Script); 6] = [
            ("silent", Box::new(|_| None)),
            (
                "garbage",
                Box::new(|_| {
                    Some(text(
                        200,
                        &[("content-type", "application/grpc"), ("grpc-status", "0")],
                        "garbage",
                    ))
                }),
            ),
            ("empty", Box::new(|_| Some(grpc(&CheckResponse::default())))),
            (
                "failed",
                Box::new(|_| Some(text(200, &[("grpc-status", "13")], ""))),
            ),
            ("an error page", Box::new(|_| Some(text(502, &[], "oops")))),
            (
                "endless",
                Box::new(|_| {
                    Some(text(
                        200,
                        &[("grpc-status", "0")],
                        Box::leak("x".repeat(300 << 10).into_boxed_str()),
                    ))
                }),
            ),
        ];
        for (name, script) in scripts {
            *authorizer.script.borrow_mut() = script;
            for (fail_open, expected) in [(false, "503"), (true, "200")] {
                world.state.apply([custom(ExternalAuthorizer {
                    fail_open,
                    timeout: Duration::from_millis(200),
                    ..provider(AuthorizerProtocol::Grpc)
                })]);
                // Until the other policy holds.
                loop {
                    let answer = client.raw(vip, get).await;
                    if status(&answer) == expected {
                        break;
                    }
                    assert!(
                        ["200", "503"].contains(&status(&answer)),
                        "{name}: {answer}"
                    );
                }
            }
        }
        // Nobody there at all.
        let gone = ExternalAuthorizer {
            service: key("gone"),
            status_on_error: 500,
            ..provider(AuthorizerProtocol::Grpc)
        };
        world.state.apply([custom(gone)]);
        while status(&client.raw(vip, get).await) != "500" {}
        world
            .metric_reaches(&["karst_waypoint_external_failed"], 13.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_asks_nobody_and_without_a_provider_what_matches_is_denied() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        let authorizer = Authorizer::start(&world, AppProtocol::Grpc, Box::new(|_| None)).await;
        let changed = |change: &dyn Fn(&mut WaypointPolicy)| {
            let Update::WaypointPolicy(policy) = custom(provider(AuthorizerProtocol::Grpc)) else {
                panic!("a policy")
            };
            let mut policy = (*policy).clone();
            change(&mut policy);
            Update::WaypointPolicy(Arc::new(policy))
        };
        world
            .state
            .apply([changed(&|policy| policy.dry_run = true)]);
        let client = Client::new(&world);
        let get = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
        assert_eq!(status(&client.raw(vip, get).await), "200");
        world
            .metric_reaches(&["karst_waypoint_external_dry_run"], 1.0)
            .await;
        world
            .state
            .apply([changed(&|policy| policy.provider = None)]);
        while status(&client.raw(vip, get).await) != "403" {}
        assert!(authorizer.asked.borrow().is_empty());
    })
    .await;
}
