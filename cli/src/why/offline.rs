//! A mesh out of a directory of YAML, without a cluster: what a cluster would add is supposed, the controller's index
//! lowers the objects, and every node is taken to have captured what it should.

use std::path::Path;

use anyhow::{Context as _, bail};
use karst_discovery::Update;
use karst_files::{Directory, Event as Read, read_dir};
use karst_index::{Delta, Event, Index, IndexConfig, NodeChange};
use karst_model::{
    enrollment::{EnrollMode, PodCapture},
    name::GatewayKey,
};
use karst_path::{Facts, why::printable};

use super::suppose;
use crate::output;

/// Names that hold for the whole mesh and that YAML does not tell.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OfflineArgs {
    /// Ask about the objects in this directory of YAML; no cluster is asked
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<std::path::PathBuf>,
    /// Namespace whose policies hold for the whole mesh, with --from
    #[arg(long, default_value = "karst-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// Domain of service names, with --from
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
}

/// Reads the directory. What is wrong with it is told on standard error, and everything else counts.
pub(super) fn facts(dir: &Path, args: &OfflineArgs) -> anyhow::Result<Facts> {
    let files = read_dir(dir).with_context(|| format!("--from {}", dir.display()))?;
    let (events, problems) = Directory::new().update(files);
    for problem in &problems {
        output::complaint(printable(&problem.to_string()));
    }
    let objects: Vec<_> = events
        .into_iter()
        .filter_map(|event| match event {
            Read::Applied(object) => Some(object),
            Read::Deleted(_) => None,
        })
        .collect();
    if objects.is_empty() {
        bail!("--from {}: there are no objects in it", dir.display());
    }
    let mut mesh = Supposed::new(args);
    mesh.take(
        suppose::complete(objects)
            .into_iter()
            .map(Event::Apply)
            .collect(),
    );
    Ok(mesh.facts)
}

/// The index, and what comes out of it.
struct Supposed {
    index: Index,
    facts: Facts,
}

impl Supposed {
    fn new(args: &OfflineArgs) -> Self {
        let config = IndexConfig {
            root_namespace: args.root_namespace.as_str().into(),
            cluster_domain: args.cluster_domain.as_str().into(),
            ..IndexConfig::default()
        };
        Self {
            facts: Facts::new(&args.cluster_domain),
            index: Index::new(config),
        }
    }

    /// Takes events, and those that they lead to, until nothing happens any more.
    fn take(&mut self, mut events: Vec<Event>) {
        while !events.is_empty() {
            let delta = self.index.handle_all(events);
            events = reactions(&delta);
            self.apply(delta);
        }
    }

    fn apply(&mut self, delta: Delta) {
        let workloads = delta.workloads.updated.into_iter();
        let services = delta.services.updated.into_iter();
        let policies = delta.policies.updated.into_iter();
        let nodes = delta.node_workloads.into_iter();
        let nodes = nodes.filter_map(|change| match change {
            NodeChange::Updated { workload, .. } => Some(Update::NodeWorkload(workload)),
            NodeChange::Removed { .. } => None,
        });
        let updates = policies
            .map(|(_, policy)| Update::Policy(policy))
            .chain(services.map(|(_, service)| Update::Service(service)))
            .chain(workloads.map(|(_, workload)| Update::Workload(workload)))
            .chain(nodes);
        self.facts.apply(updates);
        for (object, status) in delta.gateways {
            let gateway = GatewayKey {
                namespace: object.namespace,
                name: object.name,
            };
            let trusted = status.map_or(0, |status| status.trusted_proxies);
            self.facts.trust_proxies(&gateway, trusted.into());
        }
        for ((gateway, _), route) in delta.routes.updated {
            self.tell(&gateway, Update::Route(route));
        }
        for ((gateway, _), policy) in delta.waypoint_policies.updated {
            self.tell(&gateway, Update::WaypointPolicy(policy));
        }
        for ((gateway, _), limit) in delta.rate_limits.updated {
            self.tell(&gateway, Update::RateLimit(limit));
        }
        for ((gateway, _), authentication) in delta.request_authentications.updated {
            self.tell(&gateway, Update::RequestAuthentication(authentication));
        }
        for ((gateway, _), traffic) in delta.traffic.updated {
            self.tell(&gateway, Update::ServiceTraffic(traffic));
        }
    }

    fn tell(&mut self, gateway: &GatewayKey, update: Update) {
        self.facts.apply_to(gateway, [update]);
    }
}

/// What nodes and peers would answer: what should be captured is, and everybody has heard of it.
fn reactions(delta: &Delta) -> Vec<Event> {
    let captured = delta
        .node_workloads
        .iter()
        .filter_map(|change| match change {
            NodeChange::Updated { workload, .. } if workload.mode == EnrollMode::Ambient => {
                Some(Event::Captured {
                    pod_uid: workload.pod_uid.clone(),
                    capture: Some(PodCapture {
                        generation: workload.generation,
                        plaintext_open: false,
                    }),
                })
            }
            _ => None,
        });
    let acknowledged = delta.transitions.iter().cloned().map(Event::Overdue);
    captured.chain(acknowledged).collect()
}
