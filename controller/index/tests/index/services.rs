//! Services and who stands behind them.

use karst_k8s_api::Kind;
use karst_model::{
    protocol::AppProtocol,
    service::{HealthPolicy, IpFamilies, LoadBalancingMode, PortMap, Scope, Visibility},
    workload::{Health, Workload},
};

use crate::world::{World, pod};

const WEB: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, fd00::1]
  ipFamilies: [IPv4, IPv6]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: grpc-api, port: 81, targetPort: 7000}
  - {name: none, port: 82, targetPort: missing}
  - {name: dns, port: 53, protocol: UDP}
";

fn ports(workload: &Workload, service: &str) -> Option<Vec<(u16, u16)>> {
    let key = format!("shop/{service}.shop.svc.cluster.local")
        .parse()
        .unwrap();
    workload
        .services
        .get(&key)
        .map(|ports: &PortMap| ports.iter().map(|(a, b)| (*a, *b)).collect())
}

#[test]
fn a_service_and_the_pods_that_it_selects() {
    let mut world = World::of(&(WEB.to_owned() + &pod("a", "10.0.0.1", "  labels: {app: web}")));
    let web = world.service("web");
    let vips: Vec<String> = web.addresses.iter().map(|vip| vip.ip.to_string()).collect();
    assert_eq!(vips, ["10.96.0.1", "fd00::1"]);
    assert_eq!(web.ip_families, IpFamilies::Dual);
    let spoken: Vec<_> = web
        .ports
        .iter()
        .map(|(number, port)| (*number, port.target_port, port.app_protocol))
        .collect();
    let expected = [
        (80, 0, AppProtocol::Http11),
        (81, 7000, AppProtocol::Grpc),
        (82, 0, AppProtocol::Unknown),
    ];
    assert_eq!(spoken, expected);
    assert_eq!(
        ports(world.pod("a"), "web").unwrap(),
        [(80, 8080), (81, 7000)],
        "a missing named port is left out"
    );
    assert_eq!(
        world.reasons(Kind::Service, "shop", "web"),
        ["UnsupportedProtocol"],
        "UDP is named"
    );
    world.apply(&pod("a", "10.0.0.1", "  labels: {app: other}"));
    assert_eq!(ports(world.pod("a"), "web"), None);
    world.apply(&WEB.replace("app: web", "app: other"));
    assert!(ports(world.pod("a"), "web").is_some());
    world.delete(Kind::Service, "shop", "web");
    assert_eq!(ports(world.pod("a"), "web"), None);
    assert!(world.model.services.is_empty() && world.model.conditions.is_empty());
}

#[test]
fn a_service_selects_only_in_its_own_namespace() {
    let other = pod("a", "10.0.0.1", "  labels: {app: web}")
        .replace("namespace: shop", "namespace: elsewhere");
    let world = World::of(&(WEB.to_owned() + &other));
    assert!(
        world
            .model
            .workloads
            .values()
            .all(|workload| workload.services.is_empty())
    );
}

#[test]
fn health_follows_readiness_and_deletion() {
    let mut world = World::of(&pod("a", "10.0.0.1", ""));
    assert_eq!(world.pod("a").health, Health::Healthy);
    world.apply(&pod("a", "10.0.0.1", "").replace("\"True\"", "\"False\""));
    assert_eq!(world.pod("a").health, Health::Unhealthy);
    world.apply(&pod(
        "a",
        "10.0.0.1",
        "  deletionTimestamp: 2026-01-01T00:00:00Z",
    ));
    assert_eq!(world.pod("a").health, Health::Unhealthy, "terminating");
    world.apply(
        &pod("a", "10.0.0.1", "").replace("podIPs: [{ip: 10.0.0.1}]", "hostIP: 192.168.0.1"),
    );
    assert!(world.model.workloads.is_empty(), "no address, no workload");
    assert!(
        world.node_row("uid-a").is_some(),
        "its node hears of it nevertheless"
    );
}

#[test]
fn load_balancing_of_a_service() {
    use Scope::{Network, Node, Region, Subzone, Zone};
    let cases: [(&str, LoadBalancingMode, &[Scope]); 5] = [
        (
            "internalTrafficPolicy: Local",
            LoadBalancingMode::Strict,
            &[Node],
        ),
        (
            "trafficDistribution: PreferClose",
            LoadBalancingMode::Failover,
            &[Network, Region, Zone],
        ),
        (
            "trafficDistribution: PreferSameNode",
            LoadBalancingMode::Failover,
            &[Network, Region, Zone, Subzone, Node],
        ),
        (
            "internalTrafficPolicy: Local\n  trafficDistribution: PreferClose",
            LoadBalancingMode::Strict,
            &[Node],
        ),
        (
            "internalTrafficPolicy: Cluster",
            LoadBalancingMode::Unspecified,
            &[],
        ),
    ];
    for (line, mode, scopes) in cases {
        let world = World::of(&WEB.replace("spec:\n", &format!("spec:\n  {line}\n")));
        let balancing = &world.service("web").load_balancing;
        assert_eq!(
            (balancing.mode, &*balancing.routing_preference),
            (mode, scopes),
            "{line}"
        );
    }
    let line = "spec:\n  publishNotReadyAddresses: true\n  sessionAffinity: ClientIP\n";
    let world = World::of(&WEB.replace("spec:\n", line));
    let balancing = &world.service("web").load_balancing;
    assert_eq!(balancing.health_policy, HealthPolicy::AllowAll);
    assert_eq!(
        balancing.session_affinity.unwrap().idle_timeout_seconds,
        10_800
    );
}

#[test]
fn traffic_distribution_of_the_namespace_holds_where_the_service_says_nothing() {
    let space = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}
";
    let mut world = World::of(WEB);
    world.apply(space);
    assert_eq!(
        world.service("web").load_balancing.mode,
        LoadBalancingMode::Failover
    );
    world.delete(Kind::Namespace, "", "shop");
    assert_eq!(
        world.service("web").load_balancing.mode,
        LoadBalancingMode::Unspecified
    );
}

#[test]
fn an_external_name_is_no_service_of_the_mesh() {
    let text = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: ExternalName, externalName: example.com., selector: {app: web}}
";
    let mut world = World::of(&(WEB.to_owned() + &pod("a", "10.0.0.1", "  labels: {app: web}")));
    world.apply(text);
    assert!(world.model.services.is_empty());
    assert_eq!(ports(world.pod("a"), "web"), None);
    world.apply(WEB);
    assert!(ports(world.pod("a"), "web").is_some());
}

#[test]
fn headless_services_have_no_address_and_are_reached_all_the_same() {
    let headless = WEB.replace(
        "clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, fd00::1]",
        "clusterIP: None",
    );
    let world = World::of(&(headless + &pod("a", "10.0.0.1", "  labels: {app: web}")));
    assert!(world.service("web").addresses.is_empty());
    assert!(ports(world.pod("a"), "web").is_some());
    assert_eq!(
        world.reasons(Kind::Service, "shop", "web"),
        ["UnsupportedProtocol"],
        "no complaint of a missing address"
    );
}

const SLICE: &str = "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a, namespace: shop}, conditions: {ready: true}}
- {addresses: [192.168.7.7], nodeName: n1, conditions: {ready: true}}
- {addresses: [192.168.7.8], conditions: {ready: false, serving: true, terminating: true}}
";

#[test]
fn services_without_a_selector_take_what_slices_say() {
    let service = WEB.replace("  selector: {app: web}\n", "");
    let node = "
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
";
    let mut world = World::of(&(service + SLICE + &pod("a", "10.0.0.1", "")));
    assert_eq!(ports(world.pod("a"), "web").unwrap(), [(80, 9000)]);
    world.apply(node);
    let bare: Vec<_> = world
        .model
        .workloads
        .values()
        .filter(|workload| workload.host_network)
        .collect();
    assert_eq!(bare.len(), 2);
    assert_eq!(
        &*bare[0].uid.0,
        "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.168.7.7"
    );
    assert_eq!(
        (bare[0].health, bare[1].health),
        (Health::Healthy, Health::Unhealthy)
    );
    assert_eq!(
        (&*bare[0].locality.region, &*bare[0].locality.zone),
        ("r", "z")
    );
    assert_eq!(&*world.pod("a").locality.zone, "z");
    world.delete(Kind::EndpointSlice, "shop", "web-1");
    assert_eq!(world.model.workloads.len(), 1);
    assert_eq!(ports(world.pod("a"), "web"), None);
}

#[test]
fn where_there_is_a_selector_it_decides_over_slices() {
    let world =
        World::of(&(WEB.to_owned() + SLICE + &pod("a", "10.0.0.1", "  labels: {app: other}")));
    assert_eq!(ports(world.pod("a"), "web"), None, "the slice lags behind");
    let bare = world
        .model
        .workloads
        .values()
        .filter(|workload| workload.host_network)
        .count();
    assert_eq!(
        bare, 2,
        "endpoints that are no pods have nobody else to name them"
    );
}

#[test]
fn dual_stack_pods_have_both_addresses() {
    let text = pod("a", "10.0.0.1", "").replace("{ip: 10.0.0.1}", "{ip: 10.0.0.1}, {ip: fd00::7}");
    let world = World::of(&text);
    assert_eq!(
        world.pod("a").addresses,
        [
            "10.0.0.1".parse::<std::net::IpAddr>().unwrap(),
            "fd00::7".parse().unwrap()
        ]
    );
}

#[test]
fn export_to_limits_who_sees_a_service() {
    let exported = |to: &str| {
        let meta = format!(
            "metadata: {{name: web, namespace: shop, annotations: {{networking.istio.io/exportTo: \"{to}\"}}}}"
        );
        World::of(&WEB.replace("metadata: {name: web, namespace: shop}", &meta))
    };
    assert_eq!(exported("*").service("web").visibility, Visibility::Public);
    assert_eq!(
        exported(".").service("web").visibility,
        Visibility::Namespace
    );
    assert!(exported("~").model.services.is_empty());
    let listed = exported("shop,other");
    assert_eq!(listed.service("web").visibility, Visibility::Namespace);
    assert!(
        listed
            .reasons(Kind::Service, "shop", "web")
            .contains(&"UnsupportedValue")
    );
}

#[test]
fn a_small_edit_is_a_small_delta() {
    let mut text = WEB.to_owned();
    for number in 0..50 {
        text += &pod(
            &format!("p{number}"),
            &format!("10.0.1.{number}"),
            "  labels: {app: web}",
        );
    }
    let mut world = World::of(&text);
    let again = world.apply(&text);
    assert!(again.is_empty(), "{again:?}");
    let one = world
        .apply(&pod("p7", "10.0.1.7", "  labels: {app: web}").replace("\"True\"", "\"False\""));
    assert_eq!(
        (one.workloads.updated.len(), one.services.updated.len()),
        (1, 0)
    );
    let affinity = world.apply(&WEB.replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n"));
    assert_eq!(
        (
            affinity.workloads.updated.len(),
            affinity.services.updated.len()
        ),
        (0, 1)
    );
}

#[test]
fn a_label_for_a_waypoint_that_is_not_there_is_named() {
    let mut world = World::of(&WEB.replace(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/use-waypoint: w}}",
    ));
    assert!(
        world
            .reasons(Kind::Service, "shop", "web")
            .contains(&"WaypointIsMissing")
    );
    world.apply("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n");
    assert_eq!(
        world.reasons(Kind::Namespace, "", "shop"),
        ["WaypointIsMissing"]
    );
}
