//! Inverts every comparison of the evaluators of requests, one at a time, and demands that the naive reference notices.

use agree::Evaluator;
use rand::{SeedableRng, rngs::SmallRng};

use super::{Asked, RequestDecision, RequestPolicies};
use crate::{
    Connection, DenyReason, DryRunAllow, RuleRef, Verdict,
    compare::{RequestSite, mutant},
};

#[path = "../../tests/request_reference/agree.rs"]
mod agree;
#[path = "../../tests/request_reference/cases.rs"]
mod cases;
#[path = "../../tests/request_reference/naive.rs"]
mod naive;

/// Policy sets that a mutant may survive at most. The run of the reference has as many cases four times over.
const SETS: usize = 60_000;

/// Number of the first policy set about which the evaluator and the naive one differ.
fn first_difference(evaluator: Evaluator, sets: usize) -> Option<usize> {
    let mut rng = SmallRng::seed_from_u64(1);
    (0..sets).find(|_| {
        let set = cases::policy_set(&mut rng);
        let compiled = RequestPolicies::compile(set.policies.iter().cloned(), &set.missing);
        let mut requests = (0..cases::REQUESTS_PER_SET).map(|_| cases::case(&mut rng));
        requests.any(|case| agree::check(evaluator, &set, &compiled, &case).is_err())
    })
}

fn check_mutants(evaluator: Evaluator, sites: impl Iterator<Item = RequestSite>) {
    assert_eq!(
        first_difference(evaluator, 1_000),
        None,
        "without a mutation nothing differs"
    );
    let mut survivors = Vec::new();
    for site in sites {
        match mutant::request_inverted(site, || first_difference(evaluator, SETS)) {
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
    check_mutants(Evaluator::Decide, mutant::all_of_requests().into_iter());
}

#[test]
fn inverting_any_comparison_of_explain_is_noticed() {
    // Explanations walk the rules.
    let walked = |site: &RequestSite| {
        !matches!(
            site,
            RequestSite::Index | RequestSite::Rule | RequestSite::Clause
        )
    };
    check_mutants(
        Evaluator::Explain,
        mutant::all_of_requests().into_iter().filter(walked),
    );
}
