//! What must hold after every step, whatever was lost or spoiled on the way.

use std::net::{IpAddr, SocketAddr};

use karst_discovery::State;
use karst_model::{
    enrollment::PodCapture, name::PodUid, protocol::TunnelProtocol, workload::Workload,
};
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
pub fn tunnels_find_a_captured_pod(
    cluster: &Cluster,
    agents: &[Agent],
    excused: impl Fn(&PodUid, &str) -> bool,
) {
    each_pod_as_seen(cluster, agents, |seen| {
        let tunnelled = seen.workload.tunnel == TunnelProtocol::Hbone;
        assert!(
            !tunnelled || seen.capture.is_some() || excused(&seen.uid, seen.peer),
            "the agent of {} sends HBONE to {}, which its node does not capture",
            seen.peer,
            seen.uid
        );
    });
}

/// Whoever still dials a captured pod plainly, since it has not heard or has heard already, is not asked for an identity,
/// other than the `excused`.
pub fn plain_connections_find_an_open_pod(
    cluster: &Cluster,
    agents: &[Agent],
    excused: impl Fn(&PodUid, &str) -> bool,
) {
    each_pod_as_seen(cluster, agents, |seen| {
        let plain = seen.workload.tunnel == TunnelProtocol::None;
        let enforced = seen.capture.is_some_and(|capture| !capture.plaintext_open);
        assert!(
            !plain || !enforced || excused(&seen.uid, seen.peer),
            "the agent of {} dials {} plainly, whose node refuses that: {:?}",
            seen.peer,
            seen.uid,
            seen.capture
        );
    });
}

/// A pod in the eyes of an agent, and what its own node does with it.
struct Seen<'a> {
    peer: &'static str,
    workload: &'a Workload,
    uid: PodUid,
    capture: Option<PodCapture>,
}

fn each_pod_as_seen(cluster: &Cluster, agents: &[Agent], check: impl Fn(&Seen<'_>)) {
    for peer in agents {
        for workload in peer.state.workloads() {
            let address = workload.addresses.first().map(ToString::to_string);
            let Some(pod) = address.and_then(|ip| cluster.pod_at(&ip)) else {
                continue;
            };
            let uid = PodUid::from(pod.uid.as_str());
            let own = agents.iter().find(|agent| agent.node == pod.node);
            check(&Seen {
                peer: peer.node,
                workload: &workload,
                capture: own.and_then(|agent| agent.captured.get(&uid).copied()),
                uid,
            });
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
