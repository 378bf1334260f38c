//! AuthorizationPolicy and PeerAuthentication, as the L4 data plane gets them.

use karst_index::Event;
use karst_k8s_api::Kind;
use karst_model::policy::{Action, Match, PolicyScope, StringMatch};

use crate::world::{World, objects, pod};

fn policy(spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn names(world: &World, pod: &str) -> Vec<String> {
    world
        .pod(pod)
        .policies
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn scope_follows_namespace_and_selector() {
    let root = policy("").replace("namespace: shop", "namespace: istio-system");
    let cases = [
        (policy(""), "shop/p", PolicyScope::Namespace),
        (
            policy("selector: {matchLabels: {app: a}}"),
            "shop/p",
            PolicyScope::WorkloadSelector,
        ),
        (
            policy("selector: {matchLabels: {}}"),
            "shop/p",
            PolicyScope::Namespace,
        ),
        (root, "istio-system/p", PolicyScope::Global),
    ];
    for (text, key, scope) in cases {
        assert_eq!(World::of(&text).policy(key).unwrap().scope, scope, "{text}");
    }
}

#[test]
fn selectors_put_the_key_on_pods_and_take_it_away() {
    let selecting = policy("selector: {matchLabels: {app: a}}");
    let mut world = World::of(&(pod("a", "10.0.0.1", "  labels: {app: a}") + &selecting));
    assert_eq!(names(&world, "a"), ["shop/p"]);
    world.apply(&policy("selector: {matchLabels: {app: b}}"));
    assert!(names(&world, "a").is_empty());
    world.apply(&selecting.replace("namespace: shop", "namespace: istio-system"));
    assert_eq!(names(&world, "a"), ["istio-system/p"]);
    world.delete(Kind::AuthorizationPolicy, "istio-system", "p");
    assert!(names(&world, "a").is_empty());
}

#[test]
fn a_rule_is_laid_out_in_clauses() {
    let world = World::of(&policy(
        "action: DENY, rules: [{from: [{source: {principals: ['*'], notNamespaces: [zoo*], serviceAccounts: [sa, n/sb]}}, \
         {source: {ipBlocks: [10.0.0.1, 10.0.0.0/8, '::ffff:10.1.0.0/112']}}], to: [{operation: {ports: ['80']}}], \
         when: [{key: destination.port, notValues: ['81']}]}]",
    ));
    let clauses = &world.policy("shop/p").unwrap().rules[0].clauses;
    let sizes: Vec<usize> = clauses.iter().map(|clause| clause.matches.len()).collect();
    assert_eq!(sizes, [2, 1, 1]);
    let from = &clauses[0].matches[0];
    assert_eq!(from.principals, [StringMatch::Presence]);
    assert_eq!(from.not_namespaces, [StringMatch::Prefix("zoo".into())]);
    let accounts: Vec<_> = from
        .service_accounts
        .iter()
        .map(|sa| (&*sa.namespace, &*sa.service_account))
        .collect();
    assert_eq!(accounts, [("shop", "sa"), ("n", "sb")]);
    let blocks: Vec<_> = clauses[0].matches[1]
        .source_ips
        .iter()
        .map(|b| format!("{}/{}", b.ip, b.prefix_len))
        .collect();
    assert_eq!(blocks, ["10.0.0.1/32", "10.0.0.0/8", "10.1.0.0/16"]);
    assert_eq!(clauses[1].matches[0].destination_ports, [80]);
    assert_eq!(clauses[2].matches[0].not_destination_ports, [81]);
    assert_eq!(
        world.reasons(Kind::AuthorizationPolicy, "shop", "p"),
        ["Accepted"]
    );
}

#[test]
fn parts_that_l4_cannot_read_never_weaken_a_policy() {
    let parts = [
        "to: [{operation: {methods: [GET]}}]",
        "to: [{operation: {ports: ['80', many]}}]",
        "from: [{source: {requestPrincipals: ['*']}}]",
        "from: [{source: {notIpBlocks: [nowhere]}}]",
        "when: [{key: 'request.headers[x]', values: [z]}]",
        "from: [{source: {principals: [a]}}, {source: {remoteIpBlocks: [10.0.0.0/8]}}]",
    ];
    for part in parts {
        let allow = World::of(&policy(&format!("rules: [{{{part}}}]")));
        assert!(
            allow.policy("shop/p").unwrap().rules.is_empty(),
            "ALLOW {part} must allow nothing"
        );
        let deny = World::of(&policy(&format!("action: DENY, rules: [{{{part}}}]")));
        let rules = &deny.policy("shop/p").unwrap().rules;
        assert!(
            rules.len() == 1 && rules[0].clauses.is_empty(),
            "DENY {part} must deny all: {rules:?}"
        );
        for world in [allow, deny] {
            assert_eq!(
                world.reasons(Kind::AuthorizationPolicy, "shop", "p"),
                ["UnsupportedValue"],
                "{part}"
            );
        }
    }
    let mixed = World::of(&policy(
        "action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]",
    ));
    let clauses = &mixed.policy("shop/p").unwrap().rules[0].clauses;
    assert_eq!(
        clauses[0].matches,
        [Match {
            destination_ports: vec![80],
            ..Match::default()
        }]
    );
}

#[test]
fn what_needs_a_waypoint_is_not_sent_and_says_so() {
    for (spec, reason) in [
        ("action: AUDIT", "UnsupportedValue"),
        ("action: CUSTOM, provider: {name: x}", "UnsupportedValue"),
        ("targetRefs: [{kind: Service, name: web}]", "TargetNotFound"),
        (
            "targetRef: {kind: Service, name: web}, selector: {matchLabels: {a: b}}",
            "Invalid",
        ),
    ] {
        let world = World::of(&(pod("a", "10.0.0.1", "  labels: {a: b}") + &policy(spec)));
        assert!(
            world.policy("shop/p").is_none() && names(&world, "a").is_empty(),
            "{spec}"
        );
        assert_eq!(
            world.reasons(Kind::AuthorizationPolicy, "shop", "p"),
            [reason]
        );
    }
    let dry = policy("action: DENY").replace(
        "namespace: shop",
        "namespace: shop, annotations: {istio.io/dry-run: 'true'}",
    );
    assert!(World::of(&dry).policy("shop/p").unwrap().dry_run);
}

#[test]
fn an_allow_policy_without_rules_stays_without() {
    let world = World::of(&policy(""));
    let policy = world.policy("shop/p").unwrap();
    assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0));
    let all = World::of(&self::policy("rules: [{}]"));
    assert_eq!(all.policy("shop/p").unwrap().rules.len(), 1);
}

const STATIC: &str = "istio-system/istio_converted_static_strict";

#[test]
fn strictness_is_inherited_from_mesh_to_namespace_to_workload() {
    let labelled = pod("a", "10.0.0.1", "  labels: {app: a}");
    let selecting = |mode: &str| {
        peer(
            "own",
            "shop",
            &format!("selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {mode}}}"),
        )
    };
    let mut world = World::of(&labelled);
    assert!(
        world.policy(STATIC).is_none(),
        "only once there is a PeerAuthentication"
    );
    let steps = [
        (peer("mesh", "istio-system", "mtls: {mode: STRICT}"), true),
        (peer("space", "shop", "mtls: {mode: PERMISSIVE}"), false),
        (selecting("STRICT"), true),
        (selecting("DISABLE"), false),
        (selecting("UNSET"), false),
        (peer("space", "shop", "mtls: {mode: UNSET}"), true),
        (
            peer(
                "mesh",
                "istio-system",
                "selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}",
            ),
            false,
        ),
    ];
    for (text, strict) in steps {
        world.apply(&text);
        let expected: &[&str] = if strict { &[STATIC] } else { &[] };
        assert_eq!(names(&world, "a"), expected, "{text}");
        assert!(world.policy(STATIC).is_some());
    }
    assert_eq!(
        world.reasons(Kind::PeerAuthentication, "istio-system", "mesh"),
        ["UnsupportedValue"]
    );
    for (namespace, name) in [("istio-system", "mesh"), ("shop", "space"), ("shop", "own")] {
        world.delete(Kind::PeerAuthentication, namespace, name);
    }
    assert!(world.model.policies.is_empty());
}

#[test]
fn ports_of_their_own_make_a_policy_of_their_own() {
    let ports = |base: &str, ports: &str| {
        let spec = format!(
            "selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {base}}}, portLevelMtls: {{{ports}}}"
        );
        World::of(&(pod("a", "10.0.0.1", "  labels: {app: a}") + &peer("own", "shop", &spec)))
    };
    const CONVERTED: &str = "shop/converted_peer_authentication_own";
    let exempt = ports(
        "STRICT",
        "8080: {mode: DISABLE}, 9090: {mode: PERMISSIVE}, 1: {mode: STRICT}",
    );
    assert_eq!(names(&exempt, "a"), [CONVERTED]);
    let rules = &exempt.policy(CONVERTED).unwrap().rules;
    assert_eq!((rules.len(), rules[0].clauses.len()), (1, 3));
    assert_eq!(rules[0].clauses[1].matches[0].not_destination_ports, [8080]);
    let strict = ports("PERMISSIVE", "8080: {mode: STRICT}, 9090: {mode: STRICT}");
    let rules = &strict.policy(CONVERTED).unwrap().rules;
    assert_eq!(
        (
            rules.len(),
            &rules[1].clauses[0].matches[0].destination_ports[..]
        ),
        (2, &[9090][..])
    );
    assert_eq!(
        rules[1].clauses[0].matches[0].not_principals,
        [StringMatch::Presence]
    );
    assert_eq!(
        names(&ports("STRICT", "8080: {mode: STRICT}"), "a"),
        [STATIC]
    );
    assert!(names(&ports("PERMISSIVE", "8080: {mode: DISABLE}"), "a").is_empty());
}

#[test]
fn the_oldest_default_of_a_namespace_counts() {
    let dated = |name: &str, year: u32, mode: &str| {
        peer(name, "shop", &format!("mtls: {{mode: {mode}}}")).replace(
            "namespace: shop",
            &format!("namespace: shop, creationTimestamp: '{year}-01-01T00:00:00Z'"),
        )
    };
    let mut world = World::of(
        &(pod("a", "10.0.0.1", "")
            + &dated("new", 2026, "STRICT")
            + &dated("old", 2020, "PERMISSIVE")),
    );
    assert!(names(&world, "a").is_empty());
    assert_eq!(
        world.reasons(Kind::PeerAuthentication, "shop", "new"),
        ["Conflicted"]
    );
    world.delete(Kind::PeerAuthentication, "shop", "old");
    assert_eq!(names(&world, "a"), [STATIC]);
    assert_eq!(
        world.reasons(Kind::PeerAuthentication, "shop", "new"),
        ["Accepted"]
    );
}

/// Five thousand policies, each for pods of another label, and as many labels on one pod as an object can hold: work is
/// counted by what is published, which is what every agent pays for.
#[test]
fn a_change_among_five_thousand_policies_publishes_what_it_changes() {
    const POLICIES: usize = 5_000;
    let one = |number: usize, app: &str| {
        let spec = format!(
            "selector: {{matchLabels: {{app: {app}}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: ['1']}}}}]}}]"
        );
        policy(&spec).replace("name: p,", &format!("name: p{number},"))
    };
    let labels: String = (0..2_000)
        .map(|number| format!(", label-{number}: value"))
        .collect();
    let pods = pod(
        "a",
        "10.0.0.1",
        &format!("  labels: {{app: app-7{labels}}}"),
    ) + &pod("b", "10.0.0.2", "  labels: {app: none}");
    let texts = (0..POLICIES).map(|number| one(number, &format!("app-{number}")));
    let all = std::iter::once(pods).chain(texts);
    let events = all
        .flat_map(|text| objects(&text))
        .map(Event::Apply)
        .collect();
    let mut world = World::empty();
    let delta = world.take(events);
    assert_eq!(delta.policies.updated.len(), POLICIES);
    assert_eq!(
        (names(&world, "a"), names(&world, "b")),
        (vec!["shop/p7".to_owned()], vec![])
    );
    // Selects another pod: the policy itself says the same.
    let delta = world.apply(&one(2_500, "none"));
    assert!(
        delta.policies.updated.len() <= 1,
        "{}",
        delta.policies.updated.len()
    );
    assert_eq!(delta.workloads.updated.len(), 1, "of pod b alone");
    assert_eq!(names(&world, "b"), ["shop/p2500"]);
    let said = delta
        .conditions
        .iter()
        .filter(|one| one.object.kind == Kind::AuthorizationPolicy);
    assert!(said.count() <= 1);
    // The same once more is nothing.
    let delta = world.apply(&one(2_500, "none"));
    assert!(
        delta.policies.is_empty() && delta.workloads.is_empty(),
        "{delta:?}"
    );
    let delta = world.delete(Kind::AuthorizationPolicy, "shop", "p7");
    assert_eq!(
        (delta.policies.removed.len(), delta.workloads.updated.len()),
        (1, 1)
    );
    assert!(names(&world, "a").is_empty());
}
