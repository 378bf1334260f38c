//! What must hold after every step, whatever was lost or spoiled on the way.

use std::net::{IpAddr, SocketAddr};

use karst_discovery::State;
use karst_model::{name::PodUid, protocol::TunnelProtocol, workload::Workload};
use karst_policy::{Compiled, Connection};

use crate::{
    agent::Agent,
    cluster::{Cluster, is_always_refused},
};

/// Connections that every workload is asked about: who calls, and on which port.
const PROBES: [(Option<&str>, u16); 5] = [
    (None, 80),
    (None, 9090),
    (Some("spiffe://cluster.local/ns/shop/sa/b"), 80),
    (Some("spiffe://cluster.local/ns/bank/sa/a"), 9090),
    (Some("spiffe://cluster.local/ns/else/sa/x"), 9090),
];

/// Pods that some policy refuses everything at all times take nothing at any time, in whatever order things arrive.
pub fn refuses_what_is_always_refused(state: &State) {
    for workload in state.workloads() {
        if !is_always_refused(&workload.namespace, &workload.name) {
            continue;
        }
        let allowed = allowed_by(&compiled(state, &workload), &workload);
        assert!(
            allowed.is_empty(),
            "{} allows {allowed:?}, which no state of the cluster allows; it knows {:#?}",
            workload.uid,
            state.policies_for(&workload)
        );
    }
}

/// A workload that names a policy which is not there takes nothing.
pub fn fails_closed(state: &State) {
    for workload in state.workloads() {
        if state.policies_for(&workload).missing.is_empty() {
            continue;
        }
        let allowed = allowed_by(&compiled(state, &workload), &workload);
        assert!(
            allowed.is_empty(),
            "{} lacks a policy and allows {allowed:?}",
            workload.uid
        );
    }
}

/// No workload names a policy that is not there. Holds wherever messages arrive whole and in order.
pub fn names_no_missing_policy(state: &State) {
    for workload in state.workloads() {
        let missing = state.policies_for(&workload).missing;
        assert!(
            missing.is_empty(),
            "{} names {missing:?}, which are not there",
            workload.uid
        );
    }
}

/// Whoever sends HBONE to a pod finds it captured: nobody is told before the capture, and none is released before
/// those were told who could be, other than the `excused`.
pub fn enrolment_order(
    cluster: &Cluster,
    agents: &[Agent],
    excused: impl Fn(&PodUid, &str) -> bool,
) {
    for peer in agents {
        for workload in peer.state.workloads() {
            if workload.tunnel != TunnelProtocol::Hbone {
                continue;
            }
            let Some(pod) = workload
                .addresses
                .first()
                .and_then(|ip| cluster.pod_at(&ip.to_string()))
            else {
                continue;
            };
            let uid = PodUid::from(pod.uid.as_str());
            let captured = agents
                .iter()
                .any(|agent| agent.node == pod.node && agent.captured.contains(&uid));
            assert!(
                captured || excused(&uid, peer.node),
                "the agent of {} sends HBONE to {uid}, which {} does not capture",
                peer.node,
                pod.node
            );
        }
    }
}

fn compiled(state: &State, workload: &Workload) -> Compiled {
    let found = state.policies_for(workload);
    Compiled::compile(found.policies.into_iter(), &found.missing)
}

/// The probes that are allowed.
fn allowed_by(compiled: &Compiled, workload: &Workload) -> Vec<(Option<&'static str>, u16)> {
    let Some(ip) = workload.addresses.first().copied() else {
        return Vec::new();
    };
    let allows = |(source, port): &(Option<&'static str>, u16)| {
        let connection = Connection {
            source: source.map(|id| id.parse().expect("the identities above are well formed")),
            source_ip: IpAddr::from([10, 9, 9, 9]),
            destination: SocketAddr::new(ip, *port),
        };
        compiled.decide(&connection).is_allowed()
    };
    PROBES.into_iter().filter(allows).collect()
}
