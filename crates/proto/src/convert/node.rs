//! `karst.v1.NodeWorkload`.

use ipnet::IpNet;
use karst_model::{
    enrollment::{CaptureOptions, EnrollMode, Generation, NodeWorkload, Plaintext},
    name::{PodUid, WorkloadUid},
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    address::{ip_from, ip_to, port_from},
    error::decode,
    workload::indexed,
};
use crate::karst as wire;

/// Reads a resource of type NodeWorkload.
pub fn decode_node_workload(
    bytes: &[u8],
    interner: &mut Interner,
) -> Result<NodeWorkload, ConvertError> {
    node_workload_from(decode("karst.v1.NodeWorkload", bytes)?, interner)
}

/// The bytes of a resource of type NodeWorkload.
pub fn encode_node_workload(pod: &NodeWorkload) -> Vec<u8> {
    node_workload_to(pod).encode_to_vec()
}

/// The message in the model's words.
pub fn node_workload_from(
    pod: wire::NodeWorkload,
    interner: &mut Interner,
) -> Result<NodeWorkload, ConvertError> {
    if pod.pod_uid.is_empty() {
        return Err(Problem::Missing.at("pod_uid"));
    }
    let mode = match wire::EnrollMode::try_from(pod.mode) {
        Ok(wire::EnrollMode::Off) => EnrollMode::Off,
        Ok(wire::EnrollMode::Ambient) => EnrollMode::Ambient,
        Err(_) => return Err(Problem::UnknownValue(pod.mode).at("mode")),
    };
    let plaintext = match wire::Plaintext::try_from(pod.plaintext) {
        Ok(wire::Plaintext::Enforced) => Plaintext::Enforced,
        Ok(wire::Plaintext::Entering) => Plaintext::Entering,
        Ok(wire::Plaintext::Leaving) => Plaintext::Leaving,
        Err(_) => return Err(Problem::UnknownValue(pod.plaintext).at("plaintext")),
    };
    Ok(NodeWorkload {
        pod_uid: PodUid(pod.pod_uid.into()),
        name: pod.name.into(),
        namespace: interner.get(&pod.namespace),
        service_account: interner.get(&pod.service_account),
        workload_uid: WorkloadUid(pod.workload_uid.into()),
        addresses: indexed("addresses", &pod.addresses, |bytes| ip_from(bytes))?,
        mode,
        generation: Generation(pod.generation),
        plaintext,
        capture: capture_from(pod.capture.unwrap_or_default())?,
        probe_ports: indexed("probe_ports", &pod.probe_ports, |port| port_from(*port))?,
    })
}

/// The model as a message.
pub fn node_workload_to(pod: &NodeWorkload) -> wire::NodeWorkload {
    wire::NodeWorkload {
        pod_uid: pod.pod_uid.0.to_string(),
        name: pod.name.to_string(),
        namespace: pod.namespace.to_string(),
        service_account: pod.service_account.to_string(),
        workload_uid: pod.workload_uid.0.to_string(),
        addresses: pod.addresses.iter().map(|ip| ip_to(*ip)).collect(),
        mode: match pod.mode {
            EnrollMode::Off => wire::EnrollMode::Off,
            EnrollMode::Ambient => wire::EnrollMode::Ambient,
        }
        .into(),
        generation: pod.generation.0,
        plaintext: match pod.plaintext {
            Plaintext::Enforced => wire::Plaintext::Enforced,
            Plaintext::Entering => wire::Plaintext::Entering,
            Plaintext::Leaving => wire::Plaintext::Leaving,
        }
        .into(),
        capture: Some(capture_to(&pod.capture)),
        probe_ports: pod
            .probe_ports
            .iter()
            .map(|port| u32::from(*port))
            .collect(),
    }
}

fn capture_from(capture: wire::CaptureOptions) -> Result<CaptureOptions, ConvertError> {
    let range = |text: &String| {
        text.parse::<IpNet>()
            .map_err(|_unparsed| Problem::Range(text.clone()))
    };
    let port = |port: &u32| port_from(*port);
    Ok(CaptureOptions {
        exclude_outbound_ports: indexed(
            "capture.exclude_outbound_ports",
            &capture.exclude_outbound_ports,
            port,
        )?,
        exclude_outbound_cidrs: indexed(
            "capture.exclude_outbound_cidrs",
            &capture.exclude_outbound_cidrs,
            range,
        )?,
        exclude_inbound_ports: indexed(
            "capture.exclude_inbound_ports",
            &capture.exclude_inbound_ports,
            port,
        )?,
        dns_capture: capture.dns_capture,
        registry_only: capture.registry_only,
    })
}

fn capture_to(capture: &CaptureOptions) -> wire::CaptureOptions {
    let ports = |ports: &[u16]| ports.iter().map(|port| u32::from(*port)).collect();
    wire::CaptureOptions {
        exclude_outbound_ports: ports(&capture.exclude_outbound_ports),
        exclude_outbound_cidrs: capture
            .exclude_outbound_cidrs
            .iter()
            .map(ToString::to_string)
            .collect(),
        exclude_inbound_ports: ports(&capture.exclude_inbound_ports),
        dns_capture: capture.dns_capture,
        registry_only: capture.registry_only,
    }
}
