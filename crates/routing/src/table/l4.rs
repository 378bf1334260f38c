//! Routes of connections: by the server name of a TLS ClientHello, or all of a port.

use std::sync::Arc;

use karst_model::route::{Route, RouteRules, WeightedBackend};

use super::hosts::ByHost;
use crate::weights::Weights;

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

/// TLS rules by server name.
#[derive(Debug, Default)]
pub struct TlsTable(ByHost<Arc<L4Rule>>);

impl TlsTable {
    /// The routes are in the order of precedence: the first rule for a name stays.
    pub(super) fn new(routes: &[Arc<Route>]) -> Self {
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

    /// The rule for a server name; `None`: no rule takes it, and the connection is refused.
    pub fn pick(&self, sni: Option<&str>) -> Option<&Arc<L4Rule>> {
        let sni = sni.unwrap_or_default().to_ascii_lowercase();
        let sni = sni.strip_suffix('.').unwrap_or(&sni);
        self.0.taking(sni).next()
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
