//! The parts of a controller that reads the Kubernetes API.

use std::sync::Arc;

use anyhow::Context as _;
use karst_ca::{Authority, AuthorityConfig};
use karst_runtime::{admin, supervise::spawn_essential};
use tokio::net::TcpListener;

use super::{Base, Parts};
use crate::{
    cluster::{connect::connect, token_review::TokenReviewer},
    mesh::CapturedPods,
    serve::read::{self, Access, Reads},
    watch::Watch,
};

pub(super) async fn parts(base: &Base) -> anyhow::Result<Parts> {
    let cfg = &base.cfg;
    let client = connect().await?;
    serve_reads(base, client.clone()).await?;
    let health = base.health.clone().unwrap_or_default();
    let mut watch = Watch::start(
        &client,
        &health,
        base.outputs.problems.clone(),
        &base.shutdown,
    );
    let authority = Authority::load_or_create(
        AuthorityConfig::new(&cfg.state.state_dir, cfg.trust_domain()),
        karst_identity::clock::Clock::system().now(),
    )?;
    let captured = CapturedPods::load(&cfg.state.state_dir)
        .context("cannot read the list of captured pods")?;
    let authenticator = TokenReviewer::new(
        client,
        karst_runtime::clock::Clock::system(),
        &base.registry,
    );
    let objects = watch.first().await;
    Ok(Parts {
        authority: Arc::new(authority),
        authenticator: Arc::new(authenticator),
        tokens: None,
        captured,
        objects,
        follow: Box::pin(watch.forward(base.commands.clone())),
    })
}

/// Opens the read API, for people who look.
async fn serve_reads(base: &Base, client: kube::Client) -> anyhow::Result<()> {
    let reads = Reads {
        access: Arc::new(Access::new(client)),
        resources: base.outputs.resources.clone(),
        acks: base.outputs.acks.clone(),
        nodes: base.nodes.clone(),
        replica: base.cfg.replica.clone(),
    };
    let listener = TcpListener::bind(read::ADDRESS)
        .await
        .with_context(|| format!("cannot listen on {}", read::ADDRESS))?;
    let pages = read::pages(reads);
    let shutdown = base.shutdown.clone();
    spawn_essential(
        "reads",
        &base.shutdown,
        admin::serve(listener, pages, shutdown),
    );
    Ok(())
}
