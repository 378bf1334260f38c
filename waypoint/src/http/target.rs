//! Where a request goes: the backend of its rule, and of that backend's endpoints one.

use std::sync::Arc;

use http::StatusCode;
use karst_model::{
    protocol::AppProtocol,
    route::Backend,
    service::{Naming, Service},
};
use karst_routing::{
    filter::Filter,
    table::{Picked, RouteBackend},
};
use karst_telemetry::metrics::{http::RequestFlag, tcp::ServiceLabels};
use rand::Rng as _;

use super::{Conversation, refusal::Refusal};
use crate::services::{Ask, Cluster, Endpoint, Member, NoHost, NoMember, Port, Served, Slot};

/// Where a request goes, before one of its endpoints is chosen.
pub(super) enum Target<'a> {
    /// The client named the workload.
    Pinned {
        endpoint: &'a Arc<Endpoint>,
        port: Option<Arc<Port>>,
    },
    Port {
        service: Arc<ServiceLabels>,
        port: Arc<Port>,
        backend: Option<&'a RouteBackend>,
        /// The service and its port, where they are not those that the client named.
        other: Option<(Arc<Slot>, u16)>,
    },
}

impl<'a> Target<'a> {
    pub(super) fn labels(&self, served: Option<&Served>) -> Option<Arc<ServiceLabels>> {
        match self {
            Self::Pinned { .. } => served.map(|served| served.labels.clone()),
            Self::Port { service, .. } => Some(service.clone()),
        }
    }

    pub(super) fn filters(&self) -> Option<&'a [Filter]> {
        match self {
            Self::Pinned { .. } => None,
            Self::Port { backend, .. } => backend.map(|backend| &*backend.filters),
        }
    }

    /// The endpoints of which one is chosen; `None`: the client named one.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn cluster(&self) -> Result<Option<&Arc<Cluster>>, Refusal> {
        match self {
            Self::Pinned { .. } => Ok(None),
            Self::Port { port, backend, .. } => {
                let subset = backend.and_then(|backend| subset_of(&backend.backend));
                port.cluster(subset).map(Some).map_err(no_member)
            }
        }
    }

    pub(super) fn app_protocol(&self) -> AppProtocol {
        match self {
            Self::Pinned { port, .. } => port.as_ref().map(|port| port.app_protocol),
            Self::Port { port, .. } => Some(port.app_protocol),
        }
        .unwrap_or_default()
    }
}

/// The rule's backend that this request falls to, or the service itself.
pub(super) fn pick_backend<'a>(
    conversation: &'a Conversation,
    served: Option<&Served>,
    picked: Option<Picked<'a>>,
) -> Result<Target<'a>, Refusal> {
    let destination = &conversation.destination;
    let own_port = served.and_then(|served| served.ports.get(&destination.port).cloned());
    if let Some(endpoint) = &destination.pinned {
        return Ok(Target::Pinned {
            endpoint,
            port: own_port,
        });
    }
    let Some(picked) = picked else {
        let found = served.map(|served| served.labels.clone()).zip(own_port);
        let (service, port) =
            found.ok_or_else(|| Refusal::internal("the service is gone".to_owned()))?;
        return Ok(Target::Port {
            service,
            port,
            backend: None,
            other: None,
        });
    };
    let index = picked.rule.weights.pick(rand::rng().next_u64());
    let backend = index.and_then(|index| picked.rule.backends.get(index));
    let backend = backend.ok_or_else(|| {
        Refusal::internal("the rule has no backend with a weight above zero".to_owned())
    })?;
    let found = service_port(conversation, &backend.backend).map_err(Refusal::internal)?;
    let own = destination.slot.as_ref().map(|slot| &slot.key);
    let is_other = own != Some(&found.slot.key);
    Ok(Target::Port {
        service: found.labels,
        port: found.port,
        backend: Some(backend),
        other: is_other.then_some((found.slot, found.number)),
    })
}

/// A service may have no endpoints of its own: then those of the host that the request asks for are the target's.
///
/// # Errors
/// The host is none of the service, or has no address.
pub(super) async fn of_host<'a>(
    conversation: &Conversation,
    target: Target<'a>,
    host: &str,
) -> Result<Target<'a>, Refusal> {
    let Some((asked, number)) = asked_host(conversation, &target) else {
        return Ok(target);
    };
    let services = &conversation.worker.mesh.services;
    let found = services.asked_port(&asked, number, host).await;
    let found = found.map_err(|error| {
        let status = match &error {
            NoHost::NotOfService { .. } => StatusCode::NOT_FOUND,
            NoHost::Unresolved(_) | NoHost::Inside { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal::new(status, RequestFlag::NoHealthyUpstream, error.to_string())
    })?;
    match target {
        Target::Port {
            service,
            backend,
            other,
            ..
        } => Ok(Target::Port {
            service,
            port: found,
            backend,
            other,
        }),
        pinned @ Target::Pinned { .. } => Ok(pinned),
    }
}

/// The service of a target whose endpoints are those of the host that is asked for, and its port.
pub(super) fn asked_host(
    conversation: &Conversation,
    target: &Target<'_>,
) -> Option<(Arc<Service>, u16)> {
    let Target::Port { other, .. } = target else {
        return None;
    };
    let destination = &conversation.destination;
    let (slot, number) = match other {
        Some((slot, number)) => (slot, *number),
        None => (destination.slot.as_ref()?, destination.port),
    };
    let service = slot.load().service.clone();
    Some((service.filter(|one| one.naming == Naming::Asked)?, number))
}

/// The port that a backend of a route names.
pub(super) struct Found {
    pub(super) slot: Arc<Slot>,
    pub(super) labels: Arc<ServiceLabels>,
    pub(super) port: Arc<Port>,
    pub(super) number: u16,
}

/// The error says why there is none.
pub(super) fn service_port(
    conversation: &Conversation,
    backend: &Backend,
) -> Result<Found, String> {
    match backend {
        Backend::Invalid(why) => Err(why.to_string()),
        Backend::Service {
            service,
            port,
            subset: _,
        } => {
            let port = match port {
                0 => &conversation.destination.port,
                port => port,
            };
            let slot = conversation.worker.mesh.services.get(service);
            let slot = slot.ok_or_else(|| format!("backend service {service} does not exist"))?;
            let served = slot.load();
            let found = served.ports.get(port).cloned();
            let found =
                found.ok_or_else(|| format!("backend service {service} has no port {port}"))?;
            Ok(Found {
                labels: served.labels.clone(),
                port: found,
                number: *port,
                slot: slot.clone(),
            })
        }
    }
}

/// The subset that a backend of a route names.
pub(super) fn subset_of(backend: &Backend) -> Option<&Arc<str>> {
    match backend {
        Backend::Service { subset, .. } => subset.as_ref(),
        Backend::Invalid(_) => None,
    }
}

/// An endpoint, and how it is in its set; without where the client named it.
pub(super) fn pick_endpoint(
    target: &Target<'_>,
    cluster: Option<&Arc<Cluster>>,
    ask: &Ask<'_>,
) -> Result<(Arc<Endpoint>, Option<Member>), Refusal> {
    match (target, cluster) {
        (Target::Pinned { endpoint, .. }, _) => Ok((Arc::clone(endpoint), None)),
        (Target::Port { .. }, Some(cluster)) => {
            let member = cluster.choose(ask, &mut rand::rng());
            let member = member.map_err(|error| no_member(error.into()))?;
            Ok((member.endpoint.clone(), Some(member)))
        }
        (Target::Port { .. }, None) => Err(Refusal::internal("the service is gone".to_owned())),
    }
}

fn no_member(error: NoMember) -> Refusal {
    let flag = match error {
        NoMember::NoSubset(_) => RequestFlag::NoCluster,
        NoMember::NoEndpoint(_) => RequestFlag::NoHealthyUpstream,
    };
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, flag, error.to_string())
}
