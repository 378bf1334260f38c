//! What a waypoint may be told to do with each request, one at a time: `cargo xtask bench l7` measures what each costs
//! against the plain route.

use std::{sync::Arc, time::Duration};

use karst_discovery::Update;
use karst_model::{
    name::ServiceKey,
    rate_limit::{
        Enforcement, LimitHeaders, LimitKey, LimitRule, LimitScope, LimitTarget, RateLimit,
    },
    route::{
        Attachment, Backend, Clients, Fault, FaultAbort, FaultAnswer, FaultDelay, HeaderChanges,
        HttpFilter, HttpMatch, HttpRule, PathMatch, RetryPolicy, Route, RouteRules,
        WeightedBackend,
    },
    traffic::{
        BalanceAlgorithm, ConsistentHash, HashKey, HashTable, Outlier, Scope, ServiceTraffic,
        SessionKind, SessionPersistence, TrafficPolicy,
    },
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Feature {
    /// A route to the service itself, which all others have too.
    Route,
    /// A rate limit by address and one for everybody, with headers, that nobody reaches.
    RateLimit,
    /// A request header set, one removed, a response header added.
    Headers,
    /// A retry policy that never has to retry.
    Retry,
    /// A delay and an abort for no request.
    Fault,
    /// Outlier ejection and every limit of connections and requests, none of them reached.
    Breaker,
    /// A Maglev table by the client's address.
    Hash,
    /// A session in a header, which the client does not send back.
    Session,
}

impl Feature {
    pub(crate) fn updates(self, service: &ServiceKey) -> Vec<Update> {
        let mut updates = vec![Update::Route(Arc::new(self.route(service)))];
        if self == Self::RateLimit {
            updates.push(Update::RateLimit(Arc::new(limit(service))));
        }
        if let Some(policy) = self.policy() {
            let scope = Scope {
                policy,
                ..Scope::default()
            };
            updates.push(Update::ServiceTraffic(Arc::new(ServiceTraffic {
                service: service.clone(),
                scopes: vec![scope],
                subsets: Vec::new(),
                sources: Vec::new(),
            })));
        }
        updates
    }

    fn route(self, service: &ServiceKey) -> Route {
        let name = service.hostname.split('.').next().unwrap_or_default();
        Route {
            key: karst_model::route::RouteKey {
                kind: karst_model::route::RouteKind::HttpRoute,
                namespace: service.namespace.clone(),
                name: name.into(),
            },
            created: 0,
            attachments: vec![Attachment {
                service: service.clone(),
                port: None,
                clients: Clients::All,
            }],
            rules: RouteRules::Http(vec![self.rule(service)]),
        }
    }

    fn rule(self, service: &ServiceKey) -> HttpRule {
        let pair = |name: &str, value: &str| (Arc::from(name), Arc::from(value));
        let filters = match self {
            Self::Headers => vec![
                HttpFilter::RequestHeaders(HeaderChanges {
                    set: vec![pair("x-set", "1")],
                    add: Vec::new(),
                    remove: vec!["x-internal".into()],
                }),
                HttpFilter::ResponseHeaders(HeaderChanges {
                    add: vec![pair("x-added", "1")],
                    ..HeaderChanges::default()
                }),
            ],
            Self::Fault => vec![HttpFilter::Fault(Fault {
                delay: Some(FaultDelay {
                    wait: Duration::from_secs(1),
                    millionths: 0,
                }),
                abort: Some(FaultAbort {
                    answer: FaultAnswer::Http(503),
                    millionths: 0,
                }),
            })],
            _ => Vec::new(),
        };
        HttpRule {
            matches: vec![HttpMatch {
                path: Some(PathMatch::Prefix("/".into())),
                ..HttpMatch::default()
            }],
            filters,
            backends: vec![WeightedBackend {
                backend: Backend::Service {
                    service: service.clone(),
                    port: 80,
                    subset: None,
                },
                weight: 1,
                filters: Vec::new(),
            }],
            retry: (self == Self::Retry).then(|| RetryPolicy {
                attempts: 2,
                statuses: vec![503],
                ..RetryPolicy::default()
            }),
            session: (self == Self::Session).then(|| SessionPersistence {
                name: "x-session".into(),
                kind: SessionKind::Header,
                absolute_timeout: None,
                idle_timeout: None,
            }),
            ..HttpRule::default()
        }
    }

    fn policy(self) -> Option<TrafficPolicy> {
        let mut policy = TrafficPolicy::default();
        match self {
            Self::Breaker => {
                policy.outlier = Some(Outlier::default());
                policy.connections.max = Some(1_000);
                policy.connections.max_pending = Some(1_000);
                policy.connections.max_requests = Some(1_000);
                policy.connections.max_retries = Some(100);
            }
            Self::Hash => {
                policy.balance.algorithm = BalanceAlgorithm::ConsistentHash(ConsistentHash {
                    key: HashKey::SourceIp,
                    table: HashTable::Maglev { size: 65_537 },
                });
            }
            _ => return None,
        }
        Some(policy)
    }
}

fn limit(service: &ServiceKey) -> RateLimit {
    let rule = |name: &str, keys| LimitRule {
        name: name.into(),
        matches: Vec::new(),
        requests: 1_000_000_000,
        period: Duration::from_secs(1),
        burst: 1_000_000_000,
        keys,
    };
    RateLimit {
        key: karst_model::name::PolicyKey {
            namespace: service.namespace.clone(),
            name: "limit".into(),
        },
        targets: vec![LimitTarget::Service(service.clone())],
        enforcement: Enforcement::Enforce,
        scope: LimitScope::Process,
        status: 429,
        headers: LimitHeaders::Draft,
        rules: vec![
            rule("address", vec![LimitKey::Address]),
            rule("all", Vec::new()),
        ],
    }
}
