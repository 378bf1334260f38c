//! Random DestinationRules against a naive reading of Istio's pages ("Destination Rule", "Configuration scoping"): whose
//! rule holds at a waypoint, what becomes of several for one host, and what of it holds for each port and subset.

use std::fmt::Write as _;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::world::World;

const CASES: usize = 3_000;
const SERVICE: &str = "web.shop.svc.cluster.local";
const PORTS: [u16; 2] = [80, 81];
const SUBSETS: [&str; 2] = ["v1", "v2"];

const SITE: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: front, istio.io/use-waypoint-namespace: edge}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: front, namespace: edge}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}, status: {addresses: [{value: f}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}}
";

/// A limit of connections and a number of errors, each told from all others by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    pool: Option<u32>,
    outlier: Option<u32>,
}

#[derive(Clone, Debug, Default)]
struct Policy {
    own: Parts,
    ports: Vec<(u16, Parts)>,
}

#[derive(Clone, Debug)]
struct Rule {
    namespace: &'static str,
    name: String,
    day: u32,
    host: &'static str,
    export: &'static str,
    policy: Option<Policy>,
    subsets: Vec<(&'static str, Option<Policy>)>,
}

struct Draw {
    rng: StdRng,
    number: u32,
}

impl Draw {
    fn parts(&mut self) -> Parts {
        let mut one = |chance| {
            self.number += 1;
            self.rng.random_bool(chance).then_some(self.number)
        };
        Parts {
            pool: one(0.6),
            outlier: one(0.4),
        }
    }

    fn policy(&mut self) -> Option<Policy> {
        if !self.rng.random_bool(0.6) {
            return None;
        }
        let mut ports = PORTS.to_vec();
        ports.retain(|_| self.rng.random_bool(0.3));
        let with_parts = |port| (port, self.parts());
        let ports = ports.into_iter().map(with_parts).collect();
        let own = self.parts();
        Some(Policy { own, ports })
    }

    fn rule(&mut self, number: usize) -> Rule {
        let hosts = [
            SERVICE,
            SERVICE,
            "*.shop.svc.cluster.local",
            "*.local",
            "*",
            "other.shop.svc.cluster.local",
        ];
        let exports = [
            "",
            "exportTo: ['.'], ",
            "exportTo: ['*'], ",
            "exportTo: [edge], ",
            "exportTo: [zoo], ",
        ];
        let mut pick = |from: &[&'static str]| *from.choose(&mut self.rng).unwrap();
        let (namespace, host, export) = (
            pick(&["edge", "shop", "istio-system", "zoo"]),
            pick(&hosts),
            pick(&exports),
        );
        let mut subsets = Vec::new();
        for name in SUBSETS {
            if self.rng.random_bool(0.5) {
                subsets.push((name, self.policy()));
            }
        }
        Rule {
            namespace,
            name: format!("r{number}"),
            day: self.rng.random_range(1..6),
            host,
            export,
            policy: self.policy(),
            subsets,
        }
    }
}

// --- As YAML

fn parts_text(parts: Parts) -> String {
    let mut text = String::new();
    if let Some(pool) = parts.pool {
        let _ = write!(
            text,
            "connectionPool: {{tcp: {{maxConnections: {pool}}}}}, "
        );
    }
    if let Some(outlier) = parts.outlier {
        let _ = write!(
            text,
            "outlierDetection: {{consecutive5xxErrors: {outlier}}}, "
        );
    }
    text
}

fn policy_text(policy: &Policy) -> String {
    let ports: String = policy
        .ports
        .iter()
        .map(|(port, parts)| format!("{{port: {{number: {port}}}, {}}}, ", parts_text(*parts)))
        .collect();
    format!(
        "trafficPolicy: {{{}portLevelSettings: [{ports}]}}",
        parts_text(policy.own)
    )
}

impl Rule {
    fn text(&self) -> String {
        let policy = |policy: &Option<Policy>| policy.as_ref().map(policy_text).unwrap_or_default();
        let subsets: String = self
            .subsets
            .iter()
            .map(|(name, own)| {
                format!(
                    "{{name: {name}, labels: {{version: {name}}}, {}}}, ",
                    policy(own)
                )
            })
            .collect();
        format!(
            "\n---\n{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {}, namespace: {}, \
             creationTimestamp: '2026-01-{:02}T00:00:00Z'}}, spec: {{host: '{}', {}subsets: [{subsets}], {}}}}}\n",
            self.name,
            self.namespace,
            self.day,
            self.host,
            self.export,
            policy(&self.policy),
        )
    }
}

// --- The naive reading

/// The waypoint is in `edge`. Its own namespace's rules hold there whatever they export, which is ours: Istio leaves those
/// out that name other namespaces only.
fn is_visible(rule: &Rule) -> bool {
    let elsewhere = matches!(rule.export, "exportTo: ['.'], " | "exportTo: [zoo], ");
    rule.namespace == "edge" || !elsewhere
}

fn stands_for(host: &str) -> bool {
    match host.strip_prefix('*') {
        Some(end) => SERVICE.ends_with(end),
        None => host == SERVICE,
    }
}

/// The rules that are one: of the first namespace that has any, those of the most exact host; oldest first.
fn chosen(rules: &[Rule]) -> Vec<&Rule> {
    for namespace in ["edge", "shop", "istio-system"] {
        let mut here: Vec<&Rule> = rules
            .iter()
            .filter(|rule| rule.namespace == namespace && is_visible(rule) && stands_for(rule.host))
            .collect();
        let rank = |rule: &Rule| (!rule.host.starts_with('*'), rule.host.len());
        if let Some(best) = here.iter().map(|rule| rank(rule)).max() {
            here.retain(|rule| rank(rule) == best);
            here.sort_by_key(|rule| (rule.day, rule.name.clone()));
            return here;
        }
    }
    Vec::new()
}

fn at(policy: &Policy, port: u16) -> Option<Parts> {
    let of_port = policy.ports.iter().find(|(number, _)| *number == port);
    of_port.map(|(_, parts)| *parts)
}

fn expected(rules: &[Rule], port: u16, subset: Option<&str>) -> Parts {
    let rules = chosen(rules);
    let base = rules.iter().find_map(|rule| rule.policy.as_ref());
    let mut parts = base.map_or_else(Parts::default, |base| at(base, port).unwrap_or(base.own));
    let named = |rule: &&Rule| {
        let found = rule.subsets.iter().find(|(name, _)| Some(*name) == subset);
        found.map(|(_, own)| own.clone())
    };
    // The first that has the subset has it, with a policy or without.
    if let Some(Some(own)) = rules.iter().find_map(named) {
        match at(&own, port) {
            Some(of_port) => parts = of_port,
            None => {
                parts.pool = own.own.pool.or(parts.pool);
                parts.outlier = own.own.outlier.or(parts.outlier);
            }
        }
    }
    parts
}

#[test]
fn random_rules_hold_as_a_naive_reading_says() {
    let mut held = 0;
    for seed in 0..CASES as u64 {
        let mut draw = Draw {
            rng: StdRng::seed_from_u64(seed),
            number: 0,
        };
        let rules: Vec<Rule> = (0..draw.rng.random_range(0..6))
            .map(|number| draw.rule(number))
            .collect();
        let mut world = World::of(SITE);
        // In any order.
        let mut order: Vec<&Rule> = rules.iter().collect();
        order.sort_by_key(|_| draw.rng.random::<u32>());
        for rule in order {
            world.apply(&rule.text());
        }
        let key = (
            "edge/front".parse().unwrap(),
            format!("shop/{SERVICE}").parse().unwrap(),
        );
        let traffic = world.model.traffic.get(&key);
        for port in PORTS {
            for subset in [None, Some("v1"), Some("v2")] {
                let policy = traffic.and_then(|traffic| traffic.policy(port, subset));
                let found = policy.map_or_else(Parts::default, |policy| Parts {
                    pool: policy.connections.max,
                    outlier: policy
                        .outlier
                        .as_ref()
                        .and_then(|outlier| outlier.consecutive_errors),
                });
                let expected = expected(&rules, port, subset);
                held += usize::from(expected != Parts::default());
                let texts: String = rules.iter().map(Rule::text).collect();
                assert_eq!(
                    found, expected,
                    "seed {seed}, port {port}, subset {subset:?}:{texts}"
                );
            }
        }
    }
    assert!(held > CASES, "something holds in many cases: {held}");
}
