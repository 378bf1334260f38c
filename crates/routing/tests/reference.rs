//! The route table against the naive matcher, over a million random cases, and path normalisation against a naive one.
//!
//! `KARST_ROUTE_CASES` sets the number of cases, `KARST_ROUTE_SEED` the seed, which every run prints.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test, and its seed is printed, in helpers too"
)]

use std::{env, str::FromStr};

use karst_routing::request::normalise_path;
use naive::Expected;
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

#[path = "reference/agree.rs"]
mod agree;
#[path = "reference/cases.rs"]
mod cases;
#[path = "reference/naive.rs"]
mod naive;
#[path = "reference/naive_path.rs"]
mod naive_path;

const CASES: usize = 1_000_000;
const SEED: u64 = 20_261_121;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Runs the cases on all processors.
fn in_parallel(run: impl Fn(u64, usize) + Sync) {
    let (count, seed) = (
        setting("KARST_ROUTE_CASES", CASES),
        setting("KARST_ROUTE_SEED", SEED),
    );
    println!("{count} cases, KARST_ROUTE_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let run = &run;
            scope.spawn(move || run(seed.wrapping_add(thread as u64), count.div_ceil(threads)));
        }
    });
}

#[test]
fn random_routes_agree_with_the_naive_matcher() {
    in_parallel(|seed, count| {
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..count.div_ceil(cases::REQUESTS_PER_SET) {
            let routes = cases::routes(&mut rng);
            let table = agree::compiled(&routes);
            for _ in 0..cases::REQUESTS_PER_SET {
                let case = cases::case(&mut rng);
                if let Err(difference) = agree::check(&table, &routes, &case) {
                    panic!("{difference}\n{case:#?}\n{routes:#?}\nseed {seed}");
                }
            }
        }
    });
}

/// Parts that paths are made of, so that every special case meets every other.
const PARTS: [&str; 34] = [
    "/",
    "/",
    "/",
    "/",
    "a",
    "b",
    "A",
    "..",
    ".",
    "...",
    "%2e",
    "%2E",
    "%61",
    "%41",
    "%2f",
    "%5c",
    "%5C",
    "\\",
    "%25",
    "%2561",
    "%",
    "%4",
    "%00",
    "%0a",
    "%7f",
    "%c3%a9",
    "%C0%AF",
    "%e0%80%af",
    "é",
    ";",
    "..;",
    "{",
    "%7b",
    "@",
];

#[test]
fn random_paths_agree_with_the_naive_normalisation() {
    in_parallel(|seed, count| {
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..count {
            let mut path = "/".to_owned();
            for _ in 0..rng.random_range(0..9) {
                path.push_str(PARTS.choose(&mut rng).unwrap());
            }
            let found = normalise_path(&path).ok().map(|path| path.into_owned());
            assert_eq!(found, naive_path::normalise(&path), "{path:?}, seed {seed}");
            if let Some(normal) = found {
                let again = normalise_path(&normal).unwrap();
                assert_eq!(again, normal, "{path:?}: twice is not as once");
            }
        }
    });
}

#[test]
fn the_cases_end_in_all_ways() {
    let (mut decided, mut rng) = ([0_usize; 4], SmallRng::seed_from_u64(1));
    for _ in 0..20_000 {
        let routes = cases::routes(&mut rng);
        match naive::pick(&routes, &cases::case(&mut rng)) {
            Expected::NoRoutes => decided[0] += 1,
            Expected::NotFound => decided[1] += 1,
            Expected::Rule { prefix: None, .. } => decided[2] += 1,
            Expected::Rule {
                prefix: Some(_), ..
            } => decided[3] += 1,
        }
    }
    assert!(decided.iter().all(|count| *count > 700), "{decided:?}");
}
