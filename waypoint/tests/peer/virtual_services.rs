//! What VirtualServices ask beyond the Gateway API, as it acts on the wire: faults, deadlines, letters rather than
//! segments, copies told by their host.

use std::time::{Duration, Instant};

use http::Request;
use karst_model::{
    protocol::AppProtocol,
    route::{
        Backend, Fault, FaultAbort, FaultAnswer, FaultDelay, HttpFilter, HttpRule, Mirror,
        PathChange, PathMatch, QueryMatch, RetryPolicy, Rewrite, RouteKind, RouteRules,
        SourceMatch, Timeouts, ValueMatch,
    },
};
use tokio::task::JoinSet;

use crate::{
    app::{App, Speaks, until},
    client::{Client, empty, exchange, status},
    rig::{World, key, local, local_for, rule},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
/// Requests by which shares of faults are told.
const MANY: u32 = 20_000;
/// Requests under way at once.
const AT_ONCE: usize = 50;

/// What takes the rest of the requests.
fn on(path: PathMatch, backends: &[(&str, u32)]) -> HttpRule {
    let mut rule = rule(backends);
    rule.matches[0].path = Some(path);
    rule
}

fn virtual_service(world: &World, rules: Vec<HttpRule>) {
    world.attach(RouteKind::VirtualService, "vs", RouteRules::Http(rules));
}

fn abort(answer: FaultAnswer, millionths: u32) -> HttpFilter {
    HttpFilter::Fault(Fault {
        delay: None,
        abort: Some(FaultAbort { answer, millionths }),
    })
}

/// Sends the requests over one HTTP/2 connection; how many had this status, and how many took longer than `slow`.
async fn counted(
    client: &Client,
    vip: std::net::SocketAddr,
    wanted: u16,
    slow: Duration,
) -> (u32, u32) {
    let sender = client.http2(vip).await;
    let (mut with_status, mut late) = (0, 0);
    for _ in 0..MANY / AT_ONCE as u32 {
        let mut batch = JoinSet::new();
        for _ in 0..AT_ONCE {
            let mut sender = sender.clone();
            batch.spawn_local(async move {
                let request = Request::get("http://web/").body(empty()).unwrap();
                let began = Instant::now();
                let response = exchange(&mut sender, request).await;
                (response.status().as_u16(), began.elapsed())
            });
        }
        while let Some(one) = batch.join_next().await {
            let (status, took) = one.unwrap();
            with_status += u32::from(status == wanted);
            late += u32::from(took >= slow);
        }
    }
    (with_status, late)
}

#[tokio::test]
async fn faults_hit_their_share_of_20_000_requests() {
    local_for(Duration::from_secs(180), async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let wait = Duration::from_millis(40);
        let faulty = HttpRule {
            filters: vec![HttpFilter::Fault(Fault {
                delay: Some(FaultDelay {
                    wait,
                    millionths: 50_000,
                }),
                abort: Some(FaultAbort {
                    answer: FaultAnswer::Http(418),
                    millionths: 300_000,
                }),
            })],
            ..rule(&[("web", 1)])
        };
        virtual_service(&world, vec![faulty]);
        let client = Client::new(&world);
        let (aborted, late) = counted(&client, vip, 418, wait).await;
        let share = |count: u32| f64::from(count) * 100.0 / f64::from(MANY);
        println!(
            "aborted {} %, at least {wait:?} took {} %",
            share(aborted),
            share(late)
        );
        // Six standard deviations: by chance in one of 500 million runs.
        assert!((28.0..=32.0).contains(&share(aborted)), "{aborted}");
        // A busy machine makes some others late too; those that were told to wait all were.
        assert!(share(late) >= 4.0, "{late}");
        let labels = [
            "istio_requests_total",
            "response_code=\"418\",response_flags=\"FI\"",
        ];
        world.metric_reaches(&labels, f64::from(aborted)).await;
        // What was answered is flagged as delayed: of all but the aborted, its share.
        let delayed = world.metric(&[
            "istio_requests_total",
            "response_code=\"200\",response_flags=\"DI\"",
        ]);
        let expected = f64::from(MANY - aborted) * 0.05;
        assert!(
            (delayed - expected).abs() <= f64::from(MANY) * 0.01,
            "{delayed} of {expected}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_fault_is_a_status_of_grpc_for_who_speaks_it() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http2);
        let faulty = HttpRule {
            filters: vec![abort(FaultAnswer::Grpc(14), 1_000_000)],
            ..rule(&[("web", 1)])
        };
        virtual_service(&world, vec![faulty]);
        let client = Client::new(&world);
        let request = Request::post("http://web/a.B/c")
            .header("content-type", "application/grpc")
            .body(empty())
            .unwrap();
        let mut sender = client.http2(vip).await;
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        let request = Request::get("http://web/").body(empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 503);
    })
    .await;
}

#[tokio::test]
async fn rules_are_tried_in_their_order_and_compare_letters() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        for name in ["v1", "v2"] {
            world.service(name, AppProtocol::Http11);
            world
                .workload(name, name, &App::new(name, Speaks::Http1))
                .await;
        }
        let mut mine = on(PathMatch::Exact("/mine".into()), &[("v2", 1)]);
        mine.matches[0].source = SourceMatch {
            principal: Some(ValueMatch::Regex("[^/]+/ns/.*".into())),
            ..SourceMatch::default()
        };
        let mut nobodys = on(PathMatch::Exact("/mine".into()), &[]);
        nobodys.matches[0].source.namespace = Some("nobody".into());
        virtual_service(
            &world,
            vec![
                nobodys,
                mine,
                on(PathMatch::Start("/ab".into()), &[("v2", 1)]),
                // The Gateway API would prefer this one.
                on(PathMatch::Exact("/abc".into()), &[("v1", 1)]),
                on(PathMatch::Start("/".into()), &[("v1", 1)]),
            ],
        );
        let client = Client::new(&world);
        for (path, expected) in [("/abc", "v2"), ("/a", "v1"), ("/mine", "v2")] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n");
            let response = client.raw(vip, request).await;
            assert!(response.ends_with(expected), "{path}: {response}");
        }
    })
    .await;
}

#[tokio::test]
async fn deadlines_shrink_on_their_way() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let limited = HttpRule {
            timeouts: Timeouts {
                request: Some(Duration::from_secs(60)),
                backend_request: None,
            },
            ..rule(&[("web", 1)])
        };
        virtual_service(&world, vec![limited]);
        let client = Client::new(&world);
        let told = |index: usize| {
            let seen = app.seen();
            let value = seen[index].headers.get("x-envoy-expected-rq-timeout-ms");
            value.and_then(|text| text.to_str().unwrap().parse::<u64>().ok())
        };
        assert_eq!(status(&client.raw(vip, GET).await), "200");
        let first = told(0).expect("the timeout is told");
        assert!((50_000..=60_000).contains(&first), "{first}");
        // The next in the chain hears of less, though its own route would allow more.
        let next = "GET / HTTP/1.1\r\nHost: web\r\nx-envoy-expected-rq-timeout-ms: 20000\r\n\r\n";
        assert_eq!(status(&client.raw(vip, next).await), "200");
        let second = told(1).expect("the timeout is told");
        assert!((10_000..=20_000).contains(&second), "{second}");
        // Who waits no longer is not worked for.
        let impatient =
            "GET /never HTTP/1.1\r\nHost: web\r\nx-envoy-expected-rq-timeout-ms: 50\r\n\r\n";
        assert_eq!(status(&client.raw(vip, impatient).await), "504");
    })
    .await;
}

#[tokio::test]
async fn paths_are_rewritten_by_letters_and_by_expressions_and_copies_have_their_host() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        world.service("shadow", AppProtocol::Http11);
        let shadow = App::new("shadow", Speaks::Http1);
        world.workload("shadow", "shadow-1", &shadow).await;
        let rewritten = |path, change| HttpRule {
            filters: vec![HttpFilter::Rewrite(Rewrite {
                host: None,
                path: Some(change),
            })],
            ..on(path, &[("web", 1)])
        };
        let mut mirrored = rewritten(
            PathMatch::Start("/v".into()),
            PathChange::Regex {
                pattern: "/v([0-9]+)/(.*)".into(),
                substitution: r"/\2/\1".into(),
            },
        );
        mirrored.filters.push(HttpFilter::Mirror(Mirror {
            backend: Backend::Service {
                service: key("shadow"),
                port: 0,
                subset: None,
            },
            numerator: 1,
            denominator: 1,
            shadow_host: true,
        }));
        let literal = rewritten(
            PathMatch::Start("/old".into()),
            PathChange::Prefix("/new".into()),
        );
        virtual_service(&world, vec![mirrored, literal]);
        let client = Client::new(&world);
        for (path, expected) in [
            ("/old/x", "/new/x"),
            ("/older", "/newer"),
            ("/v12/a?q=1", "/a/12?q=1"),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: web:8080\r\n\r\n");
            assert_eq!(status(&client.raw(vip, request).await), "200");
            assert_eq!(app.seen().last().unwrap().uri, expected);
        }
        until(|| !shadow.seen().is_empty()).await;
        assert_eq!(shadow.seen()[0].headers["host"], "web-shadow:8080");
        assert_eq!(app.seen().last().unwrap().headers["host"], "web:8080");
    })
    .await;
}

#[tokio::test]
async fn retries_are_of_the_named_statuses_alone() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("busy", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let none = RetryPolicy {
            on_connection_failure: false,
            avoid_previous: false,
            ..RetryPolicy::default()
        };
        let server_errors = RetryPolicy {
            attempts: 2,
            on_server_error: true,
            backoff: Some(Duration::from_millis(1)),
            ..none.clone()
        };
        let mut again = HttpRule {
            retry: Some(server_errors),
            ..rule(&[("web", 1)])
        };
        again.matches[0].query = vec![QueryMatch {
            name: "again".into(),
            value: ValueMatch::Present,
        }];
        let once = HttpRule {
            retry: Some(none),
            ..rule(&[("web", 1)])
        };
        virtual_service(&world, vec![again, once]);
        let client = Client::new(&world);
        for (query, tries) in [("", 1), ("?again=1", 3)] {
            let before = app.seen().len();
            let request = format!("GET /status/503{query} HTTP/1.1\r\nHost: web\r\n\r\n");
            assert_eq!(status(&client.raw(vip, request).await), "503");
            assert_eq!(app.seen().len() - before, tries, "{query}");
        }
    })
    .await;
}
