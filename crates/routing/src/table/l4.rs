//! Routes of connections: by the server name of a TLS ClientHello, by who dials what, or all of a port.

use std::{net::IpAddr, sync::Arc};

use karst_model::{
    policy::IpBlock,
    route::{
        ConnectionMatch, HostMatch, Route, RouteKey, RouteKind, RouteRules, TcpRule, TlsRule,
        WeightedBackend,
    },
};

use super::{
    Problem,
    conditions::{Patterns, Source},
    hosts::{ByHost, takes_host},
};
use crate::{
    compare::{Site, holds},
    request::Sender,
    weights::Weights,
};

/// A rule for connections.
#[derive(Debug)]
pub struct L4Rule {
    pub route: Arc<Route>,
    /// Index of the rule.
    pub index: usize,
    pub name: Option<Arc<str>>,
    pub backends: Vec<WeightedBackend>,
    pub weights: Weights,
}

impl L4Rule {
    fn new(
        route: &Arc<Route>,
        index: usize,
        name: Option<&Arc<str>>,
        backends: &[WeightedBackend],
    ) -> Arc<Self> {
        Arc::new(Self {
            route: route.clone(),
            index,
            name: name.cloned(),
            backends: backends.to_vec(),
            weights: Weights::new(backends.iter().map(|backend| backend.weight)),
        })
    }
}

/// What is known of a connection before it is routed.
#[derive(Clone, Copy, Debug)]
pub struct Dialled<'a> {
    /// Server name of TLS.
    pub sni: Option<&'a str>,
    /// The service's port.
    pub port: u16,
    /// The address of the service.
    pub destination: Option<IpAddr>,
    pub client: Option<IpAddr>,
    pub sender: &'a Sender,
}

/// TLS rules: those of TLSRoutes by server name, those of a VirtualService in their order.
#[derive(Debug)]
pub enum TlsTable {
    ByName(TlsNames),
    Ordered(OrderedTable),
}

/// Rules by server name.
#[derive(Debug, Default)]
pub struct TlsNames(ByHost<Arc<L4Rule>>);

/// Rules that are tried in the order in which they are written.
#[derive(Debug, Default)]
pub struct OrderedTable(Vec<(Option<Compiled>, Arc<L4Rule>)>);

/// A match, compiled.
#[derive(Debug)]
struct Compiled {
    hosts: Vec<HostMatch>,
    port: Option<u16>,
    destinations: Vec<IpBlock>,
    client: Option<IpBlock>,
    source: Source,
}

impl TlsTable {
    /// The routes are in the order of precedence: the first rule for a name stays.
    pub(super) fn new(kind: RouteKind, routes: &[Arc<Route>], problems: &mut Vec<Problem>) -> Self {
        match kind {
            RouteKind::VirtualServiceTls => Self::Ordered(OrderedTable::new(routes, problems)),
            _ => Self::ByName(TlsNames::new(routes)),
        }
    }

    /// The rule for a connection; `None`: no rule takes it, and the connection is refused.
    pub fn pick(&self, dialled: &Dialled<'_>) -> Option<&Arc<L4Rule>> {
        match self {
            Self::ByName(names) => names.pick(dialled.sni),
            Self::Ordered(table) => table.pick(dialled),
        }
    }

    /// Whether who dials must be known.
    pub fn asks_sender(&self) -> bool {
        match self {
            Self::ByName(_) => false,
            Self::Ordered(table) => table.asks_sender(),
        }
    }
}

impl TlsNames {
    fn new(routes: &[Arc<Route>]) -> Self {
        let mut table = ByHost::default();
        for route in routes {
            let RouteRules::Tls(rules) = &route.rules else {
                continue;
            };
            for (index, rule) in rules.iter().enumerate() {
                let new = || L4Rule::new(route, index, rule.name.as_ref(), &rule.backends);
                if rule.hosts.is_empty() {
                    table.entry(None, new);
                }
                for host in &rule.hosts {
                    table.entry(Some(host), new);
                }
            }
        }
        Self(table)
    }

    fn pick(&self, sni: Option<&str>) -> Option<&Arc<L4Rule>> {
        let sni = server_name(sni);
        self.0.taking(&sni).next()
    }
}

impl OrderedTable {
    /// Of several routes the first counts.
    pub(super) fn new(routes: &[Arc<Route>], problems: &mut Vec<Problem>) -> Self {
        let Some(route) = routes.first() else {
            return Self::default();
        };
        let rules: Vec<Parts<'_>> = match &route.rules {
            RouteRules::Tcp(rules) => rules.iter().map(parts_of_tcp).collect(),
            RouteRules::Tls(rules) => rules.iter().map(parts_of_tls).collect(),
            RouteRules::Http(_) => Vec::new(),
        };
        let mut ordered = Vec::new();
        let mut patterns = Patterns::default();
        for (index, (name, matches, backends)) in rules.into_iter().enumerate() {
            let rule = L4Rule::new(route, index, name, backends);
            if matches.is_empty() {
                ordered.push((None, rule));
                continue;
            }
            for m in matches {
                match Compiled::new(m, &mut patterns) {
                    Ok(compiled) => ordered.push((Some(compiled), rule.clone())),
                    Err(error) => problems.push(Problem {
                        route: route.key.clone(),
                        rule: index,
                        what: error.to_string(),
                    }),
                }
            }
        }
        Self(ordered)
    }

    /// The first rule that takes the connection; `None`: no rule does, and the connection is refused.
    pub fn pick(&self, dialled: &Dialled<'_>) -> Option<&Arc<L4Rule>> {
        let sni = server_name(dialled.sni);
        let mut rules = self.0.iter();
        let takes = |m: &Compiled| m.takes(dialled, &sni);
        rules
            .find(|(m, _)| m.as_ref().is_none_or(takes))
            .map(|(_, rule)| rule)
    }

    /// Whether who dials must be known.
    pub fn asks_sender(&self) -> bool {
        self.0
            .iter()
            .any(|(m, _)| m.as_ref().is_some_and(|m| !m.source.is_anybody()))
    }

    /// What the table is of.
    pub fn route(&self) -> Option<&RouteKey> {
        self.0.first().map(|(_, rule)| &rule.route.key)
    }
}

/// Name, matches and backends of a rule.
type Parts<'a> = (
    Option<&'a Arc<str>>,
    &'a [ConnectionMatch],
    &'a [WeightedBackend],
);

fn parts_of_tcp(rule: &TcpRule) -> Parts<'_> {
    (rule.name.as_ref(), &rule.matches, &rule.backends)
}

fn parts_of_tls(rule: &TlsRule) -> Parts<'_> {
    (rule.name.as_ref(), &rule.matches, &rule.backends)
}

impl Compiled {
    fn new(
        m: &ConnectionMatch,
        patterns: &mut Patterns,
    ) -> Result<Self, crate::pattern::PatternError> {
        Ok(Self {
            hosts: m.hosts.clone(),
            port: m.port,
            destinations: m.destinations.clone(),
            client: m.client,
            source: Source::new(&m.source, patterns)?,
        })
    }

    fn takes(&self, dialled: &Dialled<'_>, sni: &str) -> bool {
        let hosts = self.hosts.is_empty() || self.hosts.iter().any(|host| takes_host(host, sni));
        let within = |ip: Option<IpAddr>, block: &IpBlock| ip.is_some_and(|ip| contains(block, ip));
        let to = self.destinations.is_empty()
            || self
                .destinations
                .iter()
                .any(|block| within(dialled.destination, block));
        let from = self
            .client
            .as_ref()
            .is_none_or(|block| within(dialled.client, block));
        holds(Site::OrderedHost, hosts)
            && holds(
                Site::DialledPort,
                self.port.is_none_or(|port| port == dialled.port),
            )
            && to
            && from
            && self.source.takes(dialled.sender)
    }
}

fn server_name(sni: Option<&str>) -> String {
    let mut name = sni.unwrap_or_default().to_ascii_lowercase();
    if name.ends_with('.') {
        name.pop();
    }
    name
}

/// Whether an address lies in a range. Mapped IPv4 addresses count as IPv4.
fn contains(block: &IpBlock, ip: IpAddr) -> bool {
    let shifted = |bits: u128, width: u32, len: u8| {
        let drop = width.saturating_sub(u32::from(len));
        bits.checked_shr(drop).unwrap_or(0)
    };
    match (block.ip.to_canonical(), ip.to_canonical()) {
        (IpAddr::V4(range), IpAddr::V4(ip)) => {
            shifted(u32::from(range).into(), 32, block.prefix_len)
                == shifted(u32::from(ip).into(), 32, block.prefix_len)
        }
        (IpAddr::V6(range), IpAddr::V6(ip)) => {
            shifted(range.into(), 128, block.prefix_len)
                == shifted(ip.into(), 128, block.prefix_len)
        }
        _ => false,
    }
}

/// The one rule for all connections: the first of the first route.
pub(super) fn tcp_rule(routes: &[Arc<Route>]) -> Option<Arc<L4Rule>> {
    routes.iter().find_map(|route| match &route.rules {
        RouteRules::Tcp(rules) => rules
            .first()
            .map(|rule| L4Rule::new(route, 0, rule.name.as_ref(), &rule.backends)),
        RouteRules::Http(_) | RouteRules::Tls(_) => None,
    })
}
