//! `karst waypoint apply | status | list | delete`: a namespace's waypoint, by one Gateway object and one label.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    cluster::{Apply, Cluster, Deleted, Kind, Reference, told},
    output::{self, Format},
};

/// The class of waypoints.
const CLASS: &str = "istio-waypoint";
/// The label that binds to a waypoint, and the one that names another namespace's.
const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label on a Gateway: what the waypoint is for.
const FOR: &str = "istio.io/waypoint-for";
/// Annotation on a Gateway.
const REPLICAS: &str = "karst.dev/replicas";
/// Label on the pods of a Gateway.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum WaypointCommand {
    /// Give a namespace a waypoint, bind the namespace to it, and wait until it is in place
    Apply(ApplyArgs),
    /// Show a namespace's waypoints: whether they are in place, and what is bound to them
    Status(OfNamespace),
    /// Show the waypoints of all namespaces
    List {
        /// How to print
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Take a waypoint away: what is bound to it goes as without it, or is refused where it is sealed
    Delete(OfNamespace),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    of: OfNamespace,
    /// What it takes: traffic to addresses of services, of pods (workload), of all, or of none
    #[arg(long = "for", value_parser = ["service", "workload", "all", "none"], default_value = "service")]
    traffic: String,
    /// Replicas
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Leave the namespace's label as it is: services are bound by labels of their own
    #[arg(long)]
    no_bind: bool,
    /// Seconds to wait until it is in place; 0 does not wait
    #[arg(long, default_value_t = 90)]
    timeout_seconds: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OfNamespace {
    /// Namespace: ns/NAME, or NAME
    #[arg(value_name = "ns/NAME")]
    namespace: String,
    /// Name of the waypoint
    #[arg(long, default_value = "waypoint")]
    name: String,
}

impl OfNamespace {
    fn namespace(&self) -> anyhow::Result<&str> {
        match self.namespace.split_once('/') {
            None => Ok(&self.namespace),
            Some(("ns" | "namespace", namespace)) => Ok(namespace),
            Some(_) => bail!("{}: expected ns/NAME", self.namespace),
        }
    }
}

/// Carries out one of them.
pub(crate) async fn run(cluster: &Cluster, command: &WaypointCommand) -> anyhow::Result<()> {
    match command {
        WaypointCommand::Apply(args) => apply(cluster, args).await,
        WaypointCommand::Status(of) => status(cluster, of.namespace()?).await,
        WaypointCommand::List { output } => list(cluster, *output).await,
        WaypointCommand::Delete(of) => delete(cluster, of).await,
    }
}

async fn apply(cluster: &Cluster, args: &ApplyArgs) -> anyhow::Result<()> {
    let (namespace, name) = (args.of.namespace()?, args.of.name.as_str());
    if name == "none" {
        bail!("a waypoint cannot be called none: the label {USE}=none means that there is none");
    }
    let started = Instant::now();
    cluster
        .apply(&gateway(namespace, args), Apply::Really)
        .await
        .context("the Gateway API must be installed: see docs/operate/waypoints.md")?;
    if !args.no_bind {
        bind(cluster, namespace, Some(name)).await?;
    }
    if args.timeout_seconds > 0 {
        let deadline = started + Duration::from_secs(args.timeout_seconds);
        wait_in_place(cluster, namespace, name, deadline).await?;
        output::line(format!(
            "waypoint {namespace}/{name} is in place after {:.1} s",
            started.elapsed().as_secs_f32()
        ));
    }
    status(cluster, namespace).await
}

fn gateway(namespace: &str, args: &ApplyArgs) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": args.of.name,
            "namespace": namespace,
            "labels": {FOR: args.traffic},
            "annotations": {REPLICAS: args.replicas.to_string()},
        },
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

/// Sets or takes away the label of a namespace.
async fn bind(cluster: &Cluster, namespace: &str, name: Option<&str>) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"labels": {USE: name}}});
    cluster
        .objects(Kind::NAMESPACE, None)
        .patch(namespace, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(told)
        .with_context(|| format!("cannot label namespace {namespace}"))?;
    Ok(())
}

async fn wait_in_place(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    deadline: Instant,
) -> anyhow::Result<()> {
    loop {
        let gateway = cluster.get(Kind::GATEWAY, Some(namespace), name).await?;
        let gateway = gateway.with_context(|| format!("Gateway {namespace}/{name} is gone"))?;
        let programmed = condition(&gateway.data, "Programmed");
        if programmed["status"] == "True" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "waypoint {namespace}/{name} is not in place: {}. Look at: kubectl -n {namespace} get pods -l {GATEWAY_NAME}={name}",
                told_by(&programmed)
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A condition of an object's status; null where it is not there.
fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|one| one["type"] == kind)
        .cloned()
        .unwrap_or_default()
}

fn told_by(condition: &Value) -> String {
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    match text("reason") {
        reason if reason.is_empty() => "no controller has looked at it".to_owned(),
        reason => format!("{reason}: {}", text("message")),
    }
}

fn is_waypoint(gateway: &DynamicObject) -> bool {
    gateway.data["spec"]["gatewayClassName"] == CLASS
}

fn label<'a>(object: &'a DynamicObject, name: &str) -> Option<&'a str> {
    let labels = object.metadata.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

fn named(object: &DynamicObject) -> (&str, &str) {
    (
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Ready pods of a waypoint, and all.
async fn replicas(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
) -> anyhow::Result<(usize, usize)> {
    let params = ListParams::default().labels(&format!("{GATEWAY_NAME}={name}"));
    let pods = cluster.list(Kind::POD, Some(namespace), &params).await?;
    let ready = |pod: &&DynamicObject| condition(&pod.data, "Ready")["status"] == "True";
    Ok((pods.iter().filter(ready).count(), pods.len()))
}

async fn status(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let mut gateways = cluster
        .list(Kind::GATEWAY, Some(namespace), &ListParams::default())
        .await?;
    gateways.retain(is_waypoint);
    if gateways.is_empty() {
        output::line(format!("namespace {namespace} has no waypoint"));
        return Ok(());
    }
    let spaces = cluster
        .list(Kind::NAMESPACE, None, &ListParams::default())
        .await?;
    let services = cluster
        .list(Kind::SERVICE, None, &ListParams::default())
        .await?;
    for gateway in &gateways {
        let (namespace, name) = named(gateway);
        let programmed = condition(&gateway.data, "Programmed");
        let (ready, all) = replicas(cluster, namespace, name).await?;
        output::line(format!(
            "waypoint {namespace}/{name}: {}, {ready} of {all} replica(s) ready",
            match programmed["status"] == "True" {
                true => "in place".to_owned(),
                false => told_by(&programmed),
            }
        ));
        let bound = bound(&services, &spaces, namespace, name);
        match bound.is_empty() {
            true => output::line("  no service asks for it"),
            false => output::line(format!("  asked for by: {}", bound.join(", "))),
        }
    }
    Ok(())
}

/// Services whose labels, or whose namespace's, ask for a waypoint.
fn bound(
    services: &[DynamicObject],
    spaces: &[DynamicObject],
    namespace: &str,
    name: &str,
) -> Vec<String> {
    let asks = |object: &DynamicObject, own: &str| {
        let space = label(object, USE_NAMESPACE).unwrap_or(own).to_owned();
        label(object, USE).map(|wanted| (space, wanted.to_owned()))
    };
    let wanted = (namespace.to_owned(), name.to_owned());
    let takes = |service: &&DynamicObject| {
        let (own, _) = named(service);
        let of_space = || {
            let space = spaces.iter().find(|space| named(space).1 == own)?;
            asks(space, own)
        };
        label(service, GATEWAY_NAME).is_none()
            && asks(service, own).or_else(of_space).as_ref() == Some(&wanted)
    };
    let services = services.iter().filter(takes);
    services
        .map(|service| {
            let (own, name) = named(service);
            format!("{own}/{name}")
        })
        .collect()
}

async fn list(cluster: &Cluster, format: Format) -> anyhow::Result<()> {
    let mut gateways = cluster
        .list(Kind::GATEWAY, None, &ListParams::default())
        .await?;
    gateways.retain(is_waypoint);
    if format == Format::Json {
        return output::json(&gateways);
    }
    let head = ["NAMESPACE", "NAME", "FOR", "IN PLACE", "READY", "REASON"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for gateway in &gateways {
        let (namespace, name) = named(gateway);
        let programmed = condition(&gateway.data, "Programmed");
        let (ready, all) = replicas(cluster, namespace, name).await?;
        let text = |field: &str| programmed[field].as_str().unwrap_or("Unknown").to_owned();
        rows.push(vec![
            namespace.to_owned(),
            name.to_owned(),
            label(gateway, FOR).unwrap_or("service").to_owned(),
            text("status"),
            format!("{ready}/{all}"),
            text("reason"),
        ]);
    }
    output::table(&rows);
    Ok(())
}

async fn delete(cluster: &Cluster, of: &OfNamespace) -> anyhow::Result<()> {
    let (namespace, name) = (of.namespace()?, of.name.as_str());
    // First what leads there: a name that binds nothing is told about everywhere.
    let space = cluster.get(Kind::NAMESPACE, None, namespace).await?;
    if space.is_some_and(|space| label(&space, USE) == Some(name)) {
        bind(cluster, namespace, None).await?;
        output::line(format!("namespace {namespace} is bound to no waypoint now"));
    }
    let reference = Reference::new(Kind::GATEWAY, Some(namespace), name);
    match cluster.delete(&reference).await? {
        Deleted::Yes => output::line(format!("waypoint {namespace}/{name} is deleted")),
        Deleted::WasNotThere => {
            output::line(format!("waypoint {namespace}/{name} was not there"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: Option<&str>, name: &str, labels: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_bound_is_asked_for_by_the_service_or_its_namespace() {
        let spaces = [
            object(None, "shop", json!({USE: "waypoint"})),
            object(
                None,
                "other",
                json!({USE: "waypoint", USE_NAMESPACE: "shop"}),
            ),
            object(None, "plain", json!({})),
        ];
        let services = [
            object(Some("shop"), "orders", json!({})),
            object(Some("shop"), "out", json!({USE: "none"})),
            object(Some("shop"), "waypoint", json!({GATEWAY_NAME: "waypoint"})),
            object(Some("other"), "far", json!({})),
            object(Some("plain"), "away", json!({})),
        ];
        assert_eq!(
            bound(&services, &spaces, "shop", "waypoint"),
            ["shop/orders", "other/far"]
        );
    }
}
