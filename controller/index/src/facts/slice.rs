//! What the index keeps of an EndpointSlice.

use std::{net::IpAddr, sync::Arc};

use karst_k8s_api::{
    k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice},
    labels,
};
use karst_model::addr::canonical_ip;

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
    pub(crate) fn new(slice: EndpointSlice) -> Self {
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
            service: labels
                .get(labels::SERVICE_NAME)
                .map(String::as_str)
                .unwrap_or_default()
                .into(),
            ports: ports.collect(),
            endpoints: match names_hosts {
                true => Vec::new(),
                false => slice.endpoints.iter().map(EndpointFacts::new).collect(),
            },
            names_hosts,
        }
    }
}

impl EndpointFacts {
    fn new(endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions.as_ref();
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        Self {
            addresses: endpoint
                .addresses
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .map(canonical_ip)
                .collect(),
            pod: pod.and_then(|pod| pod.name.as_deref()).map(Arc::from),
            // Unknown means ready (Kubernetes API). A terminating endpoint is never ready.
            ready: conditions
                .is_none_or(|c| c.ready.unwrap_or(true) && !c.terminating.unwrap_or(false)),
            node: endpoint.node_name.as_deref().unwrap_or_default().into(),
            zone: endpoint.zone.as_deref().unwrap_or_default().into(),
        }
    }
}
