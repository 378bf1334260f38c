//! What the index keeps of an EndpointSlice.

use std::{net::IpAddr, sync::Arc};

use karst_k8s_api::{
    k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice},
    labels,
};
use karst_model::addr::canonical_ip;

use crate::shared::Shared;

#[derive(Debug, PartialEq)]
pub(crate) struct SliceFacts {
    /// Service that it belongs to, in its own namespace; empty where the label is missing.
    pub(crate) service: Arc<str>,
    /// TCP ports by the name that they have in the service.
    pub(crate) ports: Vec<(Box<str>, u16)>,
    pub(crate) endpoints: Vec<EndpointFacts>,
    /// `addressType: FQDN`, which is left out.
    pub(crate) names_hosts: bool,
}

/// One endpoint. Of one that is a pod only that is kept.
#[derive(Debug, PartialEq)]
pub(crate) struct EndpointFacts {
    pub(crate) addresses: Vec<IpAddr>,
    /// Name of the pod that this is, in the slice's namespace.
    pub(crate) pod: Option<Arc<str>>,
    pub(crate) ready: bool,
    pub(crate) node: Arc<str>,
    pub(crate) zone: Arc<str>,
}

impl SliceFacts {
    pub(crate) fn new(slice: EndpointSlice, shared: &mut Shared) -> Self {
        let labels = slice.metadata.labels.unwrap_or_default();
        let names_hosts = slice.address_type == "FQDN";
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let ports = ports.filter_map(|port| {
            let number = port.port.and_then(|port| u16::try_from(port).ok())?;
            Some((port.name.as_deref().unwrap_or_default().into(), number))
        });
        Self {
            service: shared.text(
                labels
                    .get(labels::SERVICE_NAME)
                    .map(String::as_str)
                    .unwrap_or_default(),
            ),
            ports: ports.collect(),
            endpoints: match names_hosts {
                true => Vec::new(),
                false => slice
                    .endpoints
                    .iter()
                    .map(|endpoint| EndpointFacts::new(endpoint, shared))
                    .collect(),
            },
            names_hosts,
        }
    }
}

impl EndpointFacts {
    fn new(endpoint: &Endpoint, shared: &mut Shared) -> Self {
        let conditions = endpoint.conditions.as_ref();
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        let pod = pod.and_then(|pod| pod.name.as_deref());
        // What a pod has of its own is not read from its endpoint.
        let [node, zone] = [&endpoint.node_name, &endpoint.zone].map(|text| match pod {
            Some(_) => "",
            None => text.as_deref().unwrap_or_default(),
        });
        let bare = endpoint.addresses.iter().filter(|_| pod.is_none());
        Self {
            addresses: bare
                .filter_map(|ip| ip.parse().ok())
                .map(canonical_ip)
                .collect(),
            pod: pod.map(|name| shared.text(name)),
            // Unknown means ready (Kubernetes API). A terminating endpoint is never ready.
            ready: conditions
                .is_none_or(|c| c.ready.unwrap_or(true) && !c.terminating.unwrap_or(false)),
            node: shared.text(node),
            zone: shared.text(zone),
        }
    }
}
