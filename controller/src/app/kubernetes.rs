//! The parts of a controller that reads the Kubernetes API.

use std::sync::Arc;

use anyhow::Context as _;
use karst_ca::Authority;
use karst_runtime::{admin, supervise::spawn_essential};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{Base, Cluster, Parts};
use crate::{
    cluster::{
        bundles::{BundleKeeper, BundleMetrics},
        connect::connect,
        records::NodeRecords,
        root::{RootFollower, RootStore},
        token_review::TokenReviewer,
    },
    deploy::{DeployMetrics, Deployer},
    lease,
    mesh::{Memory, RecordBook},
    serve::read::{self, Access, Reads},
    watch::{Expected, MeshConfigWatch, Told, Watch},
};

pub(super) async fn parts(base: &Base) -> anyhow::Result<Parts> {
    let cfg = &base.cfg;
    let client = connect().await?;
    serve_reads(base, client.clone()).await?;
    let health = base.health.clone().unwrap_or_default();
    let told = Told {
        problems: base.outputs.problems.clone(),
        statuses: base.outputs.statuses.clone(),
    };
    let mut mesh_config = MeshConfigWatch::new(
        client.clone(),
        Expected {
            root_namespace: cfg.root_namespace(),
        },
        told.clone(),
        base.commands.clone(),
    );
    let mut watch = Watch::start(&client, &health, told, &base.shutdown);
    let store = RootStore::new(
        client.clone(),
        &cfg.namespace,
        cfg.authority(&base.outputs.trust),
        health.clone(),
    );
    let authority = Arc::new(store.load_or_create().await);
    let book = Arc::new(RecordBook::default());
    let instance = format!("{}_{:08x}", cfg.replica, rand::random::<u32>());
    let mut records = NodeRecords::new(&client, &cfg.namespace, instance, book.clone());
    let (cluster, election) = lead(base, &client, store, &authority);
    let authenticator = TokenReviewer::new(
        client,
        karst_runtime::clock::Clock::system(),
        &base.registry,
    );
    let mut objects = watch.first().await;
    objects.extend(records.first().await);
    // With the others: a mesh of another trust domain must not be one of the first for a moment.
    objects.push(mesh_config.first().await);
    spawn_essential(
        "mesh configuration",
        &base.shutdown,
        mesh_config.run(base.shutdown.clone()),
    );
    let (commands, shutdown) = (base.commands.clone(), base.shutdown.clone());
    spawn_essential("node records", &base.shutdown, async move {
        shutdown.run_until_cancelled(records.keep(commands)).await;
    });
    Ok(Parts {
        authority,
        authenticator: Arc::new(authenticator),
        tokens: None,
        memory: Memory::Shared(book),
        objects,
        follow: Box::pin(watch.forward(base.commands.clone())),
        cluster: Some(cluster),
        election: Some(election),
    })
}

/// Starts the election, and what only its winner does.
fn lead(
    base: &Base,
    client: &kube::Client,
    store: RootStore,
    authority: &Arc<Authority>,
) -> (Cluster, JoinHandle<()>) {
    let (cfg, shutdown) = (&base.cfg, &base.shutdown);
    let (leadership, election) = lease::keep(
        client.clone(),
        &cfg.namespace,
        &cfg.replica,
        &base.registry,
        shutdown.clone(),
    );
    let (changes, root_changes) = watch::channel(0);
    let follower = RootFollower {
        store,
        authority: authority.clone(),
        leadership: leadership.clone(),
        changes,
    };
    let leaders_client = lease::fenced(client.clone(), leadership.clone());
    let bundles = BundleKeeper {
        client: leaders_client.clone(),
        authority: authority.clone(),
        leadership: leadership.clone(),
        changes: root_changes.clone(),
        metrics: BundleMetrics::register(&base.registry),
    };
    let election = spawn_essential("lease", shutdown, election);
    spawn_essential("root of trust", shutdown, follower.run(shutdown.clone()));
    spawn_essential("trust bundles", shutdown, bundles.run(shutdown.clone()));
    let deployer = Deployer {
        client: leaders_client.clone(),
        waypoints: base.outputs.deployments.clone(),
        leadership: leadership.clone(),
        settings: cfg.waypoint_settings(),
        metrics: DeployMetrics::register(&base.registry),
    };
    spawn_essential("waypoints", shutdown, deployer.run(shutdown.clone()));
    let cluster = Cluster {
        client: client.clone(),
        leaders_client,
        leadership,
        root_changes,
    };
    (cluster, election)
}

/// Opens the read API, for people who look.
async fn serve_reads(base: &Base, client: kube::Client) -> anyhow::Result<()> {
    let reads = Reads {
        access: Arc::new(Access::new(client)),
        resources: base.outputs.resources.clone(),
        acks: base.outputs.acks.clone(),
        nodes: base.nodes.clone(),
        observed: base.observed.clone(),
        waypoints: base.outputs.deployments.clone(),
        cluster_domain: base.cfg.cluster_domain.clone(),
        replica: base.cfg.replica.clone(),
    };
    let address = read::address(base.cfg.read_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: --read-port names another port"))?;
    let pages = read::pages(reads);
    let shutdown = base.shutdown.clone();
    spawn_essential(
        "reads",
        &base.shutdown,
        admin::serve(listener, pages, shutdown),
    );
    Ok(())
}
