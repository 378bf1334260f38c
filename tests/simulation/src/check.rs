//! What must hold after every step, whatever was lost or spoiled on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_discovery::State;
use karst_model::{
    name::{PodUid, WorkloadUid},
    policy::Authorization,
    protocol::TunnelProtocol,
    workload::Workload,
};
use karst_policy::{Compiled, Connection, applies};

use crate::{agent::Agent, cluster::Cluster, controller::Published};

/// Connections that every workload is asked about: who calls, and on which port.
const PROBES: [(Option<&str>, u16); 5] = [
    (None, 80),
    (None, 9090),
    (Some("spiffe://cluster.local/ns/shop/sa/b"), 80),
    (Some("spiffe://cluster.local/ns/bank/sa/a"), 9090),
    (Some("spiffe://cluster.local/ns/else/sa/x"), 9090),
];

/// A probe of [`PROBES`] against a workload.
type Asked = (WorkloadUid, IpAddr, usize);

/// What some published state of the mesh has allowed.
#[derive(Default)]
pub struct History {
    allowed: BTreeSet<Asked>,
}

impl History {
    /// Takes in what the controller says now.
    pub fn record(&mut self, published: &Published) {
        for workload in published.workloads.values() {
            let own = |policy: &&Arc<Authorization>| applies(policy, workload);
            let policies = published.policies.values().filter(own).cloned();
            let missing: Vec<_> = workload
                .policies
                .iter()
                .filter(|key| !published.policies.contains_key(*key))
                .cloned()
                .collect();
            assert!(
                missing.is_empty(),
                "the index lists policies at {} that it does not have: {missing:?}",
                workload.uid
            );
            self.allowed
                .extend(allowed_by(&Compiled::compile(policies, &[]), workload));
        }
    }

    /// What an agent allows, the mesh has allowed at some time.
    pub fn check(&self, state: &State) {
        for workload in state.workloads() {
            let compiled = compiled(state, &workload);
            for asked in allowed_by(&compiled, &workload) {
                assert!(
                    self.allowed.contains(&asked),
                    "{} allows {:?}, which no published state allows; it knows {:#?}",
                    asked.0,
                    PROBES[asked.2],
                    state.policies_for(&workload)
                );
            }
        }
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
/// those were told who could be (`excused`: agents without a stream at that time).
pub fn enrolment_order(
    cluster: &Cluster,
    agents: &[Agent],
    excused: &BTreeMap<PodUid, BTreeSet<&'static str>>,
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
            let is_excused = excused
                .get(&uid)
                .is_some_and(|nodes| nodes.contains(peer.node));
            assert!(
                captured || is_excused,
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

fn allowed_by(compiled: &Compiled, workload: &Workload) -> Vec<Asked> {
    let Some(ip) = workload.addresses.first().copied() else {
        return Vec::new();
    };
    let allows = |n: &usize| {
        let (source, port) = PROBES[*n];
        let connection = Connection {
            source: source.map(|id| id.parse().expect("the identities above are well formed")),
            source_ip: IpAddr::from([10, 9, 9, 9]),
            destination: SocketAddr::new(ip, port),
        };
        compiled.decide(&connection).is_allowed()
    };
    (0..PROBES.len())
        .filter(allows)
        .map(|n| (workload.uid.clone(), ip, n))
        .collect()
}
