//! The names of the mesh's trust domain: from the mesh configuration to policies and to everybody.

use std::sync::Arc;

use karst_k8s_api::{Kind, ObjectKey};
use karst_model::{
    identity::{TrustDomain, TrustDomains},
    policy::{Authorization, Match, StringMatch},
};

use crate::world::World;

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  rules:
  - from:
    - source: {principals: [cluster.local/ns/shop/sa/web]}
    - source: {notPrincipals: [old.example/ns/shop/sa/bad]}
    when: [{key: source.principal, values: [old.example/ns/shop/*]}]
";

fn mesh(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{lines}"
    )
}

fn domains(own: &str, aliases: &[&str]) -> TrustDomains {
    let domain = |name: &str| TrustDomain(name.into());
    TrustDomains {
        own: domain(own),
        aliases: aliases.iter().map(|name| domain(name)).collect(),
    }
}

fn parts(policy: &Authorization) -> Vec<Match> {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    clauses.flat_map(|clause| clause.matches.clone()).collect()
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(Arc::from(text))
}

#[test]
fn policies_follow_the_names_of_the_mesh_whatever_came_first() {
    let config = mesh(&[
        "trustDomain: new.example",
        "trustDomainAliases: [old.example]",
    ]);
    for text in [
        format!("{POLICY}---\n{config}"),
        format!("{config}---\n{POLICY}"),
    ] {
        let world = World::of(&text);
        let policy = &world.model.policies[&"shop/p".parse().unwrap()];
        let found = parts(policy);
        assert_eq!(
            found[0].principals,
            [
                exact("new.example/ns/shop/sa/web"),
                exact("old.example/ns/shop/sa/web"),
                exact("cluster.local/ns/shop/sa/web"),
            ]
        );
        assert_eq!(found[1].not_principals.len(), 3);
        assert!(
            found[2]
                .principals
                .contains(&StringMatch::Prefix("new.example/ns/shop/".into()))
        );
        let all = world.index.snapshot().trust_domains.unwrap();
        assert_eq!(
            all,
            domains("new.example", &["old.example", "cluster.local"])
        );
    }
}

#[test]
fn a_change_is_told_with_the_policies_that_it_changes_and_the_name_before_stays() {
    let mut world = World::of(POLICY);
    let before = world.model.policies[&"shop/p".parse().unwrap()].clone();
    let delta = world.apply(&mesh(&["trustDomain: one"]));
    assert_eq!(
        delta.trust_domains,
        Some(domains("one", &["cluster.local"]))
    );
    assert_eq!(delta.policies.updated.len(), 1);
    assert!(delta.workloads.is_empty(), "workloads keep their name");
    let delta = world.apply(&mesh(&["trustDomain: two"]));
    assert_eq!(
        delta.trust_domains,
        Some(domains("two", &["cluster.local", "one"]))
    );
    // The same again, and what concerns something else, says nothing.
    let delta = world.apply(&mesh(&["trustDomain: two", "nonsense: 1"]));
    assert_eq!(delta.trust_domains, None);
    let object = ObjectKey::new(Kind::ConfigMap, "istio-system", "istio");
    let told = &world.model.conditions[&object];
    assert!(
        told[0].status && told[0].message.contains("two"),
        "{told:?}"
    );

    let delta = world.delete(Kind::ConfigMap, "istio-system", "istio");
    assert_eq!(
        delta.trust_domains,
        Some(domains("cluster.local", &["one", "two"]))
    );
    assert_ne!(world.model.policies[&"shop/p".parse().unwrap()], before);
}

#[test]
fn text_that_cannot_be_read_takes_nothing_away_and_is_told() {
    let mut world = World::of(&mesh(&["trustDomain: one", "trustDomainAliases: [two]"]));
    let delta = world.apply(&mesh(&["trustDomain: ["]));
    assert_eq!(delta.trust_domains, None);
    let object = ObjectKey::new(Kind::ConfigMap, "istio-system", "istio");
    let told = &world.model.conditions[&object];
    assert!(told.iter().any(|one| !one.status), "{told:?}");
    let delta = world.apply(&mesh(&["trustDomain: A/B", "trustDomainAliases: [two]"]));
    assert_eq!(delta.trust_domains, None);
    world.apply(&mesh(&["trustDomain: one"]));
    let told = &world.model.conditions[&object];
    assert!(told.iter().all(|one| one.status), "{told:?}");
}

#[test]
fn a_waypoint_is_let_in_by_every_name() {
    let world = World::of(&format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: shop}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
{}",
        mesh(&["trustDomain: new.example"])
    ));
    let policy = &world.model.policies[&"shop/karst-allow-waypoint-waypoint".parse().unwrap()];
    assert_eq!(
        parts(policy)[0].principals,
        [
            exact("new.example/ns/shop/sa/waypoint"),
            exact("cluster.local/ns/shop/sa/waypoint")
        ]
    );
}
