//! `karst uninstall`: nodes first, then the cluster, each as it was found.
//!
//! ```text
//! webhook ─► pods released ─► agents ─► one removal pod per node ─► what was installed
//!            by the controller           programs, pins, CNI plugin    ─► what the controller made ─► namespace ─► CRDs
//!                                                                          and said in statuses       if ours      --purge
//! ```
//!
//! Pods are released first ([`crate::release`]): the way of un-labelling, on which no connection falls in between.
//!
//! A removal pod is the agents' own pod template with `--remove`: the same mounts and rights, nothing of its own to
//! keep in step. It uses the host's network, so that no CNI plugin is needed for it to start.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use karst_k8s_api::object::FIELD_MANAGER;
use kube::api::{ListParams, LogParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    chart,
    cluster::{Apply, CONTROLLER, Cluster, Deleted, Kind, MANAGED_BY, Reference, told},
    install::{RECORD, Record},
    output, release,
};

/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);
/// What the controllers' ConfigMaps of single nodes begin with.
const NODE_RECORD: &str = "karst-node-";
/// What removal pods are called, and their label.
const REMOVAL: &str = "karst-remove";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// Delete the CRDs that were installed, and with them every object of these kinds
    #[arg(long)]
    purge: bool,
    /// Only take Karst off the nodes; use it before `helm uninstall`
    #[arg(long, conflicts_with = "purge")]
    nodes_only: bool,
    /// Go on although a node could not be cleaned
    #[arg(long)]
    force: bool,
    /// Seconds that the nodes have in all
    #[arg(long, default_value_t = 180)]
    timeout_seconds: u64,
}

/// Takes Karst away.
pub(crate) async fn run(cluster: &Cluster, args: &UninstallArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.timeout_seconds);
    let record = Record::read(cluster).await?;
    delete_webhooks(cluster).await?;
    release::release_pods(cluster, deadline).await?;
    let cleaned = clean_nodes(cluster, args, deadline).await;
    // Whoever installs anew finds a namespace without it, also where Helm takes the rest away.
    let withdrawn = release::withdraw(cluster).await;
    cleaned.and(withdrawn)?;
    if args.nodes_only {
        output::line("Nodes are as they were. Now: helm uninstall karst");
        return Ok(());
    }
    let mut made_namespace = false;
    let mut references = Vec::new();
    match &record {
        Some(record) => {
            for object in &record.objects {
                references.push(Reference::of(object)?);
            }
        }
        // Not written down: an installation that was broken off, or one by `kubectl apply` of `--print`.
        None => {
            let values = chart::values(json!({"meshConfig": {}}))?;
            for object in chart::objects(&cluster.namespace, &values)? {
                references.push(Reference::of(&object)?);
            }
        }
    }
    let mut deleted = stop_controllers(cluster, deadline).await?;
    for reference in references.iter().rev() {
        if reference.types.kind == "Namespace" {
            made_namespace = true;
            continue;
        }
        deleted += usize::from(cluster.delete(reference).await? == Deleted::Yes);
    }
    deleted += delete_made_at_run_time(cluster).await?;
    withdraw_conditions(cluster).await?;
    if args.purge {
        deleted += purge_crds(cluster).await?;
    }
    if made_namespace {
        let namespace = Reference::new(Kind::NAMESPACE, None, &cluster.namespace);
        deleted += usize::from(cluster.delete(&namespace).await? == Deleted::Yes);
        cluster
            .wait_gone(
                &namespace,
                deadline.max(Instant::now() + Duration::from_secs(60)),
            )
            .await?;
    }
    output::line(format!(
        "Karst is gone: {deleted} objects deleted ({:.1} s).",
        started.elapsed().as_secs_f32()
    ));
    say_what_stays(cluster, args).await
}

/// The webhook goes first: with nobody to answer it, it would refuse what follows.
async fn delete_webhooks(cluster: &Cluster) -> anyhow::Result<()> {
    cluster
        .delete(&Reference::new(Kind::WEBHOOK, None, "karst"))
        .await?;
    Ok(())
}

/// Stops the agents and takes off every node what they put there.
async fn clean_nodes(
    cluster: &Cluster,
    args: &UninstallArgs,
    deadline: Instant,
) -> anyhow::Result<()> {
    let namespace = cluster.namespace.as_str();
    let agents = cluster
        .get(Kind::DAEMON_SET, Some(namespace), "karst-agent")
        .await?;
    let Some(agents) = agents else {
        output::progress("no agents here (DaemonSet karst-agent does not exist)");
        return Ok(());
    };
    let template = agents.data["spec"]["template"].clone();
    let nodes = nodes_of(cluster, &template).await?;
    cluster
        .delete(&Reference::new(
            Kind::DAEMON_SET,
            Some(namespace),
            "karst-agent",
        ))
        .await?;
    wait_no_pods(cluster, "app.kubernetes.io/name=karst-agent", deadline).await?;
    output::progress("agents stopped");
    for node in &nodes {
        let pod = removal_pod(&template, namespace, node);
        cluster.delete(&Reference::of(&pod)?).await?;
        cluster.wait_gone(&Reference::of(&pod)?, deadline).await?;
        cluster.apply(&pod, Apply::Really).await?;
    }
    let unclean = wait_removed(cluster, &nodes, deadline).await?;
    for (node, why) in &unclean {
        output::progress(&format!("error: node {node}: {why}"));
    }
    if !unclean.is_empty() && !args.force {
        bail!(
            "{} of {} node(s) not clean. Mend what is said above and repeat, or say --force: a node that is gone needs nothing",
            unclean.len(),
            nodes.len()
        );
    }
    for node in &nodes {
        let pod = Reference::new(Kind::POD, Some(namespace), &removal_name(node));
        cluster.delete(&pod).await?;
    }
    wait_no_pods(
        cluster,
        &format!("app.kubernetes.io/name={REMOVAL}"),
        deadline,
    )
    .await?;
    output::progress(&format!("{} node(s) clean", nodes.len() - unclean.len()));
    Ok(())
}

/// Ends the controllers before anything of theirs is taken away: one that still ran would miss its rights, and make again
/// what was deleted before it.
async fn stop_controllers(cluster: &Cluster, deadline: Instant) -> anyhow::Result<usize> {
    let namespace = Some(cluster.namespace.as_str());
    let controllers = Reference::new(Kind::DEPLOYMENT, namespace, "karst-controller");
    let deleted = usize::from(cluster.delete(&controllers).await? == Deleted::Yes);
    wait_no_pods(cluster, "app.kubernetes.io/name=karst-controller", deadline).await?;
    output::progress("controllers stopped");
    Ok(deleted)
}

/// Nodes that an agent may have run on: all that its template's node selector admits.
async fn nodes_of(cluster: &Cluster, template: &Value) -> anyhow::Result<Vec<String>> {
    let selector = template["spec"]["nodeSelector"].as_object();
    let labels: Vec<String> = selector
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let params = ListParams::default().labels(&labels.join(","));
    let nodes = cluster.list(Kind::NODE, None, &params).await?;
    Ok(nodes
        .into_iter()
        .filter_map(|node| node.metadata.name)
        .collect())
}

fn removal_name(node: &str) -> String {
    format!("{REMOVAL}-{node}")
}

/// The agents' pod, told to remove and end. It asks for no token: the controller is not needed.
fn removal_pod(template: &Value, namespace: &str, node: &str) -> Value {
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(node);
    spec["hostNetwork"] = json!(true);
    spec["restartPolicy"] = json!("Never");
    spec["terminationGracePeriodSeconds"] = json!(1);
    let credentials = ["token", "root-cert"];
    let without = |list: &Value| -> Value {
        let kept = list.as_array().into_iter().flatten();
        kept.filter(|entry| !credentials.iter().any(|name| entry["name"] == *name))
            .cloned()
            .collect()
    };
    spec["volumes"] = without(&spec["volumes"]);
    if let Some(container) = spec["containers"].get_mut(0) {
        container["volumeMounts"] = without(&container["volumeMounts"]);
        if let Some(args) = container["args"].as_array_mut() {
            args.push(json!("--remove"));
        } else {
            container["args"] = json!(["--remove"]);
        }
        if let Some(fields) = container.as_object_mut() {
            for probe in [
                "readinessProbe",
                "livenessProbe",
                "startupProbe",
                "lifecycle",
                "ports",
            ] {
                fields.remove(probe);
            }
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": removal_name(node),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": REMOVAL,
                "app.kubernetes.io/part-of": "karst",
                "istio.io/dataplane-mode": "none",
            },
        },
        "spec": spec,
    })
}

/// Waits until every removal pod has ended. The nodes where it did not succeed, and why.
async fn wait_removed(
    cluster: &Cluster,
    nodes: &[String],
    deadline: Instant,
) -> anyhow::Result<BTreeMap<String, String>> {
    let namespace = Some(cluster.namespace.as_str());
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name={REMOVAL}"));
    loop {
        let mut unclean = BTreeMap::new();
        let mut running = 0;
        let pods = cluster.list(Kind::POD, namespace, &params).await?;
        for node in nodes {
            let name = removal_name(node);
            let pod = pods
                .iter()
                .find(|pod| pod.metadata.name.as_deref() == Some(&name));
            match pod.and_then(|pod| pod.data["status"]["phase"].as_str()) {
                Some("Succeeded") => {}
                Some("Failed") => {
                    let said = last_words(cluster, &name).await;
                    unclean.insert(node.clone(), format!("removal failed: {said}"));
                }
                phase => {
                    running += 1;
                    let phase = phase.unwrap_or("not there");
                    unclean.insert(
                        node.clone(),
                        format!(
                            "removal pod {name} is {phase} and did not end in time; is the node up?"
                        ),
                    );
                }
            }
        }
        if running == 0 || Instant::now() > deadline {
            return Ok(unclean);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn last_words(cluster: &Cluster, pod: &str) -> String {
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let params = LogParams {
        tail_lines: Some(5),
        ..LogParams::default()
    };
    match pods.logs(pod, &params).await {
        Ok(text) => text.trim().to_owned(),
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

/// What the controller made while it ran: root certificates in every namespace, its lease, its secrets, waypoints and
/// their class, the mesh's object.
async fn delete_made_at_run_time(cluster: &Cluster) -> anyhow::Result<usize> {
    let mut deleted = 0;
    let made = ListParams::default().labels(&format!("{MANAGED_BY}={CONTROLLER}"));
    let kinds = [
        Kind::CONFIG_MAP,
        Kind::SECRET,
        Kind::LEASE,
        Kind::DEPLOYMENT,
        Kind::SERVICE,
        Kind::SERVICE_ACCOUNT,
        Kind::GATEWAY_CLASS,
        Kind::XMESH,
    ];
    for kind in kinds {
        for object in cluster.list(kind, None, &made).await? {
            let name = object.metadata.name.unwrap_or_default();
            let namespace = object.metadata.namespace;
            let reference = Reference::new(kind, namespace.as_deref(), &name);
            deleted += usize::from(cluster.delete(&reference).await? == Deleted::Yes);
        }
    }
    // What replicas tell each other of each node.
    let everything = ListParams::default();
    let namespace = Some(cluster.namespace.as_str());
    for object in cluster
        .list(Kind::CONFIG_MAP, namespace, &everything)
        .await?
    {
        let name = object.metadata.name.unwrap_or_default();
        if name.starts_with(NODE_RECORD) {
            let reference = Reference::new(Kind::CONFIG_MAP, namespace, &name);
            deleted += usize::from(cluster.delete(&reference).await? == Deleted::Yes);
        }
    }
    let own = [
        (Kind::LEASE, "karst-controller"),
        (Kind::CONFIG_MAP, RECORD),
        // What replicas tell each other of their followers.
        (Kind::CONFIG_MAP, "karst-followers"),
        (Kind::CONFIG_MAP, "istio-ca-root-cert"),
        (Kind::SECRET, "karst-ca"),
    ];
    for (kind, name) in own {
        let reference = Reference::new(kind, Some(&cluster.namespace), name);
        deleted += usize::from(cluster.delete(&reference).await? == Deleted::Yes);
    }
    Ok(deleted)
}

/// Takes back what was said of Services in their status: with nobody to keep it, it would become untrue.
async fn withdraw_conditions(cluster: &Cluster) -> anyhow::Result<()> {
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    for service in cluster
        .list(Kind::SERVICE, None, &ListParams::default())
        .await?
    {
        let managers = service.metadata.managed_fields.iter().flatten();
        let mut ours = managers.filter(|one| one.manager.as_deref() == Some(FIELD_MANAGER));
        if !ours.any(|one| one.subresource.as_deref() == Some("status")) {
            continue;
        }
        let name = service.metadata.name.unwrap_or_default();
        let nothing = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "status": {}});
        let services = cluster.objects(Kind::SERVICE, service.metadata.namespace.as_deref());
        match services
            .patch_status(&name, &parameters, &Patch::Apply(&nothing))
            .await
        {
            Err(kube::Error::Api(refusal)) if refusal.code == 404 => {}
            outcome => {
                drop(outcome.map_err(told).with_context(|| {
                    format!("cannot take back the conditions of Service {name}")
                })?)
            }
        }
    }
    Ok(())
}

/// Deletes the CRDs that this program applied; those of other parties stay.
async fn purge_crds(cluster: &Cluster) -> anyhow::Result<usize> {
    let mut deleted = 0;
    for crd in chart::crds()? {
        let reference = Reference::of(&crd)?;
        let Some(present) = cluster.get(Kind::CRD, None, &reference.name).await? else {
            continue;
        };
        let managers = present.metadata.managed_fields.unwrap_or_default();
        if managers
            .iter()
            .any(|entry| entry.manager.as_deref() == Some("karst"))
        {
            deleted += usize::from(cluster.delete(&reference).await? == Deleted::Yes);
        }
    }
    Ok(deleted)
}

async fn say_what_stays(cluster: &Cluster, args: &UninstallArgs) -> anyhow::Result<()> {
    if !args.purge {
        output::line(
            "CRDs and your policies and routes stay; `karst uninstall --purge` deletes the CRDs that Karst brought.",
        );
    }
    let labelled = ListParams::default().labels("istio.io/dataplane-mode=ambient");
    let namespaces = cluster.list(Kind::NAMESPACE, None, &labelled).await?;
    let names: Vec<String> = namespaces
        .into_iter()
        .filter_map(|object| object.metadata.name)
        .collect();
    if !names.is_empty() {
        output::line(format!(
            "These namespaces keep their label istio.io/dataplane-mode=ambient, and are no longer protected: {}",
            names.join(", ")
        ));
    }
    Ok(())
}

async fn wait_no_pods(cluster: &Cluster, labels: &str, deadline: Instant) -> anyhow::Result<()> {
    let params = ListParams::default().labels(labels);
    loop {
        let pods = cluster
            .list(Kind::POD, Some(&cluster.namespace), &params)
            .await?;
        if pods.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<String> = pods
                .into_iter()
                .filter_map(|pod| pod.metadata.name)
                .collect();
            bail!(
                "these pods do not end: {}; is their node up?",
                names.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_pod_is_the_agent_s_with_remove_and_without_credentials() {
        let values = chart::values(json!({})).unwrap();
        let objects = chart::objects("karst-system", &values).unwrap();
        let agents = objects
            .iter()
            .find(|object| object["kind"] == "DaemonSet")
            .unwrap();
        let template = &agents["spec"]["template"];
        let pod = removal_pod(template, "karst-system", "n1");
        let container = &pod["spec"]["containers"][0];
        let args = container["args"].as_array().unwrap();
        assert_eq!(args.last(), Some(&json!("--remove")));
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["spec"]["hostNetwork"], true);
        assert_eq!(
            container["image"],
            template["spec"]["containers"][0]["image"]
        );
        assert!(container.get("readinessProbe").is_none());
        assert!(!pod.to_string().contains("istio-token\"}"));
        assert!(
            !pod["spec"]["volumes"]
                .to_string()
                .contains("serviceAccountToken")
        );
        assert!(pod["spec"]["volumes"].to_string().contains("/sys/fs/bpf"));
    }
}
