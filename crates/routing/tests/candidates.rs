//! Draws from surveyed endpoints: shares, loads, and endpoints that are to be avoided.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::sync::Arc;

use karst_model::{
    protocol::AppProtocol,
    service::{LoadBalancingMode, Scope, Service, ServicePort},
    workload::{Health, Workload},
};
use karst_routing::balance::{Algorithm, Candidates, Mode, NoEndpoint, Request};
use rand::{SeedableRng, rngs::SmallRng};

fn endpoints(weights: &[u32]) -> Vec<Arc<Workload>> {
    let one = |(index, weight): (usize, &u32)| {
        let mut workload = Workload::new(&format!("w{index}"));
        workload.addresses = vec![format!("10.0.0.{}", index + 1).parse().unwrap()];
        workload.capacity = *weight;
        Arc::new(workload)
    };
    weights.iter().enumerate().map(one).collect()
}

fn survey(mode: LoadBalancingMode, endpoints: &[Arc<Workload>]) -> Result<Candidates, NoEndpoint> {
    let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    service.ports.insert(80, port);
    service.load_balancing.mode = mode;
    service.load_balancing.routing_preference = vec![Scope::Node];
    let mut source = Workload::new("waypoint");
    source.node = "a".into();
    let request = Request {
        service: &service,
        port: 80,
        dialled: "10.96.0.1:80".parse().unwrap(),
        source: &source,
        sticky: None,
        mode: Mode::Standard,
    };
    Candidates::new(&request, endpoints)
}

fn candidates(weights: &[u32]) -> Candidates {
    survey(LoadBalancingMode::Unspecified, &endpoints(weights)).unwrap()
}

/// How often each endpoint is drawn in `draws` requests that end at once.
fn counts(candidates: &Candidates, algorithm: fn(u64) -> Algorithm, draws: u64) -> Vec<u64> {
    let (mut rng, mut counts) = (
        SmallRng::seed_from_u64(1),
        vec![0; candidates.choices().len()],
    );
    for number in 0..draws {
        let drawn = candidates.pick(algorithm(number), |_| false, |_| 0, &mut rng);
        counts[drawn.unwrap()] += 1;
    }
    counts
}

#[test]
fn round_robin_takes_turns_in_proportion_to_the_weights() {
    let equal = counts(&candidates(&[1, 1, 1]), Algorithm::RoundRobin, 3_000);
    assert_eq!(equal, [1_000; 3]);
    let weighted = candidates(&[1, 3, 6]);
    assert_eq!(
        counts(&weighted, Algorithm::RoundRobin, 1_000),
        [100, 300, 600]
    );
    // Spread out, not one after the other: of any four in a row some go elsewhere.
    let mut rng = SmallRng::seed_from_u64(1);
    let turns: Vec<usize> = (0..100)
        .map(|count| {
            weighted
                .pick(Algorithm::RoundRobin(count), |_| false, |_| 0, &mut rng)
                .unwrap()
        })
        .collect();
    assert!(
        turns
            .windows(4)
            .all(|turns| turns.iter().any(|turn| *turn != turns[0]))
    );
}

#[test]
fn random_and_idle_least_request_follow_the_weights() {
    for algorithm in [|_| Algorithm::Random, |_| Algorithm::LeastRequest] {
        let counts = counts(&candidates(&[1, 1, 2]), algorithm, 40_000);
        assert!((9_000..11_500).contains(&counts[0]), "{counts:?}");
        assert!((18_000..22_000).contains(&counts[2]), "{counts:?}");
    }
}

#[test]
fn least_request_evens_out_the_load() {
    let (candidates, mut rng) = (candidates(&[1; 10]), SmallRng::seed_from_u64(1));
    let mut in_flight = vec![0_u32; 10];
    // Nothing ends: the choice alone keeps the loads together.
    for _ in 0..1_000 {
        let drawn = candidates.pick(
            Algorithm::LeastRequest,
            |_| false,
            |index| in_flight[index].into(),
            &mut rng,
        );
        in_flight[drawn.unwrap()] += 1;
    }
    let (least, most) = (
        in_flight.iter().min().unwrap(),
        in_flight.iter().max().unwrap(),
    );
    assert!(most - least <= 6, "{in_flight:?}");
}

#[test]
fn an_overloaded_endpoint_is_left_alone() {
    let (candidates, mut rng) = (candidates(&[1, 1]), SmallRng::seed_from_u64(1));
    for _ in 0..1_000 {
        let load = |index| if index == 0 { 100 } else { 0 };
        let drawn = candidates.pick(Algorithm::LeastRequest, |_| false, load, &mut rng);
        assert_eq!(drawn, Some(1));
    }
}

#[test]
fn what_is_to_be_avoided_is_drawn_only_where_there_is_nothing_else() {
    let (candidates, mut rng) = (candidates(&[1_000, 1_000, 1]), SmallRng::seed_from_u64(1));
    for count in 0..200 {
        for algorithm in [
            Algorithm::LeastRequest,
            Algorithm::RoundRobin(count),
            Algorithm::Random,
        ] {
            let drawn = candidates.pick(algorithm, |index| index < 2, |_| 0, &mut rng);
            assert_eq!(drawn, Some(2), "{algorithm:?}");
            assert!(
                candidates
                    .pick(algorithm, |_| true, |_| 0, &mut rng)
                    .is_some()
            );
        }
    }
}

#[test]
fn only_healthy_endpoints_of_the_best_rank_are_candidates() {
    let mut workloads = endpoints(&[1, 1, 1, 0]);
    for (index, node) in ["a", "b", "a", "a"].into_iter().enumerate() {
        let workload = Arc::make_mut(&mut workloads[index]);
        workload.node = node.into();
        if index == 2 {
            workload.health = Health::Unhealthy;
        }
    }
    let names = |found: &Candidates| -> Vec<String> {
        found
            .choices()
            .iter()
            .map(|choice| choice.workload.uid.to_string())
            .collect()
    };
    assert_eq!(
        names(&survey(LoadBalancingMode::Failover, &workloads).unwrap()),
        ["w0"]
    );
    assert_eq!(
        names(&survey(LoadBalancingMode::Unspecified, &workloads).unwrap()),
        ["w0", "w1"]
    );
    assert!(matches!(
        survey(LoadBalancingMode::Unspecified, &workloads[2..]),
        Err(NoEndpoint::NoneUsable { .. })
    ));
}
