//! Rate limits at the waypoint: who is counted with whom, what clients are told, and that the count is exact over all
//! threads and through changes of the configuration.

use std::{rc::Rc, sync::Arc, time::Duration};

use karst_discovery::Update;
use karst_model::{
    policy::StringMatch,
    protocol::AppProtocol,
    rate_limit::{
        Enforcement, LimitHeaders, LimitKey, LimitRule, LimitScope, LimitTarget, RateLimit,
    },
    waypoint_policy::RequestMatch,
};

use crate::{
    app::{App, Speaks},
    client::{Client, status},
    rig::{World, key, local, rule},
};

/// So long that nothing comes back within a test.
const HOUR: Duration = Duration::from_secs(3600);

fn limit(requests: u32, keys: Vec<LimitKey>) -> RateLimit {
    RateLimit {
        key: "shop/orders".parse().unwrap(),
        targets: vec![LimitTarget::Service(key("web"))],
        enforcement: Enforcement::Enforce,
        scope: LimitScope::Process,
        status: 429,
        headers: LimitHeaders::Both,
        rules: vec![LimitRule {
            name: "all".into(),
            matches: Vec::new(),
            requests,
            period: HOUR,
            burst: requests,
            keys,
        }],
    }
}

async fn world(limit: RateLimit) -> (World, std::net::SocketAddr, Rc<App>) {
    let world = World::start(&[]).await;
    let vip = world.service("web", AppProtocol::Http11);
    let app = App::new("v1", Speaks::Http1);
    world.workload("web", "web-1", &app).await;
    apply(&world, limit);
    (world, vip, app)
}

fn apply(world: &World, limit: RateLimit) {
    world.state.apply([Update::RateLimit(Arc::new(limit))]);
}

async fn get(client: &Client, vip: std::net::SocketAddr, headers: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{headers}\r\n");
    client.raw(vip, &request).await
}

#[tokio::test]
async fn above_the_limit_is_429_with_what_the_client_needs_to_know() {
    local(async {
        let (world, vip, app) = world(limit(2, Vec::new())).await;
        let client = Client::new(&world);
        let first = get(&client, vip, "").await;
        assert_eq!(status(&first), "200", "{first}");
        for told in [
            "ratelimit-policy: \"all\";q=2;w=3600",
            "ratelimit: \"all\";r=1;t=1800",
            "x-ratelimit-limit: 2",
            "x-ratelimit-remaining: 1",
        ] {
            assert!(first.to_ascii_lowercase().contains(told), "{told}: {first}");
        }
        assert!(
            !first.to_ascii_lowercase().contains("retry-after"),
            "{first}"
        );
        assert_eq!(status(&get(&client, vip, "").await), "200");
        let refused = get(&client, vip, "").await;
        assert_eq!(status(&refused), "429", "{refused}");
        let lower = refused.to_ascii_lowercase();
        assert!(
            lower.contains("retry-after: 1800") || lower.contains("retry-after: 1799"),
            "{refused}"
        );
        assert!(lower.contains("shop/orders rule all"), "{refused}");
        assert_eq!(app.seen().len(), 2, "the endpoint is spared");
        world
            .metric_reaches(&["istio_requests_total", "response_flags=\"RL\""], 1.0)
            .await;
        world
            .metric_reaches(&["karst_waypoint_requests_limited_total"], 1.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn keys_are_counted_by_themselves_and_matches_say_what_counts() {
    local(async {
        let mut by_tenant = limit(1, vec![LimitKey::Header("x-tenant".into())]);
        by_tenant.rules[0].matches = vec![RequestMatch {
            methods: vec![StringMatch::Exact("GET".into())],
            ..RequestMatch::default()
        }];
        let (world, vip, _app) = world(by_tenant).await;
        let client = Client::new(&world);
        for (headers, expected) in [
            ("x-tenant: a\r\n", "200"),
            ("x-tenant: a\r\n", "429"),
            ("x-tenant: b\r\n", "200"),
            ("", "200"),
            ("", "429"),
        ] {
            let response = get(&client, vip, headers).await;
            assert_eq!(status(&response), expected, "{headers:?}: {response}");
        }
        let post = "POST / HTTP/1.1\r\nHost: web\r\nx-tenant: a\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(status(&client.raw(vip, post).await), "200");
    })
    .await;
}

#[tokio::test]
async fn the_count_is_exact_over_all_threads() {
    local(async {
        let by_identity = limit(50, vec![LimitKey::Identity]);
        let (world, vip, app) = world(by_identity).await;
        let clients: Vec<Client> = (0..8).map(|_| Client::new(&world)).collect();
        let each = clients.iter().map(async |client| {
            let mut passed = 0;
            for _ in 0..25 {
                passed += u32::from(status(&get(client, vip, "").await) == "200");
            }
            passed
        });
        let passed: u32 = futures_util::future::join_all(each).await.iter().sum();
        assert_eq!(passed, 50);
        assert_eq!(app.seen().len(), 50);
    })
    .await;
}

#[tokio::test]
async fn a_shadow_limit_refuses_nothing_and_tells_what_it_would() {
    local(async {
        let mut shadow = limit(1, Vec::new());
        shadow.enforcement = Enforcement::Shadow;
        let (world, vip, _app) = world(shadow).await;
        let client = Client::new(&world);
        for _ in 0..3 {
            let response = get(&client, vip, "").await;
            assert_eq!(status(&response), "200");
            assert!(
                !response.to_ascii_lowercase().contains("ratelimit"),
                "{response}"
            );
        }
        world
            .metric_reaches(&["karst_waypoint_requests_over_shadow_limits_total"], 2.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_limit_of_a_route_counts_what_the_route_takes() {
    local(async {
        let mut of_route = limit(1, Vec::new());
        of_route.targets = vec![LimitTarget::Route("HTTPRoute/shop/r".parse().unwrap())];
        let (world, vip, app) = world(of_route).await;
        let client = Client::new(&world);
        for _ in 0..2 {
            assert_eq!(status(&get(&client, vip, "").await), "200", "no route yet");
        }
        world.route("r", vec![rule(&[("web", 1)])]);
        // What a service is compiled to follows within a moment.
        while status(&get(&client, vip, "").await) != "429" {}
        assert!(app.seen().len() >= 3, "one along the route passed");
    })
    .await;
}

#[tokio::test]
async fn an_edit_elsewhere_resets_nobody_and_another_rate_begins_anew() {
    local(async {
        let (world, vip, _app) = world(limit(1, Vec::new())).await;
        let client = Client::new(&world);
        assert_eq!(status(&get(&client, vip, "").await), "200");
        let mut edited = limit(1, Vec::new());
        edited.status = 503;
        apply(&world, edited);
        // Refused all the time: one that was reset would let a request pass.
        loop {
            let answer = get(&client, vip, "").await;
            match status(&answer) {
                "503" => break,
                said => assert_eq!(said, "429", "{answer}"),
            }
        }
        apply(&world, limit(2, Vec::new()));
        while status(&get(&client, vip, "").await) != "200" {}
    })
    .await;
}
