//! The endpoints that requests for one port of a service may go to, surveyed once and drawn from many times.
//!
//! The rules are those of [`super::choose`]: health, weights, locality. A waypoint keeps the outcome until the service or
//! one of its endpoints changes, and draws for each request.

use std::sync::Arc;

use karst_model::workload::Workload;
use rand::{Rng, RngExt};

use super::{Choice, NoEndpoint, Request, evaluate, refuse_unchoosable};
use crate::weights::Weights;

/// How often a draw that hits an endpoint to be avoided is repeated before all are looked at.
const DRAWS: usize = 4;

/// How an endpoint is drawn. All of them respect the endpoints' weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The less loaded of two endpoints drawn at random.
    #[default]
    LeastRequest,
    /// In turn; the number counts the requests.
    RoundRobin(u64),
    Random,
    /// As [`Self::LeastRequest`], with [`crate::ewma`]'s cost for load: an endpoint's weight divides it.
    PeakEwma,
}

/// Endpoints of the best rank.
#[derive(Clone, Debug)]
pub struct Candidates {
    choices: Vec<Choice>,
    weights: Weights,
    /// The weight of each.
    own: Box<[u32]>,
    /// A step through the sum of the weights that meets every point once and never the neighbourhood it just left.
    stride: u64,
}

impl Candidates {
    /// Surveys all endpoints of the service, unhealthy ones included. There is at least one choice, or an error that
    /// says why not.
    pub fn new(request: &Request<'_>, endpoints: &[Arc<Workload>]) -> Result<Self, NoEndpoint> {
        refuse_unchoosable(request)?;
        let best = super::Best::survey(request, endpoints)?;
        let mut choices = Vec::new();
        let mut weights = Vec::new();
        for endpoint in endpoints {
            if let Ok((rank, candidate)) = evaluate(request, endpoint)
                && rank == best.rank
            {
                weights.push(candidate.endpoint.capacity);
                choices.push(candidate.into_choice(request));
            }
        }
        Ok(Self::of(choices, weights))
    }

    /// `weights` in the order of the choices.
    pub(super) fn of(choices: Vec<Choice>, weights: Vec<u32>) -> Self {
        let sums = Weights::new(weights.iter().copied());
        Self {
            stride: stride(sums.total()),
            choices,
            weights: sums,
            own: weights.into(),
        }
    }

    /// The weight of a choice.
    pub fn weight(&self, index: usize) -> u32 {
        self.own.get(index).copied().unwrap_or(0)
    }

    /// The endpoints, in an order that stays.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// Draws the index of an endpoint. `avoid` names those that were tried already or are ejected: they are drawn only
    /// where there is no other, so there always is one. `load` is what an endpoint is working on:
    /// its requests, or what one more would cost.
    pub fn pick(
        &self,
        algorithm: Algorithm,
        avoid: impl Fn(usize) -> bool,
        load: impl Fn(usize) -> u64,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let total = self.weights.total();
        if total == 0 {
            return None;
        }
        if let [_only] = &*self.choices {
            return Some(0);
        }
        let random = |rng: &mut _| self.draw(&avoid, rng);
        Some(match algorithm {
            Algorithm::Random => random(rng),
            Algorithm::RoundRobin(count) => {
                let point = (u128::from(count) * u128::from(self.stride)) % u128::from(total);
                self.instead_of_avoided(self.weights.at(point as u64), &avoid)
            }
            Algorithm::LeastRequest | Algorithm::PeakEwma => {
                let first = random(rng);
                let second = match random(rng) {
                    // The same one twice is no choice: its neighbour is as random.
                    again if again == first => {
                        self.instead_of_avoided((first + 1) % self.choices.len(), &avoid)
                    }
                    other => other,
                };
                match self.is_less_loaded(second, first, &load) {
                    true => second,
                    false => first,
                }
            }
        })
    }

    fn draw(&self, avoid: &impl Fn(usize) -> bool, rng: &mut impl Rng) -> usize {
        let total = self.weights.total();
        let mut drawn = 0;
        for _ in 0..DRAWS {
            drawn = self.weights.at(rng.random_range(0..total));
            if !avoid(drawn) {
                return drawn;
            }
        }
        self.instead_of_avoided(drawn, avoid)
    }

    /// The next one that need not be avoided; itself if all must be.
    fn instead_of_avoided(&self, index: usize, avoid: &impl Fn(usize) -> bool) -> usize {
        let len = self.choices.len();
        let mut others = (0..len).map(|step| (index + step) % len);
        others.find(|other| !avoid(*other)).unwrap_or(index)
    }

    /// Compares the loads for each unit of weight. Equals are not less: then the first drawn stays, and
    /// shares are as the weights.
    fn is_less_loaded(&self, one: usize, other: usize, load: &impl Fn(usize) -> u64) -> bool {
        let weight = |index: usize| u128::from(self.weight(index));
        u128::from(load(one)) * weight(other) < u128::from(load(other)) * weight(one)
    }
}

/// A number near the golden section of `total` that has no divisor in common with it.
fn stride(total: u64) -> u64 {
    let golden = (u128::from(total) * 618_033_989 / 1_000_000_000) as u64;
    (golden.max(1)..=total.max(1))
        .find(|step| common_divisor(*step, total) == 1)
        .unwrap_or(1)
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
