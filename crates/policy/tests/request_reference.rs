//! The product's two evaluators of requests against the naive one, over a million random cases, and the deviations from
//! Istio one by one.
//!
//! `KARST_POLICY_CASES` sets the number of cases, `KARST_POLICY_SEED` the seed, which every run prints.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{env, str::FromStr, sync::Arc};

use agree::Evaluator;
use http::{Version, header};
use karst_model::{
    policy::{Match, StringMatch},
    waypoint_policy::{
        HeaderValues, PathPattern, PolicyTarget, RequestAction, RequestClause, RequestMatch,
        RequestRule, WaypointPolicy,
    },
};
use karst_policy::{
    Connection, DenyReason, DryRunAllow, RuleRef, Verdict,
    request::{
        Asked, AskedConnection, GatewayRef, RequestDecision, RequestExplanation, RequestPolicies,
        applies,
    },
};
use karst_routing::request::{Request, Scheme, Seen};
use rand::{SeedableRng, rngs::SmallRng};

#[path = "request_reference/agree.rs"]
mod agree;
#[path = "request_reference/cases.rs"]
mod cases;
#[path = "request_reference/naive.rs"]
mod naive;

const CASES: usize = 1_000_000;
const SEED: u64 = 20_261_121;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[test]
fn random_requests_agree_with_the_naive_evaluator() {
    let (count, seed) = (
        setting("KARST_POLICY_CASES", CASES),
        setting("KARST_POLICY_SEED", SEED),
    );
    println!("{count} cases, KARST_POLICY_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                random_cases(seed.wrapping_add(thread as u64), count.div_ceil(threads))
            });
        }
    });
}

fn random_cases(seed: u64, count: usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..count.div_ceil(cases::REQUESTS_PER_SET) {
        let set = cases::policy_set(&mut rng);
        let compiled = RequestPolicies::compile(set.policies.iter().cloned(), &set.missing);
        for _ in 0..cases::REQUESTS_PER_SET {
            let case = cases::case(&mut rng);
            for evaluator in [Evaluator::Decide, Evaluator::Explain] {
                if let Err(difference) = agree::check(evaluator, &set, &compiled, &case) {
                    panic!(
                        "{evaluator:?}: {difference}\n{case:#?}\n{:#?}\nseed {seed}",
                        set.policies
                    );
                }
            }
        }
    }
}

fn policy(action: RequestAction, matches: Vec<RequestMatch>) -> Arc<WaypointPolicy> {
    Arc::new(WaypointPolicy {
        key: "shop/p".parse().unwrap(),
        targets: vec![],
        action,
        provider: None,
        dry_run: false,
        rules: vec![RequestRule {
            clauses: vec![RequestClause { matches }],
        }],
    })
}

fn paths(text: &str) -> RequestMatch {
    RequestMatch {
        paths: vec![PathPattern::Text(StringMatch::Exact(text.into()))],
        ..RequestMatch::default()
    }
}

/// What the one policy says about a request that is written as `path host [name: value]…`.
fn explain(
    policy: &Arc<WaypointPolicy>,
    target: &str,
    host: &str,
    headers: &[(&str, &str)],
) -> RequestExplanation {
    let mut builder = http::Request::builder()
        .uri(target)
        .version(Version::HTTP_11)
        .header(header::HOST, host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    let request = Request::new(parts, seen).unwrap();
    let connection = Connection {
        source: Some("spiffe://cluster.local/ns/shop/sa/front".parse().unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let asked = Asked {
        request: &request,
        connection: &connection,
        remote_ip: connection.source_ip,
        sni: None,
    };
    let compiled = RequestPolicies::compile([policy.clone()], &[]);
    let explanation = compiled.explain(&asked);
    assert_eq!(compiled.decide(&asked), explanation.decision);
    explanation
}

fn allowed(policy: &Arc<WaypointPolicy>, target: &str) -> bool {
    explain(policy, target, "orders", &[]).decision.is_allowed()
}

#[test]
fn no_spelling_of_a_path_walks_around_a_deny() {
    let deny = policy(RequestAction::Deny, vec![paths("/admin@home")]);
    for path in [
        "/admin@home",
        "/admin%40home",
        "/%61dmin@home",
        "//admin@home",
        "/./admin@home",
        "/x/../admin@home",
        "/x/%2e%2E/admin%40home",
        "/admin@home?x=1",
    ] {
        assert!(!allowed(&deny, path), "{path}");
    }
    assert!(allowed(&deny, "/admin"));
}

#[test]
fn an_allow_takes_the_plainest_reading_of_a_path() {
    let allow = policy(RequestAction::Allow, vec![paths("/admin@home")]);
    assert!(allowed(&allow, "/admin@home") && !allowed(&allow, "/admin%40home"));
}

#[test]
fn paths_of_policies_are_normalised_like_those_of_requests() {
    for written in ["/a//b", "/a/./b", "/%61/b", "/x/../a/b"] {
        let deny = policy(RequestAction::Deny, vec![paths(written)]);
        assert!(!allowed(&deny, "/a/b"), "{written}");
    }
}

#[test]
fn a_header_sent_twice_does_not_hide_a_value_from_a_deny() {
    let of = |action| {
        let header = HeaderValues {
            name: "x-role".into(),
            values: vec![StringMatch::Exact("admin".into())],
            not_values: vec![],
        };
        let m = RequestMatch {
            headers: vec![header],
            ..RequestMatch::default()
        };
        policy(action, vec![m])
    };
    let twice = [("x-role", "user"), ("X-Role", "admin")];
    for sent in [
        &twice[..],
        &[("x-role", "user, admin")],
        &[("x-role", "admin")],
    ] {
        let explanation = explain(&of(RequestAction::Deny), "/", "orders", sent);
        assert!(!explanation.decision.is_allowed(), "{sent:?}");
    }
    let explanation = explain(&of(RequestAction::Allow), "/", "orders", &twice);
    assert!(!explanation.decision.is_allowed());
}

#[test]
fn an_explanation_shows_no_secret_of_a_header() {
    let header = |name: &str| HeaderValues {
        name: name.into(),
        values: vec![StringMatch::Exact("hunter1".into())],
        not_values: vec![],
    };
    for name in ["authorization", "cookie", "x-api-key"] {
        let m = RequestMatch {
            headers: vec![header(name)],
            ..RequestMatch::default()
        };
        let allow = policy(RequestAction::Allow, vec![m]);
        let shown = explain(&allow, "/", "orders", &[(name, "hunter2")]).to_string();
        assert!(shown.contains(name) && !shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn a_port_in_the_host_does_not_walk_around_a_deny() {
    let m = RequestMatch {
        hosts: vec![StringMatch::Exact("Pay.example.com".into())],
        ..RequestMatch::default()
    };
    let deny = policy(RequestAction::Deny, vec![m]);
    for host in [
        "pay.example.com",
        "PAY.example.com:8080",
        "pay.example.com.",
        "pay.example.com.:80",
    ] {
        assert!(
            !explain(&deny, "/", host, &[]).decision.is_allowed(),
            "{host}"
        );
    }
    assert!(
        explain(&deny, "/", "pay.example.org", &[])
            .decision
            .is_allowed()
    );
}

#[test]
fn unreadable_matches_allow_nothing_and_deny() {
    let unreadable = [
        RequestMatch {
            connection: Match {
                unreadable: true,
                ..Match::default()
            },
            ..RequestMatch::default()
        },
        RequestMatch {
            paths: vec![PathPattern::Template("/{**}/{*}".into())],
            ..RequestMatch::default()
        },
        RequestMatch {
            not_paths: vec![PathPattern::Template("/{*}.txt".into())],
            ..RequestMatch::default()
        },
        RequestMatch {
            headers: vec![HeaderValues::default()],
            ..RequestMatch::default()
        },
    ];
    for m in unreadable {
        for action in [RequestAction::Allow, RequestAction::Deny] {
            assert!(
                !allowed(&policy(action, vec![m.clone()]), "/"),
                "{action:?} {m:?}"
            );
        }
    }
}

#[test]
fn an_explanation_names_policy_rule_and_what_was_missing() {
    let m = RequestMatch {
        methods: vec![StringMatch::Exact("GET".into())],
        paths: vec![
            PathPattern::Text(StringMatch::Prefix("/api/".into())),
            PathPattern::Template("/{*}/info".into()),
        ],
        ..RequestMatch::default()
    };
    let allow = policy(RequestAction::Allow, vec![m]);
    let explanation = explain(&allow, "/shop", "orders", &[]);
    assert_eq!(
        explanation.to_string(),
        "denied: ALLOW policies apply and none matches\n\
         policy shop/p rule 0 wants path /api/* or /{*}/info, the request has /shop (ALLOW)\n"
    );
    let explanation = explain(&allow, "/api/x", "orders", &[]);
    assert!(
        explanation
            .to_string()
            .starts_with("allowed: policy shop/p rule 0 matches\n")
    );
}

#[test]
fn a_connection_without_http_is_denied_by_what_cannot_be_read() {
    let connection = Connection {
        source: Some("spiffe://cluster.local/ns/shop/sa/front".parse().unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let on_port = |port, m: RequestMatch| RequestMatch {
        connection: Match {
            destination_ports: vec![port],
            ..Match::default()
        },
        ..m
    };
    let bare = RequestMatch::default;
    for (action, m, expected) in [
        (RequestAction::Allow, on_port(80, bare()), true),
        (RequestAction::Allow, on_port(81, bare()), false),
        (RequestAction::Allow, on_port(80, paths("/")), false),
        (RequestAction::Deny, on_port(80, paths("/")), false),
        (RequestAction::Deny, on_port(81, paths("/")), true),
        (RequestAction::Deny, paths("/admin"), false),
    ] {
        let asked = AskedConnection {
            connection: &connection,
            remote_ip: connection.source_ip,
            sni: None,
        };
        let compiled = RequestPolicies::compile([policy(action, vec![m.clone()])], &[]);
        let explanation = compiled.explain_connection(&asked);
        assert_eq!(
            explanation.decision.is_allowed(),
            expected,
            "{action:?} {m:?}: {explanation}"
        );
        assert_eq!(compiled.decide_connection(&asked), explanation.decision);
    }
}

#[test]
fn targets_say_where_a_policy_applies() {
    let gateway = GatewayRef {
        namespace: "shop",
        name: "waypoint",
        class: "istio-waypoint",
    };
    let service = "shop/orders.shop.svc.cluster.local".parse().unwrap();
    let other = "shop/cart.shop.svc.cluster.local".parse().unwrap();
    let of_gateway = |namespace: &str, name: &str| PolicyTarget::Gateway {
        namespace: namespace.into(),
        name: name.into(),
    };
    for (target, on_service, pod_addressed) in [
        (PolicyTarget::Service(service), true, false),
        (PolicyTarget::Service(other), false, false),
        (of_gateway("shop", "waypoint"), true, true),
        (of_gateway("bank", "waypoint"), false, false),
        (
            PolicyTarget::GatewayClass("istio-waypoint".into()),
            true,
            true,
        ),
        (PolicyTarget::GatewayClass("other".into()), false, false),
    ] {
        let policy = WaypointPolicy {
            targets: vec![target],
            ..(*policy(RequestAction::Deny, vec![])).clone()
        };
        let orders = "shop/orders.shop.svc.cluster.local".parse().unwrap();
        assert_eq!(
            applies(&policy, Some(&orders), gateway),
            on_service,
            "{policy:?}"
        );
        assert_eq!(applies(&policy, None, gateway), pod_addressed, "{policy:?}");
    }
}
