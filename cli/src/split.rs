//! `karst split`: the weights of an HTTPRoute's backends, shown, set, and watched as requests take them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    cluster::{Cluster, Kind, told},
    output,
    waypoint::GATEWAY_NAME,
};

/// Port of a waypoint's metrics.
const METRICS_PORT: u16 = 15020;
/// Between looks with `--watch`.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest wait for one replica's metrics.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest page of metrics.
const PAGE_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SplitArgs {
    /// The HTTPRoute: NAMESPACE/NAME
    #[arg(value_name = "NAMESPACE/NAME")]
    route: String,
    /// Weights to set, BACKEND=WEIGHT; backends that are not named keep theirs
    #[arg(value_name = "BACKEND=WEIGHT")]
    weights: Vec<String>,
    /// The rule to change: its name, or its number from 0; without it every rule that has all named backends
    #[arg(long)]
    rule: Option<String>,
    /// Show, every two seconds, which share of the requests each backend gets
    #[arg(long)]
    watch: bool,
}

/// Shows, sets, watches.
pub(crate) async fn run(cluster: &Cluster, args: &SplitArgs) -> anyhow::Result<()> {
    let (namespace, name) = args
        .route
        .split_once('/')
        .with_context(|| format!("{}: expected NAMESPACE/NAME", args.route))?;
    let weights = args
        .weights
        .iter()
        .map(|text| weight(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut route = cluster
        .get(Kind::HTTP_ROUTE, Some(namespace), name)
        .await?
        .with_context(|| format!("no HTTPRoute {namespace}/{name}"))?;
    if !weights.is_empty() {
        let rules = changed(&route.data["spec"]["rules"], args.rule.as_deref(), &weights)?;
        // Somebody else's change in between is not undone: the version must be the one that was read.
        let patch = json!({
            "metadata": {"resourceVersion": route.metadata.resource_version},
            "spec": {"rules": rules},
        });
        route = cluster
            .objects(Kind::HTTP_ROUTE, Some(namespace))
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(told)
            .with_context(|| format!("cannot change HTTPRoute {namespace}/{name}"))?;
    }
    show(&route);
    if args.watch {
        watch(cluster, namespace, &route).await?;
    }
    Ok(())
}

/// `BACKEND=WEIGHT`.
fn weight(text: &str) -> anyhow::Result<(String, u32)> {
    let (backend, weight) = text
        .split_once('=')
        .with_context(|| format!("{text}: expected BACKEND=WEIGHT"))?;
    match weight.trim_end_matches('%').parse() {
        // The API's own limit.
        Ok(weight @ 0..=1_000_000) => Ok((backend.to_owned(), weight)),
        _ => bail!("{text}: a weight is a number from 0 to 1000000"),
    }
}

/// The rules with the new weights.
fn changed(
    rules: &Value,
    wanted: Option<&str>,
    weights: &[(String, u32)],
) -> anyhow::Result<Value> {
    let mut rules = rules.as_array().cloned().unwrap_or_default();
    let has = |rule: &Value, backend: &str| {
        let backends = rule["backendRefs"].as_array();
        backends.is_some_and(|all| all.iter().any(|one| one["name"] == backend))
    };
    let mut touched = 0;
    for (number, rule) in rules.iter_mut().enumerate() {
        let meant = match wanted {
            Some(name) => rule["name"] == name || number.to_string() == name,
            None => weights.iter().all(|(backend, _)| has(rule, backend)),
        };
        if !meant {
            continue;
        }
        if let Some((missing, _)) = weights.iter().find(|(backend, _)| !has(rule, backend)) {
            bail!("rule {number} has no backend {missing}");
        }
        touched += 1;
        for backend in rule["backendRefs"].as_array_mut().into_iter().flatten() {
            let new = weights.iter().find(|(name, _)| backend["name"] == **name);
            if let Some((_, weight)) = new {
                backend["weight"] = json!(weight);
            }
        }
    }
    match (touched, wanted) {
        (0, Some(name)) => bail!("the route has no rule {name}"),
        (0, None) => bail!("no rule of the route has all of these backends: name one by --rule"),
        _ => Ok(rules.into()),
    }
}

/// Backends of a rule with their weights.
fn backends(rule: &Value) -> Vec<(String, u64)> {
    let all = rule["backendRefs"].as_array().into_iter().flatten();
    all.map(|one| {
        (
            one["name"].as_str().unwrap_or_default().to_owned(),
            one["weight"].as_u64().unwrap_or(1),
        )
    })
    .collect()
}

fn show(route: &DynamicObject) {
    let rules = route.data["spec"]["rules"].as_array();
    for (number, rule) in rules.into_iter().flatten().enumerate() {
        let name = rule["name"].as_str().map(|name| format!(" ({name})"));
        output::line(format!(
            "rule {number}{}: {}",
            name.unwrap_or_default(),
            if rule["matches"].is_null() {
                "every request".to_owned()
            } else {
                rule["matches"].to_string()
            }
        ));
        let backends = backends(rule);
        let sum: u64 = backends.iter().map(|(_, weight)| weight).sum();
        for (backend, weight) in backends {
            let share = (weight * 1000).checked_div(sum).unwrap_or_default();
            output::line(format!(
                "  {backend:<24} weight {weight:>7}  {:>3}.{} %",
                share / 10,
                share % 10
            ));
        }
    }
}

/// Requests to each service, as all replicas of the waypoints have counted them.
type Counts = BTreeMap<String, u64>;

async fn watch(cluster: &Cluster, namespace: &str, route: &DynamicObject) -> anyhow::Result<()> {
    let rules = route.data["spec"]["rules"].as_array();
    let mut names: Vec<String> = rules
        .into_iter()
        .flatten()
        .flat_map(backends)
        .map(|(name, _)| name)
        .collect();
    names.sort();
    names.dedup();
    let started = Instant::now();
    let mut before = counts(cluster, namespace).await?;
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = counts(cluster, namespace).await?;
        let since = |name: &String| {
            let count = |counts: &Counts| counts.get(name).copied().unwrap_or_default();
            // A replica that was started anew counts from zero.
            count(&now).saturating_sub(count(&before))
        };
        let sum: u64 = names.iter().map(since).sum();
        let shares: Vec<String> = names
            .iter()
            .map(|name| {
                let share = (since(name) * 1000).checked_div(sum).unwrap_or_default();
                format!("{name} {}.{} %", share / 10, share % 10)
            })
            .collect();
        output::line(format!(
            "{:>5} s  {sum:>7} requests  {}",
            started.elapsed().as_secs(),
            shares.join("  ")
        ));
        before = now;
    }
}

async fn counts(cluster: &Cluster, namespace: &str) -> anyhow::Result<Counts> {
    // Any waypoint may stand before the route's services, one of another namespace too.
    let params = ListParams::default().labels(&format!(
        "{GATEWAY_NAME},gateway.networking.k8s.io/gateway-class-name=istio-waypoint"
    ));
    let pods = cluster.list(Kind::POD, None, &params).await?;
    if pods.is_empty() {
        bail!("no waypoint runs: nothing counts requests");
    }
    let pages = pods.iter().map(|pod| page(cluster, pod));
    let mut sums = Counts::new();
    for page in futures_util::future::join_all(pages).await {
        for (service, count) in requests(&page?, namespace) {
            *sums.entry(service).or_default() += count;
        }
    }
    Ok(sums)
}

/// The metrics of a pod; empty where it is not ready yet.
async fn page(cluster: &Cluster, pod: &DynamicObject) -> anyhow::Result<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if pod.data["status"]["phase"] != "Running" {
        return Ok(String::new());
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let reading = async {
        let mut forward = pods
            .portforward(name, &[METRICS_PORT])
            .await
            .map_err(told)
            .context("port forward (takes permission `create pods/portforward`)")?;
        let mut stream = forward
            .take_stream(METRICS_PORT)
            .context("port forward gave no stream")?;
        let request = "GET /metrics HTTP/1.1\r\nHost: karst\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(page) => page.with_context(|| format!("waypoint {namespace}/{name}")),
        Err(_elapsed) => bail!("waypoint {namespace}/{name} does not answer"),
    }
}

/// Requests to each service of a namespace, from a page of metrics.
fn requests(page: &str, namespace: &str) -> Counts {
    let mut counts = Counts::new();
    let lines = page
        .lines()
        .filter_map(|line| line.strip_prefix("istio_requests_total{"));
    for line in lines {
        let Some((labels, value)) = line.rsplit_once("} ") else {
            continue;
        };
        let label = |name: &str| {
            let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
            labels.get(start..)?.split('"').next()
        };
        let value: Option<u64> = value.split(' ').next().and_then(|text| text.parse().ok());
        if let (Some(service), Some(value)) = (label("destination_service_name"), value)
            && label("destination_service_namespace") == Some(namespace)
        {
            *counts.entry(service.to_owned()).or_default() += value;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Value {
        json!([
            {"name": "testers", "matches": [{}], "backendRefs": [{"name": "v2", "port": 80}]},
            {"backendRefs": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]},
        ])
    }

    #[test]
    fn weights_go_to_the_rule_that_has_the_backends() {
        let weights = [("v1".to_owned(), 50), ("v2".to_owned(), 50)];
        let new = changed(&rules(), None, &weights).unwrap();
        assert_eq!(
            backends(&new[1]),
            [("v1".to_owned(), 50), ("v2".to_owned(), 50)]
        );
        assert_eq!(new[0], rules()[0]);
        let one = [("v2".to_owned(), 3)];
        let new = changed(&rules(), Some("testers"), &one).unwrap();
        assert_eq!(new[0]["backendRefs"][0]["weight"], 3);
        assert_eq!(new[1], rules()[1]);
        assert!(changed(&rules(), Some("0"), &weights).is_err());
        assert!(changed(&rules(), None, &[("v3".to_owned(), 1)]).is_err());
        assert_eq!(weight("v1=10%").unwrap(), ("v1".to_owned(), 10));
        for bad in ["v1", "v1=-1", "v1=1000001", "v1=x"] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_counted_by_service_of_the_namespace() {
        let line = |service: &str, namespace: &str, code: u16, count: u32| {
            format!(
                "istio_requests_total{{reporter=\"waypoint\",destination_service=\"{service}.{namespace}\",destination_canonical_service=\"orders\",destination_canonical_revision=\"v2\",destination_service_name=\"{service}\",destination_service_namespace=\"{namespace}\",response_code=\"{code}\"}} {count}\n"
            )
        };
        let page =
            line("v1", "shop", 200, 7) + &line("v1", "shop", 503, 1) + &line("v1", "b", 200, 9);
        assert_eq!(
            requests(&page, "shop"),
            Counts::from([("v1".to_owned(), 8)])
        );
    }
}
