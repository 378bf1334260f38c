//! Inverts every comparison of the route table, one at a time, and demands that the naive reference notices.
//!
//! A unit test, not one in `tests/`, since only here the inverting half of `compare` is compiled; so the product has
//! neither a feature nor a branch for it.

use std::fs;

use rand::{SeedableRng, rngs::SmallRng};

use crate::compare::{Site, mutant};

#[path = "../tests/reference/agree.rs"]
mod agree;
#[path = "../tests/reference/cases.rs"]
mod cases;
#[path = "../tests/reference/naive.rs"]
mod naive;

/// Sets of routes that a mutant may survive at most. The run of the reference has as many.
const SETS: usize = 60_000;

/// Number of the first set of routes about which the table and the naive matcher differ.
fn first_difference(sets: usize) -> Option<usize> {
    let mut rng = SmallRng::seed_from_u64(1);
    (0..sets).find(|_| {
        let routes = cases::routes(&mut rng);
        let table = agree::compiled(&routes);
        let mut requests = (0..cases::REQUESTS_PER_SET).map(|_| cases::case(&mut rng));
        requests.any(|case| agree::check(&table, &routes, &case).is_err())
    })
}

#[test]
fn inverting_any_comparison_is_noticed() {
    assert_eq!(
        first_difference(1_000),
        None,
        "without a mutation nothing differs"
    );
    let mut survivors = Vec::new();
    for site in mutant::ALL {
        match mutant::inverted(*site, || first_difference(SETS)) {
            Some(set) => println!("{site:?} inverted: noticed in set {set}"),
            None => survivors.push(site),
        }
    }
    assert!(
        survivors.is_empty(),
        "no case notices the inverting of {survivors:?}"
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
    let (declared, _) = source.split_once("/// The comparison itself").unwrap();
    let variants = declared
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with(',') && !line.starts_with("//"));
    for variant in variants {
        let name = variant.trim_end_matches(',');
        assert!(
            mutant::ALL
                .iter()
                .any(|site: &Site| format!("{site:?}") == name),
            "{name}"
        );
    }
}
