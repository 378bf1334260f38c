//! Authorization at the waypoint: requests, and connections that are no HTTP, also while they live.

use std::{sync::Arc, time::Duration};

use http::Request;
use http_body_util::BodyExt as _;
use karst_discovery::Update;
use karst_hbone::OpenError;
use karst_model::{
    name::PolicyKey,
    policy::StringMatch,
    protocol::AppProtocol,
    route::{HttpFilter, Rewrite},
    waypoint_policy::{
        PolicyTarget, RequestAction, RequestClause, RequestMatch, RequestRule, WaypointPolicy,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    app::{App, Speaks, until},
    client::{Client, empty, read_response, status},
    rig::{World, key, local, rule, spiffe},
};

fn policy(service: &str, action: RequestAction, matches: RequestMatch) -> Update {
    policy_named("guard", service, action, matches)
}

/// A policy of one rule.
pub(crate) fn policy_named(
    name: &str,
    service: &str,
    action: RequestAction,
    matches: RequestMatch,
) -> Update {
    Update::WaypointPolicy(Arc::new(WaypointPolicy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        targets: vec![PolicyTarget::Service(key(service))],
        action,
        provider: None,
        dry_run: false,
        rules: vec![RequestRule {
            clauses: vec![RequestClause {
                matches: vec![matches],
            }],
        }],
    }))
}

#[tokio::test]
async fn a_denied_method_is_403_without_a_reason_for_the_client_and_reaches_nobody() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let delete = RequestMatch {
            methods: vec![StringMatch::Exact("DELETE".into())],
            ..RequestMatch::default()
        };
        world
            .state
            .apply([policy("web", RequestAction::Deny, delete)]);
        let client = Client::new(&world);
        let get = client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(status(&get), "200", "{get}");
        let delete = client
            .raw(vip, "DELETE / HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(status(&delete), "403", "{delete}");
        assert!(
            delete.ends_with("\r\n\r\nRBAC: access denied\n"),
            "{delete}"
        );
        assert!(!delete.contains("guard"), "{delete}");
        assert_eq!(app.seen().len(), 1);
    })
    .await;
}

/// Another service's route is no way around the policy of the one that it leads to.
#[tokio::test]
async fn a_service_is_protected_whichever_route_leads_to_it() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world.service("admin", AppProtocol::Http11);
        let app = App::new("admin", Speaks::Http1);
        world.workload("admin", "admin-1", &app).await;
        world.route("r", vec![rule(&[("admin", 1)])]);
        let delete = RequestMatch {
            methods: vec![StringMatch::Exact("DELETE".into())],
            ..RequestMatch::default()
        };
        world
            .state
            .apply([policy("admin", RequestAction::Deny, delete)]);
        let client = Client::new(&world);
        let get = client.raw(vip, "GET / HTTP/1.1\r\nHost: web\r\n\r\n");
        assert_eq!(status(&get.await), "200");
        let delete = client.raw(vip, "DELETE / HTTP/1.1\r\nHost: web\r\n\r\n");
        assert_eq!(status(&delete.await), "403");
        assert_eq!(app.seen().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_too() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        io.write_all(
            b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .await
        .unwrap();
        assert_eq!(status(&read_response(&mut io).await), "101");
        let post = RequestMatch {
            methods: vec![StringMatch::Exact("POST".into())],
            ..RequestMatch::default()
        };
        world
            .state
            .apply([policy("web", RequestAction::Deny, post)]);
        let mut back = [0; 4];
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut back).await.unwrap();
        let get = RequestMatch {
            methods: vec![StringMatch::Exact("GET".into())],
            ..RequestMatch::default()
        };
        world.state.apply([policy("web", RequestAction::Deny, get)]);
        assert!(matches!(io.read(&mut back).await, Ok(0) | Err(_)));
    })
    .await;
}

/// Responses that have begun, over both versions: cut by a change that does not allow them any more, and by no other.
#[tokio::test]
async fn responses_that_flow_are_cut_when_they_are_not_allowed_any_more() {
    for filters in [false, true] {
        local(async move {
            let world = World::start(&[]).await;
            let vip = world.service("web", AppProtocol::Http11);
            let app = App::new("v1", Speaks::Http1);
            world.workload("web", "web-1", &app).await;
            if filters {
                // The head that policy saw is not the one that goes out.
                let mut moved = rule(&[("web", 1)]);
                moved.filters.push(HttpFilter::Rewrite(Rewrite {
                    host: Some("inside".into()),
                    path: None,
                }));
                world.route("r", vec![moved]);
            }
            let client = Client::new(&world);
            let mut send = client.http2(vip).await;
            let begun = Request::get("http://web/slow-body").body(empty()).unwrap();
            let mut begun = send.send_request(begun).await.unwrap();
            begun.body_mut().frame().await.unwrap().unwrap();
            let mut io = client.connect(vip).await;
            io.write_all(b"GET /slow-body HTTP/1.1\r\nHost: web\r\n\r\n")
                .await
                .unwrap();
            let mut first = [0; 64];
            assert!(io.read(&mut first).await.unwrap() > 0);
            until(|| app.seen().len() == 2).await;

            let delete = RequestMatch {
                methods: vec![StringMatch::Exact("DELETE".into())],
                ..RequestMatch::default()
            };
            let name =
                |name: &str, matches| policy_named(name, "web", RequestAction::Deny, matches);
            world.state.apply([name("other", delete)]);
            let refused = client.raw(vip, "DELETE / HTTP/1.1\r\nHost: web\r\n\r\n");
            assert_eq!(status(&refused.await), "403");
            let soon = Duration::from_millis(100);
            let more = begun.body_mut().frame();
            assert!(timeout(soon, more).await.is_err(), "it goes on");

            let slow = RequestMatch {
                hosts: vec![StringMatch::Exact("web".into())],
                ..RequestMatch::default()
            };
            world.state.apply([name("guard", slow)]);
            assert!(begun.body_mut().frame().await.unwrap().is_err());
            while io.read(&mut first).await.is_ok_and(|len| len > 0) {}
            let cut = ["karst_waypoint_revoked_total"];
            world.metric_reaches(&cut, 2.0).await;
            let flagged = [
                "istio_requests_total{",
                "response_code=\"200\"",
                "response_flags=\"UAEX\"",
            ];
            world.metric_reaches(&flagged, 2.0).await;
        })
        .await;
    }
}

fn of_host(host: &str) -> RequestMatch {
    RequestMatch {
        hosts: vec![StringMatch::Exact(host.into())],
        ..RequestMatch::default()
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_refused_when_it_is_not_allowed_any_more() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let asked = async {
            let never = client.raw(vip, "GET /never HTTP/1.1\r\nHost: web\r\n\r\n");
            never.await
        };
        let changed = async {
            until(|| app.seen().len() == 1).await;
            let deny = policy("web", RequestAction::Deny, of_host("web"));
            world.state.apply([deny]);
        };
        let (answer, ()) = tokio::join!(asked, changed);
        assert_eq!(status(&answer), "403", "{answer}");
        assert!(
            answer.ends_with("\r\n\r\nRBAC: access denied\n"),
            "{answer}"
        );
        let cut = ["karst_waypoint_revoked_total"];
        world.metric_reaches(&cut, 1.0).await;
    })
    .await;
}

/// By the policy of the service that a route leads to.
#[tokio::test]
async fn a_grpc_client_is_told_that_its_stream_is_not_allowed_any_more() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        world.service("admin", AppProtocol::Http2);
        let app = App::new("admin", Speaks::Http2);
        world.workload("admin", "admin-1", &app).await;
        world.route("r", vec![rule(&[("admin", 1)])]);
        let client = Client::new(&world);
        let mut send = client.http2(vip).await;
        let asked = Request::post("http://web/slow-body")
            .header("content-type", "application/grpc")
            .body(empty())
            .unwrap();
        let mut begun = send.send_request(asked).await.unwrap();
        begun.body_mut().frame().await.unwrap().unwrap();
        let deny = policy("admin", RequestAction::Deny, of_host("web"));
        world.state.apply([deny]);
        let end = begun.body_mut().frame().await.unwrap().unwrap();
        let trailers = end.into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "RBAC: access denied");
        let told = ["istio_requests_total{", "grpc_response_status=\"7\""];
        world.metric_reaches(&told, 1.0).await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_policy_does_not_allow_any_more_is_cut() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("db", AppProtocol::Tcp);
        world
            .workload("db", "db-1", &App::new("hello", Speaks::ServerFirst))
            .await;
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        let mut others = RequestMatch::default();
        let other = spiffe("shop", "other").to_string();
        others.connection.principals = vec![StringMatch::Exact(
            other.trim_start_matches("spiffe://").into(),
        )];
        world
            .state
            .apply([policy("db", RequestAction::Allow, others)]);
        assert!(io.read(&mut greeting).await.is_err());
        let refused = client.try_connect(vip).await;
        assert!(matches!(refused, Err(OpenError::Status(401))));
        let labels = [
            "istio_tcp_connections_failed_total",
            "response_flags=\"DENY\"",
        ];
        world.metric_reaches(&labels, 1.0).await;
    })
    .await;
}
