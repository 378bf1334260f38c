//! Draws among the endpoints of one level, against a model that adds weights up each time. Both get the same random
//! numbers.

use std::sync::Arc;

use karst_model::{
    protocol::AppProtocol,
    service::{Service, ServicePort},
    workload::Workload,
};
use karst_routing::balance::{Algorithm, Candidates, Mode, Request};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::cases;

fn candidates(weights: &[u32]) -> Candidates {
    let one = |(index, weight): (usize, &u32)| {
        let mut workload = Workload::new(&format!("w{index}"));
        workload.addresses = vec![format!("10.0.0.{}", index + 1).parse().unwrap()];
        workload.capacity = *weight;
        Arc::new(workload)
    };
    let endpoints: Vec<_> = weights.iter().enumerate().map(one).collect();
    let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    service.ports.insert(80, port);
    let source = Workload::new("waypoint");
    let request = Request {
        service: &service,
        port: 80,
        dialled: "10.96.0.1:80".parse().unwrap(),
        source: &source,
        sticky: None,
        mode: Mode::Standard,
    };
    Candidates::new(&request, &endpoints).unwrap()
}

/// Whom a point of the summed weights belongs to.
fn at(weights: &[u32], mut point: u64) -> usize {
    for (index, weight) in weights.iter().enumerate() {
        if point < u64::from(*weight) {
            return index;
        }
        point -= u64::from(*weight);
    }
    unreachable!("the point is below the sum")
}

fn next_fit(start: usize, avoid: &[bool]) -> usize {
    let len = avoid.len();
    for step in 0..len {
        if !avoid[(start + step) % len] {
            return (start + step) % len;
        }
    }
    start
}

fn draw(weights: &[u32], avoid: &[bool], rng: &mut SmallRng) -> usize {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut last = 0;
    for _ in 0..4 {
        last = at(weights, rng.random_range(0..total));
        if !avoid[last] {
            return last;
        }
    }
    next_fit(last, avoid)
}

/// The lighter of two that were drawn; of equals the first.
fn lighter(weights: &[u32], avoid: &[bool], load: &[u64], rng: &mut SmallRng) -> usize {
    let first = draw(weights, avoid, rng);
    let mut second = draw(weights, avoid, rng);
    if second == first {
        second = next_fit((first + 1) % weights.len(), avoid);
    }
    let cost = |index: usize| load[index] as f64 / f64::from(weights[index]);
    if cost(second) < cost(first) {
        second
    } else {
        first
    }
}

#[test]
fn draws_are_as_the_model_says() {
    const DRAWS: u64 = 500;
    for seed in 0..cases().div_ceil(DRAWS) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let weights: Vec<u32> = (0..rng.random_range(1..12))
            .map(|_| rng.random_range(1..10))
            .collect();
        let candidates = candidates(&weights);
        for _ in 0..DRAWS {
            let avoid: Vec<bool> = weights.iter().map(|_| rng.random_bool(0.2)).collect();
            let load: Vec<u64> = weights.iter().map(|_| rng.random_range(0..50)).collect();
            let algorithm = match rng.random_range(0..3) {
                0 => Algorithm::Random,
                1 => Algorithm::LeastRequest,
                _ => Algorithm::PeakEwma,
            };
            let mut same = rng.clone();
            let picked = candidates.pick(algorithm, |n| avoid[n], |n| load[n], &mut rng);
            let expected = match (algorithm, weights.len()) {
                (_, 1) => 0,
                (Algorithm::Random, _) => draw(&weights, &avoid, &mut same),
                _ => lighter(&weights, &avoid, &load, &mut same),
            };
            assert_eq!(picked, Some(expected), "seed {seed}");
        }
    }
}

#[test]
fn turns_meet_every_share_exactly_once_in_each_round() {
    for seed in 0..cases().div_ceil(200) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let weights: Vec<u32> = (0..rng.random_range(1..12))
            .map(|_| rng.random_range(1..10))
            .collect();
        let candidates = candidates(&weights);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let start = rng.random_range(0..1_000_000) * total;
        let mut counts = vec![0; weights.len()];
        for turn in start..start + total {
            let algorithm = Algorithm::RoundRobin(turn);
            let picked = candidates.pick(algorithm, |_| false, |_| 0, &mut rng);
            counts[picked.unwrap()] += 1;
        }
        assert_eq!(counts, weights, "seed {seed}");
    }
}
