//! The endpoints of one port of a service, or of a subset there, with what holds for its traffic: which endpoint a
//! request goes to.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use arc_swap::ArcSwap;
use karst_model::{
    traffic::{BalanceAlgorithm, Connections, Subset, TrafficPolicy},
    workload::Workload,
};
use karst_routing::{
    balance::{self, Algorithm, Candidates, Found, Levels, NoEndpoint, Wanted},
    hash::{self, Node},
    outlier,
    priority::{self, Level, Tried},
    warm_up,
};
use rand::{Rng, RngExt as _};

use super::{
    Endpoint, EndpointKey, Endpoints,
    live::{Health, Live, SetKey, now},
};

/// One set of endpoints, compiled.
pub(crate) struct Cluster {
    pub(crate) policy: Arc<TrafficPolicy>,
    pub(crate) live: Arc<Live>,
    /// Number of its TLS settings.
    pub(crate) secured: u64,
    levels: Vec<Near>,
    split: ArcSwap<Split>,
    all: Vec<Member>,
}

/// An endpoint, and how it is in this set.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) health: Arc<Health>,
}

/// Endpoints that are equally near; for each choice what we know of it, in the same order.
struct Near {
    candidates: Candidates,
    /// `None`: its address is not known here.
    members: Vec<Option<Member>>,
    table: Option<hash::Table>,
}

/// How requests fall to the levels.
struct Split {
    /// Of whose health.
    version: u64,
    shares: Vec<u32>,
    /// Too few are healthy: everybody gets requests.
    everybody: bool,
}

/// What a request wants of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ask<'a> {
    /// Endpoints that were tried.
    pub(crate) avoid: &'a [u64],
    /// Leave the levels where they are, even if these have others: another place is wanted.
    pub(crate) elsewhere: bool,
    /// Of its key, where the policy has one and the request too.
    pub(crate) hash: Option<u64>,
    /// What the client dialled.
    pub(crate) dialled: Option<SocketAddr>,
    /// The endpoint of the client's session, by [`Member::session`].
    pub(crate) session: Option<u64>,
}

impl Member {
    /// What a session knows it by: the same at every waypoint, for as long as the workload lives.
    pub(crate) fn session(&self) -> u64 {
        let key = &self.health.key;
        hash::hash_of(format!("{}:{}", key.workload, key.addr.port()).as_bytes())
    }
}

impl Cluster {
    /// # Errors
    /// No endpoint can be chosen, whatever its health.
    pub(super) fn compile(
        request: &balance::Request<'_>,
        endpoints: &[Arc<Workload>],
        (policy, subset): (&Arc<TrafficPolicy>, Option<&Subset>),
        known: &mut Endpoints,
    ) -> Result<Self, NoEndpoint> {
        let live = known.live(SetKey {
            service: request.service.key.clone(),
            port: request.port,
            subset: subset.map(|subset| subset.name.clone()),
        });
        let wanted = Wanted {
            subset,
            locality: policy.balance.locality.as_ref(),
        };
        let levels = Levels::new(request, endpoints, wanted)?;
        let keys: Vec<_> = levels.levels().iter().flat_map(keys).collect();
        let mut healths = live.settle(&keys).into_iter();
        let further = &request.service.subject_alt_names;
        let mut near = |candidates: &Candidates| Near {
            members: keys_of(candidates)
                .zip(healths.by_ref())
                .map(|((workload, key), health)| {
                    Some(Member {
                        endpoint: known.get(workload, further, key?),
                        health: health?,
                    })
                })
                .collect(),
            table: table(policy, candidates),
            candidates: candidates.clone(),
        };
        let levels: Vec<_> = levels.levels().iter().map(&mut near).collect();
        let members = levels.iter().flat_map(|near| near.members.iter().flatten());
        let cluster = Self {
            all: members.cloned().collect(),
            policy: policy.clone(),
            secured: live.secured(policy.tls.as_ref()),
            split: ArcSwap::from_pointee(split(&levels, policy, live.version())),
            levels,
            live,
        };
        if cluster.policy.outlier.is_none() {
            cluster.live.tick(None);
        }
        Ok(cluster)
    }

    /// An endpoint for one request; not one of those to avoid where there is another.
    pub(crate) fn choose(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Result<Member, NoEndpoint> {
        let of_session = ask.session.and_then(|session| {
            let fit = |member: &&Member| {
                member.session() == session
                    && member.health.is_up()
                    && !ask.avoid.contains(&member.endpoint.id)
            };
            self.all.iter().find(fit)
        });
        of_session
            .or_else(|| self.pick(ask, rng))
            .cloned()
            .ok_or_else(|| NoEndpoint::NoneUsable {
                service: self.live.key.service.clone(),
                port: self.live.key.port,
                found: Found {
                    without_address: self.levels.iter().map(|near| near.members.len()).sum(),
                    ..Found::default()
                },
            })
    }

    fn pick(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<&Member> {
        let (mut level, mut everybody) = (0, false);
        let version = self.live.version();
        if version != 0 {
            let split = self.split_at(version);
            everybody = split.everybody;
            level = priority::pick(&split.shares, rng.random())?;
        }
        if ask.elsewhere
            && let Some(member) = self.pick_elsewhere(ask, rng)
        {
            return Some(member);
        }
        priority::find(self.levels.len(), level, |level, tried| {
            let avoid = match tried {
                Tried::Avoided => ask.avoid,
                Tried::Allowed => &[],
            };
            let ask = Ask { avoid, ..*ask };
            let member = self.levels.get(level)?.pick(self, &ask, everybody, rng)?;
            let fit = everybody || member.health.is_up();
            Some((member, fit && !avoid.contains(&member.endpoint.id)))
        })
    }

    /// An endpoint that is well, in the nearest level of which nobody was tried.
    fn pick_elsewhere(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<&Member> {
        let is_tried = |member: &Member| ask.avoid.contains(&member.endpoint.id);
        let untried = |near: &&Near| !near.members.iter().flatten().any(is_tried);
        let mut levels = self.levels.iter().filter(untried);
        levels.find_map(|near| {
            let picked = near.pick(self, ask, false, rng)?;
            picked.health.is_up().then_some(picked)
        })
    }

    /// How requests fall to the levels now.
    fn split_at(&self, version: u64) -> arc_swap::Guard<Arc<Split>> {
        let current = self.split.load();
        if current.version == version {
            return current;
        }
        let fresh = split(&self.levels, &self.policy, version);
        self.split.store(Arc::new(fresh));
        self.split.load()
    }

    /// Every endpoint that may be chosen, for people who look.
    pub(crate) fn members(&self) -> &[Member] {
        &self.all
    }

    /// Requests in flight to all endpoints, from any service.
    pub(crate) fn active(&self) -> u32 {
        let loads = self.all.iter().map(|member| member.endpoint.in_flight());
        loads.fold(0, u32::saturating_add)
    }

    /// Whether its connections are its own, and not shared with other sets that have the same endpoints.
    pub(crate) fn has_own_connections(&self) -> bool {
        self.policy.connections != Connections::default() || self.policy.tls.is_some()
    }

    /// Whether response times matter.
    pub(crate) fn is_timed(&self) -> bool {
        self.policy.balance.algorithm == BalanceAlgorithm::PeakEwma
    }
}

impl Near {
    fn pick(
        &self,
        cluster: &Cluster,
        ask: &Ask<'_>,
        everybody: bool,
        rng: &mut impl Rng,
    ) -> Option<&Member> {
        let at = |index: usize| self.members.get(index).and_then(Option::as_ref);
        let balance = &cluster.policy.balance;
        let unfit = |index| {
            at(index).is_none_or(|member| {
                ask.avoid.contains(&member.endpoint.id) || !(everybody || member.health.is_up())
            })
        };
        if let (Some(table), Some(hash)) = (&self.table, ask.hash) {
            return at(table.at(hash, unfit)?);
        }
        let useless = |index| {
            unfit(index)
                || balance.warm_up.as_ref().is_some_and(|warm_up| {
                    let share = at(index).map_or(0, |member| member.health.share(warm_up));
                    share < warm_up::FULL && rand::rng().random_range(0..warm_up::FULL) >= share
                })
        };
        let requests =
            |index| at(index).map_or(u64::MAX, |member| member.endpoint.in_flight().into());
        let candidates = &self.candidates;
        let index = match &balance.algorithm {
            BalanceAlgorithm::LeastRequest => {
                candidates.pick(Algorithm::LeastRequest, useless, requests, rng)
            }
            BalanceAlgorithm::RoundRobin => {
                let round = cluster.live.round.fetch_add(1, Ordering::Relaxed);
                candidates.pick(Algorithm::RoundRobin(round), useless, requests, rng)
            }
            BalanceAlgorithm::Random | BalanceAlgorithm::ConsistentHash(_) => {
                candidates.pick(Algorithm::Random, useless, requests, rng)
            }
            BalanceAlgorithm::PeakEwma => {
                let now = now();
                let cost = |index| at(index).map_or(u64::MAX, |member| member.endpoint.cost(now));
                candidates.pick(Algorithm::PeakEwma, useless, cost, rng)
            }
            BalanceAlgorithm::Passthrough => {
                let dialled = ask.dialled.map(|addr| addr.ip());
                let own = (0..self.members.len())
                    .find(|index| at(*index).map(|member| member.endpoint.addr.ip()) == dialled);
                own.or_else(|| candidates.pick(Algorithm::LeastRequest, useless, requests, rng))
            }
        };
        at(index?)
    }
}

fn split(levels: &[Near], policy: &TrafficPolicy, version: u64) -> Split {
    let up = |near: &Near| {
        let members = near.members.iter().flatten();
        members.filter(|member| member.health.is_up()).count()
    };
    let counts: Vec<_> = levels
        .iter()
        .map(|near| (up(near), near.members.len()))
        .collect();
    let healthy = counts.iter().map(|(up, _)| up).sum();
    let total = counts.iter().map(|(_, total)| total).sum();
    let too_few = policy
        .outlier
        .as_ref()
        .is_some_and(|outlier| !outlier::holds(outlier, healthy, total));
    let everybody = healthy == 0 || too_few;
    let level = |(up, total): &(usize, usize)| Level {
        healthy: u32::try_from(if everybody { *total } else { *up }).unwrap_or(u32::MAX),
        total: u32::try_from(*total).unwrap_or(u32::MAX),
    };
    Split {
        version,
        shares: priority::split(&counts.iter().map(level).collect::<Vec<_>>()),
        everybody,
    }
}

fn keys_of(candidates: &Candidates) -> impl Iterator<Item = (&Arc<Workload>, Option<EndpointKey>)> {
    candidates.choices().iter().map(|choice| {
        let key = choice.ip().map(|ip| EndpointKey {
            workload: choice.workload.uid.clone(),
            addr: SocketAddr::new(ip, choice.target_port),
        });
        (&choice.workload, key)
    })
}

fn keys(candidates: &Candidates) -> impl Iterator<Item = Option<EndpointKey>> {
    keys_of(candidates).map(|(_, key)| key)
}

fn table(policy: &TrafficPolicy, candidates: &Candidates) -> Option<hash::Table> {
    let BalanceAlgorithm::ConsistentHash(consistent) = &policy.balance.algorithm else {
        return None;
    };
    let choices = candidates.choices().iter().enumerate();
    let nodes: Vec<_> = choices
        .map(|(index, choice)| Node {
            name: &choice.workload.uid.0,
            weight: candidates.weight(index),
        })
        .collect();
    Some(hash::Table::new(consistent.table, &nodes))
}
