//! ServiceEntries: hosts, endpoints, addresses, and who stands for a host.

use karst_k8s_api::Kind;
use karst_model::service::{HealthPolicy, LoadBalancingMode, Visibility};

use crate::world::{World, pod};

fn entry(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

const STATIC: &str = "hosts: [db.example], addresses: [10.1.0.0/24, 10.2.0.1], resolution: STATIC, \
    ports: [{number: 5432, name: tcp-db, protocol: TCP}], \
    endpoints: [{address: 192.0.2.1, ports: {tcp-db: 15432}, locality: r/z/s, weight: 3}, {address: 192.0.2.1}, {address: 'unix:///x'}]";

#[test]
fn static_endpoints_become_workloads() {
    let mut world = World::of(&entry("db", STATIC));
    let service = world.host("shop/db.example");
    let vips: Vec<_> = service
        .addresses
        .iter()
        .map(|vip| (vip.ip.to_string(), vip.prefix_len))
        .collect();
    assert_eq!(
        vips,
        [
            ("10.1.0.0".to_owned(), Some(24)),
            ("10.2.0.1".to_owned(), None)
        ]
    );
    assert_eq!(world.model.workloads.len(), 1);
    let workload = world.model.workloads.values().next().unwrap();
    assert_eq!(
        &*workload.uid.0,
        "Kubernetes/networking.istio.io/ServiceEntry/shop/db/192.0.2.1"
    );
    assert_eq!(workload.capacity, 3);
    assert_eq!(&*workload.locality.subzone, "s");
    assert_eq!(
        workload.services.values().next().unwrap().get(&5432),
        Some(&15432)
    );
    assert_eq!(
        world.reasons(Kind::ServiceEntry, "shop", "db"),
        ["UnsupportedValue", "Conflicted"]
    );
    world.delete(Kind::ServiceEntry, "shop", "db");
    assert!(
        world.model.workloads.is_empty()
            && world.model.services.is_empty()
            && world.model.conditions.is_empty()
    );
}

#[test]
fn resolution_none_connects_where_the_client_dialled() {
    let world = World::of(&entry(
        "any",
        "hosts: [any.example], addresses: [10.9.0.0/16], resolution: NONE",
    ));
    let balancing = &world.host("shop/any.example").load_balancing;
    assert_eq!(
        (balancing.mode, balancing.health_policy),
        (LoadBalancingMode::Passthrough, HealthPolicy::AllowAll)
    );
}

#[test]
fn a_port_on_which_clients_name_no_host_is_told_where_hosts_are_resolved_as_they_are_named() {
    let spec = "hosts: ['*.example.com'], resolution: DYNAMIC_DNS, \
        ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}, {number: 5432, name: db, protocol: TCP}]";
    let world = World::of(&entry("any", spec));
    let said = world.said(Kind::ServiceEntry, "shop", "any");
    let of_ports: Vec<&String> = said.iter().filter(|one| one.contains("port ")).collect();
    let [one] = &of_ports[..] else {
        panic!("{said:?}");
    };
    assert!(one.contains("port 5432 of protocol TCP") && one.contains("connections fail"));
}

#[test]
fn dns_hosts_without_endpoints_are_resolved_by_clients() {
    let spec = "hosts: [api.example, '*.w.example'], resolution: DNS, ports: [{number: 443, name: tls, targetPort: 8443}]";
    let world = World::of(&entry("api", spec));
    let workload = world.model.workloads.values().next().unwrap();
    assert_eq!(workload.hostname.as_deref(), Some("api.example"));
    assert!(workload.addresses.is_empty());
    assert_eq!(
        world.model.workloads.len(),
        1,
        "a wildcard cannot be resolved"
    );
    assert!(
        world.host("shop/*.w.example").addresses.is_empty(),
        "nor does it get an address"
    );
}

#[test]
fn hosts_without_addresses_get_one_of_each_family_unless_they_opt_out() {
    let world = World::of(&entry("api", "hosts: [api.example], resolution: DNS"));
    let vips: Vec<String> = world
        .host("shop/api.example")
        .addresses
        .iter()
        .map(|vip| vip.ip.to_string())
        .collect();
    assert!(
        vips[0].starts_with("240.240.") && vips[1].starts_with("2001:2::"),
        "{vips:?}"
    );
    let again = World::of(
        &(entry("other", "hosts: [o.example], resolution: DNS")
            + &entry("api", "hosts: [api.example], resolution: DNS")),
    );
    let stable: Vec<String> = again
        .host("shop/api.example")
        .addresses
        .iter()
        .map(|vip| vip.ip.to_string())
        .collect();
    assert_eq!(vips, stable);
    let opted_out = entry("api", "hosts: [api.example], resolution: DNS").replace(
        "namespace: shop",
        "namespace: shop, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}",
    );
    assert!(
        World::of(&opted_out)
            .host("shop/api.example")
            .addresses
            .is_empty()
    );
    let given = entry("api", "hosts: [api.example], resolution: DNS")
        + "status: {addresses: [{value: 240.240.9.9, host: api.example}]}\n";
    let vips: Vec<String> = World::of(&given)
        .host("shop/api.example")
        .addresses
        .iter()
        .map(|vip| vip.ip.to_string())
        .collect();
    assert_eq!(vips, ["240.240.9.9"]);
}

#[test]
fn a_kubernetes_service_stands_before_an_entry_of_the_same_host() {
    let host = "web.shop.svc.cluster.local";
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
";
    let spec = format!(
        "hosts: [{host}], resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{address: 192.0.2.1}}]"
    );
    let mut world = World::of(&entry("web", &spec));
    assert_eq!(
        world
            .model
            .workloads
            .values()
            .next()
            .unwrap()
            .services
            .len(),
        1
    );
    world.apply(service);
    assert_eq!(
        world.service("web").addresses[0].ip.to_string(),
        "10.96.0.1"
    );
    assert!(
        world
            .model
            .workloads
            .values()
            .all(|workload| workload.services.is_empty()),
        "no endpoint is smuggled in"
    );
    assert_eq!(
        world.reasons(Kind::ServiceEntry, "shop", "web"),
        ["Conflicted"]
    );
    let elsewhere = entry("web", &spec).replace("namespace: shop", "namespace: zoo");
    world.apply(&elsewhere);
    assert!(world.service("web").canonical && !world.host(&format!("zoo/{host}")).canonical);
    world.delete(Kind::Service, "shop", "web");
    assert_eq!(
        world
            .model
            .workloads
            .values()
            .filter(|workload| workload.services.len() == 1)
            .count(),
        2
    );
}

#[test]
fn the_oldest_public_entry_is_canonical() {
    let dated = |name: &str, space: &str, year: u32, more: &str| {
        entry(name, &format!("hosts: [x.example], resolution: NONE{more}")).replace(
            "namespace: shop",
            &format!("namespace: {space}, creationTimestamp: '{year}-01-01T00:00:00Z'"),
        )
    };
    let text = dated("new", "b", 2026, "")
        + &dated("old", "c", 2020, "")
        + &dated("hidden", "a", 2010, ", exportTo: ['.']");
    let world = World::of(&text);
    assert_eq!(world.host("a/x.example").visibility, Visibility::Namespace);
    let canonical: Vec<bool> = ["a", "b", "c"]
        .map(|space| world.host(&format!("{space}/x.example")).canonical)
        .into();
    assert_eq!(canonical, [false, false, true]);
}

#[test]
fn pods_can_be_endpoints_of_an_entry() {
    let spec = "hosts: [v.example], resolution: STATIC, workloadSelector: {labels: {app: v}}, \
        ports: [{number: 80, name: web, targetPort: 1}, {number: 81, name: other, targetPort: 2}]";
    let world = World::of(&(pod("a", "10.0.0.1", "  labels: {app: v}") + &entry("v", spec)));
    let ports: Vec<_> = world
        .pod("a")
        .services
        .values()
        .flatten()
        .map(|(a, b)| (*a, *b))
        .collect();
    assert_eq!(
        ports,
        [(80, 8080), (81, 2)],
        "a container port of the same name counts first"
    );
}

/// A WorkloadEntry with address 10.9.0.1.
fn machine(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{address: 10.9.0.1{spec}}}\n"
    )
}

fn machines(world: &World) -> Vec<&karst_model::workload::Workload> {
    let all = world.model.workloads.values();
    all.filter(|workload| workload.uid.0.contains("/WorkloadEntry/"))
        .map(|workload| &**workload)
        .collect()
}

#[test]
fn a_workload_entry_is_an_endpoint_of_what_picks_its_labels() {
    let mut world = World::empty();
    world.apply(&machine(
        "vm",
        ", labels: {app: db, version: v2}, ports: {sql: 5433}, weight: 3, locality: r/z/s, serviceAccount: db, network: n2",
    ));
    let [vm] = machines(&world)[..] else {
        panic!("one workload")
    };
    assert_eq!(
        &*vm.uid.0,
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"
    );
    assert_eq!(
        vm.addresses,
        ["10.9.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!((vm.capacity, &*vm.service_account), (3, "db"));
    assert_eq!(&*vm.network.0, "n2");
    assert_eq!(&*vm.locality.subzone, "s");
    assert_eq!((&*vm.canonical_name, &*vm.canonical_revision), ("db", "v2"));
    assert!(vm.services.is_empty());

    // In any order: a Service by its port's name, a ServiceEntry by its own.
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {app: db}, ports: [{name: sql, port: 5432}, {name: admin, port: 81, targetPort: 8081}, {name: odd, port: 82, targetPort: nowhere}]}\n");
    world.apply("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: legacy, namespace: shop}\nspec: {hosts: [db.example.com], ports: [{number: 9, name: sql, protocol: TCP}, {number: 10, name: other, protocol: TCP}], resolution: STATIC, workloadSelector: {labels: {app: db}}}\n");
    let ports = |world: &World, host: &str| {
        let vm = machines(world)[0];
        let found = vm.services.iter().find(|(key, _)| &*key.hostname == host);
        found.map(|(_, ports)| ports.iter().map(|(a, b)| (*a, *b)).collect::<Vec<_>>())
    };
    let service = "db.shop.svc.cluster.local";
    assert_eq!(ports(&world, service), Some(vec![(81, 8081), (5432, 5433)]));
    assert_eq!(
        ports(&world, "db.example.com"),
        Some(vec![(9, 5433), (10, 10)])
    );

    world.apply(&machine("vm", ", labels: {app: other}"));
    assert!(machines(&world)[0].services.is_empty());
    world.apply(&machine("vm", ", labels: {app: db}"));
    assert_eq!(ports(&world, service), Some(vec![(81, 8081), (5432, 5432)]));
    world.delete(Kind::Service, "shop", "db");
    assert_eq!(ports(&world, service), None);
    world.delete(Kind::WorkloadEntry, "shop", "vm");
    assert!(machines(&world).is_empty());
}

#[test]
fn a_workload_entry_without_an_address_over_tcp_is_said_and_left_out() {
    let mut world = World::empty();
    world.apply("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: \"unix:///run/x\"}\n");
    assert!(machines(&world).is_empty());
    assert_eq!(
        world.reasons(Kind::WorkloadEntry, "shop", "vm"),
        ["AddressNotReachable"]
    );
    world.apply(&machine("vm", ""));
    assert_eq!(machines(&world).len(), 1);
    assert!(world.reasons(Kind::WorkloadEntry, "shop", "vm").is_empty());
}
