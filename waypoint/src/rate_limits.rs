//! Rate limits as this process counts them: compiled for each service, their counts shared by all data-path threads and
//! kept while the limit they belong to stays as it is.
//!
//! ```text
//!   state.rate_limits() ──► Limits::compile ──► Limited (in a service's snapshot)
//!                               │                  └─ check(asked, route) ─► Checked: passes? what to tell the client
//!                               └─ Counts by (policy, rule, rate, keys): 16 shards of karst_routing's buckets
//! ```
//!
//! A limit over several waypoint processes would be another kind of [`Counts`] behind the same [`Limited`]: it would ask a
//! service for tokens in batches and fall back on its own count while nobody answers. Only [`Counts::take`] would differ.

use std::{
    hash::{BuildHasher as _, Hash, Hasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use karst_model::{
    name::{GatewayKey, PolicyKey, ServiceKey},
    rate_limit::{Enforcement, LimitHeaders, LimitKey, LimitRule, LimitTarget, RateLimit},
    route::RouteKey,
};
use karst_policy::request::{Asked, Selection};
use karst_routing::ratelimit::{Buckets, Rate, Taken};

/// Keys of one rule that are counted by themselves, over all shards.
const KEYS_MAX: usize = 65_536;
/// Threads that count at once without waiting for each other, nearly always.
const SHARDS: usize = 16;
/// Rules that one request is checked against, over all policies; more are left out, and a log line says so.
const RULES_MAX: usize = 64;

/// The counts of all limits.
pub(crate) struct Limits {
    known: Mutex<HashMap<CountKey, Weak<Counts>>>,
    hashers: Arc<[RandomState; 2]>,
    since: Instant,
}

/// While this stays, so do the counts: an edit of a match or a status resets nobody.
#[derive(PartialEq, Eq, Hash)]
struct CountKey {
    policy: PolicyKey,
    rule: Arc<str>,
    rate: Rate,
    keys: Vec<LimitKey>,
}

/// The counts of one rule.
struct Counts {
    shards: Box<[Mutex<Buckets>]>,
}

/// The limits that apply to the requests for one service.
pub(crate) struct Limited {
    rules: Vec<Rule>,
    selection: Selection,
    hashers: Arc<[RandomState; 2]>,
    since: Instant,
}

struct Rule {
    limit: Arc<RateLimit>,
    index: usize,
    applies: Applies,
    counts: Arc<Counts>,
}

/// Which requests for the service a policy is about.
#[derive(Clone)]
enum Applies {
    All,
    /// Those that rules of these routes take.
    Routes(Arc<[RouteKey]>),
}

/// What the limits say of one request.
#[derive(Default)]
pub(crate) struct Checked<'a> {
    /// The rule that refuses it.
    pub(crate) refused: Option<Counted<'a>>,
    /// The rules that would, if they were enforced.
    pub(crate) shadowed: Vec<Counted<'a>>,
    /// The enforced rules that it was counted by.
    pub(crate) counted: Vec<Counted<'a>>,
    /// Keys that found no place of their own.
    pub(crate) shared: usize,
}

/// One rule, and what became of the request there.
#[derive(Clone, Copy)]
pub(crate) struct Counted<'a> {
    pub(crate) limit: &'a RateLimit,
    pub(crate) rule: &'a LimitRule,
    pub(crate) taken: Taken,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            hashers: Arc::new([RandomState::new(), RandomState::new()]),
            since: Instant::now(),
        }
    }
}

impl Limits {
    /// What applies to requests for a service at this waypoint; without a service, to those that name a workload.
    pub(crate) fn compile(
        &self,
        all: &[Arc<RateLimit>],
        service: Option<&ServiceKey>,
        gateway: &GatewayKey,
    ) -> Limited {
        let mut rules = Vec::new();
        for limit in all {
            let Some(applies) = applies(limit, service, gateway) else {
                continue;
            };
            for index in 0..limit.rules.len() {
                if rules.len() >= RULES_MAX {
                    tracing::warn!(limit = %limit.key, "more than {RULES_MAX} rules of rate limits apply to one service: the rest is left out");
                    break;
                }
                rules.push(Rule {
                    limit: limit.clone(),
                    index,
                    applies: applies.clone(),
                    counts: self.counts(limit, &limit.rules[index]),
                });
            }
        }
        let selection = Selection::compile(rules.iter().map(|rule| rule.rule().matches.as_slice()));
        Limited {
            selection,
            rules,
            hashers: self.hashers.clone(),
            since: self.since,
        }
    }

    fn counts(&self, limit: &RateLimit, rule: &LimitRule) -> Arc<Counts> {
        let rate = Rate::new(rule.requests, rule.period, rule.burst);
        let key = CountKey {
            policy: limit.key.clone(),
            rule: rule.name.clone(),
            rate,
            keys: rule.keys.clone(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(&key).and_then(Weak::upgrade) {
            return counts;
        }
        known.retain(|_, counts| counts.strong_count() > 0);
        let counts = Arc::new(Counts::new(rate, !rule.keys.is_empty()));
        known.insert(key, Arc::downgrade(&counts));
        counts
    }
}

fn applies(
    limit: &RateLimit,
    service: Option<&ServiceKey>,
    gateway: &GatewayKey,
) -> Option<Applies> {
    let all = limit.targets.iter().any(|target| match target {
        LimitTarget::Service(target) => Some(target) == service,
        LimitTarget::Gateway { namespace, name } => {
            *namespace == gateway.namespace && *name == gateway.name
        }
        LimitTarget::Route(_) => false,
    });
    if all {
        return Some(Applies::All);
    }
    let routes = limit.targets.iter().filter_map(|target| match target {
        LimitTarget::Route(key) => Some(key.clone()),
        LimitTarget::Service(_) | LimitTarget::Gateway { .. } => None,
    });
    let routes: Arc<[RouteKey]> = routes.collect();
    (service.is_some() && !routes.is_empty()).then_some(Applies::Routes(routes))
}

impl Counts {
    fn new(rate: Rate, has_keys: bool) -> Self {
        let (shards, max) = match has_keys {
            true => (SHARDS, KEYS_MAX / SHARDS),
            false => (1, 1),
        };
        let shard = |_| Mutex::new(Buckets::new(rate, max));
        Self {
            shards: (0..shards).map(shard).collect(),
        }
    }

    fn shard(&self, key: u128) -> &Mutex<Buckets> {
        &self.shards[(key % self.shards.len() as u128) as usize]
    }

    fn take(&self, now: Duration, key: u128) -> Taken {
        let mut buckets = self
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        buckets.take(now, key)
    }

    fn give_back(&self, key: u128, taken: &Taken) {
        let mut buckets = self
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        buckets.give_back(key, taken);
    }
}

impl Default for Limited {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            selection: Selection::compile([]),
            hashers: Arc::new([RandomState::new(), RandomState::new()]),
            since: Instant::now(),
        }
    }
}

impl Rule {
    fn rule(&self) -> &LimitRule {
        &self.limit.rules[self.index]
    }

    fn is_about(&self, route: Option<&RouteKey>) -> bool {
        match &self.applies {
            Applies::All => true,
            Applies::Routes(routes) => route.is_some_and(|route| routes.contains(route)),
        }
    }
}

impl Limited {
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Counts a request, unless an enforced rule refuses it: then nobody has counted it.
    pub(crate) fn check(&self, asked: &Asked<'_>, route: Option<&RouteKey>) -> Checked<'_> {
        let now = self.since.elapsed();
        let mut checked = Checked::default();
        let mut taken: Vec<(&Rule, u128, Taken)> = Vec::new();
        self.selection.each(asked, |number| {
            let rule = &self.rules[number];
            if checked.refused.is_some() || !rule.is_about(route) {
                return;
            }
            let key = self.key(&rule.rule().keys, asked);
            let one = rule.counts.take(now, key);
            checked.shared += usize::from(one.shared);
            let counted = Counted {
                limit: &rule.limit,
                rule: rule.rule(),
                taken: one,
            };
            taken.push((rule, key, one));
            match (rule.limit.enforcement, one.passes) {
                (Enforcement::Enforce, true) => checked.counted.push(counted),
                (Enforcement::Enforce, false) => checked.refused = Some(counted),
                (Enforcement::Shadow, true) => {}
                (Enforcement::Shadow, false) => checked.shadowed.push(counted),
            }
        });
        if checked.refused.is_some() {
            for (rule, key, one) in &taken {
                rule.counts.give_back(*key, one);
            }
        }
        checked
    }

    /// The number of a client under these keys. Nobody outside of the process can make two that are alike.
    fn key(&self, keys: &[LimitKey], asked: &Asked<'_>) -> u128 {
        if keys.is_empty() {
            return 0;
        }
        let halves = self.hashers.each_ref().map(|hasher| {
            let mut state = hasher.build_hasher();
            keys.iter().for_each(|key| hash(key, asked, &mut state));
            u128::from(state.finish())
        });
        halves[0] << 64 | halves[1]
    }
}

fn hash(key: &LimitKey, asked: &Asked<'_>, state: &mut impl std::hash::Hasher) {
    let source = asked.connection.source.as_ref();
    match key {
        LimitKey::Identity => source.hash(state),
        LimitKey::Namespace => source.map(|source| &source.namespace).hash(state),
        LimitKey::Address => network(asked.remote_ip).hash(state),
        LimitKey::Header(name) => asked.request.header(name).hash(state),
        LimitKey::Claim(path) => match asked.request.token() {
            Some(token) => token
                .claim_texts(path)
                .for_each(|text| (1u8, text).hash(state)),
            None => 0u8.hash(state),
        },
    }
}

/// Whoever has an IPv6 address has 2^64 of them: a network is what counts.
fn network(ip: IpAddr) -> IpAddr {
    const HOST_BITS: u32 = 64;
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> HOST_BITS << HOST_BITS).into()),
    }
}

impl Counted<'_> {
    /// Whether clients are told by the headers of the draft, and by those that came before.
    pub(crate) fn styles(&self) -> (bool, bool) {
        match self.limit.headers {
            LimitHeaders::Draft => (true, false),
            LimitHeaders::Legacy => (false, true),
            LimitHeaders::Both => (true, true),
            LimitHeaders::None => (false, false),
        }
    }
}
