//! The product's two evaluators against the naive one, over a million random cases.
//!
//! `KARST_POLICY_CASES` sets the number of cases, `KARST_POLICY_SEED` the seed, which every run prints.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{env, str::FromStr, sync::Arc};

use agree::Evaluator;
use karst_model::{
    identity::SpiffeId,
    name::PolicyKey,
    policy::{Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, StringMatch},
};
use karst_policy::{Compiled, Connection, Decision, DenyReason, DryRunAllow, RuleRef, Verdict};
use rand::{SeedableRng, rngs::SmallRng};

#[path = "reference/agree.rs"]
mod agree;
#[path = "reference/cases.rs"]
mod cases;
#[path = "reference/naive.rs"]
mod naive;

const CASES: usize = 1_000_000;
const SEED: u64 = 20_260_701;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[test]
fn random_cases_agree_with_the_naive_evaluator() {
    let (count, seed) = (
        setting("KARST_POLICY_CASES", CASES),
        setting("KARST_POLICY_SEED", SEED),
    );
    println!("{count} cases, KARST_POLICY_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                random_cases(seed.wrapping_add(thread as u64), count.div_ceil(threads))
            });
        }
    });
}

fn random_cases(seed: u64, count: usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..count.div_ceil(cases::CONNECTIONS_PER_SET) {
        let set = cases::policy_set(&mut rng);
        let compiled = Compiled::compile(set.policies.iter().cloned(), &set.missing);
        for _ in 0..cases::CONNECTIONS_PER_SET {
            let connection = cases::connection(&mut rng);
            for evaluator in [Evaluator::Decide, Evaluator::Explain] {
                if let Err(difference) = agree::check(evaluator, &set, &compiled, &connection) {
                    panic!(
                        "{evaluator:?}: {difference}
{connection:?}
{:#?}
seed {seed}",
                        set.policies
                    );
                }
            }
        }
    }
}

fn policy(key: &str, action: Action, rules: Vec<Rule>) -> Arc<Authorization> {
    Arc::new(Authorization {
        key: key.parse().unwrap(),
        scope: PolicyScope::WorkloadSelector,
        action,
        dry_run: false,
        rules,
    })
}

fn rule(clauses: Vec<Vec<Match>>) -> Rule {
    Rule {
        clauses: clauses
            .into_iter()
            .map(|matches| Clause { matches })
            .collect(),
    }
}

fn connection(source: Option<&str>, port: u16) -> Connection {
    Connection {
        source: source.map(|id| id.parse::<SpiffeId>().unwrap()),
        source_ip: "10.0.0.9".parse().unwrap(),
        destination: format!("10.0.0.1:{port}").parse().unwrap(),
    }
}

const PEER: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

/// Whether each of the ports is open, with an identity and without.
fn check_ports(policies: &[Arc<Authorization>], expected: &[(u16, bool, bool)]) {
    let compiled = Compiled::compile(policies.iter().cloned(), &[]);
    for (port, meshed, plain) in expected {
        for (source, expected) in [(Some(PEER), meshed), (None, plain)] {
            let explanation = compiled.explain(&connection(source, *port));
            assert_eq!(
                explanation.decision.is_allowed(),
                *expected,
                "port {port}, {source:?}: {explanation}"
            );
            assert_eq!(
                compiled.decide(&connection(source, *port)).is_allowed(),
                *expected,
                "port {port}, {source:?}"
            );
        }
    }
}

fn plain_text() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

#[test]
fn strict_refuses_plain_text() {
    let strict = policy(
        "istio-system/istio_converted_static_strict",
        Action::Deny,
        vec![rule(vec![vec![plain_text()]])],
    );
    check_ports(&[strict], &[(80, true, false)]);
}

#[test]
fn permissive_with_strict_ports_refuses_plain_text_on_each_of_them() {
    let on = |port| {
        rule(vec![vec![Match {
            destination_ports: vec![port],
            ..plain_text()
        }]])
    };
    let converted = policy(
        "shop/converted_peer_authentication_a",
        Action::Deny,
        vec![on(80), on(443)],
    );
    check_ports(
        &[converted],
        &[(80, true, false), (443, true, false), (81, true, true)],
    );
}

#[test]
fn strict_with_exempt_ports_refuses_plain_text_on_all_others() {
    let but = |port| {
        vec![Match {
            not_destination_ports: vec![port],
            ..Match::default()
        }]
    };
    let converted = rule(vec![vec![plain_text()], but(80), but(443)]);
    let converted = policy(
        "shop/converted_peer_authentication_a",
        Action::Deny,
        vec![converted],
    );
    check_ports(
        &[converted],
        &[(80, true, true), (443, true, true), (81, true, false)],
    );
}

#[test]
fn missing_policy_denies() {
    let missing: PolicyKey = "shop/late".parse().unwrap();
    let allow = policy("shop/all", Action::Allow, vec![Rule::default()]);
    let compiled = Compiled::compile([allow].into_iter(), std::slice::from_ref(&missing));
    let decision = compiled.decide(&connection(Some(PEER), 80));
    assert_eq!(
        decision.verdict,
        Verdict::Deny(DenyReason::Missing(missing))
    );
}

#[test]
fn unreadable_match_allows_nothing_and_denies() {
    let unreadable = || {
        rule(vec![vec![Match {
            unreadable: true,
            ..Match::default()
        }]])
    };
    check_ports(
        &[policy("shop/a", Action::Allow, vec![unreadable()])],
        &[(80, false, false)],
    );
    check_ports(
        &[policy("shop/a", Action::Deny, vec![unreadable()])],
        &[(80, false, false)],
    );
}

#[test]
fn range_longer_than_its_address_is_unreadable() {
    let block = IpBlock {
        ip: "10.0.0.9".parse().unwrap(),
        prefix_len: 33,
    };
    let m = || Match {
        not_source_ips: vec![block],
        ..Match::default()
    };
    check_ports(
        &[policy("shop/a", Action::Allow, vec![rule(vec![vec![m()]])])],
        &[(80, false, false)],
    );
    check_ports(
        &[policy("shop/a", Action::Deny, vec![rule(vec![vec![m()]])])],
        &[(80, false, false)],
    );
}

#[test]
fn mapped_addresses_are_ipv4() {
    let block = IpBlock {
        ip: "::ffff:10.0.0.0".parse().unwrap(),
        prefix_len: 120,
    };
    let m = Match {
        source_ips: vec![block],
        ..Match::default()
    };
    check_ports(
        &[policy("shop/a", Action::Deny, vec![rule(vec![vec![m]])])],
        &[(80, false, false)],
    );
}

#[test]
fn an_explanation_says_what_was_missing() {
    let principal = StringMatch::Exact("cluster.local/ns/shop/sa/orders".into());
    let m = Match {
        principals: vec![principal],
        ..Match::default()
    };
    let callers = policy(
        "shop/orders-callers",
        Action::Allow,
        vec![rule(vec![vec![m]])],
    );
    let compiled = Compiled::compile([callers].into_iter(), &[]);
    let meshed = compiled.explain(&connection(Some(PEER), 80));
    assert_eq!(
        meshed.to_string(),
        "denied: ALLOW policies apply and none matches\n\
         policy shop/orders-callers rule 0 wants principal cluster.local/ns/shop/sa/orders, \
         the peer is cluster.local/ns/shop/sa/frontend (ALLOW)\n"
    );
    let plain = compiled.explain(&connection(None, 80)).to_string();
    assert!(
        plain.contains("the peer has no identity (plain text)"),
        "{plain}"
    );
    let json = serde_json::to_value(&meshed).unwrap();
    assert_eq!(
        json["policies"][0]["outcome"]["NotMatched"]["rules"][0]["unmet"][0]["Wants"]["attribute"],
        "Principal"
    );
}
