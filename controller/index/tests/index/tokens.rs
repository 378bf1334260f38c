//! RequestAuthentications and providers of CUSTOM policies: what the waypoint is told, and what their authors hear.

use std::sync::Arc;

use karst_index::{Delta, Event, FetchedKeys, KeySource};
use karst_k8s_api::Kind;
use karst_model::token::{RequestAuthentication, TokenKeys};

use crate::world::World;

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
apiVersion: v1
kind: Service
metadata: {name: ask, namespace: auth}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 9000}]}
";

const USERS: &str = "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: cart}]
  jwtRules: [{issuer: 'https://issuer', jwksUri: 'https://issuer/keys'}]
";

fn told(delta: &Delta) -> Option<Arc<RequestAuthentication>> {
    let updated = delta.request_authentications.updated.iter();
    let mut ours = updated.filter(|((gateway, _), _)| gateway.to_string() == "shop/w");
    ours.next().map(|(_, one)| one.clone())
}

fn source() -> KeySource {
    KeySource::Uri("https://issuer/keys".into())
}

fn keys(delta: &Delta) -> Option<TokenKeys> {
    told(delta).map(|one| one.rules[0].keys.clone())
}

#[test]
fn tokens_are_verified_by_the_waypoint_of_their_target() {
    let mut world = World::of(MESH);
    let delta = world.apply(USERS);
    assert_eq!(told(&delta).unwrap().key.to_string(), "shop/users");
    assert!(matches!(keys(&delta), Some(TokenKeys::Missing(_))));
    assert_eq!(
        delta.key_sources.unwrap().into_iter().collect::<Vec<_>>(),
        [source()]
    );
    let reasons = |world: &World| world.reasons(Kind::RequestAuthentication, "shop", "users");
    assert_eq!(reasons(&world), ["Accepted", "Pending"]);
    assert!(
        world
            .reasons(Kind::Service, "shop", "cart")
            .contains(&"PolicyAttached")
    );

    let fetched = |keys: Option<&str>, problem: Option<&str>| {
        vec![Event::Keys {
            source: source(),
            fetched: FetchedKeys {
                keys: keys.map(Into::into),
                problem: problem.map(Into::into),
            },
        }]
    };
    let delta = world.take(fetched(None, Some("it is down")));
    assert_eq!(keys(&delta), Some(TokenKeys::Missing("it is down".into())));
    assert_eq!(reasons(&world), ["Accepted", "FetchFailed"]);
    let delta = world.take(fetched(Some("{}"), None));
    assert_eq!(keys(&delta), Some(TokenKeys::Published("{}".into())));
    assert_eq!(reasons(&world), ["Accepted", "Fetched"]);
    // The last good ones stay, and it is said.
    let delta = world.take(fetched(Some("{}"), Some("it is down again")));
    assert!(told(&delta).is_none());
    assert_eq!(reasons(&world), ["Accepted", "FetchFailed"]);
    // It comes again, as it does when its status was written: no key is lost.
    let delta = world.apply(USERS);
    assert!(told(&delta).is_none());
    assert_eq!(reasons(&world), ["Accepted", "FetchFailed"]);

    let delta = world.delete(Kind::RequestAuthentication, "shop", "users");
    assert_eq!(delta.request_authentications.removed.len(), 1);
    assert!(delta.key_sources.unwrap().is_empty());
    assert!(
        !world
            .reasons(Kind::Service, "shop", "cart")
            .contains(&"PolicyAttached")
    );
    let late = world.take(fetched(Some("{}"), None));
    assert!(late.is_empty(), "nobody asks any more");
}

#[test]
fn a_custom_policy_gets_its_provider_when_the_mesh_configuration_has_it() {
    let mut world = World::of(MESH);
    world.apply(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: cart}]
  action: CUSTOM
  provider: {name: asker}
  rules: [{}]
",
    );
    let reasons = |world: &World| world.reasons(Kind::AuthorizationPolicy, "shop", "ask");
    assert_eq!(reasons(&world)[0], "ProviderNotFound");
    let delta = world.apply(
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: asker
      envoyExtAuthzGrpc: {service: ask.auth.svc.cluster.local, port: 9000, timeout: 1s}
",
    );
    let (_, policy) = &delta.waypoint_policies.updated[0];
    let provider = policy.provider.as_ref().unwrap();
    assert_eq!(
        provider.service.to_string(),
        "auth/ask.auth.svc.cluster.local"
    );
    assert_eq!(reasons(&world), ["Accepted"]);
    let delta = world.delete(Kind::Service, "auth", "ask");
    assert_eq!(delta.waypoint_policies.updated[0].1.provider, None);
    assert_eq!(reasons(&world)[0], "ProviderNotFound");
}
