//! Workloads and services as metrics and access log name them.

use karst_model::{identity::SpiffeId, service::Service, workload::Workload};
use karst_telemetry::metrics::tcp::{Peer, ServiceLabels};

/// One end of a connection. `principal` only where TLS proved it.
pub(crate) fn peer(workload: Option<&Workload>, principal: Option<&SpiffeId>) -> Peer {
    let principal = principal
        .map(|id| id.to_string().into())
        .unwrap_or_default();
    let Some(workload) = workload else {
        return Peer {
            principal,
            ..Peer::default()
        };
    };
    let owner = if workload.workload_name.is_empty() {
        &workload.name
    } else {
        &workload.workload_name
    };
    Peer {
        workload: owner.clone(),
        canonical_service: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        namespace: workload.namespace.clone(),
        principal,
        app: workload.canonical_name.clone(),
        version: workload.canonical_revision.clone(),
        cluster: workload.cluster_id.clone(),
        region: workload.locality.region.clone(),
        zone: workload.locality.zone.clone(),
    }
}

pub(crate) fn service(service: Option<&Service>) -> ServiceLabels {
    service.map_or_else(ServiceLabels::default, |service| ServiceLabels {
        host: service.key.hostname.clone(),
        namespace: service.key.namespace.clone(),
        name: service.name.clone(),
    })
}
