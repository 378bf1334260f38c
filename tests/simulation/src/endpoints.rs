//! The endpoints of one backend, chosen from as a waypoint chooses: levels by nearness, their shares by health, in each the
//! algorithm of the policy. What is chosen is checked against the plain words of the promise.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use karst_model::{
    locality::Locality,
    protocol::AppProtocol,
    service::{Service, ServicePort},
    traffic::{HashTable, LocalityBalance, Outlier},
    workload::Workload,
};
use karst_routing::{
    balance::{Algorithm, Levels, Mode, Request, Wanted},
    ewma::Ewma,
    hash::{Node, Table},
    outlier::holds,
    priority::{self, Level, Tried},
};
use rand::{Rng as _, RngExt as _, rngs::StdRng};

/// Share of a level that has to be healthy so that all requests stay there, in percent.
const ENOUGH: usize = 72;

/// How one is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    LeastRequest,
    RoundRobin,
    Random,
    PeakEwma,
    Hash,
}

/// All of a backend.
pub struct Endpoints {
    pub way: Way,
    levels: Levels,
    tables: Vec<Table>,
    /// Requests so far.
    round: u64,
    /// By the number of an endpoint, as everything below.
    level_of: Vec<usize>,
    in_flight: Vec<u32>,
    times: Vec<Ewma>,
}

/// How an endpoint is now, and what the request has tried.
pub struct Situation<'a> {
    pub now: Duration,
    pub outlier: &'a Outlier,
    pub is_up: &'a dyn Fn(usize) -> bool,
    pub tried: &'a BTreeSet<usize>,
    /// Of the request's key.
    pub hash: u64,
}

impl Endpoints {
    /// `count` of them, here and elsewhere, of different weights.
    pub fn new(count: usize, rng: &mut StdRng) -> Self {
        let ways = [
            Way::LeastRequest,
            Way::RoundRobin,
            Way::Random,
            Way::PeakEwma,
            Way::Hash,
        ];
        let place = |region: &str| Locality {
            region: region.into(),
            ..Locality::default()
        };
        let workloads: Vec<Arc<Workload>> = (0..count)
            .map(|number| {
                let mut one = Workload::new(&number.to_string());
                one.addresses = vec![
                    format!("10.0.0.{}", number + 1)
                        .parse()
                        .expect("an address"),
                ];
                one.capacity = rng.random_range(1..4);
                one.locality = place(["here", "elsewhere"][usize::from(rng.random_bool(0.4))]);
                Arc::new(one)
            })
            .collect();
        let mut service = Service::new("shop", "web.shop.svc.cluster.local");
        let port = ServicePort {
            target_port: 8080,
            app_protocol: AppProtocol::Http11,
        };
        service.ports.insert(80, port);
        let mut source = Workload::new("waypoint");
        source.locality = place("here");
        let request = Request {
            service: &service,
            port: 80,
            dialled: "10.96.0.1:80".parse().expect("an address"),
            source: &source,
            sticky: None,
            mode: Mode::Standard,
        };
        let near = LocalityBalance::default();
        let wanted = Wanted {
            subset: None,
            locality: rng.random_bool(0.7).then_some(&near),
        };
        let levels = Levels::new(&request, &workloads, wanted).expect("there are endpoints");
        let mut level_of = vec![0; count];
        for (level, number) in numbers(&levels) {
            level_of[number] = level;
        }
        Self {
            way: ways[rng.random_range(0..ways.len())],
            tables: levels.levels().iter().map(table).collect(),
            levels,
            round: 0,
            level_of,
            in_flight: vec![0; count],
            times: vec![Ewma::default(); count],
        }
    }

    pub fn begun(&mut self, number: usize) {
        self.in_flight[number] += 1;
    }

    pub fn ended(&mut self, number: usize, now: Duration, took: Duration) {
        self.in_flight[number] -= 1;
        self.times[number].observe(now, took);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    /// The number of the one that a request goes to.
    pub fn choose(&mut self, situation: &Situation<'_>, rng: &mut StdRng) -> usize {
        let health = self.health(situation);
        let (up, all) = health
            .iter()
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let everybody = up == 0 || !holds(situation.outlier, up, all);
        let level = |(up, all): &(usize, usize)| Level {
            healthy: if everybody { *all } else { *up } as u32,
            total: *all as u32,
        };
        let shares = priority::split(&health.iter().map(level).collect::<Vec<_>>());
        let first = priority::pick(&shares, rng.next_u64()).expect("there are endpoints");
        let fit = |number: usize, tried: Tried| {
            let is_tried = tried == Tried::Avoided && situation.tried.contains(&number);
            !is_tried && (everybody || (situation.is_up)(number))
        };
        let found = priority::find(health.len(), first, |level, tried| {
            let number = self.draw(level, situation, |number| !fit(number, tried), rng)?;
            Some((number, fit(number, tried)))
        });
        let number = found.expect("there are endpoints");
        self.check(number, everybody, &health, situation);
        number
    }

    /// Healthy ones and all, of each level.
    fn health(&self, situation: &Situation<'_>) -> Vec<(usize, usize)> {
        let mut health = vec![(0, 0); self.levels.levels().len()];
        for (number, level) in self.level_of.iter().enumerate() {
            health[*level].0 += usize::from((situation.is_up)(number));
            health[*level].1 += 1;
        }
        health
    }

    fn draw(
        &mut self,
        level: usize,
        situation: &Situation<'_>,
        unfit: impl Fn(usize) -> bool,
        rng: &mut StdRng,
    ) -> Option<usize> {
        let candidates = &self.levels.levels()[level];
        let number = |index: usize| number_of(&candidates.choices()[index].workload);
        let unfit = |index: usize| unfit(number(index));
        let requests = |index: usize| u64::from(self.in_flight[number(index)]);
        let cost = |index: usize| {
            let number = number(index);
            self.times[number].cost(situation.now, self.in_flight[number])
        };
        let index = match self.way {
            Way::LeastRequest => candidates.pick(Algorithm::LeastRequest, unfit, requests, rng),
            Way::Random => candidates.pick(Algorithm::Random, unfit, requests, rng),
            Way::PeakEwma => candidates.pick(Algorithm::PeakEwma, unfit, cost, rng),
            Way::Hash => self.tables[level].at(situation.hash, unfit),
            Way::RoundRobin => {
                self.round += 1;
                candidates.pick(Algorithm::RoundRobin(self.round), unfit, requests, rng)
            }
        };
        index.map(number)
    }

    /// The promise, in plain words.
    fn check(
        &self,
        number: usize,
        everybody: bool,
        health: &[(usize, usize)],
        situation: &Situation<'_>,
    ) {
        let up = |number: usize| everybody || (situation.is_up)(number);
        assert!(up(number), "{number} is ejected, and others are not");
        let tried = |number: usize| situation.tried.contains(&number);
        let untried: Vec<usize> = (0..self.level_of.len())
            .filter(|one| up(*one) && !tried(*one))
            .collect();
        assert!(
            untried.is_empty() || untried.contains(&number),
            "{number} was tried, and {untried:?} were not"
        );
        // Near endpoints take everything while enough of them are healthy.
        let (healthy, all) = health[0];
        let stays = everybody || healthy * 100 >= ENOUGH * all;
        let fresh = untried.iter().any(|one| self.level_of[*one] == 0);
        assert!(
            !(stays && fresh) || self.level_of[number] == 0,
            "{number} is far, and {healthy} of {all} near ones are healthy"
        );
    }
}

/// Level and number of every endpoint.
fn numbers(levels: &Levels) -> impl Iterator<Item = (usize, usize)> {
    let levels = levels.levels().iter().enumerate();
    levels.flat_map(|(level, candidates)| {
        let choices = candidates.choices().iter();
        choices.map(move |choice| (level, number_of(&choice.workload)))
    })
}

fn number_of(workload: &Workload) -> usize {
    workload.uid.0.parse().expect("named by its number")
}

fn table(candidates: &karst_routing::balance::Candidates) -> Table {
    let choices = candidates.choices().iter().enumerate();
    let nodes: Vec<Node<'_>> = choices
        .map(|(index, choice)| Node {
            name: &choice.workload.uid.0,
            weight: candidates.weight(index),
        })
        .collect();
    Table::new(HashTable::Ring { min_size: 64 }, &nodes)
}
