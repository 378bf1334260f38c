//! Rate limits, health checks and TLS to backends: what each waypoint is told, and what their authors hear.

use std::time::Duration;

use karst_k8s_api::{Kind, ObjectKey};
use karst_model::{
    policy::StringMatch,
    rate_limit::{Enforcement, LimitHeaders, LimitKey, LimitTarget, RateLimit},
    traffic::{HealthProbe, San, ServiceTraffic, TlsMode, TrustAnchors},
};

use crate::world::World;

/// Namespace `shop` with a waypoint and its label, and a Service with a route.
const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: w}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: Hostname, value: w}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ports: [{name: web, port: 80}, {name: admin, port: 81}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: cart}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
";

const CART: &str = "{kind: Service, group: '', name: cart}";
const ROUTE: &str = "{kind: HTTPRoute, group: gateway.networking.k8s.io, name: r}";

fn limit(target: &str, rest: &str) -> String {
    format!(
        "
---
apiVersion: policy.karst.io/v1alpha1
kind: RateLimit
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{target}]
{rest}
"
    )
}

fn told(world: &World) -> Option<&RateLimit> {
    let mut rows = world.model.rate_limits.iter();
    let found = rows.find(|((gateway, _), _)| gateway.to_string() == "shop/w");
    found.map(|(_, limit)| &**limit)
}

#[test]
fn a_limit_goes_to_the_waypoint_of_its_target() {
    let service = LimitTarget::Service("shop/cart.shop.svc.cluster.local".parse().unwrap());
    let gateway = LimitTarget::Gateway {
        namespace: "shop".into(),
        name: "w".into(),
    };
    for (target, expected) in [
        (CART, service),
        (
            ROUTE,
            LimitTarget::Route("HTTPRoute/shop/r".parse().unwrap()),
        ),
        (
            "{kind: Gateway, group: gateway.networking.k8s.io, name: w}",
            gateway,
        ),
    ] {
        let mut world = World::of(&format!(
            "{MESH}{}",
            limit(target, "  rules: [{requests: 5}]")
        ));
        let limit = told(&world).unwrap_or_else(|| panic!("{target}"));
        assert_eq!(limit.targets, [expected]);
        assert_eq!(world.reasons(Kind::RateLimit, "shop", "p"), ["Accepted"]);
        let [rule] = &limit.rules[..] else { panic!() };
        assert_eq!(
            (&*rule.name, rule.requests, rule.period, rule.burst),
            ("rule-0", 5, Duration::from_secs(1), 5)
        );
        assert_eq!((limit.status, limit.headers), (429, LimitHeaders::Draft));
        world.delete(Kind::RateLimit, "shop", "p");
        assert!(told(&world).is_none());
    }
}

#[test]
fn everything_that_can_be_written_arrives() {
    let rest = "  mode: Shadow
  response: {status: 503, headers: Both}
  rules:
  - name: writes
    match:
    - methods: [POST]
      paths: [/orders/*]
      headers: [{name: X-Tier, values: [free]}]
      notNamespaces: [admin]
    requests: 100
    per: 1m30s
    burst: 10
    key: [{by: ClientIdentity}, {by: Header, name: X-Tenant}, {by: Claim, name: org.id}]";
    let world = World::of(&format!("{MESH}{}", limit(CART, rest)));
    let limit = told(&world).unwrap();
    assert_eq!(limit.enforcement, Enforcement::Shadow);
    assert_eq!((limit.status, limit.headers), (503, LimitHeaders::Both));
    let rule = &limit.rules[0];
    assert_eq!((rule.period, rule.burst), (Duration::from_secs(90), 10));
    assert_eq!(
        rule.keys,
        [
            LimitKey::Identity,
            LimitKey::Header("x-tenant".into()),
            LimitKey::Claim(vec!["org".into(), "id".into()])
        ]
    );
    let [only] = &rule.matches[..] else { panic!() };
    assert_eq!(only.methods, [StringMatch::Exact("POST".into())]);
    assert_eq!(&*only.headers[0].name, "x-tier");
    assert_eq!(
        only.connection.not_namespaces,
        [StringMatch::Exact("admin".into())]
    );
}

#[test]
fn what_cannot_be_used_limits_nothing_and_says_why() {
    for (rest, says) in [
        ("  rules: []", "rules is empty"),
        ("  rules: [{requests: 0}]", "rules[0].requests"),
        ("  rules: [{requests: 1, burst: 0}]", "rules[0].burst"),
        ("  rules: [{requests: 1, per: 25h}]", "rules[0].per"),
        ("  rules: [{requests: 1, per: soon}]", "rules[0].per"),
        (
            "  rules: [{requests: 1, key: [{by: Header}]}]",
            "rules[0].key[0].name",
        ),
        (
            "  rules: [{requests: 1, key: [{by: ClientIdentity, name: x}]}]",
            "rules[0].key[0].name",
        ),
        (
            "  rules: [{requests: 1, match: [{paths: ['/{**}/{**}']}]}]",
            "rules[0].match[0].paths",
        ),
        (
            "  rules: [{requests: 1, name: a}, {requests: 2, name: a}]",
            "rules[1].name",
        ),
        (
            "  response: {status: 200}\n  rules: [{requests: 1}]",
            "response.status",
        ),
    ] {
        let world = World::of(&format!("{MESH}{}", limit(CART, rest)));
        assert!(told(&world).is_none(), "{rest}");
        assert_eq!(
            world.reasons(Kind::RateLimit, "shop", "p"),
            ["Invalid"],
            "{rest}"
        );
        let said = world.said(Kind::RateLimit, "shop", "p").join(" ");
        assert!(said.contains(says), "{rest}: {said}");
    }
    for (target, reason) in [
        ("{kind: Service, group: '', name: nobody}", "TargetNotFound"),
        (
            "{kind: HTTPRoute, group: gateway.networking.k8s.io, name: x}",
            "TargetNotFound",
        ),
        ("{kind: Pod, group: '', name: x}", "Invalid"),
    ] {
        let world = World::of(&format!(
            "{MESH}{}",
            limit(target, "  rules: [{requests: 1}]")
        ));
        assert_eq!(
            world.reasons(Kind::RateLimit, "shop", "p"),
            [reason],
            "{target}"
        );
    }
}

/// What waypoint `shop/w` is told of the service.
fn traffic(world: &World) -> Option<&ServiceTraffic> {
    let mut rows = world.model.traffic.iter();
    let found = rows.find(|((gateway, _), _)| gateway.to_string() == "shop/w");
    found.map(|(_, traffic)| &**traffic)
}

#[test]
fn a_health_check_holds_for_its_service_without_any_destination_rule() {
    let check = "
---
apiVersion: policy.karst.io/v1alpha1
kind: HealthCheck
metadata: {name: c, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: cart}]
  http: {path: /healthz, statuses: ['200', 204-206]}
  interval: 500ms
  timeout: 250ms
";
    let mut world = World::of(&format!("{MESH}{check}"));
    let policy = traffic(&world).unwrap().policy(80, None).unwrap();
    let check = policy.health_check.as_ref().unwrap();
    assert_eq!(check.interval, Duration::from_millis(500));
    assert!(matches!(&check.probe, HealthProbe::Http { path, .. } if &**path == "/healthz"));
    assert_eq!(world.reasons(Kind::HealthCheck, "shop", "c"), ["Accepted"]);
    world.delete(Kind::HealthCheck, "shop", "c");
    assert!(traffic(&world).is_none());
}

const TLS: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: t, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: cart, sectionName: admin}]
  validation:
    caCertificateRefs: [{kind: ConfigMap, group: '', name: roots}]
    hostname: cart.example.com
    subjectAltNames: [{type: URI, uri: 'spiffe://other/cart'}]
";

#[test]
fn tls_to_a_backend_waits_for_its_roots_and_never_goes_plain() {
    let mut world = World::of(&format!("{MESH}{TLS}"));
    let tls = |world: &World, port| {
        let policy = traffic(world).unwrap().policy(port, None);
        policy.and_then(|policy| policy.tls.clone())
    };
    assert_eq!(tls(&world, 80), None, "another port");
    let waiting = tls(&world, 81).unwrap();
    assert_eq!(waiting.mode, TlsMode::Simple);
    assert!(
        waiting.broken.is_some(),
        "connections fail until the roots are there"
    );
    assert_eq!(
        world.reasons(Kind::BackendTlsPolicy, "shop", "t"),
        ["ResolvedRefs"]
    );
    world.apply(
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: shop}
data: {ca.crt: '-----BEGIN CERTIFICATE----- PEM -----END CERTIFICATE-----'}
",
    );
    let ready = tls(&world, 81).unwrap();
    assert_eq!(ready.broken, None);
    assert_eq!(ready.sni.as_deref(), Some("cart.example.com"));
    assert_eq!(ready.sans, [San::Uri("spiffe://other/cart".into())]);
    assert!(matches!(&ready.anchors, TrustAnchors::Pem(pem) if pem.contains("PEM")));
    assert_eq!(
        world.reasons(Kind::BackendTlsPolicy, "shop", "t"),
        ["Accepted"]
    );
    world.delete(Kind::ConfigMap, "shop", "roots");
    assert!(tls(&world, 81).unwrap().broken.is_some());
}

/// Of each entry of the policy's status: whom it is about, and the reasons of Accepted and ResolvedRefs.
fn ancestors(world: &World, policy: &str) -> Vec<(String, &'static str, &'static str)> {
    let key = ObjectKey::new(Kind::BackendTlsPolicy, "shop", policy);
    let status = world.model.route_statuses.get(&key);
    let parents = status.into_iter().flat_map(|status| &status.parents);
    parents
        .map(|one| {
            let [accepted, resolved] = &one.conditions[..] else {
                panic!("{one:?}")
            };
            let kind = one.parent.kind.as_deref().unwrap();
            let about = format!("{kind}/{}", one.parent.name);
            (about, accepted.reason, resolved.reason)
        })
        .collect()
}

#[test]
fn a_tls_policy_tells_its_waypoint_who_wins_and_which_roots_are_missing() {
    let mut world = World::of(&format!("{MESH}{TLS}"));
    let of = |accepted, resolved| vec![("Gateway/w".to_owned(), accepted, resolved)];
    assert_eq!(
        ancestors(&world, "t"),
        of("NoValidCACertificate", "InvalidCACertificateRef")
    );
    let map = |pem: &str| {
        format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{name: roots, namespace: shop}}
data: {{ca.crt: '{pem}'}}
"
        )
    };
    world.apply(&map("no certificate"));
    assert_eq!(
        ancestors(&world, "t"),
        of("NoValidCACertificate", "InvalidCACertificateRef")
    );
    assert!(
        traffic(&world)
            .unwrap()
            .policy(81, None)
            .unwrap()
            .tls
            .as_ref()
            .unwrap()
            .broken
            .is_some()
    );
    world.apply(&map(
        "-----BEGIN CERTIFICATE----- A -----END CERTIFICATE-----",
    ));
    assert_eq!(ancestors(&world, "t"), of("Accepted", "ResolvedRefs"));

    // An older one for the same port holds in its place, and gives it back.
    let older = TLS
        .replace(
            "name: t,",
            "creationTimestamp: '1960-01-01T00:00:00Z', name: z,",
        )
        .replace("cart.example.com", "older.example.com");
    world.apply(&older);
    assert_eq!(ancestors(&world, "z"), of("Accepted", "ResolvedRefs"));
    assert_eq!(ancestors(&world, "t"), of("Conflicted", "ResolvedRefs"));
    let sni = |world: &World| {
        let policy = traffic(world).unwrap().policy(81, None).unwrap();
        policy.tls.as_ref().unwrap().sni.clone().unwrap()
    };
    assert_eq!(&*sni(&world), "older.example.com");
    world.delete(Kind::BackendTlsPolicy, "shop", "z");
    assert_eq!(ancestors(&world, "t"), of("Accepted", "ResolvedRefs"));
    assert_eq!(&*sni(&world), "cart.example.com");

    // Without a waypoint nobody makes the connections.
    world.apply(&TLS.replace("name: cart, sectionName: admin", "name: nobody"));
    let nobody = vec![(
        "Service/nobody".to_owned(),
        "TargetNotFound",
        "ResolvedRefs",
    )];
    assert_eq!(ancestors(&world, "t"), nobody);
    world.delete(Kind::BackendTlsPolicy, "shop", "t");
    assert_eq!(ancestors(&world, "t"), []);
}
