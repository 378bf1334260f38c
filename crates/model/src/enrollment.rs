//! What a node's agent must know to capture a pod: `karst.v1.NodeWorkload` in our own words.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{PodUid, WorkloadUid};

/// A pod of this node, whether it should be in the mesh, and with which options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWorkload {
    pub pod_uid: PodUid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    /// Key of the same pod in workload discovery.
    pub workload_uid: WorkloadUid,
    pub addresses: Vec<IpAddr>,
    pub mode: EnrollMode,
    pub capture: CaptureOptions,
    /// Ports that the pod declares in its own probes and lifecycle hooks; only these may the kubelet reach unproxied.
    pub probe_ports: Vec<u16>,
}

/// Whether a pod should be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EnrollMode {
    /// Not in the mesh: leave it alone.
    Off,
    Ambient,
}

/// What of a pod's traffic is left alone, from Istio's annotations
/// (`traffic.sidecar.istio.io/excludeOutboundPorts` and its siblings).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub exclude_inbound_ports: Vec<u16>,
    /// `ambient.istio.io/dns-capture`; on where unset.
    pub dns_capture: Option<bool>,
}
