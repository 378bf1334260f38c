//! What the index says, as resources: the one place where the model meets the wire on its way out.

use std::sync::Arc;

use karst_index::{Delta, NodeChange};
use karst_model::{
    enrollment::NodeWorkload,
    identity::TrustDomains,
    name::{GatewayKey, ServiceKey},
    policy::{Authorization, PolicyScope},
    rate_limit::RateLimit,
    route::Route,
    service::Service,
    telemetry::Telemetry,
    token::RequestAuthentication,
    traffic::ServiceTraffic,
    waypoint_policy::WaypointPolicy,
    workload::Workload,
};
use karst_proto::{convert, type_url};
use prost::Message as _;

use super::resources::{Content, Publication, TableKey};

/// The resources that a delta changes, in an order in which no workload ever names a policy that is gone.
pub fn publications(delta: &Delta) -> Vec<Publication> {
    let policies = delta
        .policies
        .updated
        .iter()
        .map(|(_, policy)| policy_publication(policy));
    let services = delta
        .services
        .updated
        .iter()
        .map(|(_, service)| service_publication(service));
    let workloads = delta
        .workloads
        .updated
        .iter()
        .map(|(_, workload)| workload_publication(workload));
    let gone = |table: TableKey, name: Arc<str>| Publication {
        table,
        name,
        content: None,
    };
    let workloads_gone = delta
        .workloads
        .removed
        .iter()
        .map(|uid| gone(TableKey::Address, uid.0.clone()));
    let services_gone = delta
        .services
        .removed
        .iter()
        .map(|key| gone(TableKey::Address, key.to_string().into()));
    let policies_gone = delta
        .policies
        .removed
        .iter()
        .map(|key| gone(TableKey::Authorization, key.to_string().into()));
    let nodes = delta.node_workloads.iter().map(|change| match change {
        NodeChange::Updated { node, workload } => node_publication(node.clone(), workload),
        NodeChange::Removed { node, pod_uid } => {
            gone(TableKey::Node(node.clone()), pod_uid.0.clone())
        }
    });
    let telemetry = delta.telemetries.updated.iter();
    let telemetry = telemetry.map(|(name, one)| telemetry_publication(name.clone(), one));
    let telemetry_gone = delta.telemetries.removed.iter();
    let telemetry_gone = telemetry_gone.map(|name| gone(TableKey::Telemetry, name.clone()));
    let trust = delta.trust_domains.as_ref().map(trust_publication);
    let additions = trust
        .into_iter()
        .chain(policies)
        .chain(services)
        .chain(workloads)
        .chain(telemetry);
    let (of_waypoints, gone_of_waypoints) = waypoint_publications(delta);
    additions
        .chain(of_waypoints)
        .chain(workloads_gone)
        .chain(services_gone)
        .chain(policies_gone)
        .chain(gone_of_waypoints)
        .chain(telemetry_gone)
        .chain(nodes)
        .collect()
}

fn workload_publication(workload: &Workload) -> Publication {
    let content = Content {
        type_url: type_url::ADDRESS,
        value: convert::workload_to(workload).encode_to_vec(),
        aliases: convert::workload_aliases(workload),
        groups: workload.services.keys().map(group).collect(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Address,
        name: workload.uid.0.clone(),
        content: Some(content),
    }
}

fn service_publication(service: &Service) -> Publication {
    let content = Content {
        type_url: type_url::ADDRESS,
        value: convert::service_to(service).encode_to_vec(),
        aliases: convert::service_aliases(service),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Address,
        name: group(&service.key),
        content: Some(content),
    }
}

fn policy_publication(policy: &Authorization) -> Publication {
    let content = Content {
        type_url: type_url::AUTHORIZATION,
        value: convert::authorization_to(policy).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: policy.scope != PolicyScope::WorkloadSelector,
    };
    Publication {
        table: TableKey::Authorization,
        name: policy.key.to_string().into(),
        content: Some(content),
    }
}

fn trust_publication(domains: &TrustDomains) -> Publication {
    let content = Content {
        type_url: type_url::TRUST_DOMAINS,
        value: convert::trust_domains_to(domains).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::TrustDomains,
        name: convert::TRUST_DOMAINS_NAME.into(),
        content: Some(content),
    }
}

fn telemetry_publication(name: Arc<str>, telemetry: &Telemetry) -> Publication {
    let content = Content {
        type_url: type_url::TELEMETRY,
        value: convert::telemetry_to(telemetry).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Telemetry,
        name,
        content: Some(content),
    }
}

/// What waypoints are told, and what is taken from them.
fn waypoint_publications(delta: &Delta) -> (Vec<Publication>, Vec<Publication>) {
    let policies = delta
        .waypoint_policies
        .updated
        .iter()
        .map(|((gateway, _), policy)| waypoint_policy_publication(gateway, policy));
    let routes = delta
        .routes
        .updated
        .iter()
        .map(|((gateway, _), route)| route_publication(gateway, route));
    let traffic = delta.traffic.updated.iter();
    let traffic = traffic.map(|((gateway, _), one)| traffic_publication(gateway, one));
    let traffic_gone = delta.traffic.removed.iter();
    let traffic_gone = traffic_gone.map(|(gateway, key)| Publication {
        table: TableKey::Traffic(gateway.clone()),
        name: key.to_string().into(),
        content: None,
    });
    let routes_gone = delta
        .routes
        .removed
        .iter()
        .map(|(gateway, key)| Publication {
            table: TableKey::Routes(gateway.clone()),
            name: key.to_string().into(),
            content: None,
        });
    let policies_gone = delta
        .waypoint_policies
        .removed
        .iter()
        .map(|(gateway, key)| Publication {
            table: TableKey::WaypointPolicies(gateway.clone()),
            name: key.to_string().into(),
            content: None,
        });
    let authentications = delta.request_authentications.updated.iter();
    let authentications =
        authentications.map(|((gateway, _), one)| authentication_publication(gateway, one));
    let authentications_gone = delta.request_authentications.removed.iter();
    let authentications_gone = authentications_gone.map(|(gateway, key)| Publication {
        table: TableKey::RequestAuthentications(gateway.clone()),
        name: key.to_string().into(),
        content: None,
    });
    let limits = delta.rate_limits.updated.iter();
    let limits = limits.map(|((gateway, _), limit)| limit_publication(gateway, limit));
    let limits_gone = delta.rate_limits.removed.iter();
    let limits_gone = limits_gone.map(|(gateway, key)| Publication {
        table: TableKey::RateLimits(gateway.clone()),
        name: key.to_string().into(),
        content: None,
    });
    (
        policies
            .chain(authentications)
            .chain(limits)
            .chain(traffic)
            .chain(routes)
            .collect(),
        routes_gone
            .chain(traffic_gone)
            .chain(policies_gone)
            .chain(authentications_gone)
            .chain(limits_gone)
            .collect(),
    )
}

fn authentication_publication(
    gateway: &GatewayKey,
    authentication: &RequestAuthentication,
) -> Publication {
    let content = Content {
        type_url: type_url::REQUEST_AUTHENTICATION,
        value: convert::request_authentication_to(authentication).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        // Not held back when it changes: no workload names it.
        covers_all: true,
    };
    Publication {
        table: TableKey::RequestAuthentications(gateway.clone()),
        name: authentication.key.to_string().into(),
        content: Some(content),
    }
}

fn limit_publication(gateway: &GatewayKey, limit: &RateLimit) -> Publication {
    let content = Content {
        type_url: type_url::RATE_LIMIT,
        value: convert::rate_limit_to(limit).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::RateLimits(gateway.clone()),
        name: limit.key.to_string().into(),
        content: Some(content),
    }
}

fn traffic_publication(gateway: &GatewayKey, traffic: &ServiceTraffic) -> Publication {
    let content = Content {
        type_url: type_url::SERVICE_TRAFFIC,
        value: convert::service_traffic_to(traffic).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Traffic(gateway.clone()),
        name: traffic.service.to_string().into(),
        content: Some(content),
    }
}

fn waypoint_policy_publication(gateway: &GatewayKey, policy: &WaypointPolicy) -> Publication {
    let content = Content {
        type_url: type_url::WAYPOINT_POLICY,
        value: convert::waypoint_policy_to(policy).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        // Not held back when it changes: no workload names it.
        covers_all: true,
    };
    Publication {
        table: TableKey::WaypointPolicies(gateway.clone()),
        name: policy.key.to_string().into(),
        content: Some(content),
    }
}

fn route_publication(gateway: &GatewayKey, route: &Route) -> Publication {
    let content = Content {
        type_url: type_url::ROUTE,
        value: convert::route_to(route).encode_to_vec(),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Routes(gateway.clone()),
        name: route.key.to_string().into(),
        content: Some(content),
    }
}

fn node_publication(node: Arc<str>, pod: &NodeWorkload) -> Publication {
    let content = Content {
        type_url: type_url::NODE_WORKLOAD,
        value: convert::encode_node_workload(pod),
        aliases: Vec::new(),
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Node(node),
        name: pod.pod_uid.0.clone(),
        content: Some(content),
    }
}

fn group(key: &ServiceKey) -> Arc<str> {
    key.to_string().into()
}
