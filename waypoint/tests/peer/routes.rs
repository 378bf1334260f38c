//! Routes as they act on the wire: which backend, which status, and what is changed on the way.

use std::time::{Duration, Instant};

use karst_model::{
    protocol::{AppProtocol, TunnelProtocol},
    route::{
        Backend, HeaderChanges, HeaderMatch, HttpFilter, HttpRule, Mirror, PathMatch, Redirect,
        RetryPolicy, Timeouts, ValueMatch,
    },
};

use tokio::net::TcpListener;

use crate::{
    app::{App, Speaks, until},
    client::{Client, status},
    rig::{World, fresh_ip, key, local, rule},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

#[tokio::test]
async fn a_header_leads_to_another_version() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        for name in ["v1", "v2"] {
            world.service(name, AppProtocol::Http11);
            world
                .workload(name, name, &App::new(name, Speaks::Http1))
                .await;
        }
        let mut testers = rule(&[("v2", 1)]);
        testers.matches[0].headers.push(HeaderMatch {
            name: "x-tester".into(),
            value: ValueMatch::Exact("yes".into()),
        });
        world.route("canary", vec![testers, rule(&[("v1", 1)])]);
        let client = Client::new(&world);
        assert!(client.raw(vip, GET).await.ends_with("v1"));
        let tester = "GET / HTTP/1.1\r\nHost: web\r\nX-Tester: yes\r\n\r\n";
        assert!(client.raw(vip, tester).await.ends_with("v2"));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_routed_gets_the_status_of_the_specification() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world.service("empty", AppProtocol::Http11);
        let on = |path: &str, backends: &[(&str, u32)]| {
            let mut rule = rule(backends);
            rule.matches[0].path = Some(PathMatch::Exact(path.into()));
            rule
        };
        let mut invalid = on("/invalid", &[("web", 1)]);
        invalid.backends[0].backend = Backend::Invalid("not permitted".into());
        let rules = vec![
            on("/missing", &[("missing", 1)]),
            on("/no-endpoints", &[("empty", 1)]),
            on("/no-weight", &[("web", 0)]),
            on("/no-backend", &[]),
            invalid,
        ];
        world.route("r", rules);
        let client = Client::new(&world);
        for (path, expected, flag) in [
            ("/missing", "500", "NC"),
            ("/invalid", "500", "NC"),
            ("/no-weight", "500", "NC"),
            ("/no-backend", "500", "NC"),
            ("/no-endpoints", "503", "UH"),
            ("/other", "404", "NR"),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n");
            let response = client.raw(vip, request).await;
            assert_eq!(status(&response), expected, "{path}: {response}");
            let labels = [
                "istio_requests_total",
                &format!("response_code=\"{expected}\",response_flags=\"{flag}\""),
            ];
            world.metric_reaches(&labels, 1.0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn headers_are_changed_on_both_ways_and_redirects_answered() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let changed = HttpRule {
            filters: vec![
                HttpFilter::RequestHeaders(HeaderChanges {
                    set: vec![pair("x-set", "new")],
                    add: vec![pair("x-add", "two")],
                    remove: vec!["x-gone".into()],
                }),
                HttpFilter::ResponseHeaders(HeaderChanges {
                    add: vec![pair("x-answer", "yes")],
                    ..HeaderChanges::default()
                }),
            ],
            ..rule(&[("web", 1)])
        };
        let mut redirect = HttpRule {
            filters: vec![HttpFilter::Redirect(Redirect {
                scheme: None,
                host: Some("other.test".into()),
                port: None,
                keep_port: false,
                path: None,
                status: 302,
            })],
            ..rule(&[])
        };
        redirect.matches[0].path = Some(PathMatch::Prefix("/old".into()));
        world.route("r", vec![redirect, changed]);
        let client = Client::new(&world);
        let request =
            "GET / HTTP/1.1\r\nHost: web\r\nX-Set: old\r\nX-Add: one\r\nX-Gone: 1\r\n\r\n";
        let response = client.raw(vip, request).await;
        assert!(
            response.to_lowercase().contains("x-answer: yes"),
            "{response}"
        );
        let seen = &app.seen()[0].headers;
        assert_eq!(seen["x-set"], "new");
        let added: Vec<_> = seen.get_all("x-add").iter().collect();
        assert_eq!(added, ["one", "two"]);
        assert!(!seen.contains_key("x-gone"));
        let moved = client
            .raw(vip, "GET /old/x HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(status(&moved), "302", "{moved}");
        assert!(
            moved.contains("location: http://other.test/old/x"),
            "{moved}"
        );
        // To itself: as the route has it, and as the Gateway API's suite asks for.
        let back = client
            .raw(vip, "GET /old/x HTTP/1.1\r\nHost: other.test\r\n\r\n")
            .await;
        assert_eq!(status(&back), "302", "{back}");
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_replaced_by_another() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        // An agent whose application does not listen.
        let dead = fresh_ip();
        world.agent(dead, &crate::rig::spiffe("shop", "dead")).await;
        world.add_workload("web", "dead", dead, TunnelProtocol::Hbone);
        let client = Client::new(&world);
        for _request in 0..20 {
            let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
            let response = client.raw(vip, post).await;
            assert_eq!(status(&response), "200", "{response}");
        }
        world
            .metric_reaches(&["karst_waypoint_retries_total"], 1.0)
            .await;
        assert_eq!(app.seen().len(), 20);
    })
    .await;
}

#[tokio::test]
async fn statuses_are_retried_where_the_route_says_so() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let retried = HttpRule {
            retry: Some(RetryPolicy {
                attempts: 2,
                statuses: vec![503],
                ..RetryPolicy::default()
            }),
            ..rule(&[("web", 1)])
        };
        world.route("r", vec![retried]);
        let client = Client::new(&world);
        let post = "POST /status/503 HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
        let response = client.raw(vip, post).await;
        assert_eq!(status(&response), "503", "{response}");
        let seen = app.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|seen| seen.body == "hi"));
        client
            .raw(vip, "GET /status/500 HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(app.seen().len(), 4);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_504() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        let timed = HttpRule {
            timeouts: Timeouts {
                request: Some(Duration::from_millis(200)),
                backend_request: None,
            },
            ..rule(&[("web", 1)])
        };
        // Time enough for the beginning of an answer on a busy machine.
        let mut longer = HttpRule {
            timeouts: Timeouts {
                request: Some(Duration::from_secs(3)),
                backend_request: None,
            },
            ..rule(&[("web", 1)])
        };
        longer.matches[0].path = Some(PathMatch::Exact("/slow-body".into()));
        world.route("r", vec![longer, timed]);
        let client = Client::new(&world);
        let before = Instant::now();
        let response = client
            .raw(vip, "GET /never HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(status(&response), "504", "{response}");
        assert!(before.elapsed() < Duration::from_secs(5));
        // A body that does not end is cut.
        let cut = client
            .raw(vip, "GET /slow-body HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert!(
            cut.contains("first") && !cut.ends_with("0\r\n\r\n"),
            "{cut}"
        );
        world
            .metric_reaches(&["istio_requests_total", "response_flags=\"UT\""], 2.0)
            .await;
    })
    .await;
}

/// To `web`, with a copy of everything to `shadow`.
fn mirrored_to_shadow() -> HttpRule {
    HttpRule {
        filters: vec![HttpFilter::Mirror(Mirror {
            backend: Backend::Service {
                service: key("shadow"),
                port: 80,
                subset: None,
            },
            numerator: 1,
            denominator: 1,
            shadow_host: false,
        })],
        ..rule(&[("web", 1)])
    }
}

#[tokio::test]
async fn a_mirror_gets_the_whole_request_and_its_answer_goes_nowhere() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        world.service("shadow", AppProtocol::Http11);
        let shadow = App::new("shadow", Speaks::Http1);
        world.workload("shadow", "shadow-1", &shadow).await;
        world.route("r", vec![mirrored_to_shadow()]);
        let post = "POST /p HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello";
        let response = Client::new(&world).raw(vip, post).await;
        assert!(response.contains("\nhello\r\n"), "{response}");
        until(|| !shadow.seen().is_empty()).await;
        assert_eq!(shadow.seen()[0].body, "hello");
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_never_answers_holds_nobody_up_and_costs_a_bounded_number_of_copies() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        world
            .workload("web", "web-1", &App::new("v1", Speaks::Http1))
            .await;
        world.service("shadow", AppProtocol::Http11);
        // Connected, and never spoken to.
        let silent = fresh_ip();
        let _listener = TcpListener::bind((silent, 8080)).await.unwrap();
        world.add_workload("shadow", "shadow-1", silent, TunnelProtocol::None);
        world.route("r", vec![mirrored_to_shadow()]);
        let client = Client::new(&world);
        // More than one thread copies at once; a copy gives up after fifteen seconds only.
        let before = Instant::now();
        for _ in 0..300 {
            let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
            let response = client.raw(vip, request).await;
            assert_eq!(status(&response), "200", "{response}");
        }
        assert!(
            before.elapsed() < Duration::from_secs(14),
            "{:?}",
            before.elapsed()
        );
        world
            .metric_reaches(&["karst_waypoint_mirrors_dropped"], 1.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn endpoints_that_answer_garbage_are_502_and_those_that_hang_up_503() {
    for (answer, expected) in [
        ("this is no HTTP\r\n\r\n", "502"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "502"),
        ("", "503"),
    ] {
        local(async {
            let world = World::start(&[]).await;
            let vip = world.service("web", AppProtocol::Http11);
            world
                .workload("web", "web-1", &App::new("", Speaks::Bytes(answer)))
                .await;
            let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
            let response = Client::new(&world).raw(vip, post).await;
            assert_eq!(status(&response), expected, "{answer:?}: {response}");
        })
        .await;
    }
}
