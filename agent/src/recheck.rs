//! Follows the state of the mesh: keeps the kernel's destinations in step, and decides live connections again when a
//! policy changes.

use std::{collections::BTreeSet, sync::Arc};

use karst_discovery::{Change, Changed, state::Origin};
use karst_model::{
    addr::Network,
    name::{ServiceKey, WorkloadUid},
    protocol::TunnelProtocol,
};
use karst_telemetry::error_chain::Chain;

use crate::{
    destinations::{Claims, Difference},
    inbound::authorize::Occasion,
    mesh::Mesh,
};

/// Runs until shutdown.
pub(crate) async fn run(mesh: Arc<Mesh>) {
    let mut changes = mesh.state.changes();
    let mut origin = mesh.state.origin();
    let mut follower = Follower {
        mesh: mesh.clone(),
        claims: Claims::default(),
    };
    follower.rebuild();
    loop {
        let batch = tokio::select! {
            // The first whole answer of a controller: what it does not name can go.
            Ok(()) = origin.changed() => Some(Changed::Everything),
            batch = changes.next() => batch,
            () = mesh.shutdown.cancelled() => return,
        };
        match batch {
            Some(Changed::Some(batch)) => follower.handle(&batch),
            Some(Changed::Everything) => {
                follower.mesh.authorizer.forget(None);
                follower.rebuild();
                follower.decide_again();
            }
            None => return,
        }
    }
}

struct Follower {
    mesh: Arc<Mesh>,
    claims: Claims,
}

impl Follower {
    fn handle(&mut self, batch: &[Change]) {
        let mut difference = Difference::default();
        let mut decide_again = false;
        for change in batch {
            let step = match change {
                Change::Workload(uid) => {
                    self.mesh.authorizer.forget(Some(uid));
                    decide_again = true;
                    self.workload(uid)
                }
                Change::Service(key) => self.service(key),
                Change::Policy(_) => {
                    self.mesh.authorizer.forget(None);
                    decide_again = true;
                    continue;
                }
                Change::NodeWorkload(_)
                | Change::Endpoints(_)
                | Change::Address(_)
                | Change::Range(_)
                | Change::Routes(_)
                | Change::Traffic(_)
                | Change::WaypointPolicy(_)
                | Change::RequestAuthentication(_)
                | Change::RateLimit(_)
                | Change::TrustDomains
                | Change::Telemetry => continue,
            };
            difference.add.extend(step.add);
            difference.remove.extend(step.remove);
        }
        self.apply(&difference);
        if decide_again {
            self.decide_again();
        }
    }

    fn workload(&mut self, uid: &WorkloadUid) -> Difference {
        let network = self.mesh.config.own_network();
        let addresses = self
            .mesh
            .state
            .workload(uid)
            .filter(|w| captured(&w.network, &network, w.tunnel) && !w.host_network);
        let addresses = addresses
            .map(|w| w.addresses.iter().copied().collect())
            .unwrap_or_default();
        self.claims.set(&format!("workload {uid}"), addresses)
    }

    fn service(&mut self, key: &ServiceKey) -> Difference {
        let network = self.mesh.config.own_network();
        let service = self.mesh.state.service(key);
        let vips = service
            .iter()
            .flat_map(|s| &s.addresses)
            .filter(|vip| vip.network == network && vip.prefix_len.is_none());
        let addresses: BTreeSet<_> = vips.map(|vip| vip.ip).collect();
        self.claims.set(&format!("service {key}"), addresses)
    }

    /// From the whole state: at start, and after a gap in the notifications.
    fn rebuild(&mut self) {
        let mut fresh = Claims::default();
        std::mem::swap(&mut self.claims, &mut fresh);
        for workload in self.mesh.state.workloads() {
            self.workload(&workload.uid);
        }
        for service in self.mesh.state.services() {
            self.service(&service.key);
        }
        let wanted = self.claims.all();
        let held: BTreeSet<_> = match self.mesh.datapath.destinations() {
            Ok(held) => held.into_iter().collect(),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot read the destinations that the kernel captures");
                return;
            }
        };
        // A restarted agent that has not heard from the controller yet keeps what its predecessor put there.
        let synced = *self.mesh.state.origin().borrow() == Origin::Controller;
        let remove = if synced {
            held.difference(&wanted).copied().collect()
        } else {
            Vec::new()
        };
        self.apply(&Difference {
            add: wanted.difference(&held).copied().collect(),
            remove,
        });
    }

    fn apply(&self, difference: &Difference) {
        let mesh = &self.mesh;
        match mesh
            .datapath
            .set_destinations(&difference.add, &difference.remove)
        {
            Ok(waiting) => {
                let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
                if waiting != 0 && mesh.metrics.destinations_without_room.get() == 0 {
                    tracing::error!(
                        waiting,
                        "the map of mesh destinations is full: everything that pods dial goes through the agent, raise --max-destinations"
                    );
                }
                mesh.metrics.destinations_without_room.set(waiting);
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot tell the kernel which destinations to capture");
            }
        }
    }

    fn decide_again(&self) {
        let cut = self.mesh.live.recheck(|destination, connection| {
            self.mesh
                .authorizer
                .check(destination, connection, Occasion::Again)
                .err()
        });
        if cut > 0 {
            tracing::info!(
                connections = cut,
                "cut live connections that policy no longer allows"
            );
        }
    }
}

/// Traffic to a workload is captured when it is in the mesh, here.
fn captured(network: &Network, own: &Network, tunnel: TunnelProtocol) -> bool {
    network == own && tunnel == TunnelProtocol::Hbone
}
