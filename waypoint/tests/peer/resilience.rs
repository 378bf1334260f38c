//! What a service's traffic policy does: ejections, limits, keys, subsets, and that nothing is sent twice by itself.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use karst_discovery::Update;
use karst_model::{
    protocol::{AppProtocol, TunnelProtocol},
    traffic::{
        BalanceAlgorithm, Connections, ConsistentHash, HashCookie, HashKey, HashTable, Outlier,
        Scope, ServiceTraffic, Subset, TrafficPolicy,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    app::{App, Speaks},
    client::{Client, read_response, status},
    rig::{World, fresh_ip, key, local},
};

const ERROR: &str = "HTTP/1.1 500 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

fn policy(world: &World, policy: TrafficPolicy, subsets: Vec<Subset>) {
    let scope = Scope {
        policy,
        ..Scope::default()
    };
    world
        .state
        .apply([Update::ServiceTraffic(Arc::new(ServiceTraffic {
            service: key("web"),
            scopes: vec![scope],
            subsets,
            sources: Vec::new(),
        }))]);
}

/// A workload outside of the mesh.
async fn plain(world: &World, name: &str, app: &Rc<App>) {
    let ip = fresh_ip();
    app.listen(SocketAddr::from((ip, 8080))).await;
    world.add_workload("web", name, ip, TunnelProtocol::None);
}

async fn get(client: &Client, vip: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    client.raw(vip, request).await
}

fn outlier() -> Outlier {
    Outlier {
        consecutive_errors: Some(3),
        interval: Duration::from_millis(100),
        base_ejection: Duration::from_secs(600),
        max_ejected_percent: 100,
        ..Outlier::default()
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let (good, bad) = (
            App::new("good", Speaks::Http1),
            App::new("bad", Speaks::Bytes(ERROR)),
        );
        plain(&world, "good", &good).await;
        plain(&world, "bad", &bad).await;
        let with = |outlier| TrafficPolicy {
            outlier: Some(outlier),
            ..TrafficPolicy::default()
        };
        policy(&world, with(outlier()), Vec::new());
        let client = Client::new(&world);
        while bad.connections.get() < 3 {
            get(&client, vip, "/").await;
        }
        for _ in 0..50 {
            assert_eq!(status(&get(&client, vip, "/").await), "200");
        }
        assert_eq!(
            bad.connections.get(),
            3,
            "it gets nothing while it is ejected"
        );

        // The same policy with other words keeps what is known; without it everybody is back.
        let other = Outlier {
            consecutive_errors: Some(4),
            ..outlier()
        };
        policy(&world, with(other), Vec::new());
        for _ in 0..20 {
            assert_eq!(status(&get(&client, vip, "/").await), "200");
        }
        policy(&world, TrafficPolicy::default(), Vec::new());
        while bad.connections.get() < 4 {
            get(&client, vip, "/").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_does_not_wait_ejects_nobody() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        for name in ["a", "b"] {
            plain(&world, name, &App::new(name, Speaks::Http1)).await;
        }
        let with = TrafficPolicy {
            outlier: Some(outlier()),
            ..TrafficPolicy::default()
        };
        policy(&world, with, Vec::new());
        let client = Client::new(&world);
        for _ in 0..10 {
            let request = "GET /never HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\
                           x-envoy-expected-rq-timeout-ms: 20\r\n\r\n";
            assert_eq!(status(&client.raw(vip, request).await), "504");
        }
        assert_eq!(world.metric(&["karst_waypoint_ejections_total"]), 0.0);
        // Another one that answers badly is ejected, and counted.
        while world.metric(&["karst_waypoint_endpoints_ejected"]) < 1.0 {
            get(&client, vip, "/status/500").await;
        }
        assert_eq!(world.metric(&["karst_waypoint_ejections_total"]), 1.0);
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_would_eject_everybody_leaves_one() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let apps = [
            App::new("a", Speaks::Bytes(ERROR)),
            App::new("b", Speaks::Bytes(ERROR)),
        ];
        plain(&world, "a", &apps[0]).await;
        plain(&world, "b", &apps[1]).await;
        let harsh = TrafficPolicy {
            outlier: Some(Outlier {
                consecutive_errors: Some(1),
                ..outlier()
            }),
            ..TrafficPolicy::default()
        };
        policy(&world, harsh, Vec::new());
        let client = Client::new(&world);
        for _ in 0..30 {
            assert_eq!(status(&get(&client, vip, "/").await), "500");
        }
        let mut counts = apps.each_ref().map(|app| app.connections.get());
        counts.sort_unstable();
        assert_eq!(counts, [1, 29]);
    })
    .await;
}

#[tokio::test]
async fn requests_over_the_limit_are_answered_at_once() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        plain(&world, "web-1", &app).await;
        let limited = TrafficPolicy {
            connections: Connections {
                max_requests: Some(2),
                ..Connections::default()
            },
            ..TrafficPolicy::default()
        };
        policy(&world, limited, Vec::new());
        let client = Client::new(&world);
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut io = client.connect(vip).await;
            let request = "GET /slow-body HTTP/1.1\r\nHost: web\r\n\r\n";
            io.write_all(request.as_bytes()).await.unwrap();
            let mut first = [0; 256];
            assert!(io.read(&mut first).await.unwrap() > 0);
            held.push(io);
        }
        let began = Instant::now();
        for _ in 0..5 {
            let refused = get(&client, vip, "/").await;
            assert_eq!(status(&refused), "503", "{refused}");
            assert!(refused.contains("limited to 2"), "{refused}");
        }
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!(app.seen().len(), 2);
        world
            .metric_reaches(&["istio_requests_total", "response_flags=\"UO\""], 5.0)
            .await;
        held.pop();
        while status(&get(&client, vip, "/").await) != "200" {}
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_connection_and_one_too_many_does_not() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        plain(&world, "web-1", &app).await;
        let limited = TrafficPolicy {
            connections: Connections {
                max: Some(1),
                max_pending: Some(1),
                ..Connections::default()
            },
            ..TrafficPolicy::default()
        };
        policy(&world, limited, Vec::new());
        let client = Client::new(&world);
        // An idle connection on whichever thread gives its place to another thread's request.
        for _ in 0..6 {
            assert_eq!(status(&get(&client, vip, "/").await), "200");
        }
        let mut holds = client.connect(vip).await;
        let request = b"GET /slow-body HTTP/1.1\r\nHost: web\r\n\r\n";
        holds.write_all(request).await.unwrap();
        let mut first = [0; 256];
        assert!(holds.read(&mut first).await.unwrap() > 0);
        // Of two more one waits and the other is refused.
        let mut waits = Vec::new();
        for _ in 0..2 {
            let mut io = client.connect(vip).await;
            let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
            io.write_all(request).await.unwrap();
            waits.push(io);
        }
        let (one, other) = waits.split_at_mut(1);
        let (first_answer, of_one) = tokio::select! {
            answer = read_response(&mut one[0]) => (answer, true),
            answer = read_response(&mut other[0]) => (answer, false),
        };
        assert_eq!(status(&first_answer), "503", "{first_answer}");
        drop(holds);
        let waited = if of_one { &mut other[0] } else { &mut one[0] };
        let answer = read_response(waited).await;
        assert_eq!(status(&answer), "200", "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_takes_as_many_requests_as_it_may() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        plain(&world, "web-1", &app).await;
        let limited = TrafficPolicy {
            connections: Connections {
                max_requests_per_connection: Some(2),
                ..Connections::default()
            },
            ..TrafficPolicy::default()
        };
        policy(&world, limited, Vec::new());
        let client = Client::new(&world);
        let mut io = client.connect(vip).await;
        for _ in 0..6 {
            let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
            io.write_all(request).await.unwrap();
            assert_eq!(status(&read_response(&mut io).await), "200");
        }
        assert_eq!(app.connections.get(), 3);
    })
    .await;
}

fn hashed(key: HashKey) -> TrafficPolicy {
    let mut policy = TrafficPolicy::default();
    policy.balance.algorithm = BalanceAlgorithm::ConsistentHash(ConsistentHash {
        key,
        table: HashTable::Maglev { size: 251 },
    });
    policy
}

#[tokio::test]
async fn requests_of_one_key_go_to_one_endpoint() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        for name in ["a", "b", "c", "d"] {
            plain(&world, name, &App::new(name, Speaks::Http1)).await;
        }
        policy(&world, hashed(HashKey::Header("x-user".into())), Vec::new());
        let client = Client::new(&world);
        let who = async |lines: String| {
            let request =
                format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{lines}\r\n");
            let answer = client.raw(vip, request).await;
            assert_eq!(status(&answer), "200", "{answer}");
            answer
        };
        let name = |answer: &str| answer.chars().last();
        let mut used = std::collections::HashSet::new();
        for user in 0..20 {
            let line = format!("X-User: {user}\r\n");
            let first = name(&who(line.clone()).await);
            for _ in 0..3 {
                assert_eq!(name(&who(line.clone()).await), first);
            }
            used.insert(first);
        }
        assert!(used.len() > 1, "keys are spread");

        let cookie = HashCookie {
            name: "user".into(),
            path: Some("/".into()),
            ttl: Some(Duration::from_secs(60)),
            attributes: vec![("Secure".into(), None)],
        };
        policy(&world, hashed(HashKey::Cookie(cookie)), Vec::new());
        let mut first = String::new();
        until_cookie(&mut first, async || who(String::new()).await).await;
        let line = first.lines().find(|line| line.starts_with("set-cookie: "));
        let line = line.unwrap();
        assert!(
            line.ends_with("; Max-Age=60; Path=/; Secure; HttpOnly"),
            "{line}"
        );
        let crumb = line["set-cookie: ".len()..].split(';').next().unwrap();
        for _ in 0..5 {
            let again = who(format!("Cookie: a=b; {crumb}\r\n")).await;
            assert_eq!(name(&again), name(&first));
            assert!(!again.contains("set-cookie"), "{again}");
        }
    })
    .await;
}

/// The new policy reaches the waypoint some time.
async fn until_cookie(found: &mut String, mut ask: impl AsyncFnMut() -> String) {
    while !found.contains("set-cookie") {
        *found = ask().await;
    }
}

/// A backend that takes what it is sent and closes in the middle, now and then.
struct Killer {
    seen: RefCell<HashMap<String, u32>>,
    killed: RefCell<u32>,
}

impl Killer {
    async fn listen(self: &Rc<Self>, addr: SocketAddr) {
        let listener = TcpListener::bind(addr).await.unwrap();
        let killer = self.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(killer.clone().serve(stream));
            }
        });
    }

    /// Each request is `POST` with an `x-id` and 8 bytes of body. What it does with it depends on the id.
    async fn serve(self: Rc<Self>, mut stream: TcpStream) {
        let mut got = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(len) => got.extend_from_slice(&chunk[..len]),
            }
            let text = String::from_utf8_lossy(&got).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let id = head
                .lines()
                .find_map(|line| line.strip_prefix("x-id: "))
                .unwrap()
                .to_owned();
            let number: u32 = id.parse().unwrap();
            if number.is_multiple_of(3) && body.is_empty() {
                // In the middle: the head is here, the body is not.
            } else if body.len() < 8 {
                continue;
            }
            *self.seen.borrow_mut().entry(id).or_default() += 1;
            match number % 3 {
                0 => {
                    *self.killed.borrow_mut() += 1;
                    return;
                }
                1 => {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                    got.clear();
                }
                _ => {
                    // It answers, and closes a connection that looks as if it could be used again.
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                    return;
                }
            }
        }
    }
}

/// `KARST_KILLS` backends die while they read a POST: 10,000 by hand, fewer in the rung.
#[tokio::test]
async fn a_post_whose_backend_dies_is_sent_once() {
    let kills = std::env::var("KARST_KILLS").ok();
    let kills: u32 = kills.and_then(|text| text.parse().ok()).unwrap_or(100);
    let test = async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let killer = Rc::new(Killer {
            seen: RefCell::default(),
            killed: RefCell::default(),
        });
        for name in ["a", "b"] {
            let ip = fresh_ip();
            killer.listen(SocketAddr::from((ip, 8080))).await;
            world.add_workload("web", name, ip, TunnelProtocol::None);
        }
        let client = Client::new(&world);
        let (mut id, mut answered, mut failed) = (0_u32, 0_u32, 0_u32);
        let mut io = client.connect(vip).await;
        while *killer.killed.borrow() < kills {
            let post = format!(
                "POST / HTTP/1.1\r\nHost: web\r\nx-id: {id}\r\nContent-Length: 8\r\n\r\n12345678"
            );
            io.write_all(post.as_bytes()).await.unwrap();
            match status(&read_response(&mut io).await) {
                "200" => answered += 1,
                "503" | "502" => {
                    failed += 1;
                    // The client's own connection may end with a response that came before its body was read.
                    io = client.connect(vip).await;
                }
                other => panic!("{other}"),
            }
            id += 1;
        }
        let seen = killer.seen.borrow();
        let twice = seen.values().filter(|times| **times > 1).count();
        println!(
            "{id} POSTs, {answered} answered, {failed} failed, {kills} killed, {twice} seen twice"
        );
        assert_eq!(twice, 0, "a POST was sent twice");
        // A few more may fail: those on a connection that the backend closed meanwhile.
        assert!(failed >= kills, "what is killed is told to its client");
    };
    let local = tokio::task::LocalSet::new();
    local.run_until(test).await;
}

#[tokio::test]
async fn a_subset_that_is_not_there_is_said() {
    local(async {
        use karst_model::route::{Backend, HttpRule, WeightedBackend};
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        plain(&world, "a", &App::new("a", Speaks::Http1)).await;
        let everybody = Subset {
            name: "all".into(),
            labels: Vec::new(),
        };
        policy(&world, TrafficPolicy::default(), vec![everybody]);
        let to = |subset: &str| {
            let backend = Backend::Service {
                service: key("web"),
                port: 80,
                subset: Some(subset.into()),
            };
            let mut rule: HttpRule = crate::rig::rule(&[("web", 1)]);
            rule.backends = vec![WeightedBackend {
                backend,
                weight: 1,
                filters: Vec::new(),
            }];
            rule
        };
        world.route("r", vec![to("all")]);
        let client = Client::new(&world);
        assert_eq!(status(&get(&client, vip, "/").await), "200");
        world.route("r", vec![to("v9")]);
        let mut answer = String::new();
        while status(&answer) != "503" {
            answer = get(&client, vip, "/").await;
        }
        assert!(answer.contains("no subset v9"), "{answer}");
    })
    .await;
}
