//! Policies with `targetRefs`: what each waypoint is told, what they seal, and what their author hears.

use karst_k8s_api::Kind;
use karst_model::{
    policy::{Match, StringMatch},
    waypoint_policy::{PathPattern, PolicyTarget, RequestAction, RequestMatch, WaypointPolicy},
};

use crate::world::{Model, World};

/// Namespace `shop` with a waypoint and its label; a Service and a ServiceEntry there, another Service in `web`.
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
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: shop}
spec:
  hosts: [a.example.com]
  addresses: [240.0.0.1]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
---
apiVersion: v1
kind: Service
metadata: {name: site, namespace: web}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{port: 80}]}
";

const CART: &str = "{kind: Service, group: '', name: cart}";

/// A policy `p`; `rest` is YAML of its spec, two spaces deep.
fn policy(namespace: &str, target: &str, rest: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {namespace}}}
spec:
  targetRefs: [{target}]
{rest}
"
    )
}

const DENY: &str = "  action: DENY\n  rules: [{to: [{operation: {methods: [DELETE]}}]}]";

fn world(namespace: &str, target: &str, rest: &str) -> World {
    World::of(&format!("{MESH}{}", policy(namespace, target, rest)))
}

/// The policy as waypoint `shop/w` has it.
fn told(world: &World) -> Option<&WaypointPolicy> {
    let mut rows = world.model.waypoint_policies.iter();
    let found = rows.find(|((gateway, _), _)| gateway.to_string() == "shop/w");
    found.map(|(_, policy)| &**policy)
}

fn reasons(world: &World, namespace: &str) -> Vec<&'static str> {
    world.reasons(Kind::AuthorizationPolicy, namespace, "p")
}

/// The only match of the only clause of the only rule.
fn only_match(rest: &str) -> RequestMatch {
    let world = world("shop", CART, rest);
    let policy = told(&world).expect("the policy is told").clone();
    let [rule] = &policy.rules[..] else {
        panic!("{policy:?}")
    };
    let [clause] = &rule.clauses[..] else {
        panic!("{policy:?}")
    };
    let [only] = &clause.matches[..] else {
        panic!("{policy:?}")
    };
    only.clone()
}

#[test]
fn a_policy_goes_to_the_waypoint_of_its_target() {
    let service = |key: &str| PolicyTarget::Service(key.parse().unwrap());
    for (target, expected) in [
        (CART, service("shop/cart.shop.svc.cluster.local")),
        (
            "{kind: ServiceEntry, group: networking.istio.io, name: ext}",
            service("shop/a.example.com"),
        ),
        (
            "{kind: Gateway, group: gateway.networking.k8s.io, name: w}",
            PolicyTarget::Gateway {
                namespace: "shop".into(),
                name: "w".into(),
            },
        ),
    ] {
        let world = world("shop", target, DENY);
        let policy = told(&world).unwrap();
        assert_eq!(policy.targets, [expected], "{target}");
        assert_eq!(policy.action, RequestAction::Deny);
        assert_eq!(reasons(&world, "shop"), ["Accepted"], "{target}");
        assert_eq!(world.policy("shop/p"), None, "nothing goes to L4");
    }
}

#[test]
fn a_class_is_targeted_from_the_root_namespace_only() {
    let class = "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}";
    let world_of_root = world("istio-system", class, DENY);
    assert_eq!(
        told(&world_of_root).unwrap().targets,
        [PolicyTarget::GatewayClass("istio-waypoint".into())]
    );
    let elsewhere = world("shop", class, DENY);
    assert_eq!(told(&elsewhere), None);
    assert_eq!(reasons(&elsewhere, "shop"), ["Invalid"]);
}

#[test]
fn a_target_that_nobody_can_enforce_for_is_named() {
    for (namespace, target, reason) in [
        (
            "shop",
            "{kind: Service, group: '', name: nobody}",
            "TargetNotFound",
        ),
        (
            "shop",
            "{kind: ServiceEntry, group: networking.istio.io, name: nobody}",
            "TargetNotFound",
        ),
        (
            "shop",
            "{kind: Gateway, group: gateway.networking.k8s.io, name: nobody}",
            "TargetNotFound",
        ),
        (
            "web",
            "{kind: Service, group: '', name: site}",
            "AncestorNotBound",
        ),
        ("shop", "{kind: Pod, group: '', name: cart}", "Invalid"),
        (
            "web",
            "{kind: Service, group: '', name: cart, namespace: shop}",
            "Invalid",
        ),
    ] {
        let world = world(namespace, target, DENY);
        assert_eq!(reasons(&world, namespace), [reason], "{target}");
        assert!(world.model.waypoint_policies.is_empty(), "{target}");
    }
}

#[test]
fn it_follows_its_target() {
    let mut world = world("web", "{kind: Service, group: '', name: site}", DENY);
    world.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: site, namespace: web, labels: {istio.io/use-waypoint: w}}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: web}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: Hostname, value: w}]}
",
    );
    assert_eq!(reasons(&world, "web"), ["Accepted"]);
    let gateways: Vec<String> = world
        .model
        .waypoint_policies
        .keys()
        .map(|(one, _)| one.to_string())
        .collect();
    assert_eq!(gateways, ["web/w"]);
    world.delete(Kind::Gateway, "web", "w");
    assert_eq!(reasons(&world, "web"), ["AncestorNotBound"]);
    assert!(world.model.waypoint_policies.is_empty());
    world.delete(Kind::AuthorizationPolicy, "web", "p");
    assert_eq!(reasons(&world, "web"), [""; 0]);
    assert_eq!(world.model, Model::of_snapshot(&world.index));
}

#[test]
fn what_decides_seals_and_what_only_watches_does_not() {
    let sealed = |rest: &str, annotations: &str| {
        let text = policy("shop", CART, rest).replace(
            "namespace: shop}",
            &format!("namespace: shop{annotations}}}"),
        );
        let world = World::of(&format!("{MESH}{text}"));
        world.policy("shop/karst-seal-cart").is_some()
    };
    assert!(sealed(DENY, ""));
    assert!(sealed("  rules: [{}]", ""));
    assert!(!sealed("  action: AUDIT\n  rules: [{}]", ""));
    assert!(!sealed(DENY, ", annotations: {istio.io/dry-run: 'true'}"));
    let mut world = world("shop", CART, DENY);
    assert!(world.policy("shop/karst-seal-cart").is_some());
    world.delete(Kind::AuthorizationPolicy, "shop", "p");
    assert!(world.policy("shop/karst-seal-cart").is_none());
}

/// Who asks beforehand whom a seal would refuse reads it in the service's status.
#[test]
fn what_a_dry_run_would_seal_is_said_until_it_is_in_force() {
    let text = |annotations: &str| {
        policy("shop", CART, DENY).replace(
            "namespace: shop}",
            &format!("namespace: shop{annotations}}}"),
        )
    };
    let dry = text(", annotations: {istio.io/dry-run: 'true'}");
    let said = |world: &World| {
        let said = world.reasons(Kind::Service, "shop", "cart");
        ["DryRun", "PolicyAttached"].map(|reason| said.contains(&reason))
    };
    let mut world = World::of(&format!("{MESH}{dry}"));
    assert_eq!(said(&world), [true, false]);
    world.apply(&text(""));
    assert_eq!(said(&world), [false, true]);
    world.apply(&dry);
    assert_eq!(said(&world), [true, false]);
    world.delete(Kind::AuthorizationPolicy, "shop", "p");
    assert_eq!(said(&world), [false, false]);
}

#[test]
fn every_part_of_a_rule_is_lowered() {
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let found = only_match(
        "  rules:
  - to: [{operation: {methods: [GET], notMethods: [PUT], paths: ['/a*', '/b/{*}/c'], notPaths: ['*/z'], hosts: [h], notHosts: [i], ports: ['80'], notPorts: ['81']}}]",
    );
    assert_eq!(
        (found.methods, found.not_methods),
        (exact("GET"), exact("PUT"))
    );
    assert_eq!(
        found.paths,
        [
            PathPattern::Text(StringMatch::Prefix("/a".into())),
            PathPattern::Template("/b/{*}/c".into())
        ]
    );
    assert_eq!(
        found.not_paths,
        [PathPattern::Text(StringMatch::Suffix("/z".into()))]
    );
    assert_eq!((found.hosts, found.not_hosts), (exact("h"), exact("i")));
    assert_eq!(found.connection.destination_ports, [80]);
    assert_eq!(found.connection.not_destination_ports, [81]);

    let found = only_match(
        "  rules:
  - from: [{source: {trustDomains: [td], notTrustDomains: ['*'], remoteIpBlocks: [10.0.0.0/8], notRemoteIpBlocks: [10.1.0.0/16], requestPrincipals: ['*'], namespaces: [shop], ipBlocks: [10.2.0.1]}}]",
    );
    assert_eq!(
        found.connection.principals,
        [StringMatch::Prefix("td/".into())]
    );
    assert_eq!(found.connection.not_principals, [StringMatch::Presence]);
    assert_eq!((found.remote_ips.len(), found.not_remote_ips.len()), (1, 1));
    assert_eq!(found.request_principals, [StringMatch::Presence]);
    assert!(!found.connection.unreadable);

    let when = |key: &str, value: &str| {
        only_match(&format!(
            "  rules: [{{when: [{{key: '{key}', values: ['{value}']}}]}}]"
        ))
    };
    let header = &when("request.headers[X-User]", "a").headers[0];
    assert_eq!((&*header.name, &header.values), ("x-user", &exact("a")));
    assert_eq!(when("connection.sni", "s").sni, exact("s"));
    assert_eq!(when("remote.ip", "10.0.0.1").remote_ips.len(), 1);
    assert_eq!(
        when("request.auth.principal", "i/s").request_principals,
        exact("i/s")
    );
    assert_eq!(
        when("source.serviceAccount", "web/a")
            .connection
            .service_accounts
            .len(),
        1
    );
    assert_eq!(
        when("destination.port", "80").connection.destination_ports,
        [80]
    );
}

#[test]
fn what_cannot_be_read_fails_closed_and_is_named() {
    let unreadable = Match {
        unreadable: true,
        ..Match::default()
    };
    for rule in [
        "{when: [{key: 'request.auth.claims', values: [b]}]}",
        "{when: [{key: 'request.auth.claims[a][]', values: [b]}]}",
        "{when: [{key: experimental.x, values: [b]}]}",
        "{to: [{operation: {ports: [http]}}]}",
        "{to: [{operation: {paths: ['/a/{**}/{*}']}}]}",
        "{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}",
        "{from: [{source: {trustDomains: ['*x']}}]}",
    ] {
        for action in ["ALLOW", "DENY"] {
            let rest = format!("  action: {action}\n  rules: [{rule}]");
            assert_eq!(only_match(&rest).connection, unreadable, "{rule}");
            let world = world("shop", CART, &rest);
            assert_eq!(reasons(&world, "shop")[0], "UnsupportedValue", "{rule}");
        }
    }
    let both = only_match(
        "  rules: [{from: [{source: {trustDomains: [td], principals: [td/ns/a/sa/b]}}]}]",
    );
    assert!(both.connection.unreadable, "one list cannot say both");
}

#[test]
fn custom_asks_its_provider_and_a_dry_run_says_so() {
    let custom = world(
        "shop",
        CART,
        "  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]",
    );
    let unasked = told(&custom).unwrap();
    assert_eq!(
        (unasked.action, &unasked.provider),
        (RequestAction::Custom, &None)
    );
    assert_eq!(reasons(&custom, "shop")[0], "ProviderNotFound");

    let text = policy("shop", CART, DENY).replace(
        "namespace: shop}",
        "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
    );
    let dry = World::of(&format!("{MESH}{text}"));
    assert!(told(&dry).unwrap().dry_run);
    assert_eq!(reasons(&dry, "shop"), ["Accepted"]);
}

#[test]
fn rules_without_conditions_match_everything_and_none_nothing() {
    let everything = world("shop", CART, "  rules: [{}]");
    assert_eq!(told(&everything).unwrap().rules.len(), 1);
    assert!(told(&everything).unwrap().rules[0].clauses.is_empty());
    let nothing = world("shop", CART, "  action: ALLOW");
    assert!(told(&nothing).unwrap().rules.is_empty());
}
