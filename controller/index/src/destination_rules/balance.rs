//! `loadBalancer`: which endpoint, how near, how fast a new one gets its share.

use std::time::Duration;

use karst_k8s_api::istio::destination_rule::{
    ConsistentHash as HashSpec, Distribute, Failover, HashCookie as CookieSpec, LoadBalancer,
    SimpleBalancer, Warmup,
};
use karst_model::traffic::{
    BalanceAlgorithm, ConsistentHash, Distribution, HashCookie, HashKey, HashTable, LabelPriority,
    LocalityBalance, LocalityPattern, LocalityWeight, RegionFailover, WarmUp,
};

use super::{
    policy::BalanceWish,
    values::{Place, text},
};

/// Envoy's bounds of its tables, which rules in use keep to.
const RING_MAX: u64 = 8_388_608;
const RING_DEFAULT: u32 = 1_024;
const MAGLEV_MAX: u64 = 5_000_011;
const MAGLEV_DEFAULT: u32 = 65_537;

pub(super) fn lower(spec: &LoadBalancer, place: &mut Place<'_>) -> BalanceWish {
    let algorithm = match (&spec.simple, &spec.consistent_hash) {
        (_, Some(hash)) => {
            if spec.simple.is_some() {
                place.fault(
                    "",
                    "simple and consistentHash exclude each other: the hash holds",
                );
            }
            hashed(hash, &mut place.below("consistentHash"))
        }
        (Some(simple), None) => simple_of(*simple),
        (None, None) => BalanceAlgorithm::default(),
    };
    BalanceWish {
        warm_up: warm_up(spec, &algorithm, place),
        algorithm,
        locality: locality(spec, place),
    }
}

fn simple_of(simple: SimpleBalancer) -> BalanceAlgorithm {
    match simple {
        SimpleBalancer::Unspecified | SimpleBalancer::LeastConn | SimpleBalancer::LeastRequest => {
            BalanceAlgorithm::LeastRequest
        }
        SimpleBalancer::Random => BalanceAlgorithm::Random,
        SimpleBalancer::RoundRobin => BalanceAlgorithm::RoundRobin,
        SimpleBalancer::Passthrough => BalanceAlgorithm::Passthrough,
    }
}

/// Without one key that is clear there is nothing to hash by.
fn hashed(spec: &HashSpec, place: &mut Place<'_>) -> BalanceAlgorithm {
    let header = text(spec.http_header_name.as_ref())
        .map(|name| HashKey::Header(name.to_ascii_lowercase().into()));
    let query = text(spec.http_query_parameter_name.as_ref()).map(HashKey::Query);
    let source = (spec.use_source_ip == Some(true)).then_some(HashKey::SourceIp);
    let cookie = spec
        .http_cookie
        .as_ref()
        .map(|spec| HashKey::Cookie(cookie(spec, &mut place.below("httpCookie"))));
    let mut keys = [header, cookie, source, query].into_iter().flatten();
    let (key, further) = (keys.next(), keys.next());
    drop(keys);
    let Some(key) = key.filter(|_| further.is_none()) else {
        let message = "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is needed: endpoints are chosen by load";
        place.fault("", message);
        return BalanceAlgorithm::default();
    };
    BalanceAlgorithm::ConsistentHash(ConsistentHash {
        key,
        table: table(spec, place),
    })
}

fn table(spec: &HashSpec, place: &mut Place<'_>) -> HashTable {
    if spec.ring_hash.is_some() && spec.maglev.is_some() {
        place.fault(
            "maglev",
            "ringHash and maglev exclude each other: the ring holds",
        );
    }
    if let (Some(maglev), None) = (&spec.maglev, &spec.ring_hash) {
        let size = maglev.table_size.filter(|size| *size != 0);
        let prime = size.filter(|size| *size <= MAGLEV_MAX && is_prime(*size));
        if let (Some(size), None) = (size, prime) {
            let message = format!(
                "{size} is no prime up to {MAGLEV_MAX}: the table has {MAGLEV_DEFAULT} places"
            );
            place.fault("maglev.tableSize", message);
        }
        let size = prime.and_then(|size| u32::try_from(size).ok());
        return HashTable::Maglev {
            size: size.unwrap_or(MAGLEV_DEFAULT),
        };
    }
    let of_ring = spec
        .ring_hash
        .as_ref()
        .and_then(|ring| ring.minimum_ring_size);
    let size = of_ring.or(spec.minimum_ring_size).filter(|size| *size != 0);
    let bounded = size.filter(|size| *size <= RING_MAX);
    if let (Some(size), None) = (size, bounded) {
        let message = format!("{size} is above {RING_MAX}: the ring has {RING_DEFAULT} points");
        place.fault("ringHash.minimumRingSize", message);
    }
    let size = bounded.and_then(|size| u32::try_from(size).ok());
    HashTable::Ring {
        min_size: size.unwrap_or(RING_DEFAULT),
    }
}

fn is_prime(number: u64) -> bool {
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

fn cookie(spec: &CookieSpec, place: &mut Place<'_>) -> HashCookie {
    if spec.name.is_empty() {
        place.fault(
            "name",
            "a cookie needs a name: every request is without one",
        );
    }
    let attributes = spec.attributes.iter();
    HashCookie {
        name: spec.name.as_str().into(),
        path: text(spec.path.as_ref()),
        ttl: place.duration_from("ttl", spec.ttl.as_ref(), Duration::ZERO),
        attributes: attributes
            .map(|one| (one.name.as_str().into(), text(one.value.as_ref())))
            .collect(),
    }
}

fn warm_up(
    spec: &LoadBalancer,
    algorithm: &BalanceAlgorithm,
    place: &mut Place<'_>,
) -> Option<WarmUp> {
    let old = || Warmup {
        duration: spec.warmup_duration_secs.clone(),
        ..Warmup::default()
    };
    let wish = spec.warmup.clone().unwrap_or_else(old);
    let mut below = place.below("warmup");
    let duration = below.duration("duration", wish.duration.as_ref())?;
    let min_percent = below.share("minimumPercent", wish.minimum_percent, 1.0);
    let aggression = wish.aggression.filter(|aggression| {
        let fits = (1.0..=100.0).contains(aggression);
        if !fits {
            below.fault(
                "aggression",
                format!("{aggression} is not from 1 to 100: it holds as 1"),
            );
        }
        fits
    });
    let by_load = matches!(
        algorithm,
        BalanceAlgorithm::LeastRequest
            | BalanceAlgorithm::RoundRobin
            | BalanceAlgorithm::PeakEwma
            | BalanceAlgorithm::Random
    );
    if !by_load {
        place.fault(
            "warmup",
            "endpoints that are chosen by a hash, or by the client, do not warm up",
        );
        return None;
    }
    Some(WarmUp {
        duration,
        aggression_milli: (aggression.unwrap_or(1.0) * 1000.0).round() as u32,
        min_percent: min_percent.unwrap_or(10),
    })
}

/// `None`: not said; `Some(None)`: off.
fn locality(spec: &LoadBalancer, place: &mut Place<'_>) -> Option<Option<LocalityBalance>> {
    if let Some(setting) = &spec.locality_lb_setting {
        if setting.enabled == Some(false) {
            return Some(None);
        }
        let mut below = place.below("localityLbSetting");
        let further = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
        if !setting.distribute.is_empty() && further {
            below.fault(
                "distribute",
                "distribute excludes failover and failoverPriority: the shares hold alone",
            );
        }
        return Some(Some(LocalityBalance {
            distribute: distributions(&setting.distribute, &mut below),
            priority: setting
                .failover_priority
                .iter()
                .map(|one| priority(one))
                .collect(),
            failover: failovers(&setting.failover, &mut below),
        }));
    }
    let zones = spec.zone_aware_lb_setting.as_ref()?;
    if zones.enabled != Some(true) {
        return Some(None);
    }
    let mut below = place.below("zoneAwareLbSetting");
    Some(Some(LocalityBalance {
        distribute: Vec::new(),
        priority: zones
            .failover_priority
            .iter()
            .map(|one| priority(one))
            .collect(),
        failover: failovers(&zones.failover, &mut below),
    }))
}

/// Shares that do not add up to 100 are nobody's wish.
fn distributions(specs: &[Distribute], place: &mut Place<'_>) -> Vec<Distribution> {
    let mut found: Vec<Distribution> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = format!("distribute[{index}]");
        let from = pattern(spec.from.as_deref().unwrap_or_default());
        let sum: u64 = spec.to.values().map(|weight| u64::from(*weight)).sum();
        let to: Option<Vec<LocalityWeight>> = spec
            .to
            .iter()
            .map(|(place, weight)| {
                let place = pattern(place)?;
                Some(LocalityWeight {
                    place,
                    weight: *weight,
                })
            })
            .collect();
        match (from, to) {
            _ if sum != 100 => place.fault(
                &format!("{field}.to"),
                format!("the shares add up to {sum}, not to 100: left out"),
            ),
            (Some(from), Some(to)) if found.iter().all(|other| other.from != from) => {
                found.push(Distribution { from, to });
            }
            (Some(_), Some(_)) => {
                place.fault(&field, "its place has shares already: left out");
            }
            _ => place.fault(
                &field,
                "a place is <region>, <region>/<zone> or <region>/<zone>/<subzone>, with `*` at its end: left out",
            ),
        }
    }
    found
}

/// A place such as `r1/z1/*`; `None` where it is none.
fn pattern(text: &str) -> Option<LocalityPattern> {
    let mut parts = text.split('/');
    let (mut open, mut found) = (false, [None, None, None]);
    for slot in &mut found {
        match parts.next() {
            // Nothing narrower after a `*`, and nothing empty.
            Some("") => return None,
            Some("*") => open = true,
            Some(_) if open => return None,
            Some(part) => *slot = Some(part.into()),
            None => {}
        }
    }
    let [region, zone, subzone] = found;
    parts.next().is_none().then_some(LocalityPattern {
        region,
        zone,
        subzone,
    })
}

fn failovers(specs: &[Failover], place: &mut Place<'_>) -> Vec<RegionFailover> {
    let mut found: Vec<RegionFailover> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let region = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            let is_one = !text.is_empty() && !text.contains(['/', '*']);
            is_one.then(|| text.into())
        };
        let mut no = |why: &str| place.fault(&format!("failover[{index}]"), why);
        match (region(&spec.from), region(&spec.to)) {
            (Some(from), Some(to)) if from == to => {
                no("a region cannot stand in for itself: left out")
            }
            (Some(from), Some(to)) => found.push(RegionFailover { from, to }),
            _ => no("from and to are names of regions, without zones and `*`: left out"),
        }
    }
    found
}

/// `label` or `label=value`.
fn priority(text: &str) -> LabelPriority {
    match text.split_once('=') {
        Some((label, value)) => LabelPriority {
            label: label.into(),
            value: Some(value.into()),
        },
        None => LabelPriority {
            label: text.into(),
            value: None,
        },
    }
}
