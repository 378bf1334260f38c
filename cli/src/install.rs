//! `karst install` and `karst upgrade`: render the chart, look whether it can work, apply, wait, say what to do next.
//!
//! What was installed is written down in ConfigMap `karst-install`: the values given and the list of objects. An
//! upgrade starts from those values and deletes objects that the new version no longer has.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::{
    chart::{self, ValueArgs},
    check,
    cluster::{Apply, Cluster, Kind, Reference},
    output, release,
};

/// Where an installation is written down.
pub(crate) const RECORD: &str = "karst-install";
/// ConfigMap with the mesh's roots, in every namespace.
const ROOTS: &str = "istio-ca-root-cert";
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    values: ValueArgs,
    /// Print the objects as YAML and end; nothing is asked of the cluster
    #[arg(long)]
    print: bool,
    /// Let the API server check every object, and change nothing
    #[arg(long, conflicts_with = "print")]
    dry_run: bool,
    /// Leave CRDs as they are
    #[arg(long)]
    skip_crds: bool,
    /// Install although a check before it failed
    #[arg(long)]
    force: bool,
    /// Seconds to wait until the controller and every agent are ready; 0 does not wait
    #[arg(long, default_value_t = 300)]
    timeout_seconds: u64,
}

impl InstallArgs {
    /// Whether no cluster is needed.
    pub(crate) fn prints_only(&self) -> bool {
        self.print
    }
}

/// Which of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Install,
    Upgrade,
}

/// Writes the objects to standard output, ready for `kubectl apply --server-side -f -`.
pub(crate) fn print(args: &InstallArgs, namespace: &str) -> anyhow::Result<()> {
    let values = with_namespace(args.values.over(json!({}))?)?;
    let mut objects = Vec::new();
    if !args.skip_crds {
        objects.extend(chart::crds()?);
    }
    objects.extend(chart::objects(namespace, &values)?);
    for object in objects {
        output::line(format!(
            "---\n{}",
            serde_saphyr::to_string(&object)?.trim_end()
        ));
    }
    Ok(())
}

/// The chart's values with `given`, and the namespace among the objects unless it was said otherwise.
fn with_namespace(mut given: Value) -> Result<Value, chart::ChartError> {
    if given["namespace"]["create"].is_null() {
        given["namespace"]["create"] = json!(true);
    }
    chart::values(given)
}

/// Installs or upgrades, and waits until it works.
pub(crate) async fn run(
    cluster: &Cluster,
    args: &InstallArgs,
    purpose: Purpose,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let record = Record::read(cluster).await?;
    refuse_if_helm_owns(cluster).await?;
    if purpose == Purpose::Upgrade && record.is_none() {
        bail!(
            "nothing was installed by `karst install` in namespace {}; run `karst install`, or `helm upgrade` if Helm installed it",
            cluster.namespace
        );
    }
    let before = record.unwrap_or_default();
    let given = args.values.over(before.values.clone())?;
    let values = with_namespace(given.clone())?;
    let objects = chart::objects(&cluster.namespace, &values)?;
    look_for_operator(cluster, &objects).await?;
    if args.dry_run {
        return dry_run(cluster, args, &objects).await;
    }
    preflight(cluster, args).await?;
    if !args.skip_crds {
        apply_crds(cluster).await?;
    }
    look_for_gateway_api(cluster).await?;
    release::withdraw(cluster).await?;
    for object in &objects {
        if object["kind"] == "DaemonSet" {
            wait_root(cluster, args).await?;
        }
        cluster.apply(object, Apply::Really).await?;
    }
    output::progress(&format!(
        "{} objects applied in namespace {}",
        objects.len(),
        cluster.namespace
    ));
    let record = Record::new(given, &objects)?;
    prune(cluster, &before, &record).await?;
    record.write(cluster).await?;
    if args.timeout_seconds == 0 {
        return Ok(());
    }
    wait_ready(cluster, started, Duration::from_secs(args.timeout_seconds)).await?;
    say_next(cluster, started, purpose);
    Ok(())
}

async fn dry_run(cluster: &Cluster, args: &InstallArgs, objects: &[Value]) -> anyhow::Result<()> {
    let crds = if args.skip_crds {
        Vec::new()
    } else {
        chart::crds()?
    };
    let there = cluster
        .get(Kind::NAMESPACE, None, &cluster.namespace)
        .await?
        .is_some();
    for object in crds.iter().chain(objects) {
        let reference = Reference::of(object)?;
        if reference.namespace.is_some() && !there {
            output::line(format!(
                "{reference}: not asked, its namespace does not exist yet"
            ));
            continue;
        }
        cluster.apply(object, Apply::DryRun).await?;
        output::line(format!("{reference}: accepted"));
    }
    Ok(())
}

async fn preflight(cluster: &Cluster, args: &InstallArgs) -> anyhow::Result<()> {
    let findings = check::before_install(cluster).await?;
    let failed = findings
        .iter()
        .filter(|finding| finding.is_failure())
        .count();
    for finding in findings.iter().filter(|finding| !finding.is_fine()) {
        output::progress(&finding.to_string());
    }
    if failed > 0 && !args.force {
        bail!("{failed} check(s) failed; mend them, or say --force");
    }
    Ok(())
}

/// Applies our CRDs, except those that another party keeps: Gateway API CRDs of another release stay as they are.
async fn apply_crds(cluster: &Cluster) -> anyhow::Result<()> {
    let (mut applied, mut left) = (0, 0);
    for crd in chart::crds()? {
        let reference = Reference::of(&crd)?;
        let present = cluster.get(Kind::CRD, None, &reference.name).await?;
        if present.is_some_and(|present| {
            !ours(&serde_json::to_value(&present.metadata.managed_fields).unwrap_or_default())
        }) {
            left += 1;
            continue;
        }
        cluster.apply(&crd, Apply::Really).await?;
        applied += 1;
    }
    output::progress(&match left {
        0 => format!("{applied} CRDs applied"),
        left => {
            format!("{applied} CRDs applied, {left} left as they are (installed by somebody else)")
        }
    });
    Ok(())
}

/// The Gateway API's definitions are its own project's to install: we only say when they are missing.
async fn look_for_gateway_api(cluster: &Cluster) -> anyhow::Result<()> {
    const NEEDED: [&str; 3] = [
        "gateways.gateway.networking.k8s.io",
        "httproutes.gateway.networking.k8s.io",
        "referencegrants.gateway.networking.k8s.io",
    ];
    for name in NEEDED {
        if cluster.get(Kind::CRD, None, name).await?.is_none() {
            output::progress(&format!(
                "the Gateway API is not installed ({name} is missing): there are no waypoints and routes until it is; kubectl apply -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml"
            ));
            return Ok(());
        }
    }
    Ok(())
}

/// Rules for the Prometheus operator need its definition: told before anything is changed.
async fn look_for_operator(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    const NEEDED: &str = "prometheusrules.monitoring.coreos.com";
    let asked = objects
        .iter()
        .any(|object| object["kind"] == "PrometheusRule");
    if asked && cluster.get(Kind::CRD, None, NEEDED).await?.is_none() {
        bail!(
            "telemetry.prometheusRules.enabled needs the Prometheus operator, whose CRD {NEEDED} is not in this cluster; install the operator first, or leave the value out and load the files of manifests/prometheus as docs/operate/dashboards.md says"
        );
    }
    Ok(())
}

/// Whether we are among an object's field managers.
fn ours(managed_fields: &Value) -> bool {
    let managers = managed_fields.as_array().into_iter().flatten();
    managers
        .into_iter()
        .any(|entry| entry["manager"] == "karst")
}

async fn refuse_if_helm_owns(cluster: &Cluster) -> anyhow::Result<()> {
    let agent = cluster
        .get(Kind::DAEMON_SET, Some(&cluster.namespace), "karst-agent")
        .await?;
    let release = agent.and_then(|agent| {
        let annotations = agent.metadata.annotations.unwrap_or_default();
        annotations.get("meta.helm.sh/release-name").cloned()
    });
    match release {
        Some(release) => bail!(
            "Helm release {release} owns Karst in namespace {}; use `helm upgrade`",
            cluster.namespace
        ),
        None => Ok(()),
    }
}

/// Deletes what the last installation had and this one has not.
async fn prune(cluster: &Cluster, before: &Record, now: &Record) -> anyhow::Result<()> {
    for object in &before.objects {
        if !now.objects.contains(object) {
            let reference = Reference::of(object)?;
            cluster.delete(&reference).await?;
            output::progress(&format!("{reference} deleted: this version has it no more"));
        }
    }
    Ok(())
}

/// What an installation consists of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Values as given, without the chart's own.
    values: Value,
    /// apiVersion, kind, metadata.name and metadata.namespace of each object.
    pub(crate) objects: Vec<Value>,
}

impl Record {
    fn new(values: Value, objects: &[Value]) -> anyhow::Result<Self> {
        let name = |object: &Value| {
            let reference = Reference::of(object)?;
            let mut metadata = json!({"name": reference.name});
            if let Some(namespace) = reference.namespace {
                metadata["namespace"] = json!(namespace);
            }
            Ok(
                json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata}),
            )
        };
        Ok(Self {
            values,
            objects: objects.iter().map(name).collect::<anyhow::Result<_>>()?,
        })
    }

    /// None where nothing was installed by this program.
    pub(crate) async fn read(cluster: &Cluster) -> anyhow::Result<Option<Self>> {
        let found = cluster
            .get(Kind::CONFIG_MAP, Some(&cluster.namespace), RECORD)
            .await?;
        let Some(found) = found else { return Ok(None) };
        let read = |key: &str| -> anyhow::Result<Value> {
            let text = found.data["data"][key].as_str().unwrap_or("null");
            serde_json::from_str(text)
                .with_context(|| format!("ConfigMap {RECORD}, key {key}, is not JSON: delete the ConfigMap and install again"))
        };
        Ok(Some(Self {
            values: match read("values")? {
                Value::Null => json!({}),
                values => values,
            },
            objects: read("objects")?.as_array().cloned().unwrap_or_default(),
        }))
    }

    async fn write(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": RECORD,
                "namespace": cluster.namespace,
                "labels": {"app.kubernetes.io/part-of": "karst"},
            },
            "data": {
                "version": chart::VERSION,
                "values": self.values.to_string(),
                "objects": Value::from(self.objects.clone()).to_string(),
            },
        });
        cluster.apply(&map, Apply::Really).await
    }
}

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rollout {
    wanted: i64,
    ready: i64,
}

impl Rollout {
    fn is_complete(&self) -> bool {
        self.wanted > 0 && self.ready >= self.wanted
    }

    /// From the status of a Deployment or DaemonSet; counts only what runs the present template.
    fn of(object: &Value) -> Self {
        let count = |name: &str| object["status"][name].as_i64().unwrap_or(0);
        let seen = object["status"]["observedGeneration"].as_i64()
            >= object["metadata"]["generation"].as_i64();
        let (wanted, ready, updated) = if object["kind"] == "DaemonSet" {
            (
                "desiredNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
            )
        } else {
            ("", "readyReplicas", "updatedReplicas")
        };
        let wanted = match wanted {
            "" => object["spec"]["replicas"].as_i64().unwrap_or(1),
            name => count(name),
        };
        let ready = if seen {
            count(ready).min(count(updated))
        } else {
            0
        };
        Self { wanted, ready }
    }
}

async fn wait_ready(cluster: &Cluster, started: Instant, timeout: Duration) -> anyhow::Result<()> {
    let mut said = String::new();
    loop {
        let mut complete = true;
        let mut now = Vec::new();
        for (kind, name, shown) in [
            (Kind::DEPLOYMENT, "karst-controller", "controller"),
            (Kind::DAEMON_SET, "karst-agent", "agents"),
        ] {
            let object = cluster.get(kind, Some(&cluster.namespace), name).await?;
            let rollout = Rollout::of(&serde_json::to_value(&object)?);
            complete &= rollout.is_complete();
            now.push(format!(
                "{shown} {}/{} ready",
                rollout.ready, rollout.wanted
            ));
        }
        let now = now.join(", ");
        if now != said {
            output::progress(&format!("{:5.1}s {now}", started.elapsed().as_secs_f32()));
            said = now;
        }
        if complete {
            return Ok(());
        }
        if started.elapsed() > timeout {
            let why = why_not_ready(cluster).await.unwrap_or_default();
            bail!("not ready after {} s: {said}{why}", timeout.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the controller has written the mesh's roots, which agents mount: an agent's pod that starts before them
/// sees them only when its kubelet looks again, up to a minute and a half later.
async fn wait_root(cluster: &Cluster, args: &InstallArgs) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout_seconds);
    output::progress("waiting for the controller to write the mesh's roots");
    while Instant::now() < deadline {
        let roots = cluster
            .get(Kind::CONFIG_MAP, Some(&cluster.namespace), ROOTS)
            .await?;
        if roots.is_some() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    if args.timeout_seconds > 0 {
        let why = why_not_ready(cluster).await.unwrap_or_default();
        bail!(
            "the controller wrote no ConfigMap {ROOTS} within {} s{why}",
            args.timeout_seconds
        );
    }
    Ok(())
}

/// What the pods that are not ready wait for, from their statuses and last warnings.
async fn why_not_ready(cluster: &Cluster) -> anyhow::Result<String> {
    let namespace = Some(cluster.namespace.as_str());
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=karst");
    let pods = cluster.list(Kind::POD, namespace, &ours).await?;
    let events = cluster
        .list(
            Kind::EVENT,
            namespace,
            &ListParams::default().fields("type=Warning"),
        )
        .await?;
    let mut warnings = BTreeMap::new();
    for event in &events {
        let pod = event.data["involvedObject"]["name"].as_str();
        if let (Some(pod), Some(message)) = (pod, event.data["message"].as_str()) {
            warnings.insert(pod, message);
        }
    }
    let mut lines = String::new();
    for pod in &pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if is_ready(&pod.data) {
            continue;
        }
        let waiting = pod.data["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let reason = waiting["message"]
            .as_str()
            .or_else(|| waiting["reason"].as_str());
        let reason = warnings
            .get(name)
            .copied()
            .or(reason)
            .unwrap_or("not ready yet");
        lines.push_str(&format!("\n  pod {name}: {reason}"));
    }
    Ok(lines)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn say_next(cluster: &Cluster, started: Instant, purpose: Purpose) {
    let done = match purpose {
        Purpose::Install => "installed",
        Purpose::Upgrade => "running",
    };
    output::line(format!(
        "Karst {} is {done} in namespace {} ({:.1} s).",
        chart::VERSION,
        cluster.namespace,
        started.elapsed().as_secs_f32()
    ));
    if purpose == Purpose::Install {
        output::line(
            "Next: karst check, then karst enroll ns/NAME (or: kubectl label namespace NAME istio.io/dataplane-mode=ambient)",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_counts_only_what_runs_the_present_template() {
        let mut agents = json!({
            "kind": "DaemonSet",
            "metadata": {"generation": 2},
            "status": {"observedGeneration": 2, "desiredNumberScheduled": 3, "numberReady": 3, "updatedNumberScheduled": 1},
        });
        assert!(!Rollout::of(&agents).is_complete());
        agents["status"]["updatedNumberScheduled"] = json!(3);
        assert!(Rollout::of(&agents).is_complete());
        agents["metadata"]["generation"] = json!(3);
        assert!(!Rollout::of(&agents).is_complete());
    }

    #[test]
    fn a_cluster_without_nodes_is_not_ready() {
        let agents = json!({"kind": "DaemonSet", "status": {}});
        assert!(!Rollout::of(&agents).is_complete());
    }

    #[test]
    fn a_record_names_objects_without_their_content() {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b", "labels": {}}, "spec": {}});
        let record = Record::new(json!({}), &[object]).unwrap();
        assert_eq!(
            record.objects,
            [
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b"}})
            ]
        );
    }
}
