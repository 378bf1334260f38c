//! What the waypoint does towards endpoints because a policy says so: TLS of its own, active health checks, sessions.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use karst_ca::authority::{Authority, AuthorityConfig};
use karst_discovery::Update;
use karst_hbone::tls;
use karst_identity::tls::{ServingCertificate, webhook_server_config};
use karst_model::{
    identity::TrustDomain,
    locality::Locality,
    protocol::{AppProtocol, TunnelProtocol},
    route::{HttpRule, RetryPolicy},
    traffic::{
        HealthCheck, HealthProbe, LocalityBalance, Scope, ServiceTraffic, SessionKind,
        SessionPersistence, TlsMode, TrafficPolicy, TrustAnchors, UpstreamTls,
    },
    workload::Workload,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{
    app::{App, Speaks},
    client::{Client, status},
    rig::{World, fresh_ip, key, local, rule},
};

fn policy(world: &World, policy: TrafficPolicy) {
    let scope = Scope {
        policy,
        ..Scope::default()
    };
    world
        .state
        .apply([Update::ServiceTraffic(Arc::new(ServiceTraffic {
            service: key("web"),
            scopes: vec![scope],
            subsets: Vec::new(),
            sources: Vec::new(),
        }))]);
}

async fn get(client: &Client, vip: SocketAddr, headers: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{headers}\r\n");
    client.raw(vip, &request).await
}

/// A server outside of the mesh that speaks HTTP/1 inside TLS, as `api.example.com`; its root.
async fn tls_server(world: &World) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = AuthorityConfig::new(folder.path().join("ca"), TrustDomain::default());
    let authority = Authority::load_or_create(config, SystemTime::now()).unwrap();
    let pair = authority
        .server_certificate(&["api.example.com".to_owned()], SystemTime::now())
        .unwrap();
    let serving = ServingCertificate::new(&pair.chain_pem, &pair.key_pem).unwrap();
    let config = webhook_server_config(serving);
    let ip = fresh_ip();
    let listener = TcpListener::bind((ip, 8080)).await.unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let config = config.clone();
            tokio::task::spawn_local(async move {
                let patience = Duration::from_secs(10);
                let Ok(mut io) = tls::tls_accept(stream, config, patience).await else {
                    return;
                };
                let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
                while !got.ends_with(b"\r\n\r\n") {
                    match io.read(&mut chunk).await {
                        Ok(0) | Err(_) => return,
                        Ok(read) => got.extend_from_slice(&chunk[..read]),
                    }
                }
                let answer =
                    "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nsecret";
                let _gone = io.write_all(answer.as_bytes()).await;
                let _gone = io.shutdown().await;
            });
        }
    });
    world.add_workload("web", "outside", ip, TunnelProtocol::None);
    pair.chain_pem.clone()
}

fn simple(root: &str, sni: &str) -> UpstreamTls {
    UpstreamTls {
        sni: Some(sni.into()),
        anchors: TrustAnchors::Pem(root.into()),
        ..UpstreamTls::new(TlsMode::Simple)
    }
}

#[tokio::test]
async fn plain_requests_leave_as_tls_and_only_to_whom_the_policy_means() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let root = tls_server(&world).await;
        let client = Client::new(&world);
        let with = |tls: UpstreamTls| TrafficPolicy {
            tls: Some(tls),
            ..TrafficPolicy::default()
        };
        policy(&world, with(simple(&root, "api.example.com")));
        let response = get(&client, vip, "").await;
        assert_eq!(status(&response), "200", "{response}");
        assert!(response.ends_with("secret"), "{response}");
        // Another name: refused, and nothing is sent.
        policy(&world, with(simple(&root, "other.example.com")));
        let refused = loop {
            let response = get(&client, vip, "").await;
            if status(&response) != "200" {
                break response;
            }
        };
        assert_eq!(status(&refused), "503", "{refused}");
        assert!(refused.contains("other.example.com"), "{refused}");
        // Settings that are broken fail, and never go out plain.
        let mut broken = simple(&root, "api.example.com");
        broken.broken = Some("the roots cannot be had".into());
        policy(&world, with(broken));
        loop {
            let response = get(&client, vip, "").await;
            assert_eq!(status(&response), "503", "{response}");
            if response.contains("the roots cannot be had") {
                break;
            }
        }
    })
    .await;
}

/// Two endpoints here and one in another region, each plain.
async fn three_places(world: &World) {
    let failing = "HTTP/1.1 503 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (name, region) in [("near-1", ""), ("near-2", ""), ("far", "elsewhere")] {
        let app = match region {
            "" => App::new("", Speaks::Bytes(failing)),
            _ => App::new("far", Speaks::Http1),
        };
        let ip = fresh_ip();
        app.listen((ip, 8080).into()).await;
        let uid = format!("Kubernetes//Pod/shop/{name}");
        let mut workload = Workload {
            name: name.into(),
            namespace: "shop".into(),
            addresses: vec![ip.into()],
            locality: Locality {
                region: region.into(),
                ..Locality::default()
            },
            ..Workload::new(&uid)
        };
        workload.services.insert(key("web"), [(80, 8080)].into());
        world.state.apply([Update::Workload(Arc::new(workload))]);
    }
}

#[tokio::test]
async fn a_retry_leaves_its_region_where_it_is_told_to() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        three_places(&world).await;
        let mut near_first = TrafficPolicy::default();
        near_first.balance.locality = Some(LocalityBalance::default());
        policy(&world, near_first);
        let retry = |remote_localities| HttpRule {
            retry: Some(RetryPolicy {
                attempts: 1,
                on_server_error: true,
                backoff: Some(Duration::from_millis(1)),
                remote_localities,
                ..RetryPolicy::default()
            }),
            ..rule(&[("web", 1)])
        };
        let client = Client::new(&world);
        world.route("again", vec![retry(false)]);
        // The second try goes to the other one here.
        let mut in_a_row = 0;
        while in_a_row < 20 {
            match status(&get(&client, vip, "").await) {
                "503" => in_a_row += 1,
                _ => in_a_row = 0,
            }
        }
        world.route("again", vec![retry(true)]);
        let mut in_a_row = 0;
        while in_a_row < 20 {
            match status(&get(&client, vip, "").await) {
                "200" => in_a_row += 1,
                _ => in_a_row = 0,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_near_depends_on_where_the_waypoint_is() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        three_places(&world).await;
        let mut near_first = TrafficPolicy::default();
        near_first.balance.locality = Some(LocalityBalance::default());
        policy(&world, near_first);
        let client = Client::new(&world);
        for (region, expected) in [("elsewhere", "200"), ("", "503"), ("elsewhere", "200")] {
            let mut own = Workload {
                name: "waypoint".into(),
                namespace: "shop".into(),
                ..Workload::new("waypoint/shop/waypoint")
            };
            own.locality.region = region.into();
            world.state.apply([Update::Workload(Arc::new(own))]);
            let mut in_a_row = 0;
            while in_a_row < 20 {
                match status(&get(&client, vip, "").await) == expected {
                    true => in_a_row += 1,
                    false => in_a_row = 0,
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_for_the_mesh_only_never_goes_in_clear() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("outside", Speaks::Http1);
        let ip = fresh_ip();
        app.listen((ip, 8080).into()).await;
        world.add_workload("web", "outside", ip, TunnelProtocol::None);
        let client = Client::new(&world);
        let response = get(&client, vip, "").await;
        assert_eq!(status(&response), "200", "the control: {response}");
        let asked = app.seen().len();
        policy(
            &world,
            TrafficPolicy {
                tls: Some(UpstreamTls::new(TlsMode::Mesh)),
                ..TrafficPolicy::default()
            },
        );
        let refused = loop {
            let response = get(&client, vip, "").await;
            if status(&response) != "200" {
                break response;
            }
        };
        assert_eq!(status(&refused), "503", "{refused}");
        assert!(refused.contains("is not in the mesh"), "{refused}");
        let asked_since = app.seen().len();
        for _ in 0..5 {
            assert_eq!(status(&get(&client, vip, "").await), "503");
        }
        assert_eq!(app.seen().len(), asked_since, "nothing arrives in clear");
        assert!(asked_since >= asked);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_fails_its_check_gets_no_requests() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let bad = App::new(
            "",
            Speaks::Bytes("HTTP/1.1 500 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        );
        let good = App::new("good", Speaks::Http1);
        world.workload("web", "bad", &bad).await;
        world.workload("web", "good", &good).await;
        policy(
            &world,
            TrafficPolicy {
                health_check: Some(HealthCheck {
                    probe: HealthProbe::Http {
                        path: "/healthz".into(),
                        host: None,
                        expected: Vec::new(),
                    },
                    interval: Duration::from_millis(100),
                    timeout: Duration::from_millis(100),
                    unhealthy_threshold: 1,
                    healthy_threshold: 1,
                    port: None,
                }),
                ..TrafficPolicy::default()
            },
        );
        let client = Client::new(&world);
        // Until thirty in a row have gone well, by chance less than once in a thousand million runs.
        let mut in_a_row = 0;
        while in_a_row < 30 {
            match status(&get(&client, vip, "").await) {
                "200" => in_a_row += 1,
                _ => in_a_row = 0,
            }
        }
        // The good one may be checked later than the other.
        let is_check = |seen: &crate::app::Seen| seen.uri.path() == "/healthz";
        while !good.seen().iter().any(is_check) {
            tokio::task::yield_now().await;
        }
        world
            .metric_reaches(&["karst_waypoint_health_checks_failed_total"], 1.0)
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_session_stays_with_its_endpoint() {
    for kind in [
        SessionKind::Header,
        SessionKind::Cookie { permanent: false },
    ] {
        local(async {
            let world = World::start(&[]).await;
            let vip = world.service("web", AppProtocol::Http11);
            let apps = [
                App::new("a", Speaks::Http1),
                App::new("b", Speaks::Http1),
                App::new("c", Speaks::Http1),
            ];
            for app in &apps {
                world.workload("web", app.name, app).await;
            }
            let sticky = HttpRule {
                session: Some(SessionPersistence {
                    name: "x-session".into(),
                    kind,
                    absolute_timeout: None,
                    idle_timeout: None,
                }),
                ..rule(&[("web", 1)])
            };
            world.route("r", vec![sticky]);
            let client = Client::new(&world);
            let first = get(&client, vip, "").await;
            let lower = first.to_ascii_lowercase();
            let told = |mark: &str| {
                let after = lower
                    .split_once(mark)
                    .unwrap_or_else(|| panic!("{first}"))
                    .1;
                after.split(['\r', ';']).next().unwrap().to_owned()
            };
            let carried = match kind {
                SessionKind::Header => format!("x-session: {}\r\n", told("x-session: ")),
                SessionKind::Cookie { .. } => {
                    format!(
                        "Cookie: a=b; x-session={}\r\n",
                        told("set-cookie: x-session=")
                    )
                }
            };
            for _ in 0..20 {
                let response = get(&client, vip, &carried).await;
                assert_eq!(status(&response), "200");
                assert!(!response.contains("x-session"), "nothing new: {response}");
            }
            let mut counts: Vec<usize> = apps.iter().map(|app| app.seen().len()).collect();
            counts.sort_unstable();
            assert_eq!(counts, [0, 0, 21]);
        })
        .await;
    }
}
