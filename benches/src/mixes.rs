//! Ten thousand policies in several mixes, with the connections to ask about, for P10.
//!
//! Every policy applies to one workload: that is more than any real one will see, and what the target asks for.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use karst_model::{
    identity::{SpiffeId, TrustDomain},
    policy::{
        Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, ServiceAccountMatch,
        StringMatch,
    },
};
use karst_policy::Connection;

pub const POLICIES: usize = 10_000;
/// Few enough to make them, many enough that they do not stay in the cache with all that they touch.
const CONNECTIONS: usize = 4_096;

/// Policies of one kind.
pub struct Mix {
    pub name: &'static str,
    pub policies: Vec<Arc<Authorization>>,
    pub connections: Vec<Connection>,
    /// No index helps here: each decision walks all rules.
    pub slow: bool,
}

/// Kinds of condition, each taking one policy's number.
type Condition = fn(usize) -> Vec<Match>;

pub fn all() -> Vec<Mix> {
    vec![
        mix(
            "mixed",
            |n| {
                (
                    if n.is_multiple_of(4) {
                        Action::Deny
                    } else {
                        Action::Allow
                    },
                    mixed(n),
                )
            },
            false,
        ),
        mix("principals", |n| (Action::Allow, principal(n)), false),
        mix(
            "principals_and_port",
            |n| (Action::Allow, principal_and_port(n)),
            false,
        ),
        mix(
            "namespaces_deny",
            |n| (Action::Deny, other_namespace(n)),
            false,
        ),
        mix("service_accounts", |n| (Action::Allow, account(n)), false),
        mix("principal_prefixes", |n| (Action::Allow, prefix(n)), false),
        mix("principal_suffixes", |n| (Action::Allow, suffix(n)), false),
        mix("ip_blocks", |n| (Action::Allow, range(n)), false),
        mix("strict_repeated", |_| (Action::Deny, plain_text(0)), false),
        long_list(),
        mix(
            "negations_match",
            |n| (Action::Deny, not_namespace(n)),
            false,
        ),
        mix(
            "negations_no_match",
            |n| (Action::Deny, everyone_but(n)),
            true,
        ),
    ]
}

fn mix(name: &'static str, policy: impl Fn(usize) -> (Action, Vec<Match>), slow: bool) -> Mix {
    let policies = (0..POLICIES).map(|n| {
        let (action, matches) = policy(n);
        authorization(n, action, matches)
    });
    Mix {
        name,
        policies: policies.collect(),
        connections: connections(),
        slow,
    }
}

fn authorization(n: usize, action: Action, matches: Vec<Match>) -> Arc<Authorization> {
    Arc::new(Authorization {
        key: format!("shop/policy-{n:05}")
            .parse()
            .expect("it is namespace/name"),
        scope: PolicyScope::WorkloadSelector,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: matches
                .into_iter()
                .map(|m| Clause { matches: vec![m] })
                .collect(),
        }],
    })
}

/// One policy whose rule names ten thousand principals.
fn long_list() -> Mix {
    let principals = (0..POLICIES)
        .flat_map(principal)
        .flat_map(|m| m.principals)
        .collect();
    let policies = vec![authorization(
        0,
        Action::Allow,
        vec![Match {
            principals,
            ..Match::default()
        }],
    )];
    Mix {
        name: "one_long_list",
        policies,
        connections: connections(),
        slow: false,
    }
}

fn connections() -> Vec<Connection> {
    // A prime stride visits all policies in an order that no cache foresees.
    (0..CONNECTIONS)
        .map(|n| connection(n * 7_919 % POLICIES))
        .collect()
}

fn connection(n: usize) -> Connection {
    Connection {
        source: Some(identity(n)),
        source_ip: address(n).into(),
        destination: (Ipv4Addr::new(10, 0, 0, 1), 8080).into(),
    }
}

fn identity(n: usize) -> SpiffeId {
    SpiffeId::new(
        &TrustDomain::default(),
        &format!("team-{:03}", n % 500),
        &format!("service-{n:05}"),
    )
}

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + (n as u32) * 16)
}

fn mixed(n: usize) -> Vec<Match> {
    // Every fourth is a DENY; those must not match the connections, so that all phases run.
    const KINDS: [Condition; 8] = [
        other_namespace,
        principal,
        account,
        range,
        plain_text,
        principal_and_port,
        prefix,
        account,
    ];
    KINDS[n % KINDS.len()](n)
}

fn exact(text: String) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn principal(n: usize) -> Vec<Match> {
    vec![Match {
        principals: vec![exact(identity(n).principal().to_string())],
        ..Match::default()
    }]
}

fn principal_and_port(n: usize) -> Vec<Match> {
    let port = Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    [principal(n), vec![port]].concat()
}

fn other_namespace(n: usize) -> Vec<Match> {
    vec![Match {
        namespaces: vec![exact(format!("other-{n}"))],
        ..Match::default()
    }]
}

fn account(n: usize) -> Vec<Match> {
    let id = identity(n);
    let account = ServiceAccountMatch {
        namespace: id.namespace,
        service_account: id.service_account,
    };
    vec![Match {
        service_accounts: vec![account],
        ..Match::default()
    }]
}

fn prefix(n: usize) -> Vec<Match> {
    let text = identity(n).principal().to_string();
    vec![Match {
        principals: vec![StringMatch::Prefix(text[..text.len() - 1].into())],
        ..Match::default()
    }]
}

fn suffix(n: usize) -> Vec<Match> {
    vec![Match {
        principals: vec![StringMatch::Suffix(format!("/sa/service-{n:05}").into())],
        ..Match::default()
    }]
}

fn range(n: usize) -> Vec<Match> {
    let block = IpBlock {
        ip: IpAddr::V4(address(n)),
        prefix_len: 28,
    };
    vec![Match {
        source_ips: vec![block],
        ..Match::default()
    }]
}

fn plain_text(_: usize) -> Vec<Match> {
    vec![Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }]
}

fn not_namespace(n: usize) -> Vec<Match> {
    vec![Match {
        not_namespaces: vec![exact(format!("team-{n:03}"))],
        ..Match::default()
    }]
}

/// Leaves out every connection there is, each policy in its own way.
fn everyone_but(n: usize) -> Vec<Match> {
    let not_namespaces = vec![
        exact(format!("nobody-{n}")),
        StringMatch::Prefix("team-".into()),
    ];
    vec![Match {
        not_namespaces,
        ..Match::default()
    }]
}
