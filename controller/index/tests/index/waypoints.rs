//! Waypoints by labels, seals by annotation, and what they make of services, pods and policies.

use karst_k8s_api::Kind;
use karst_model::{
    policy::{Action, StringMatch},
    workload::{ApplicationTunnel, GatewayDestination},
};

use crate::world::{World, pod};

/// A namespace of the mesh with labels.
fn namespace(name: &str, labels: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{istio.io/dataplane-mode: ambient{labels}}}}}\n"
    )
}

/// A waypoint in namespace `space`; `more` is added to its metadata, `listener` to its listener.
fn gateway(space: &str, ready: bool, more: &str, listener: &str) -> String {
    let status = if ready {
        "status: {addresses: [{type: Hostname, value: w}]}"
    } else {
        ""
    };
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: {space}{more}}}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE{listener}}}]\n{status}\n"
    )
}

fn service(name: &str, more: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{more}}}\nspec: {{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {{app: {name}}}, ports: [{{port: 80, targetPort: web}}, {{port: 90, targetPort: 9090}}]}}\n"
    )
}

fn waypoint_of(world: &World, name: &str) -> Option<String> {
    match &world.service(name).waypoint.as_ref()?.destination {
        GatewayDestination::Service(key) => Some(key.to_string()),
        GatewayDestination::Address(addr) => Some(addr.to_string()),
    }
}

const USE: &str = ", istio.io/use-waypoint: w";

fn reason(world: &World, name: &str) -> Option<&'static str> {
    world
        .reasons(Kind::Service, "shop", name)
        .into_iter()
        .next()
}

#[test]
fn a_label_binds_once_the_waypoint_has_been_in_place() {
    let mut world = World::of(&(namespace("shop", USE) + &service("orders", "")));
    assert_eq!(waypoint_of(&world, "orders"), None);
    assert_eq!(reason(&world, "orders"), Some("WaypointIsMissing"));
    world.apply(&gateway("shop", false, "", ""));
    assert_eq!(waypoint_of(&world, "orders"), None);
    assert_eq!(reason(&world, "orders"), Some("WaypointIsNotReady"));
    world.apply(&gateway("shop", true, "", ""));
    assert_eq!(
        waypoint_of(&world, "orders").as_deref(),
        Some("shop/w.shop.svc.cluster.local")
    );
    assert_eq!(reason(&world, "orders"), Some("WaypointAccepted"));
    world.delete(Kind::Gateway, "shop", "w");
    assert_eq!(reason(&world, "orders"), Some("WaypointIsMissing"));
    assert_eq!(waypoint_of(&world, "orders"), None);
}

#[test]
fn an_objects_own_label_is_final() {
    let own = |value: &str| format!(", labels: {{istio.io/use-waypoint: {value}}}");
    let world = World::of(
        &(namespace("shop", USE)
            + &gateway("shop", true, "", "")
            + &service("a", &own("none"))
            + &service("b", &own("other"))
            + &service("c", "")),
    );
    assert_eq!(waypoint_of(&world, "a"), None);
    assert_eq!(reason(&world, "a"), None);
    assert_eq!(waypoint_of(&world, "b"), None);
    assert_eq!(reason(&world, "b"), Some("WaypointIsMissing"));
    assert!(waypoint_of(&world, "c").is_some());
}

#[test]
fn a_listener_says_which_namespaces_attach() {
    let across = ", istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra";
    let of = |listener: &str, labels: &str| {
        World::of(
            &(namespace("shop", &format!("{across}{labels}"))
                + &gateway("infra", true, "", listener)
                + &service("orders", "")),
        )
    };
    assert_eq!(reason(&of("", ""), "orders"), Some("AttachmentDenied"));
    let all = ", allowedRoutes: {namespaces: {from: All}}";
    assert_eq!(reason(&of(all, ""), "orders"), Some("WaypointAccepted"));
    let team =
        ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}";
    assert_eq!(reason(&of(team, ""), "orders"), Some("AttachmentDenied"));
    let mut world = of(team, ", team: a");
    assert_eq!(reason(&world, "orders"), Some("WaypointAccepted"));
    world.apply(&namespace("shop", across));
    assert_eq!(reason(&world, "orders"), Some("AttachmentDenied"));
}

#[test]
fn what_a_waypoint_is_for_decides_what_attaches() {
    let of = |value: &str| {
        let more = format!(", labels: {{istio.io/waypoint-for: {value}}}");
        let own = "  labels: {app: orders, istio.io/use-waypoint: w}";
        World::of(
            &(namespace("shop", USE)
                + &gateway("shop", true, &more, "")
                + &service("orders", "")
                + &pod("a", "10.0.0.1", "  labels: {app: orders}")
                + &pod("b", "10.0.0.2", own)),
        )
    };
    for (value, service, workload) in [
        ("service", true, false),
        ("workload", false, true),
        ("all", true, true),
        ("none", false, false),
    ] {
        let world = of(value);
        assert_eq!(waypoint_of(&world, "orders").is_some(), service, "{value}");
        assert_eq!(world.pod("a").waypoint.is_some(), workload, "{value}");
        let said = world.reasons(Kind::Pod, "shop", "b");
        let expected = match workload {
            true => "WaypointAccepted",
            false => "UnsupportedTrafficType",
        };
        assert_eq!(said, [expected], "{value}");
        assert_eq!(
            world.reasons(Kind::Pod, "shop", "a").is_empty(),
            !workload,
            "{value}: an inherited label that is not for pods is no mistake of the pod"
        );
    }
}

#[test]
fn what_is_made_for_a_waypoint_has_none_itself() {
    let made = ", labels: {gateway.istio.io/managed: istio.io-mesh-controller}";
    let world = World::of(
        &(namespace("shop", USE)
            + &gateway("shop", true, "", "")
            + &service("w", made)
            + &pod(
                "w-0",
                "10.0.0.1",
                "  labels: {gateway.networking.k8s.io/gateway-name: w}",
            )),
    );
    assert_eq!(waypoint_of(&world, "w"), None);
    assert_eq!(world.pod("w-0").waypoint, None);
}

const SEALED: &str = ", annotations: {karst.dev/seal: 'true'}";

#[test]
fn a_sealed_service_accepts_its_waypoint_only() {
    let mut world = World::of(
        &(namespace("shop", USE)
            + &gateway("shop", true, "", "")
            + &service("orders", SEALED)
            + &pod("a", "10.0.0.1", "  labels: {app: orders}")),
    );
    let policy = world.policy("shop/karst-seal-orders").unwrap();
    assert_eq!(policy.action, Action::Deny);
    let only = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(only.destination_ports, [8080, 9090]);
    assert_eq!(
        only.not_principals,
        [StringMatch::Exact("cluster.local/ns/shop/sa/w".into())]
    );
    let pod = world.pod("a");
    assert_eq!(
        pod.policies,
        ["shop/karst-seal-orders".parse().unwrap()],
        "the pod's agent enforces it"
    );
    let sealed: Vec<_> = pod
        .sealed
        .iter()
        .map(|one| (one.port, one.waypoint.is_some()))
        .collect();
    assert_eq!(sealed, [(8080, true), (9090, true)]);
    assert!(
        world
            .reasons(Kind::Service, "shop", "orders")
            .contains(&"Asked")
    );

    // Without a waypoint nobody is let in.
    world.delete(Kind::Gateway, "shop", "w");
    let policy = world.policy("shop/karst-seal-orders").unwrap();
    assert_eq!(policy.rules[0].clauses[0].matches[0].not_principals, []);
    assert!(
        world
            .pod("a")
            .sealed
            .iter()
            .all(|one| one.waypoint.is_none())
    );

    world.apply(&service("orders", ""));
    assert_eq!(world.policy("shop/karst-seal-orders"), None);
    assert_eq!(world.pod("a").sealed, []);
    assert_eq!(world.pod("a").policies, []);
}

#[test]
fn a_waypoint_is_let_in_where_others_are_listed_and_only_there() {
    let allow = |name: &str, selector: &str| {
        format!(
            "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: ALLOW{selector}, rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]}}\n"
        )
    };
    let key = "shop/karst-allow-waypoint-w".parse().unwrap();
    let mut world = World::of(
        &(namespace("shop", USE)
            + &gateway("shop", true, "", "")
            + &service("orders", "")
            + &pod("a", "10.0.0.1", "  labels: {app: orders}")
            + &pod("b", "10.0.0.2", "  labels: {app: other}")),
    );
    assert_eq!(world.pod("a").policies, []);
    world.apply(&allow("all", ""));
    assert_eq!(world.pod("a").policies, [key]);
    assert_eq!(world.pod("b").policies, [], "no waypoint is before it");
    let policy = world.policy("shop/karst-allow-waypoint-w").unwrap();
    assert_eq!(policy.action, Action::Allow);
    world.delete(Kind::AuthorizationPolicy, "shop", "all");
    assert_eq!(world.pod("a").policies, []);
    world.apply(&allow("some", ", selector: {matchLabels: {app: orders}}"));
    assert_eq!(world.pod("a").policies.len(), 2);
}

#[test]
fn nobody_elses_policy_stands_in_a_derived_ones_place() {
    let world = World::of(
        &(namespace("shop", USE)
            + &gateway("shop", true, "", "")
            + &service("orders", SEALED)
            + "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: karst-seal-orders, namespace: shop}\nspec: {action: ALLOW, rules: [{}]}\n"),
    );
    let policy = world.policy("shop/karst-seal-orders").unwrap();
    assert_eq!(policy.action, Action::Deny);
    assert_eq!(
        world.reasons(Kind::AuthorizationPolicy, "shop", "karst-seal-orders"),
        ["Invalid"]
    );
}

#[test]
fn a_gateways_status_says_whether_it_is_in_place() {
    let mut world = World::of(&(namespace("shop", "") + &gateway("shop", false, "", "")));
    assert_eq!(
        world.reasons(Kind::Gateway, "shop", "w"),
        ["AddressNotAssigned"]
    );
    world.apply(&service("w", ""));
    assert_eq!(world.reasons(Kind::Gateway, "shop", "w"), ["NoResources"]);
    let delta = world.apply(&pod(
        "w-0",
        "10.0.0.1",
        "  labels: {gateway.networking.k8s.io/gateway-name: w}",
    ));
    assert_eq!(world.reasons(Kind::Gateway, "shop", "w"), [""; 0]);
    let [(_, Some(status))] = &delta.gateways[..] else {
        panic!("{delta:?}")
    };
    assert_eq!(status.addresses.len(), 2, "host name and address");
    world.apply(&gateway("shop", false, "", "").replace("HBONE", "HTTP"));
    assert_eq!(
        world.reasons(Kind::Gateway, "shop", "w")[..1],
        ["ListenersNotValid"]
    );
}

#[test]
fn pods_of_a_gateway_get_the_header_that_it_or_its_class_asks_for() {
    let binding = |value: &str| {
        format!(", annotations: {{ambient.istio.io/waypoint-inbound-binding: {value:?}}}")
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, uid: u-p, labels: {gateway.networking.k8s.io/gateway-name: w}}\nspec: {nodeName: a}\nstatus: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}\n";
    let class = |more: &str| {
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio-waypoint{more}}}\nspec: {{controllerName: istio.io/mesh-controller}}\n"
        )
    };
    let mut world = World::empty();
    world.apply(pod);
    assert_eq!(world.pod("p").application_tunnel, None);
    let proxy = |port| Some(ApplicationTunnel::Proxy { port });
    for (of_gateway, of_class, wanted) in [
        (binding("PROXY/15088"), String::new(), proxy(Some(15088))),
        (binding("PROXY"), binding("NONE"), proxy(None)),
        (binding("NONE"), binding("PROXY"), None),
        (String::new(), binding("PROXY/1"), proxy(Some(1))),
        // What cannot be read is said, and counts as unsaid.
        (binding("PROXY/x"), binding("PROXY/2"), proxy(Some(2))),
        (String::new(), String::new(), None),
    ] {
        world.apply(&class(&of_class));
        world.apply(&gateway("shop", true, &of_gateway, ""));
        assert_eq!(
            world.pod("p").application_tunnel,
            wanted,
            "{of_gateway} {of_class}"
        );
    }
}

/// Bound, and nothing ready: whether clients may do without is the service's own choice, and never a sealed one's.
#[test]
fn a_service_may_do_without_its_waypoint_unless_it_is_sealed() {
    const WHEN_READY: &str = ", annotations: {karst.dev/waypoint-required: when-ready}";
    let mut world = World::of(
        &(namespace("shop", USE) + &gateway("shop", true, "", "") + &service("orders", "")),
    );
    assert!(!world.service("orders").waypoint_optional);
    world.apply(&service("orders", WHEN_READY));
    let orders = world.service("orders");
    assert!(orders.waypoint_optional && orders.waypoint.is_some());
    world.apply(&service(
        "orders",
        ", annotations: {karst.dev/waypoint-required: when-ready, karst.dev/seal: 'true'}",
    ));
    assert!(!world.service("orders").waypoint_optional);
    world.apply(&service("orders", WHEN_READY));
    world.apply(
        "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\nspec:\n  targetRefs: [{group: '', kind: Service, name: orders}]\n  action: DENY\n  rules: [{to: [{operation: {methods: [DELETE]}}]}]\n",
    );
    assert!(
        !world.service("orders").waypoint_optional,
        "a policy seals it"
    );
    world.delete(Kind::AuthorizationPolicy, "shop", "deny");
    assert!(world.service("orders").waypoint_optional);
}

#[test]
fn a_gateway_says_how_many_proxies_its_waypoint_believes_else_the_mesh_does() {
    let mesh = |number: u8| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: 'defaultConfig: {{gatewayTopology: {{numTrustedProxies: {number}}}}}'\n"
        )
    };
    let own = |text: &str| {
        let annotation = format!(", annotations: {{proxy.istio.io/config: '{text}'}}");
        gateway("shop", false, &annotation, "")
    };
    let said = |delta: &karst_index::Delta| match &delta.gateways[..] {
        [(_, Some(status))] => status.trusted_proxies,
        other => panic!("{other:?}"),
    };
    let mut world = World::of(&(namespace("shop", "") + &gateway("shop", false, "", "")));
    assert_eq!(said(&world.apply(&mesh(2))), 2);
    assert_eq!(
        said(&world.apply(&own("gatewayTopology: {numTrustedProxies: 1}"))),
        1
    );
    world.apply(&own("gatewayTopology: {numTrustedProxies: lots}"));
    assert_eq!(world.reasons(Kind::Gateway, "shop", "w")[..1], ["Invalid"]);
}
