//! Authorization at the waypoint: requests, and connections that are no HTTP, also while they live.

use std::sync::Arc;

use karst_discovery::Update;
use karst_hbone::OpenError;
use karst_model::{
    name::PolicyKey,
    policy::StringMatch,
    protocol::AppProtocol,
    waypoint_policy::{
        PolicyTarget, RequestAction, RequestClause, RequestMatch, RequestRule, WaypointPolicy,
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{App, Speaks},
    client::{Client, read_response, status},
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
