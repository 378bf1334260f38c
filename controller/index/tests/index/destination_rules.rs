//! DestinationRules: whose holds where, what becomes of several for one host, and what their authors are told.

use std::time::Duration;

use karst_k8s_api::Kind;
use karst_model::traffic::{BalanceAlgorithm, HashKey, ServiceTraffic, TrafficPolicy};

use crate::world::{World, pod};

const WAYPOINTS: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: w}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: w, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}, status: {addresses: [{value: w}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: front, namespace: edge}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{value: f}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}}
";

/// A route of `edge` that sends to the service, so that its waypoint needs the rules as well.
pub(crate) const FROM_EDGE: &str = "
---
{apiVersion: v1, kind: Service, metadata: {name: front, namespace: edge, labels: {istio.io/use-waypoint: front}}, spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: edge}, spec: {parentRefs: [{group: '', kind: Service, name: front}], rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: shop}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: edge}], to: [{group: '', kind: Service}]}}
";

fn rule(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-{age:02}T00:00:00Z'}}, spec: {{{spec}}}}}\n"
    )
}

/// A policy that is told from others by its limit of connections.
fn limit(max: u32) -> String {
    format!("trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {max}}}}}}}")
}

fn traffic<'a>(world: &'a World, waypoint: &str) -> Option<&'a ServiceTraffic> {
    let service = "shop/web.shop.svc.cluster.local".parse().unwrap();
    let key = (waypoint.parse().unwrap(), service);
    world.model.traffic.get(&key).map(|traffic| &**traffic)
}

fn max(world: &World, waypoint: &str) -> Option<u32> {
    let policy = traffic(world, waypoint)?.policy(80, None)?;
    policy.connections.max
}

/// What holds for port 80 of the service at its waypoint.
fn policy(spec: &str) -> (TrafficPolicy, Vec<String>) {
    let mut world = World::of(WAYPOINTS);
    world.apply(&rule("shop", "r", 1, &format!("host: web, {spec}")));
    let traffic = traffic(&world, "shop/w").expect("no traffic");
    let policy = traffic.policy(80, None).cloned().unwrap_or_default();
    (policy, world.said(Kind::DestinationRule, "shop", "r"))
}

#[test]
fn the_waypoints_namespace_comes_first_then_the_services_then_the_root() {
    let mut world = World::of(WAYPOINTS);
    world.apply(FROM_EDGE);
    assert_eq!(traffic(&world, "shop/w"), None);
    world.apply(&rule(
        "istio-system",
        "all",
        1,
        &format!("host: '*', {}", limit(1)),
    ));
    assert_eq!(
        (max(&world, "shop/w"), max(&world, "edge/front")),
        (Some(1), Some(1))
    );
    world.apply(&rule("shop", "own", 1, &format!("host: web, {}", limit(2))));
    assert_eq!(
        (max(&world, "shop/w"), max(&world, "edge/front")),
        (Some(2), Some(2))
    );
    world.apply(&rule(
        "edge",
        "theirs",
        1,
        &format!("host: web.shop.svc.cluster.local, {}", limit(3)),
    ));
    assert_eq!(
        (max(&world, "shop/w"), max(&world, "edge/front")),
        (Some(2), Some(3))
    );
    assert_eq!(
        world.reasons(Kind::DestinationRule, "istio-system", "all"),
        ["Accepted"],
        "it holds for front.edge"
    );
    world.delete(Kind::DestinationRule, "shop", "own");
    assert_eq!(
        (max(&world, "shop/w"), max(&world, "edge/front")),
        (Some(1), Some(3))
    );
    // Nobody sends there any more.
    world.delete(Kind::HttpRoute, "edge", "r");
    assert_eq!(
        (max(&world, "shop/w"), max(&world, "edge/front")),
        (Some(1), None)
    );
    assert_eq!(
        world.reasons(Kind::DestinationRule, "edge", "theirs"),
        ["Overruled"]
    );
}

#[test]
fn an_exact_host_comes_before_wildcards_and_the_longest_of_these_first() {
    let mut world = World::of(WAYPOINTS);
    world.apply(&rule(
        "shop",
        "local",
        1,
        &format!("host: '*.local', {}", limit(1)),
    ));
    assert_eq!(max(&world, "shop/w"), Some(1));
    world.apply(&rule(
        "shop",
        "near",
        9,
        &format!("host: '*.shop.svc.cluster.local', {}", limit(2)),
    ));
    assert_eq!(max(&world, "shop/w"), Some(2));
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "local"),
        ["Overruled"]
    );
    world.apply(&rule(
        "shop",
        "own",
        9,
        &format!("host: web.shop.svc.cluster.local, {}", limit(3)),
    ));
    assert_eq!(max(&world, "shop/w"), Some(3));
    world.apply(&rule(
        "shop",
        "else",
        1,
        &format!("host: '*.example.com', {}", limit(4)),
    ));
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "else"),
        ["HostNotFound"]
    );
}

#[test]
fn exported_rules_hold_where_they_are_exported_to() {
    let mut world = World::of(WAYPOINTS);
    world.apply(FROM_EDGE);
    for (export, edge) in [
        ("['.']", None),
        ("[edge]", Some(1)),
        ("['*']", Some(1)),
        ("[zoo]", None),
        ("[]", Some(1)),
    ] {
        world.apply(&rule(
            "shop",
            "own",
            1,
            &format!("host: web, exportTo: {export}, {}", limit(1)),
        ));
        assert_eq!(
            (max(&world, "shop/w"), max(&world, "edge/front")),
            (Some(1), edge),
            "{export}"
        );
    }
}

#[test]
fn rules_of_one_host_become_one_and_what_is_left_out_is_said() {
    let mut world = World::of(WAYPOINTS);
    world.apply(&rule("shop", "young", 2, &format!("host: web, subsets: [{{name: v1, labels: {{version: other}}}}, {{name: v2, labels: {{version: v2}}}}], {}", limit(2))));
    world.apply(&rule(
        "shop",
        "old",
        1,
        "host: web.shop.svc.cluster.local, subsets: [{name: v1, labels: {version: v1}}]",
    ));
    let traffic_now = traffic(&world, "shop/w").unwrap();
    assert_eq!(&*traffic_now.subset("v1").unwrap().labels[0].1, "v1");
    assert_eq!(&*traffic_now.subset("v2").unwrap().labels[0].1, "v2");
    assert_eq!(
        max(&world, "shop/w"),
        Some(2),
        "the older one has no policy"
    );
    assert_eq!(
        traffic_now
            .sources
            .iter()
            .map(|one| &**one)
            .collect::<Vec<_>>(),
        ["DestinationRule/shop/old", "DestinationRule/shop/young"]
    );
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "young"),
        ["Conflicted", "Accepted"]
    );
    world.apply(&rule("shop", "old", 1, &format!("host: web, {}", limit(1))));
    assert_eq!(max(&world, "shop/w"), Some(1));
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "young"),
        ["Conflicted", "Accepted"]
    );
    world.delete(Kind::DestinationRule, "shop", "old");
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "young"),
        ["Accepted"]
    );
}

#[test]
fn ports_replace_and_subsets_override_part_by_part() {
    let mut world = World::of(WAYPOINTS);
    world.apply(&rule("shop", "r", 1, "host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}}, retryBudget: {percent: 5}, \
        portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 81}}}]}, \
        subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}, {name: plain}, \
        {name: v2, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}}]"));
    let at = |port, subset| {
        let policy = traffic(&world, "shop/w")
            .unwrap()
            .policy(port, subset)
            .unwrap();
        let algorithm = match policy.balance.algorithm {
            BalanceAlgorithm::Random => "random",
            BalanceAlgorithm::RoundRobin => "round",
            _ => "least",
        };
        (
            algorithm,
            policy.connections.max,
            policy.retry_budget.map(|budget| budget.share_ppm),
        )
    };
    let budget = Some(50_000);
    assert_eq!(at(80, None), ("random", Some(1), budget));
    assert_eq!(
        at(81, None),
        ("least", Some(81), budget),
        "a port inherits none of its four parts"
    );
    assert_eq!(at(80, Some("v1")), ("round", Some(1), budget));
    assert_eq!(at(81, Some("v1")), ("round", Some(81), budget));
    assert_eq!(at(81, Some("plain")), ("least", Some(81), budget));
    assert_eq!(at(80, Some("v2")), ("random", None, budget));
    assert_eq!(at(81, Some("v2")), ("least", Some(2), budget));
}

#[test]
fn labels_are_told_only_where_rules_refer_to_them() {
    let mut world = World::of(WAYPOINTS);
    world.apply(&pod(
        "a",
        "10.0.0.1",
        "  labels: {app: web, version: v1, tier: x}",
    ));
    world.apply(&pod("b", "10.0.0.2", "  labels: {app: db}"));
    assert_eq!(world.pod("a").labels.len(), 0);
    let delta = world.apply(&rule(
        "shop",
        "r",
        1,
        "host: web, subsets: [{name: v1, labels: {version: v1}}]",
    ));
    assert_eq!(
        delta.workloads.updated.len(),
        1,
        "only what has the label is told anew"
    );
    assert_eq!(
        world.pod("a").label("version").map(|value| &**value),
        Some("v1")
    );
    assert_eq!(world.pod("a").label("tier"), None);
    // A change that says the same tells nothing.
    let delta = world.apply(&rule(
        "shop",
        "r",
        1,
        "host: web, subsets: [{name: v1, labels: {version: v1}}]",
    ));
    assert!(delta.is_empty(), "{delta:?}");
    world.apply(&rule("shop", "r", 1, "host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [tier, kubernetes.io/hostname]}}}"));
    assert_eq!(world.pod("a").label("version"), None);
    assert_eq!(
        world.pod("a").label("tier").map(|value| &**value),
        Some("x")
    );
    assert_eq!(
        world
            .pod("b")
            .label("kubernetes.io/hostname")
            .map(|value| &**value),
        Some("n1")
    );
    world.delete(Kind::DestinationRule, "shop", "r");
    assert_eq!(world.pod("b").labels.len(), 0);
}

#[test]
fn values_out_of_range_are_left_out_and_named() {
    for (spec, expected) in [
        (
            "trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
            "trafficPolicy.outlierDetection.maxEjectionPercent: 101 is no percentage",
        ),
        (
            "trafficPolicy: {outlierDetection: {interval: 0s}}",
            "trafficPolicy.outlierDetection.interval: \"0s\" is out of range",
        ),
        (
            "trafficPolicy: {outlierDetection: {minHealthPercent: -1}}",
            "minHealthPercent: -1 is no percentage",
        ),
        (
            "trafficPolicy: {outlierDetection: {outlierDetectionHttpErrorCodes: [42]}}",
            "42 is no status",
        ),
        (
            "trafficPolicy: {connectionPool: {tcp: {connectTimeout: 900h}}}",
            "connectTimeout: \"900h\" is out of range",
        ),
        (
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: -5}}}",
            "maxConnections: -5 is negative",
        ),
        (
            "trafficPolicy: {retryBudget: {percent: 100.5}}",
            "retryBudget.percent: 100.5 is no percentage",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: a, useSourceIp: true}}}",
            "consistentHash: exactly one of",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {maglev: {}}}}",
            "consistentHash: exactly one of",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}",
            "100 is no prime",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}, ringHash: {}}}}",
            "ringHash and maglev exclude",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r/*, to: {r/z: 60}}]}}}",
            "add up to 60",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: '*/z', to: {r/z: 100}}]}}}",
            "a place is <region>",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: r, to: r}]}}}",
            "cannot stand in for itself",
        ),
        (
            "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s, minimumPercent: 400}}}",
            "minimumPercent: 400 is no percentage",
        ),
        (
            "trafficPolicy: {portLevelSettings: [{port: {number: 70000}}]}",
            "a port from 1 to 65535",
        ),
        (
            "trafficPolicy: {portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]}",
            "port 80 has settings already",
        ),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/ca.pem}}",
            "caCertificates names a file",
        ),
        (
            "trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /etc/c.pem, privateKey: /etc/k.pem}}",
            "put it into a Secret and name that in credentialName",
        ),
        (
            "trafficPolicy: {tls: {mode: MUTUAL}}",
            "credentialName names no Secret: connections fail",
        ),
        (
            "trafficPolicy: {tls: {mode: MUTUAL, credentialName: other/web-client}}",
            "\"other/web-client\" can be no Secret of the waypoint's namespace",
        ),
        (
            "trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: x.example}}",
            "sni: has an effect in the modes",
        ),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}",
            "the server's certificate is not checked",
        ),
        (
            "subsets: [{name: v1}, {name: v1}]",
            "there is a subset \"v1\" already",
        ),
    ] {
        let (_, said) = policy(spec);
        assert!(
            said.iter().any(|one| one.contains(expected)),
            "{spec}: {said:?}"
        );
    }
}

#[test]
fn values_arrive_as_written() {
    let (policy, said) = policy(
        "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, consecutiveGatewayErrors: 2, interval: 1s, baseEjectionTime: 1m, maxEjectionPercent: 50, outlierDetectionHttpErrorCodes: [429, 503]}, \
        connectionPool: {tcp: {connectTimeout: 250ms, tcpKeepalive: {time: 7200s, probes: 3}}, http: {http2MaxRequests: 7, h2UpgradePolicy: UPGRADE}}, \
        loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s, path: /a}}}}",
    );
    assert_eq!(said, ["holds at waypoint shop/w"]);
    let outlier = policy.outlier.unwrap();
    assert_eq!(
        (
            outlier.consecutive_errors,
            outlier.consecutive_gateway_errors
        ),
        (Some(3), Some(2))
    );
    assert_eq!(
        (outlier.interval, outlier.base_ejection),
        (Duration::from_secs(1), Duration::from_secs(60))
    );
    assert_eq!(
        (outlier.max_ejected_percent, &outlier.statuses[..]),
        (50, &[429][..])
    );
    assert_eq!(
        policy.connections.connect_timeout,
        Some(Duration::from_millis(250))
    );
    assert_eq!(policy.connections.max_requests, Some(7));
    let BalanceAlgorithm::ConsistentHash(hash) = &policy.balance.algorithm else {
        panic!("{:?}", policy.balance)
    };
    assert!(matches!(&hash.key, HashKey::Cookie(cookie) if cookie.ttl == Some(Duration::ZERO)));
    assert!(
        policy.balance.locality.is_some(),
        "nearness counts where failures are noticed"
    );
}

#[test]
fn what_holds_nowhere_says_why() {
    let mut world = World::of(WAYPOINTS);
    world.apply(&rule(
        "shop",
        "r",
        1,
        &format!(
            "host: web, workloadSelector: {{matchLabels: {{app: x}}}}, {}",
            limit(1)
        ),
    ));
    assert_eq!(traffic(&world, "shop/w"), None);
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "r"),
        ["UnsupportedValue"]
    );
    world.apply(&rule(
        "shop",
        "r",
        1,
        &format!("host: nowhere, {}", limit(1)),
    ));
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "r"),
        ["HostNotFound"]
    );
    world.apply("{apiVersion: v1, kind: Service, metadata: {name: nowhere, namespace: shop, labels: {istio.io/use-waypoint: none}}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}");
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "r"),
        ["AncestorNotBound"]
    );
    world.apply("{apiVersion: v1, kind: Service, metadata: {name: nowhere, namespace: shop}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}");
    assert_eq!(
        world.reasons(Kind::DestinationRule, "shop", "r"),
        ["Accepted"]
    );
}
