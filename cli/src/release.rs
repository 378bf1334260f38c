//! Every pod leaves the mesh: the wish, the wait until it has come true, and the end of the wish.
//!
//! The wish is a label of the namespace that Karst is installed in. All controllers watch namespaces, so they hear of it at
//! once, while every agent stays connected: pods leave as they do where a label is taken away, on which no connection falls.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use karst_k8s_api::labels;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    cluster::{CONTROLLER, Cluster, Kind, told},
    output,
    reads::{ReaderArgs, Reads},
};

/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);
/// Longest wait until no pod is held.
const RELEASE_MAX: Duration = Duration::from_secs(60);

/// Tells the controllers that no pod is to be in the mesh, and waits until agents hold none. Without a controller that works,
/// it says so and goes on: enrolled pods are then refused connections until their node is clean.
pub(crate) async fn release_pods(cluster: &Cluster, deadline: Instant) -> anyhow::Result<()> {
    let namespace = Some(cluster.namespace.as_str());
    if cluster
        .get(Kind::DEPLOYMENT, namespace, CONTROLLER)
        .await?
        .is_none()
    {
        return Ok(());
    }
    set_wish(cluster, json!(labels::RELEASE_ALL))
        .await
        .context("cannot tell the controllers to release all pods")?;
    let patience = deadline.min(Instant::now() + RELEASE_MAX);
    let mut last;
    loop {
        last = match held(cluster).await {
            Ok(0) => {
                output::progress("every pod is released");
                return Ok(());
            }
            Ok(pods) => format!("{pods} pod(s) are still captured"),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > patience {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    output::progress(&format!(
        "warning: pods could not be released gently ({last}): they are refused new connections until their node is clean"
    ));
    Ok(())
}

/// Takes the wish back, also one that an uninstallation left which was broken off.
pub(crate) async fn withdraw(cluster: &Cluster) -> anyhow::Result<()> {
    let there = cluster
        .get(Kind::NAMESPACE, None, &cluster.namespace)
        .await?;
    let wished = |namespace: DynamicObject| namespace.metadata.labels?.remove(labels::RELEASE);
    match there.and_then(wished) {
        Some(_wish) => set_wish(cluster, Value::Null).await,
        None => Ok(()),
    }
}

async fn set_wish(cluster: &Cluster, wish: Value) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"labels": {labels::RELEASE: wish}}});
    cluster
        .objects(Kind::NAMESPACE, None)
        .patch(
            &cluster.namespace,
            &PatchParams::default(),
            &Patch::Merge(&patch),
        )
        .await
        .map_err(told)?;
    Ok(())
}

/// Pods that agents hold, those among them whose last connections are being seen to.
async fn held(cluster: &Cluster) -> anyhow::Result<u64> {
    let agents = Reads::open(cluster, &ReaderArgs::default())
        .await?
        .agents()
        .await?;
    let daemons = ListParams::default().labels("app.kubernetes.io/name=karst-agent");
    let daemons = cluster
        .list(Kind::POD, Some(&cluster.namespace), &daemons)
        .await?;
    if agents.len() < daemons.len() {
        bail!("{} of {} agents are connected", agents.len(), daemons.len());
    }
    let held_by = |agent: &Value| {
        let captured = agent["podsCaptured"]
            .as_u64()
            .context("an agent does not answer")?;
        // Unknown to agents of an older version.
        Ok(captured + agent["podsLeaving"].as_u64().unwrap_or(0))
    };
    agents.iter().map(held_by).sum()
}
