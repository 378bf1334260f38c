//! What holds for the traffic of a service beyond its routes: how endpoints are chosen, how much may be in flight, who is
//! ejected, when a request is tried again, and how its endpoints are spoken to.
//!
//! DestinationRule, BackendTLSPolicy, our own HealthCheck and session persistence lower into these types. One
//! [`ServiceTraffic`] is one service and one discovery resource. The controller has merged all that applies (mesh,
//! namespace, service; port; subset): of the [`Scope`]s of a service the most specific one wins as a whole.
//!
//! Everything that is `None` stands for "as if nobody had asked": proxies have no second set of defaults.

mod balance;
mod outlier;
mod tls;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    balance::{
        Balance, BalanceAlgorithm, ConsistentHash, Distribution, HashCookie, HashKey, HashTable,
        LabelPriority, LocalityBalance, LocalityPattern, LocalityWeight, RegionFailover, WarmUp,
    },
    outlier::{Expected, HealthCheck, HealthProbe, Outlier},
    tls::{ClientCredential, San, Secret, TlsMode, TrustAnchors, UpstreamTls},
};
use crate::name::ServiceKey;

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    pub service: ServiceKey,
    pub scopes: Vec<Scope>,
    pub subsets: Vec<Subset>,
    /// The objects that this comes from, `<kind>/<namespace>/<name>`, for people.
    pub sources: Vec<Arc<str>>,
}

/// What a policy holds for. No two scopes of a service have the same port and subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The service's own port; `None`: every port.
    pub port: Option<u16>,
    /// `None`: requests for any subset and for none.
    pub subset: Option<Arc<str>>,
    pub policy: TrafficPolicy,
}

/// Some of the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subset {
    pub name: Arc<str>,
    /// All of them, compared with [`crate::workload::Workload::labels`]; empty: every endpoint.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
}

/// What holds for some traffic of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficPolicy {
    pub balance: Balance,
    pub connections: Connections,
    pub outlier: Option<Outlier>,
    /// `None`: the default of 20 % for what provably was not sent; a route's own retries have none.
    pub retry_budget: Option<RetryBudget>,
    /// `None`: endpoints in the mesh through the mesh, others plain.
    pub tls: Option<UpstreamTls>,
    pub health_check: Option<HealthCheck>,
    pub session: Option<SessionPersistence>,
}

impl ServiceTraffic {
    /// The policy of the most specific scope: subset and port, then subset, then port, then all.
    pub fn policy(&self, port: u16, subset: Option<&str>) -> Option<&TrafficPolicy> {
        let applies = |scope: &&Scope| {
            scope.port.is_none_or(|of_scope| of_scope == port)
                && scope
                    .subset
                    .as_deref()
                    .is_none_or(|of_scope| Some(of_scope) == subset)
        };
        let best = self
            .scopes
            .iter()
            .filter(applies)
            .max_by_key(|scope| (scope.subset.is_some(), scope.port.is_some()));
        best.map(|scope| &scope.policy)
    }

    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| *subset.name == *name)
    }
}

impl Subset {
    /// Whether an endpoint with these labels belongs to it.
    pub fn has(&self, labels: &[(Arc<str>, Arc<str>)]) -> bool {
        self.labels.iter().all(|label| labels.contains(label))
    }
}

/// Limits of connections and requests, for each waypoint instance. `None`: no limit of the service's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Connections to all endpoints together.
    pub max: Option<u32>,
    pub connect_timeout: Option<Duration>,
    pub keepalive: Option<TcpKeepalive>,
    /// Of TCP connections without a byte in either direction.
    pub tcp_idle_timeout: Option<Duration>,
    /// After this a connection takes no new request; a TCP connection is closed.
    pub max_age: Option<Duration>,
    /// Requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// 0 and `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight at once.
    pub max_retries: Option<u32>,
    /// Of upstream HTTP connections without a request.
    pub idle_timeout: Option<Duration>,
    pub upgrade: Http2Upgrade,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: Option<u32>,
}

/// Probes of the operating system on idle connections; `None`: as the system has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpKeepalive {
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
    pub probes: Option<u32>,
}

/// Whether requests of HTTP/1 clients go out over HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Http2Upgrade {
    /// As the port's protocol and the client say.
    #[default]
    Default,
    /// Over HTTP/2 whatever the client speaks.
    Upgrade,
    /// Never where the port's protocol does not ask for HTTP/2.
    Never,
}

/// Retries in flight as a share of the requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryBudget {
    /// In millionths: 20 % is 200 000.
    pub share_ppm: u32,
    /// So many retries at once are always allowed.
    pub min_concurrent: u32,
}

impl Default for RetryBudget {
    /// 20 %, three at once always.
    fn default() -> Self {
        Self {
            share_ppm: 200_000,
            min_concurrent: 3,
        }
    }
}

/// Requests of one session go to one endpoint, while it lives (Gateway API, `sessionPersistence`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPersistence {
    /// Of the cookie or of the header.
    pub name: Arc<str>,
    pub kind: SessionKind,
    /// How long a session lasts at most, from its first request.
    pub absolute_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionKind {
    /// `permanent`: the cookie has a lifetime, which is the absolute timeout; else it ends with the browser.
    Cookie {
        permanent: bool,
    },
    Header,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(port: Option<u16>, subset: Option<&str>, max: u32) -> Scope {
        Scope {
            port,
            subset: subset.map(Into::into),
            policy: TrafficPolicy {
                connections: Connections {
                    max: Some(max),
                    ..Connections::default()
                },
                ..TrafficPolicy::default()
            },
        }
    }

    #[test]
    fn the_most_specific_scope_wins_whole() {
        let traffic = ServiceTraffic {
            service: "shop/a".parse().unwrap(),
            scopes: vec![
                scope(Some(80), Some("v1"), 4),
                scope(None, None, 1),
                scope(None, Some("v1"), 3),
                scope(Some(80), None, 2),
            ],
            subsets: Vec::new(),
            sources: Vec::new(),
        };
        let max = |port, subset| {
            traffic
                .policy(port, subset)
                .and_then(|policy| policy.connections.max)
        };
        assert_eq!(max(80, Some("v1")), Some(4));
        assert_eq!(max(81, Some("v1")), Some(3));
        assert_eq!(max(80, Some("v2")), Some(2));
        assert_eq!(max(81, None), Some(1));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("-----BEGIN PRIVATE KEY-----");
        assert!(!format!("{secret:?}").contains("PRIVATE"));
        assert_eq!(secret.expose(), "-----BEGIN PRIVATE KEY-----");
    }
}
