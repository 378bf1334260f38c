//! Replicas of a proxy and clients of one connection each, in simulated time: who has how much after a scale-out.

use std::time::Duration;

use karst_routing::share::{Load, Share};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// How a reconnecting client is sent to a replica.
#[derive(Clone, Copy, Debug)]
enum Agents {
    /// All clients are on one node, whose agent knows where its connections are.
    One,
    /// Each is on a node of its own: nobody knows of the others.
    Each,
}

struct Client {
    replica: usize,
    since: Duration,
    /// Requests per second.
    rate: f64,
}

struct World {
    rng: StdRng,
    agents: Agents,
    clients: Vec<Client>,
    shares: Vec<Share>,
    /// When each replica looks, in each [`LOOK`].
    phases: Vec<u64>,
    /// What each replica tells the others: what it measured when it looked last.
    told: Vec<f64>,
    moved: usize,
    served: Vec<f64>,
}

const STEP: u64 = 100;
/// How often a replica looks, in milliseconds.
const LOOK: u64 = 500;

impl World {
    fn new(seed: u64, agents: Agents, clients: usize, spread: f64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let clients = (0..clients)
            .map(|_| Client {
                replica: 0,
                since: Duration::ZERO,
                rate: 50.0 * rng.random_range(1.0 - spread..=1.0 + spread),
            })
            .collect();
        Self {
            rng,
            agents,
            clients,
            shares: vec![Share::default()],
            phases: vec![0],
            told: vec![0.0],
            moved: 0,
            served: vec![0.0],
        }
    }

    fn scale_to(&mut self, replicas: usize) {
        while self.shares.len() < replicas {
            self.shares.push(Share::default());
            self.phases
                .push(self.rng.random_range(0..LOOK / STEP) * STEP);
            self.told.push(0.0);
            self.served.push(0.0);
        }
    }

    fn load(&self, replica: usize) -> f64 {
        let here = self.clients.iter().filter(|one| one.replica == replica);
        here.map(|one| one.rate).sum()
    }

    /// Where the agent sends a client that comes from `from`: its old connection still counts.
    fn send(&mut self, from: usize) -> usize {
        let streams = |replica: &usize| match self.agents {
            Agents::One => self
                .clients
                .iter()
                .filter(|one| one.replica == *replica)
                .count(),
            Agents::Each => usize::from(*replica == from),
        };
        let all: Vec<usize> = (0..self.shares.len()).collect();
        let fewest = all.iter().map(streams).min();
        let least: Vec<usize> = all
            .iter()
            .copied()
            .filter(|one| Some(streams(one)) == fewest)
            .collect();
        least[self.rng.random_range(0..least.len())]
    }

    /// Runs to `until`, both in milliseconds; counts what each replica serves.
    fn run(&mut self, from: u64, until: u64) {
        for at in (from..until).step_by(STEP as usize) {
            let now = Duration::from_millis(at);
            for replica in 0..self.shares.len() {
                self.served[replica] += self.load(replica) * STEP as f64 / 1000.0;
            }
            for replica in 0..self.shares.len() {
                if at % LOOK == self.phases[replica] {
                    self.look(now, replica);
                }
            }
        }
    }

    fn look(&mut self, now: Duration, replica: usize) {
        let own: Vec<Load> = (0..)
            .zip(&self.clients)
            .filter(|(_, one)| one.replica == replica)
            .map(|(id, one)| {
                let age = now - one.since;
                // Requests are counted from look to look.
                let counted = age.as_secs_f64() / (LOOK as f64 / 1000.0);
                Load {
                    id,
                    rate: one.rate * counted.min(1.0),
                    age,
                }
            })
            .collect();
        self.told[replica] = own.iter().map(|one| one.rate).sum();
        let others: Vec<f64> = (0..self.shares.len())
            .filter(|other| *other != replica)
            .map(|other| self.told[other])
            .collect();
        for id in self.shares[replica].decide(now, &own, &others) {
            let to = self.send(replica);
            let client = &mut self.clients[id as usize];
            (client.replica, client.since) = (to, now);
            self.moved += 1;
        }
    }

    /// Busiest over idlest of what was served between `from` and `until`.
    fn ratio(&mut self, from: u64, until: u64) -> f64 {
        self.served.fill(0.0);
        self.run(from, until);
        let most = self.served.iter().copied().fold(0.0, f64::max);
        let least = self.served.iter().copied().fold(f64::MAX, f64::min);
        most / least
    }
}

/// Ten clients, one replica that becomes four: 15 seconds later nobody serves half as much again as another.
#[test]
fn ten_clients_spread_over_four_replicas_within_15_seconds() {
    for (agents, spread) in [(Agents::One, 0.0), (Agents::One, 0.2), (Agents::Each, 0.0)] {
        let mut ratios: Vec<f64> = (0..200)
            .map(|seed| {
                let mut world = World::new(seed, agents, 10, spread);
                world.run(0, 10_000);
                assert_eq!(world.moved, 0, "alone it has all");
                world.scale_to(4);
                world.run(10_000, 15_000);
                world.ratio(15_000, 25_000)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (half, most) = (ratios[100], ratios[190]);
        println!("{agents:?} +-{spread}: median {half:.2}, 95 % {most:.2}");
        assert!(half < 1.3, "{agents:?} {half}");
        assert!(most < 1.5, "{agents:?} {most}");
    }
}

/// Many clients come to rest: turns are for few.
#[test]
fn many_clients_are_moved_once() {
    let mut world = World::new(7, Agents::One, 1000, 0.5);
    world.scale_to(4);
    let after_start = world.ratio(0, 20_000);
    let moved = world.moved;
    let settled = world.ratio(20_000, 60_000);
    println!(
        "moved {moved} of 1000, then {}; {after_start:.2}, {settled:.2}",
        world.moved - moved
    );
    assert!((600..850).contains(&moved), "{moved}");
    assert!(world.moved - moved < 20, "{}", world.moved - moved);
    assert!(settled < 1.15, "{settled}");
}
