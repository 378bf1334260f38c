//! How an endpoint is chosen.

use karst_model::traffic::{
    Balance, BalanceAlgorithm, ConsistentHash, Distribution, HashCookie, HashKey, HashTable,
    LabelPriority, LocalityBalance, LocalityPattern, LocalityWeight, RegionFailover, WarmUp,
};

use super::{Problem, all, duration_to, maybe, needed, string, text};
use crate::karst as wire;

pub(super) fn from(balance: &wire::Balance) -> Result<Balance, Problem> {
    use wire::balance::Algorithm;
    let algorithm = match balance.algorithm.as_ref().ok_or(Problem::Missing)? {
        Algorithm::LeastRequest(()) => BalanceAlgorithm::LeastRequest,
        Algorithm::RoundRobin(()) => BalanceAlgorithm::RoundRobin,
        Algorithm::Random(()) => BalanceAlgorithm::Random,
        Algorithm::Passthrough(()) => BalanceAlgorithm::Passthrough,
        Algorithm::PeakEwma(()) => BalanceAlgorithm::PeakEwma,
        Algorithm::ConsistentHash(hash) => BalanceAlgorithm::ConsistentHash(hash_from(hash)?),
    };
    let warm_up = |warm_up: &wire::WarmUp| {
        Ok::<_, Problem>(WarmUp {
            duration: needed(warm_up.duration)?,
            aggression_milli: warm_up.aggression_milli,
            min_percent: warm_up.min_percent,
        })
    };
    Ok(Balance {
        algorithm,
        warm_up: balance.warm_up.as_ref().map(warm_up).transpose()?,
        locality: balance.locality.as_ref().map(locality_from).transpose()?,
    })
}

fn hash_from(hash: &wire::ConsistentHash) -> Result<ConsistentHash, Problem> {
    use wire::consistent_hash::{Key, Table};
    let key = match hash.key.as_ref().ok_or(Problem::Missing)? {
        Key::Header(name) => HashKey::Header(name.as_str().into()),
        Key::Cookie(cookie) => HashKey::Cookie(HashCookie {
            name: cookie.name.as_str().into(),
            path: text(cookie.path.as_deref()),
            ttl: maybe(cookie.ttl)?,
            attributes: cookie
                .attributes
                .iter()
                .map(|a| (a.name.as_str().into(), text(a.value.as_deref())))
                .collect(),
        }),
        Key::SourceIp(()) => HashKey::SourceIp,
        Key::Query(name) => HashKey::Query(name.as_str().into()),
    };
    let table = match hash.table.as_ref().ok_or(Problem::Missing)? {
        Table::RingMinSize(min_size) => HashTable::Ring {
            min_size: *min_size,
        },
        Table::MaglevSize(size) => HashTable::Maglev { size: *size },
    };
    Ok(ConsistentHash { key, table })
}

fn locality_from(locality: &wire::LocalityBalance) -> Result<LocalityBalance, Problem> {
    let weight = |weight: &wire::LocalityWeight| {
        Ok(LocalityWeight {
            place: pattern_from(weight.place.as_ref()),
            weight: weight.weight,
        })
    };
    let distribution = |distribution: &wire::Distribution| {
        Ok(Distribution {
            from: pattern_from(distribution.from.as_ref()),
            to: all(&distribution.to, weight)?,
        })
    };
    Ok(LocalityBalance {
        distribute: all(&locality.distribute, distribution)?,
        priority: all(&locality.priority, |priority| {
            Ok(LabelPriority {
                label: priority.label.as_str().into(),
                value: text(priority.value.as_deref()),
            })
        })?,
        failover: all(&locality.failover, |failover| {
            Ok(RegionFailover {
                from: failover.from.as_str().into(),
                to: failover.to.as_str().into(),
            })
        })?,
    })
}

/// One that is left out takes any place.
fn pattern_from(pattern: Option<&wire::LocalityPattern>) -> LocalityPattern {
    pattern.map_or_else(LocalityPattern::default, |pattern| LocalityPattern {
        region: text(pattern.region.as_deref()),
        zone: text(pattern.zone.as_deref()),
        subzone: text(pattern.subzone.as_deref()),
    })
}

pub(super) fn to(balance: &Balance) -> wire::Balance {
    use wire::balance::Algorithm;
    let algorithm = match &balance.algorithm {
        BalanceAlgorithm::LeastRequest => Algorithm::LeastRequest(()),
        BalanceAlgorithm::RoundRobin => Algorithm::RoundRobin(()),
        BalanceAlgorithm::Random => Algorithm::Random(()),
        BalanceAlgorithm::Passthrough => Algorithm::Passthrough(()),
        BalanceAlgorithm::PeakEwma => Algorithm::PeakEwma(()),
        BalanceAlgorithm::ConsistentHash(hash) => Algorithm::ConsistentHash(hash_to(hash)),
    };
    wire::Balance {
        algorithm: Some(algorithm),
        warm_up: balance.warm_up.map(|warm_up| wire::WarmUp {
            duration: Some(duration_to(warm_up.duration)),
            aggression_milli: warm_up.aggression_milli,
            min_percent: warm_up.min_percent,
        }),
        locality: balance.locality.as_ref().map(locality_to),
    }
}

fn hash_to(hash: &ConsistentHash) -> wire::ConsistentHash {
    use wire::consistent_hash::{Key, Table};
    let key = match &hash.key {
        HashKey::Header(name) => Key::Header(name.to_string()),
        HashKey::Cookie(cookie) => Key::Cookie(wire::HashCookie {
            name: cookie.name.to_string(),
            path: string(cookie.path.as_ref()),
            ttl: cookie.ttl.map(duration_to),
            attributes: cookie
                .attributes
                .iter()
                .map(|(name, value)| wire::CookieAttribute {
                    name: name.to_string(),
                    value: string(value.as_ref()),
                })
                .collect(),
        }),
        HashKey::SourceIp => Key::SourceIp(()),
        HashKey::Query(name) => Key::Query(name.to_string()),
    };
    let table = match hash.table {
        HashTable::Ring { min_size } => Table::RingMinSize(min_size),
        HashTable::Maglev { size } => Table::MaglevSize(size),
    };
    wire::ConsistentHash {
        key: Some(key),
        table: Some(table),
    }
}

fn locality_to(locality: &LocalityBalance) -> wire::LocalityBalance {
    let weight = |weight: &LocalityWeight| wire::LocalityWeight {
        place: Some(pattern_to(&weight.place)),
        weight: weight.weight,
    };
    let distribution = |distribution: &Distribution| wire::Distribution {
        from: Some(pattern_to(&distribution.from)),
        to: distribution.to.iter().map(weight).collect(),
    };
    let priority = |priority: &LabelPriority| wire::LabelPriority {
        label: priority.label.to_string(),
        value: string(priority.value.as_ref()),
    };
    let failover = |failover: &RegionFailover| wire::RegionFailover {
        from: failover.from.to_string(),
        to: failover.to.to_string(),
    };
    wire::LocalityBalance {
        distribute: locality.distribute.iter().map(distribution).collect(),
        priority: locality.priority.iter().map(priority).collect(),
        failover: locality.failover.iter().map(failover).collect(),
    }
}

fn pattern_to(pattern: &LocalityPattern) -> wire::LocalityPattern {
    wire::LocalityPattern {
        region: string(pattern.region.as_ref()),
        zone: string(pattern.zone.as_ref()),
        subzone: string(pattern.subzone.as_ref()),
    }
}
