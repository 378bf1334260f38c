//! `karst version`: what runs where.

use std::collections::BTreeMap;

use kube::api::ListParams;

use crate::{
    chart,
    cluster::{Cluster, Kind},
    output,
};

/// This program's version.
pub(crate) fn client() {
    output::line(format!("karst       {}", chart::VERSION));
}

/// The image tags of the controller's and the agents' pods, with how many run each.
pub(crate) async fn cluster(cluster: &Cluster) -> anyhow::Result<()> {
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=karst");
    let pods = cluster
        .list(Kind::POD, Some(&cluster.namespace), &ours)
        .await?;
    let mut count: BTreeMap<(String, String), usize> = BTreeMap::new();
    for pod in &pods {
        for container in pod.data["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let image = container["image"].as_str().unwrap_or_default();
            let tag = image.rsplit_once(':').map_or("no tag", |(_, tag)| tag);
            *count.entry((name, tag.to_owned())).or_default() += 1;
        }
    }
    if count.is_empty() {
        output::line(format!("not installed in namespace {}", cluster.namespace));
    }
    for ((name, tag), pods) in count {
        output::line(format!("{name:10}  {tag} ({pods} pods)"));
    }
    Ok(())
}
