//! One step of change to the state, as a response or a saved file brings it.

use std::sync::Arc;

use karst_model::{
    enrollment::NodeWorkload, identity::TrustDomains, policy::Authorization, rate_limit::RateLimit,
    route::Route, service::Service, telemetry::Telemetry, token::RequestAuthentication,
    traffic::ServiceTraffic, waypoint_policy::WaypointPolicy, workload::Workload,
};
use karst_proto::type_url;

/// A resource that came, or a name that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Policy(Arc<Authorization>),
    NodeWorkload(Arc<NodeWorkload>),
    Route(Arc<Route>),
    WaypointPolicy(Arc<WaypointPolicy>),
    ServiceTraffic(Arc<ServiceTraffic>),
    RequestAuthentication(Arc<RequestAuthentication>),
    Telemetry(Arc<Telemetry>),
    RateLimit(Arc<RateLimit>),
    TrustDomains(Arc<TrustDomains>),
    /// The name is a workload's uid or a service's `<namespace>/<hostname>`.
    Removed(Kind, Arc<str>),
}

/// The types of resources that an agent or a waypoint follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Address,
    Authorization,
    /// Only a Karst controller serves it, to agents.
    NodeWorkload,
    /// Only a Karst controller serves it, to waypoints.
    WaypointPolicy,
    /// Only a Karst controller serves it, to waypoints.
    ServiceTraffic,
    /// Only a Karst controller serves it, to waypoints.
    RequestAuthentication,
    /// Only a Karst controller serves it, to waypoints.
    RateLimit,
    /// Only a Karst controller serves it, to waypoints.
    Route,
    /// Only a Karst controller serves it.
    Telemetry,
    /// Only a Karst controller serves it.
    TrustDomains,
}

impl Kind {
    /// What an agent follows, in the order in which it asks: names of the mesh before what names it, policies before the
    /// workloads that they protect.
    pub const ALL: [Self; 5] = [
        Self::TrustDomains,
        Self::Authorization,
        Self::Address,
        Self::NodeWorkload,
        Self::Telemetry,
    ];
    /// What a waypoint follows, in the order in which it asks: policies arrive before the services that they protect.
    pub const WAYPOINT: [Self; 8] = [
        Self::TrustDomains,
        Self::WaypointPolicy,
        Self::RequestAuthentication,
        Self::ServiceTraffic,
        Self::RateLimit,
        Self::Address,
        Self::Route,
        Self::Telemetry,
    ];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
            Self::NodeWorkload => type_url::NODE_WORKLOAD,
            Self::WaypointPolicy => type_url::WAYPOINT_POLICY,
            Self::RequestAuthentication => type_url::REQUEST_AUTHENTICATION,
            Self::RateLimit => type_url::RATE_LIMIT,
            Self::Route => type_url::ROUTE,
            Self::ServiceTraffic => type_url::SERVICE_TRAFFIC,
            Self::Telemetry => type_url::TELEMETRY,
            Self::TrustDomains => type_url::TRUST_DOMAINS,
        }
    }

    /// The kind of a type URL; `None` for one that we did not ask for.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .chain(Self::WAYPOINT)
            .find(|kind| kind.type_url() == type_url)
    }
}
