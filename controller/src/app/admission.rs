//! The webhook of a controller in a cluster.

use std::sync::Arc;

use anyhow::Context as _;
use karst_ca::{Authority, authorize::OwnAccounts};
use karst_identity::tls::ServingCertificate;
use karst_runtime::supervise::{Shutdown, spawn_essential};
use karst_telemetry::metrics::Registry;
use tokio::net::TcpListener;

use super::Cluster;
use crate::{
    admission::{Surroundings, bundle, server},
    config::Config,
};

pub(super) struct Parts {
    pub(super) cluster: Cluster,
    pub(super) authority: Arc<Authority>,
    pub(super) certificate: Arc<ServingCertificate>,
    pub(super) registry: Registry,
    pub(super) shutdown: Shutdown,
    /// Service accounts of waypoints.
    pub(super) waypoints: OwnAccounts,
}

/// Opens the webhook, and keeps its configuration while this replica leads.
pub(super) async fn start(cfg: &Config, parts: Parts) -> anyhow::Result<()> {
    let Parts {
        cluster,
        authority,
        certificate,
        registry,
        shutdown,
        waypoints,
    } = parts;
    let listener = TcpListener::bind(cfg.webhook)
        .await
        .with_context(|| format!("cannot listen on --webhook {}", cfg.webhook))?;
    let surroundings = Surroundings {
        root_namespace: cfg.root_namespace().into(),
        waypoints,
    };
    let metrics = server::AdmissionMetrics::register(&registry);
    let answering = server::serve(
        listener,
        certificate,
        surroundings,
        metrics,
        shutdown.clone(),
    );
    spawn_essential("admission", &shutdown, answering);
    let keeping = bundle::keep(
        cluster.leaders_client,
        cluster.leadership,
        move || authority.root_pem(),
        shutdown.clone(),
    );
    spawn_essential("admission roots", &shutdown, keeping);
    Ok(())
}
