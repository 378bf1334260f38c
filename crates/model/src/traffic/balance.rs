//! How an endpoint is chosen.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// The way endpoints of a service are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    pub algorithm: BalanceAlgorithm,
    /// A new endpoint gets its share by and by.
    pub warm_up: Option<WarmUp>,
    /// `None`: as the service's own routing preference says (`trafficDistribution`).
    pub locality: Option<LocalityBalance>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BalanceAlgorithm {
    /// The less loaded of two endpoints drawn at random.
    #[default]
    LeastRequest,
    RoundRobin,
    Random,
    /// To the address that the client dialled.
    Passthrough,
    /// The better of two endpoints drawn at random by latency (exponentially weighted, peaks count at once) times load.
    PeakEwma,
    ConsistentHash(ConsistentHash),
}

/// Requests with the same key go to the same endpoint, as far as endpoints stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistentHash {
    pub key: HashKey,
    pub table: HashTable,
}

/// Where a request's key is. A request without one goes to any endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashKey {
    /// A header, in lower case.
    Header(Arc<str>),
    Cookie(HashCookie),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashCookie {
    pub name: Arc<str>,
    pub path: Option<Arc<str>>,
    /// A client without the cookie is given one. `None`: it is not; zero: one that ends with its session.
    pub ttl: Option<Duration>,
    /// Further attributes of a cookie that is given: names with values or alone (`Secure`).
    pub attributes: Vec<(Arc<str>, Option<Arc<str>>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashTable {
    /// At least so many points on the ring, for all endpoints together.
    Ring { min_size: u32 },
    /// A table of this many places; a prime.
    Maglev { size: u32 },
}

/// Slow start. Source of the curve: Envoy, "Slow start mode".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    pub duration: Duration,
    /// In thousandths: 1000 is a straight line, more is faster at first.
    pub aggression_milli: u32,
    /// The share that an endpoint begins with, in percent of its full one.
    pub min_percent: u32,
}

/// How far away requests go. Of what is set, `distribute` comes first and stands alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityBalance {
    /// The first whose `from` is this proxy's place.
    pub distribute: Vec<Distribution>,
    /// Nearness in order: endpoints that agree with this proxy in all of these labels are the nearest, those that agree
    /// in all but the last come next, and so on. Empty: region, zone, subzone.
    pub priority: Vec<LabelPriority>,
    /// Where the requests of a region go when it has too few healthy endpoints.
    pub failover: Vec<RegionFailover>,
}

/// The shares of places for requests of one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    pub from: LocalityPattern,
    /// Places that are not here get nothing.
    pub to: Vec<LocalityWeight>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityWeight {
    pub place: LocalityPattern,
    pub weight: u32,
}

/// A place; what is `None` takes any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityPattern {
    pub region: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    pub subzone: Option<Arc<str>>,
}

/// A label that tells near from far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelPriority {
    pub label: Arc<str>,
    /// What near endpoints have; `None`: what this proxy has.
    pub value: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionFailover {
    pub from: Arc<str>,
    pub to: Arc<str>,
}

impl LocalityPattern {
    pub fn takes(&self, place: &crate::locality::Locality) -> bool {
        let same = |wanted: &Option<Arc<str>>, has: &Arc<str>| {
            wanted.as_ref().is_none_or(|wanted| wanted == has)
        };
        same(&self.region, &place.region)
            && same(&self.zone, &place.zone)
            && same(&self.subzone, &place.subzone)
    }
}
