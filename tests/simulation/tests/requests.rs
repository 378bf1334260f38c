//! Requests through the decisions of a waypoint, joined as it joins them, under seeded faults and a simulated clock: a limit
//! counts, a route draws a backend, a breaker has room or not, an endpoint is drawn, it fails, it is ejected, the request
//! is tried again.
//!
//! ```text
//!   arrive ──limit──► route ──breaker──► draw ──► endpoint (up, failing, gone, slow) ──► outcome ──► eject
//!                                         ▲                                                │
//!                                         └───────────────── retry? budget? ◄──────────────┘
//! ```
//!
//! At every step the rules hold that users are promised; when the faults are over, everybody is back and nothing fails.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use karst_model::{
    route::RetryPolicy,
    traffic::{Outlier, RetryBudget},
};
use karst_routing::{
    breaker::{Slots, retries_allowed},
    hash::hash_of,
    outlier::{Ejector, Outcome, Streak, Verdict},
    ratelimit::{Buckets, Rate},
    retry::{Attempt, Body, Failure, Retry, decide},
    weights::Weights,
};
use karst_test_simulation::endpoints::{Endpoints, Situation, Way};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

const SEEDS: u64 = 1_500;
const STEPS: u32 = 800;
/// From this step on nothing is broken any more.
const HEALED: u32 = 500;
const STEP: Duration = Duration::from_millis(10);

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Fine,
    /// 503 at once: it began, and says so.
    Failing,
    /// Refuses connections: provably unsent.
    Gone,
    /// Breaks off after it has begun.
    Breaks,
    /// Answers, and takes its time.
    Slow,
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Flight {
    id: u64,
    backend: usize,
    tries: u32,
    tried: BTreeSet<usize>,
    /// How often a server has begun it.
    begun: u32,
    is_retry: bool,
    /// Of what it is hashed by.
    key: u64,
    /// When its try began.
    since: Duration,
}

/// A backend: endpoints and what is known of them.
struct Backend {
    moods: Vec<Mood>,
    streaks: Vec<Streak>,
    ejector: Ejector<usize>,
    requests: Slots,
    retries: Slots,
    endpoints: Endpoints,
}

/// What users are promised for one seed.
struct Promise {
    outlier: Outlier,
    retry: Option<RetryPolicy>,
    budget: RetryBudget,
    max_requests: u32,
    rate: Rate,
}

#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    limited: u64,
    overflown: u64,
    answered: u64,
    failed: u64,
    ejections: u64,
    retries: u64,
    /// Beside fine endpoints one that is slow: how many tries an even share of it were, and how many it got, in millionths;
    /// for those who do not look at load, and those who do.
    beside_slow: [(u64, u64); 2],
}

struct Simulation {
    rng: StdRng,
    now: Duration,
    step: u32,
    promise: Promise,
    backends: Vec<Backend>,
    weights: Weights,
    shares: Vec<u32>,
    buckets: Buckets,
    /// Tries that end or begin later.
    later: BinaryHeap<Reverse<(Duration, u64)>>,
    flights: BTreeMap<u64, (Flight, Event)>,
    next: u64,
    tally: Tally,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Try,
    Ends(usize),
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let retry = rng.random_bool(0.7).then(|| RetryPolicy {
            attempts: rng.random_range(0..4),
            statuses: if rng.random_bool(0.5) {
                vec![503]
            } else {
                Vec::new()
            },
            on_connection_failure: rng.random_bool(0.5),
            ..RetryPolicy::default()
        });
        let promise = Promise {
            outlier: Outlier {
                consecutive_errors: Some(rng.random_range(1..6)),
                interval: Duration::from_millis(rng.random_range(10..500)),
                base_ejection: Duration::from_millis(rng.random_range(50..2_000)),
                max_ejected_percent: rng.random_range(0..=100),
                min_health_percent: if rng.random_bool(0.3) { 50 } else { 0 },
                ..Outlier::default()
            },
            retry,
            budget: RetryBudget::default(),
            max_requests: rng.random_range(1..40),
            rate: Rate::new(
                rng.random_range(50..400),
                Duration::from_secs(1),
                rng.random_range(1..100),
            ),
        };
        let shares: Vec<u32> = (0..rng.random_range(1..4))
            .map(|_| rng.random_range(0..100))
            .collect();
        let backends = shares.iter().map(|_| {
            let count = rng.random_range(1..9);
            Backend {
                moods: vec![Mood::Fine; count],
                streaks: vec![Streak::default(); count],
                endpoints: Endpoints::new(count, &mut rng),
                ejector: Ejector::new(Duration::ZERO),
                requests: Slots::default(),
                retries: Slots::default(),
            }
        });
        let backends: Vec<Backend> = backends.collect();
        Self {
            now: Duration::ZERO,
            step: 0,
            buckets: Buckets::new(promise.rate, 4),
            promise,
            backends,
            weights: Weights::new(shares.iter().copied()),
            shares,
            later: BinaryHeap::new(),
            flights: BTreeMap::new(),
            next: 0,
            tally: Tally::default(),
            seed,
            rng,
        }
    }

    fn run(mut self) -> Tally {
        while self.step < STEPS || !self.flights.is_empty() {
            self.step += 1;
            self.now += STEP;
            if self.step < HEALED {
                self.harm();
            } else if self.step == HEALED {
                let moods = self.backends.iter_mut().flat_map(|one| &mut one.moods);
                moods.for_each(|mood| *mood = Mood::Fine);
            }
            for backend in &mut self.backends {
                backend.ejector.tick(self.now, &self.promise.outlier);
            }
            if self.step < STEPS {
                for _ in 0..self.rng.random_range(0..6) {
                    self.arrive();
                }
            }
            while let Some(Reverse((at, id))) = self.later.peek().copied()
                && at <= self.now
            {
                self.later.pop();
                let (flight, event) = self
                    .flights
                    .remove(&id)
                    .expect("every event has its flight");
                match event {
                    Event::Try => self.try_once(flight),
                    Event::Ends(endpoint) => self.ended(flight, endpoint),
                }
            }
            self.check();
        }
        self.check_end();
        self.tally
    }

    /// Something breaks, or heals.
    fn harm(&mut self) {
        if !self.rng.random_bool(0.02) {
            return;
        }
        let backend = self.rng.random_range(0..self.backends.len());
        let endpoint = self.rng.random_range(0..self.backends[backend].moods.len());
        let moods = [
            Mood::Fine,
            Mood::Failing,
            Mood::Gone,
            Mood::Breaks,
            Mood::Slow,
        ];
        self.backends[backend].moods[endpoint] = moods[self.rng.random_range(0..moods.len())];
    }

    fn arrive(&mut self) {
        if !self.buckets.take(self.now, 7).passes {
            self.tally.limited += 1;
            return;
        }
        self.tally.passed += 1;
        let random = self.rng.next_u64();
        let Some(backend) = self.weights.pick(random) else {
            assert_eq!(
                self.weights.total(),
                0,
                "only without weights there is no backend"
            );
            self.tally.failed += 1;
            return;
        };
        assert!(
            self.shares[backend] > 0,
            "seed {}: drawn with weight 0",
            self.seed
        );
        if !self.backends[backend]
            .requests
            .take(self.promise.max_requests)
        {
            self.tally.overflown += 1;
            return;
        }
        self.next += 1;
        let flight = Flight {
            id: self.next,
            backend,
            tries: 0,
            tried: BTreeSet::new(),
            begun: 0,
            is_retry: false,
            key: self.rng.random_range(0..50),
            since: self.now,
        };
        self.try_once(flight);
    }

    /// As a waypoint chooses; [`Endpoints`] checks whom.
    fn choose(&mut self, flight: &Flight) -> usize {
        let backend = &mut self.backends[flight.backend];
        let ejector = &backend.ejector;
        let situation = Situation {
            now: self.now,
            outlier: &self.promise.outlier,
            is_up: &|endpoint| !ejector.is_ejected(&endpoint),
            tried: &flight.tried,
            hash: hash_of(&flight.key.to_be_bytes()),
        };
        backend.endpoints.choose(&situation, &mut self.rng)
    }

    /// Counts where tries go while one endpoint alone is slow and the others are fine.
    fn note_slow(&mut self, backend: usize, endpoint: usize) {
        let of = &self.backends[backend];
        let slow = of.moods.iter().filter(|mood| **mood == Mood::Slow).count();
        let fine = of.moods.iter().filter(|mood| **mood == Mood::Fine).count();
        let way = match of.endpoints.way {
            Way::Random | Way::RoundRobin => 0,
            Way::LeastRequest | Way::PeakEwma => 1,
            Way::Hash => return,
        };
        if slow == 1 && fine > 0 && slow + fine == of.moods.len() {
            let (all, to_it) = &mut self.tally.beside_slow[way];
            *all += 1_000_000 / of.moods.len() as u64;
            *to_it += u64::from(of.moods[endpoint] == Mood::Slow) * 1_000_000;
        }
    }

    fn try_once(&mut self, mut flight: Flight) {
        let endpoint = self.choose(&flight);
        self.note_slow(flight.backend, endpoint);
        flight.tries += 1;
        flight.tried.insert(endpoint);
        flight.since = self.now;
        let backend = &mut self.backends[flight.backend];
        backend.endpoints.begun(endpoint);
        let mood = backend.moods[endpoint];
        flight.begun += u32::from(mood != Mood::Gone);
        let takes = match mood {
            Mood::Slow => self.rng.random_range(300..900),
            _ => self.rng.random_range(1..60),
        };
        let takes = Duration::from_millis(takes);
        self.at(self.now + takes, flight, Event::Ends(endpoint));
    }

    fn at(&mut self, at: Duration, flight: Flight, event: Event) {
        self.later.push(Reverse((at, flight.id)));
        self.flights.insert(flight.id, (flight, event));
    }

    fn ended(&mut self, mut flight: Flight, endpoint: usize) {
        let backend = &mut self.backends[flight.backend];
        let took = self.now.saturating_sub(flight.since);
        backend.endpoints.ended(endpoint, self.now, took);
        let (outcome, failure) = match backend.moods[endpoint] {
            Mood::Fine | Mood::Slow => (Outcome::Status(200), None),
            Mood::Failing => (Outcome::Status(503), Some(Failure::Status(503))),
            // It broke while the request was there: what was begun stays begun.
            Mood::Gone if flight.begun > 0 => (Outcome::Unreached, Some(Failure::Reset)),
            Mood::Gone => (Outcome::Unreached, Some(Failure::NotSent)),
            Mood::Breaks => (Outcome::Unreached, Some(Failure::Reset)),
        };
        self.observe(flight.backend, endpoint, outcome);
        if flight.is_retry {
            self.backends[flight.backend].retries.give();
            flight.is_retry = false;
        }
        let Some(failure) = failure else {
            self.tally.answered += 1;
            return self.backends[flight.backend].requests.give();
        };
        let attempt = Attempt {
            number: flight.tries,
            failure,
            body: Body::Replayable,
            remaining: None,
        };
        let random = self.rng.next_u64();
        match decide(self.promise.retry.as_ref(), &attempt, random) {
            Retry::After(pause) => {
                if self.promise.retry.is_none() {
                    assert_eq!(
                        flight.begun, 0,
                        "seed {}: begun, and sent again unasked",
                        self.seed
                    );
                }
                let backend = &self.backends[flight.backend];
                let allowed = retries_allowed(&self.promise.budget, backend.requests.used());
                if backend.retries.take(allowed) {
                    flight.is_retry = true;
                    self.tally.retries += 1;
                    return self.at(self.now + pause.max(STEP), flight, Event::Try);
                }
            }
            Retry::Stop(_) => {}
        }
        self.tally.failed += 1;
        self.backends[flight.backend].requests.give();
    }

    fn observe(&mut self, backend: usize, endpoint: usize, outcome: Outcome) {
        let one = &mut self.backends[backend];
        let total = one.moods.len();
        if one.streaks[endpoint]
            .observe(&self.promise.outlier, outcome)
            .is_some()
            && one
                .ejector
                .eject(self.now, &endpoint, total, &self.promise.outlier)
                == Verdict::Ejected
        {
            self.tally.ejections += 1;
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let seed = self.seed;
        for backend in &self.backends {
            let (ejected, total) = (backend.ejector.ejected(), backend.moods.len());
            assert!(ejected < total, "seed {seed}: {ejected} of {total} ejected");
            let most = (total * self.promise.outlier.max_ejected_percent as usize / 100).max(1);
            assert!(
                ejected <= most,
                "seed {seed}: {ejected} of {total}, {most} allowed"
            );
            assert!(
                backend.requests.used() <= self.promise.max_requests,
                "seed {seed}"
            );
            let busy = backend.requests.used();
            assert!(backend.endpoints.in_flight() <= busy, "seed {seed}");
            let budget = retries_allowed(&self.promise.budget, self.promise.max_requests);
            assert!(backend.retries.used() <= budget, "seed {seed}");
        }
        // Burst, and so many in the time since.
        let rate = &self.promise.rate;
        let most = u128::from(rate.burst())
            + self.now.as_nanos() * u128::from(rate.requests()) / rate.period().as_nanos();
        assert!(
            u128::from(self.tally.passed) <= most + 1,
            "seed {seed}: {} of {most}",
            self.tally.passed
        );
        for (flight, _) in self.flights.values() {
            let attempts = self
                .promise
                .retry
                .as_ref()
                .map_or(2, |retry| retry.attempts);
            assert!(flight.tries <= attempts + 1, "seed {seed}: {flight:?}");
        }
    }

    /// What holds when all is well again: nobody is left out, nothing is left behind.
    fn check_end(&mut self) {
        let seed = self.seed;
        for backend in &mut self.backends {
            assert_eq!(
                (
                    backend.requests.used(),
                    backend.retries.used(),
                    backend.endpoints.in_flight()
                ),
                (0, 0, 0),
                "seed {seed}"
            );
            // The longest ejection there is, and the look after it.
            backend
                .ejector
                .tick(self.now + Duration::from_secs(400), &self.promise.outlier);
            assert_eq!(
                backend.ejector.ejected(),
                0,
                "seed {seed}: somebody stays ejected"
            );
        }
        let Tally {
            passed,
            overflown,
            answered,
            failed,
            ..
        } = self.tally;
        assert_eq!(
            passed,
            overflown + answered + failed,
            "seed {seed}: a request is lost"
        );
    }
}

#[test]
fn requests_keep_their_promises_under_seeded_faults() {
    let mut all = Tally::default();
    for seed in 0..SEEDS {
        let run = AssertUnwindSafe(|| Simulation::new(seed).run());
        let tally = catch_unwind(run).unwrap_or_else(|_| panic!("seed {seed} failed, see above"));
        all.passed += tally.passed;
        all.limited += tally.limited;
        all.overflown += tally.overflown;
        all.answered += tally.answered;
        all.failed += tally.failed;
        all.ejections += tally.ejections;
        all.retries += tally.retries;
        for (sum, one) in all.beside_slow.iter_mut().zip(tally.beside_slow) {
            *sum = (sum.0 + one.0, sum.1 + one.1);
        }
    }
    println!("{SEEDS} seeds: {all:?}");
    let each = [
        all.limited,
        all.overflown,
        all.failed,
        all.ejections,
        all.retries,
    ];
    assert!(
        each.iter().all(|count| *count > 1_000),
        "everything happens: {all:?}"
    );
    // Against an even share, in thousandths: who looks at load goes around a slow endpoint.
    let [blind, looking] = all
        .beside_slow
        .map(|(all, to_it)| to_it * 1_000 / all.max(1));
    println!("a slow endpoint gets {blind} thousandths of an even share, and {looking} by load");
    assert!(looking * 2 < blind, "{blind} and {looking}: {all:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let twice = [0, 1].map(|_| format!("{:?}", Simulation::new(7).run()));
    assert_eq!(twice[0], twice[1]);
}
