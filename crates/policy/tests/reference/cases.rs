//! Random policies and connections out of a small vocabulary, so that values meet, nearly meet and miss each other.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    identity::{SpiffeId, TrustDomain},
    name::PolicyKey,
    policy::{
        Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, ServiceAccountMatch,
        StringMatch,
    },
};
use rand::{Rng, RngExt, seq::IndexedRandom};

use super::Connection;

const TRUST_DOMAINS: [&str; 2] = ["cluster.local", "td"];
/// Some are the start or the end of others.
const NAMES: [&str; 6] = ["a", "ab", "abc", "b", "bc", "shop"];
const PORTS: [u16; 5] = [0, 80, 81, 8080, 15008];
const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "11.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:10.0.1.1",
    "fd00::1",
    "fd00::2",
    "fd00:0:0:1::1",
    "::1",
];

/// Connections with which one set of policies is asked.
pub(crate) const CONNECTIONS_PER_SET: usize = 4;

/// Policies that apply to one workload, and how many more are missing.
pub(crate) struct PolicySet {
    pub(crate) policies: Vec<Arc<Authorization>>,
    pub(crate) missing: Vec<PolicyKey>,
}

pub(crate) fn policy_set(rng: &mut impl Rng) -> PolicySet {
    let len = match rng.random_range(0..100u8) {
        0 => rng.random_range(20..60),
        1..=30 => 1,
        _ => rng.random_range(0..5),
    };
    let policies = (0..len).map(|index| Arc::new(policy(index, rng))).collect();
    let missing = if rng.random_ratio(1, 24) {
        vec!["shop/missing".parse().unwrap()]
    } else {
        Vec::new()
    };
    PolicySet { policies, missing }
}

fn policy(index: usize, rng: &mut impl Rng) -> Authorization {
    Authorization {
        key: PolicyKey {
            namespace: "shop".into(),
            name: format!("p{index}").into(),
        },
        scope: *[
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::WorkloadSelector,
        ]
        .choose(rng)
        .unwrap(),
        action: if rng.random() {
            Action::Allow
        } else {
            Action::Deny
        },
        dry_run: rng.random_ratio(1, 5),
        rules: several(rng, &[1, 6, 3, 1], rule),
    }
}

fn rule<R: Rng>(rng: &mut R) -> Rule {
    Rule {
        clauses: several(rng, &[1, 10, 4, 1], clause),
    }
}

fn clause<R: Rng>(rng: &mut R) -> Clause {
    Clause {
        matches: several(rng, &[1, 12, 4, 1], a_match),
    }
}

/// A list whose length is drawn by weight: `weights[n]` for `n` entries.
fn several<T, R: Rng>(rng: &mut R, weights: &[u32], one: impl Fn(&mut R) -> T) -> Vec<T> {
    let mut point = rng.random_range(0..weights.iter().sum());
    let len = weights.iter().position(|weight| {
        point < *weight || {
            point -= weight;
            false
        }
    });
    (0..len.unwrap_or(0)).map(|_| one(rng)).collect()
}

fn a_match<R: Rng>(rng: &mut R) -> Match {
    let mut m = Match {
        unreadable: rng.random_ratio(1, 40),
        ..Match::default()
    };
    // Mostly one group, so that each decides alone; none at all now and then.
    for _ in 0..*[0, 1, 1, 1, 1, 1, 2, 2, 3].choose(rng).unwrap() {
        match rng.random_range(0..12u8) {
            0 => m.namespaces = list(rng, |rng| string(rng, name)),
            1 => m.not_namespaces = list(rng, |rng| string(rng, name)),
            2 => {
                m.principals = list(rng, |rng| {
                    string(rng, |rng| identity(rng).principal().to_string())
                })
            }
            3 => {
                m.not_principals = list(rng, |rng| {
                    string(rng, |rng| identity(rng).principal().to_string())
                })
            }
            4 => m.source_ips = list(rng, block),
            5 => m.not_source_ips = list(rng, block),
            6 => m.destination_ips = list(rng, block),
            7 => m.not_destination_ips = list(rng, block),
            8 => m.destination_ports = list(rng, port),
            9 => m.not_destination_ports = list(rng, port),
            10 => m.service_accounts = list(rng, account),
            _ => m.not_service_accounts = list(rng, account),
        }
    }
    m
}

/// Mostly short; long enough now and then to be looked up instead of walked.
fn list<T, R: Rng>(rng: &mut R, one: impl Fn(&mut R) -> T) -> Vec<T> {
    let len = if rng.random_ratio(1, 12) {
        rng.random_range(9..14)
    } else {
        rng.random_range(1..4)
    };
    (0..len).map(|_| one(rng)).collect()
}

fn string<R: Rng>(rng: &mut R, value: impl Fn(&mut R) -> String) -> StringMatch {
    let text = value(rng);
    let cut = rng.random_range(0..=text.len());
    match rng.random_range(0..10u8) {
        0 => StringMatch::Presence,
        1 => StringMatch::Exact("".into()),
        2..=5 => StringMatch::Exact(text.into()),
        6 | 7 => StringMatch::Prefix(text[..cut].into()),
        _ => StringMatch::Suffix(text[cut..].into()),
    }
}

fn name(rng: &mut impl Rng) -> String {
    (*NAMES.choose(rng).unwrap()).to_owned()
}

fn port(rng: &mut impl Rng) -> u16 {
    *PORTS.choose(rng).unwrap()
}

fn account(rng: &mut impl Rng) -> ServiceAccountMatch {
    ServiceAccountMatch {
        namespace: name(rng).into(),
        service_account: name(rng).into(),
    }
}

fn block(rng: &mut impl Rng) -> IpBlock {
    let ip = address(rng);
    let host = if ip.is_ipv4() { 32 } else { 128 };
    let prefix_len = match rng.random_range(0..20u8) {
        0 => rng.random_range(0..=255),
        1..=8 => host,
        9 => host + 1,
        10..=13 => host - 8,
        14 | 15 => host - 16,
        16 => host - 31,
        17 => 0,
        _ => rng.random_range(0..=host),
    };
    IpBlock { ip, prefix_len }
}

fn address(rng: &mut impl Rng) -> IpAddr {
    ADDRESSES.choose(rng).unwrap().parse().unwrap()
}

fn identity(rng: &mut impl Rng) -> SpiffeId {
    let trust_domain = TrustDomain((*TRUST_DOMAINS.choose(rng).unwrap()).into());
    SpiffeId::new(
        &trust_domain,
        NAMES.choose(rng).unwrap(),
        NAMES.choose(rng).unwrap(),
    )
}

pub(crate) fn connection(rng: &mut impl Rng) -> Connection {
    Connection {
        source: rng.random_ratio(5, 6).then(|| identity(rng)),
        source_ip: address(rng),
        destination: SocketAddr::new(address(rng), port(rng)),
    }
}
