//! Whatever the order of events, the model is that of the objects that are there at the end.

use karst_index::Event;
use karst_k8s_api::{Kind, Object};
use proptest::prelude::*;

use crate::world::{Model, World, namespace, objects, pod};

/// Versions of a few objects that depend on each other in every way that the index knows.
fn pool() -> Vec<Object> {
    let mut text = String::new();
    for mode in ["ambient", "none"] {
        text += &namespace("shop", mode);
    }
    text += "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {topology.istio.io/network: net2}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r1}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r2}}}
";
    for name in ["a", "b"] {
        for labels in [
            "{app: web}",
            "{app: db}",
            "{app: web, istio.io/dataplane-mode: ambient}",
        ] {
            text += &pod(name, "10.0.0.1", &format!("  labels: {labels}"));
        }
    }
    for spec in [
        "selector: {app: web}, clusterIP: 10.96.0.1",
        "clusterIP: None",
        "type: ExternalName, externalName: x.example",
    ] {
        text += &format!("
---
{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {{{spec}, ports: [{{name: http, port: 80, targetPort: web}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{{name: http, port: 1}}], endpoints: [{{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: a}}}}, {{addresses: [192.0.2.1], nodeName: n1}}]}}
");
    }
    for (name, space) in [("e", "shop"), ("f", "shop"), ("e", "zoo")] {
        for spec in [
            "hosts: [x.example, web.shop.svc.cluster.local], resolution: STATIC, endpoints: [{address: 192.0.2.7}]",
            "hosts: [x.example], resolution: DNS, workloadSelector: {labels: {app: web}}",
            "hosts: [y.example, x.example], resolution: DNS, exportTo: ['.']",
        ] {
            text += &format!("
---
{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: {space}}}, spec: {{{spec}, ports: [{{number: 80, name: web}}]}}}}
");
        }
    }
    for space in ["shop", "istio-system"] {
        for selector in ["", "selector: {matchLabels: {app: web}}"] {
            for rest in ["action: DENY", "targetRefs: [{kind: Service, name: web}]"] {
                text += &format!(
                    "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {space}}}\nspec: {{{}}}\n",
                    [selector, rest]
                        .iter()
                        .filter(|t| !t.is_empty())
                        .copied()
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
            for (name, rest) in [
                ("q", "mtls: {mode: STRICT}"),
                (
                    "r",
                    "mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}}",
                ),
                (
                    "q",
                    "mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}",
                ),
            ] {
                text += &format!(
                    "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {space}}}\nspec: {{{}}}\n",
                    [selector, rest]
                        .iter()
                        .filter(|t| !t.is_empty())
                        .copied()
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
        }
    }
    text += ROUTED;
    objects(&text)
}

/// A waypoint, its users, and what is attached to them.
const ROUTED: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: w}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: w, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: w, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{value: w}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}, {group: networking.istio.io, kind: ServiceEntry, name: e, namespace: zoo, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: f}, {name: w}], rules: [{backendRefs: [{name: web, port: 81}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: t, namespace: zoo}, spec: {parentRefs: [{group: '', kind: Service, name: web, namespace: shop, port: 80}], rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, namespace: zoo}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: networking.istio.io, kind: ServiceEntry}]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d, namespace: shop}, spec: {host: web, subsets: [{name: v1, labels: {app: web}}], trafficPolicy: {outlierDetection: {interval: 1s}}}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d, namespace: shop}, spec: {host: '*.example', exportTo: ['.'], trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region]}}}}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: e, namespace: shop}, spec: {host: web.shop.svc.cluster.local, subsets: [{name: v1, labels: {app: db}}], trafficPolicy: {connectionPool: {tcp: {maxConnections: 0}}}}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop}, spec: {hosts: [web], http: [{match: [{sourceLabels: {app: db}}], delegate: {name: leaf}}, {route: [{destination: {host: web, subset: v1}, weight: 1}, {destination: {host: x.example}, weight: 1}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop}, spec: {hosts: ['*.example', y.example], exportTo: ['.'], http: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}], tcp: [{route: [{destination: {host: web}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: u, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {hosts: ['*'], http: [{route: [{destination: {host: web}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: u, namespace: zoo}, spec: {hosts: [web.shop.svc.cluster.local], http: [{route: [{destination: {host: x.example, subset: v1}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf, namespace: shop}, spec: {http: [{route: [{destination: {host: web}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf, namespace: shop}, spec: {hosts: [x.example], http: [{delegate: {name: v}}]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d, namespace: istio-system}, spec: {host: '*', trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: o, namespace: shop}, spec: {targetRefs: [{kind: ServiceEntry, group: networking.istio.io, name: e}], action: DENY, rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: o, namespace: shop}, spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}], rules: [{}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: o, namespace: istio-system}, spec: {targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}], rules: [{}]}}
";

/// Un-enrolment and capture have a history by design: let both come to rest.
fn settle(world: &mut World) {
    world.end_transitions();
    for uid in ["uid-a", "uid-b"] {
        world.captured(uid, false);
        world.captured(uid, true);
    }
    world.end_transitions();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_order_gives_the_same_model(steps in prop::collection::vec((0usize..1000, 0u8..4), 1..60)) {
        let pool = pool();
        let mut world = World::empty();
        let mut there: Vec<Object> = Vec::new();
        for (pick, action) in steps {
            let object = pool[pick % pool.len()].clone();
            let key = object.key();
            there.retain(|other| other.key() != key);
            if action == 0 {
                world.take(vec![Event::Delete(key)]);
            } else {
                there.push(object.clone());
                world.take(vec![Event::Apply(object)]);
                if action == 1 {
                    world.captured("uid-a", true);
                }
            }
        }
        settle(&mut world);
        let mut fresh = World::empty();
        fresh.take(there.into_iter().map(Event::Apply).collect());
        settle(&mut fresh);
        prop_assert_eq!(&world.model, &Model::of_snapshot(&world.index));
        prop_assert_eq!(world.model.without_generations(), fresh.model.without_generations());
    }
}

#[test]
fn nothing_is_left_when_everything_is_gone() {
    let pool = pool();
    let mut world = World::empty();
    let keys: Vec<_> = pool.iter().map(Object::key).collect();
    world.take(pool.into_iter().map(Event::Apply).collect());
    assert!(keys.iter().any(|key| key.kind == Kind::Pod) && !world.model.workloads.is_empty());
    world.take(keys.into_iter().map(Event::Delete).collect());
    assert_eq!(world.model, Model::default());
}
