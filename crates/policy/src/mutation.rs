//! Inverts every comparison of the evaluators, one at a time, and demands that the naive reference notices.
//!
//! A unit test, not one in `tests/`, since only here the inverting half of `compare` is compiled; so the product has
//! neither a feature nor a branch for it.

use std::fs;

use agree::Evaluator;
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    Compiled, Connection, Decision, DenyReason, DryRunAllow, RuleRef, Verdict,
    compare::{Site, mutant},
};

#[path = "../tests/reference/agree.rs"]
mod agree;
#[path = "../tests/reference/cases.rs"]
mod cases;
#[path = "../tests/reference/naive.rs"]
mod naive;

/// Policy sets that a mutant may survive at most. The CI run has as many cases four times over.
const SETS: usize = 60_000;

/// Number of the first policy set about which the evaluator and the naive one differ.
fn first_difference(evaluator: Evaluator, sets: usize) -> Option<usize> {
    let mut rng = SmallRng::seed_from_u64(1);
    (0..sets).find(|_| {
        let set = cases::policy_set(&mut rng);
        let compiled = Compiled::compile(set.policies.iter().cloned(), &set.missing);
        let mut connections = (0..cases::CONNECTIONS_PER_SET).map(|_| cases::connection(&mut rng));
        connections.any(|connection| agree::check(evaluator, &set, &compiled, &connection).is_err())
    })
}

fn check_mutants(evaluator: Evaluator, sites: impl Iterator<Item = Site>) {
    assert_eq!(
        first_difference(evaluator, 1_000),
        None,
        "without a mutation nothing differs"
    );
    let mut survivors = Vec::new();
    for site in sites {
        match mutant::inverted(site, || first_difference(evaluator, SETS)) {
            Some(set) => println!("{evaluator:?}, {site:?} inverted: noticed in set {set}"),
            None => survivors.push(site),
        }
    }
    assert!(
        survivors.is_empty(),
        "no case notices the inverting of {survivors:?} in {evaluator:?}"
    );
}

#[test]
fn inverting_any_comparison_of_decide_is_noticed() {
    check_mutants(Evaluator::Decide, mutant::ALL.iter().copied());
}

#[test]
fn inverting_any_comparison_of_explain_is_noticed() {
    let of_index = |site: &Site| {
        ["Index", "LookUp"]
            .iter()
            .any(|prefix| format!("{site:?}").starts_with(prefix))
    };
    check_mutants(
        Evaluator::Explain,
        mutant::ALL.iter().copied().filter(|site| !of_index(site)),
    );
}

#[test]
fn every_site_is_listed() {
    for site in mutant::ALL {
        assert_eq!(
            mutant::ALL.iter().filter(|other| *other == site).count(),
            1,
            "{site:?}"
        );
    }
    let source =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/compare.rs")).unwrap();
    let (declared, _) = source
        .split_once("/// The same for decisions about requests")
        .unwrap();
    let variants = declared
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with(',') && !line.starts_with("//"));
    for variant in variants {
        let name = variant.trim_end_matches(',').split('(').next().unwrap();
        assert!(
            mutant::ALL
                .iter()
                .any(|site| format!("{site:?}").split('(').next() == Some(name)),
            "{name}"
        );
    }
}
