//! What a node's agent must know to capture a pod: `karst.v1.NodeWorkload` in our own words.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{PodUid, WorkloadUid};

/// A pod of this node, whether it should be in the mesh, and with which options.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeWorkload {
    pub pod_uid: PodUid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    /// Key of the same pod in workload discovery.
    pub workload_uid: WorkloadUid,
    pub addresses: Vec<IpAddr>,
    pub mode: EnrollMode,
    /// Which enrolment this is; what the agent captures under it, it reports under it.
    pub generation: Generation,
    pub plaintext: Plaintext,
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

/// Numbers the enrolments of pods. A pod that leaves the mesh and comes back is under a higher number, so that what its
/// agent said about the first cannot be taken for the second. Pods that enter in one step share one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

/// What happens to plain connections that reach a captured pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Plaintext {
    /// Policy decides.
    #[default]
    Enforced,
    /// The pod is entering the mesh. If it ran before it was captured, plain connections pass as they did, for a bounded
    /// time, since its peers may not have heard yet; else as `Enforced`.
    Entering,
    /// The pod is about to leave the mesh: plain connections pass as they will in a moment.
    Leaving,
}

/// How an agent holds a pod that it has captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCapture {
    pub generation: Generation,
    /// Whether plain connections pass without policy, see [`Plaintext`].
    pub plaintext_open: bool,
}

/// What of a pod's traffic is left alone, from Istio's annotations
/// (`traffic.sidecar.istio.io/excludeOutboundPorts` and its siblings).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CaptureOptions {
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub exclude_inbound_ports: Vec<u16>,
    /// `ambient.istio.io/dns-capture`; on where unset.
    pub dns_capture: Option<bool>,
    /// Connections to what the mesh does not know are captured too, and refused (`outboundTrafficPolicy`).
    pub registry_only: bool,
}
