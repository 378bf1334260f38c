//! What a way of balancing gives clients when one endpoint is slow, in one run of a simulation; and what a choice costs.
//!
//! Ten endpoints, each working on eight requests at a time, 1 ms each in the mean (exponential); one of them takes twenty
//! times as long. Three requests come in a millisecond, at random (Poisson): with even shares the slow one is at 75 % of
//! what it can do.
//!
//! ```sh
//! cargo run --release -p karst-routing --example balance
//! ```
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for the terminal, over inputs of its own"
)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use karst_model::{
    protocol::AppProtocol,
    service::{Service, ServicePort},
    traffic::HashTable,
    workload::Workload,
};
use karst_routing::{
    balance::{Algorithm, Candidates, Mode, Request},
    ewma::Ewma,
    hash::{Node, Table, hash_of},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

const ENDPOINTS: usize = 10;
const REQUESTS: u64 = 1_000_000;
const MEAN_MICROS: f64 = 1_000.0;
const SLOWER: f64 = 20.0;
/// Requests in a millisecond.
const RATE: f64 = 3.0;
/// Requests that an endpoint works on at once.
const WORKERS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    RoundRobin,
    Random,
    LeastRequest,
    PeakEwma,
}

fn main() {
    println!("{REQUESTS} requests, {ENDPOINTS} endpoints, the last one {SLOWER} times slower");
    println!("way            p50 ms    p99 ms  p99.9 ms   max ms   slow one's share");
    for (name, way) in [
        ("round robin", Way::RoundRobin),
        ("random", Way::Random),
        ("least request", Way::LeastRequest),
        ("peak EWMA", Way::PeakEwma),
    ] {
        let (mut times, shares) = simulate(way);
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
        let slow = shares[ENDPOINTS - 1] as f64 * 100.0 / REQUESTS as f64;
        println!(
            "{name:<14} {:>7.2} {:>9.2} {:>9.2} {:>9.1} {slow:>10.2} %",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
    costs();
}

/// Ends of service: when, at whom, and when the request came.
type Ends = BinaryHeap<Reverse<(u64, usize, u64)>>;

/// Endpoints with queues; times are microseconds.
struct Endpoint {
    queue: VecDeque<u64>,
    busy: usize,
    mean: Ewma,
}

fn simulate(way: Way) -> (Vec<u64>, Vec<u64>) {
    let candidates = candidates();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut endpoints: Vec<Endpoint> = (0..ENDPOINTS)
        .map(|_| Endpoint {
            queue: VecDeque::new(),
            busy: 0,
            mean: Ewma::default(),
        })
        .collect();
    let mut shares = vec![0; ENDPOINTS];
    let mut times = Vec::with_capacity(REQUESTS as usize);
    let mut ends = Ends::new();
    let mut next_arrival = 0_u64;
    let gap = 1_000.0 / RATE;
    let mut arrived = 0;
    loop {
        let end = ends.peek().map(|Reverse((at, ..))| *at);
        if arrived < REQUESTS && end.is_none_or(|end| next_arrival <= end) {
            let now = next_arrival;
            let chosen = choose(way, arrived, now, &candidates, &endpoints, &mut rng);
            arrived += 1;
            shares[chosen] += 1;
            endpoints[chosen].queue.push_back(now);
            begin(chosen, now, &mut endpoints, &mut ends, &mut rng);
            next_arrival += (exponential(&mut rng) * gap) as u64;
        } else if let Some(Reverse((now, who, since))) = ends.pop() {
            let endpoint = &mut endpoints[who];
            let took = now - since;
            endpoint.busy -= 1;
            endpoint
                .mean
                .observe(Duration::from_micros(now), Duration::from_micros(took));
            times.push(took);
            begin(who, now, &mut endpoints, &mut ends, &mut rng);
        } else {
            return (times, shares);
        }
    }
}

fn choose(
    way: Way,
    number: u64,
    now: u64,
    candidates: &Candidates,
    endpoints: &[Endpoint],
    rng: &mut SmallRng,
) -> usize {
    let algorithm = match way {
        Way::RoundRobin => Algorithm::RoundRobin(number),
        Way::Random => Algorithm::Random,
        Way::LeastRequest => Algorithm::LeastRequest,
        Way::PeakEwma => Algorithm::PeakEwma,
    };
    let in_flight = |index: usize| (endpoints[index].queue.len() + endpoints[index].busy) as u32;
    let load = |index: usize| match way {
        Way::PeakEwma => {
            let now = Duration::from_micros(now);
            endpoints[index].mean.cost(now, in_flight(index))
        }
        _ => in_flight(index).into(),
    };
    candidates.pick(algorithm, |_| false, load, rng).unwrap()
}

fn begin(who: usize, now: u64, endpoints: &mut [Endpoint], ends: &mut Ends, rng: &mut SmallRng) {
    let endpoint = &mut endpoints[who];
    if endpoint.busy == WORKERS {
        return;
    }
    let Some(since) = endpoint.queue.pop_front() else {
        return;
    };
    endpoint.busy += 1;
    let slower = if who == ENDPOINTS - 1 { SLOWER } else { 1.0 };
    let time = exponential(rng) * MEAN_MICROS * slower;
    ends.push(Reverse((now + (time as u64).max(1), who, since)));
}

/// Of mean 1.
fn exponential(rng: &mut SmallRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

fn candidates() -> Candidates {
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|index| {
            let mut workload = Workload::new(&format!("w{index}"));
            workload.addresses = vec![format!("10.0.0.{}", index + 1).parse().unwrap()];
            Arc::new(workload)
        })
        .collect();
    let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    service.ports.insert(80, port);
    let request = Request {
        service: &service,
        port: 80,
        dialled: "10.96.0.1:80".parse().unwrap(),
        source: &Workload::new("waypoint"),
        sticky: None,
        mode: Mode::Standard,
    };
    Candidates::new(&request, &endpoints).unwrap()
}

/// Nanoseconds of one choice.
fn costs() {
    const CHOICES: u64 = 5_000_000;
    let candidates = candidates();
    let mut rng = SmallRng::seed_from_u64(2);
    let time = |name: &str, mut one: Box<dyn FnMut(u64) + '_>| {
        let began = Instant::now();
        (0..CHOICES).for_each(&mut one);
        let nanos = began.elapsed().as_nanos() as f64 / CHOICES as f64;
        println!("one choice, {name:<16} {nanos:>6.1} ns");
    };
    let mut mean = Ewma::default();
    mean.observe(Duration::ZERO, Duration::from_millis(1));
    for algorithm in [
        Algorithm::Random,
        Algorithm::RoundRobin(7),
        Algorithm::LeastRequest,
        Algorithm::PeakEwma,
    ] {
        let name = format!("{algorithm:?}");
        let rng = &mut rng;
        let candidates = &candidates;
        let load = |_: usize| match algorithm {
            Algorithm::PeakEwma => mean.cost(Duration::from_millis(5), 3),
            _ => 3,
        };
        time(
            &name,
            Box::new(move |_| {
                black_box(candidates.pick(algorithm, |_| false, load, rng));
            }),
        );
    }
    let names: Vec<String> = (0..ENDPOINTS).map(|n| format!("w{n}")).collect();
    let nodes: Vec<_> = names.iter().map(|name| Node { name, weight: 1 }).collect();
    for kind in [
        HashTable::Ring { min_size: 1024 },
        HashTable::Maglev { size: 65_537 },
    ] {
        let table = Table::new(kind, &nodes);
        time(
            format!("{kind:?}").split(' ').next().unwrap_or_default(),
            Box::new(move |key| {
                black_box(table.at(hash_of(&key.to_le_bytes()), |_| false));
            }),
        );
    }
}
