//! `karst status`, `workloads`, `services`, `policies`, `certificates`, `connections`: live, as tables or JSON.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Kind},
    output,
    reads::{ReaderArgs, Reads},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Only of this namespace
    #[arg(value_name = "NAMESPACE")]
    of: Option<String>,
    #[command(flatten)]
    reader: ReaderArgs,
    /// table or json
    #[arg(long, short, value_enum, default_value_t = output::Format::Table)]
    output: output::Format,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    reader: ReaderArgs,
    /// table or json
    #[arg(long, short, value_enum, default_value_t = output::Format::Table)]
    output: output::Format,
}

/// A column: its head, and what it says of an item.
type Column = (&'static str, fn(&Value) -> String);

/// Something that can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    Workloads,
    Services,
    Policies,
    Certificates,
    Connections,
}

impl Kinds {
    fn name(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::Certificates => "certificates",
            Self::Connections => "connections",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Self::Workloads => &[
                ("NAMESPACE", |item| text(item, "namespace")),
                ("NAME", |item| text(item, "name")),
                ("ADDRESSES", |item| list(item, "addresses")),
                ("NODE", |item| text(item, "node")),
                ("PROTOCOL", protocol),
                ("SERVICE ACCOUNT", |item| text(item, "serviceAccount")),
            ],
            Self::Services => &[
                ("NAMESPACE", |item| text(item, "namespace")),
                ("NAME", |item| text(item, "name")),
                ("ADDRESSES", |item| list(item, "addresses")),
                ("PORTS", ports),
                ("ENDPOINTS", |item| {
                    format!("{}/{}", item["healthyEndpoints"], item["endpoints"])
                }),
            ],
            Self::Policies => &[
                ("NAMESPACE", |item| text(item, "namespace")),
                ("NAME", |item| text(item, "name")),
                ("SCOPE", |item| text(item, "scope")),
                ("ACTION", |item| text(item, "action")),
                ("RULES", |item| text(item, "rules")),
                ("WORKLOADS", |item| text(item, "workloads")),
            ],
            Self::Certificates => &[
                ("NODE", |item| text(item, "node")),
                ("IDENTITY", |item| text(item, "name")),
                ("PODS", |item| text(item, "pods")),
                ("EXPIRES IN", |item| until(&text(item, "expires"))),
                ("SERIAL NUMBER", |item| text(item, "serialNumber")),
                ("LAST ERROR", |item| text(item, "lastError")),
            ],
            Self::Connections => &[
                ("TO", |item| {
                    format!("{}/{}", text(item, "namespace"), text(item, "name"))
                }),
                ("TARGET", |item| text(item, "target")),
                ("FROM", |item| text(item, "source")),
                ("IDENTITY", identity),
                ("AGE", |item| {
                    duration(item["ageSeconds"].as_i64().unwrap_or(0))
                }),
                ("IN", |item| bytes(&item["requestBytes"])),
                ("OUT", |item| bytes(&item["responseBytes"])),
            ],
        }
    }
}

/// Shows items of a kind.
pub(crate) async fn run(cluster: &Cluster, kinds: Kinds, args: &ShowArgs) -> anyhow::Result<()> {
    let reads = Reads::open(cluster, &args.reader).await?;
    let of = args.of.as_deref();
    let items = match kinds {
        Kinds::Certificates | Kinds::Connections => reads.all(kinds.name(), of).await?,
        _ => reads.any(kinds.name(), of).await?,
    };
    match args.output {
        output::Format::Json => output::json(&items)?,
        output::Format::Table if items.is_empty() => {
            output::line(format!(
                "no {}{}",
                kinds.name(),
                of.map(|of| format!(" in namespace {of}"))
                    .unwrap_or_default()
            ));
        }
        output::Format::Table => table(&items, kinds.columns()),
    }
    Ok(())
}

fn table(items: &[Value], columns: &[Column]) {
    let head = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let rows = items
        .iter()
        .map(|item| columns.iter().map(|(_, cell)| cell(item)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    output::table(&rows);
}

/// Shows every node: its agent, or that it has none.
pub(crate) async fn status(cluster: &Cluster, args: &StatusArgs) -> anyhow::Result<()> {
    let reads = Reads::open(cluster, &args.reader).await?;
    let mut agents = reads.agents().await?;
    let nodes = cluster
        .list(Kind::NODE, None, &kube::api::ListParams::default())
        .await?;
    for node in nodes {
        let name = node.metadata.name.unwrap_or_default();
        if !agents.iter().any(|agent| agent["node"] == json!(name)) {
            agents.push(json!({"node": name, "error": "no agent is connected to a controller"}));
        }
    }
    agents.sort_by_cached_key(|agent| text(agent, "node"));
    if args.output == output::Format::Json {
        return output::json(&agents);
    }
    table(
        &agents,
        &[
            ("NODE", |agent| text(agent, "node")),
            ("AGENT", |agent| match agent["error"].as_str() {
                Some(error) => error.to_owned(),
                None => text(agent, "version"),
            }),
            ("UP", |agent| {
                agent["uptimeSeconds"]
                    .as_i64()
                    .map(duration)
                    .unwrap_or_default()
            }),
            ("PODS", |agent| text(agent, "podsCaptured")),
            ("CONFIG", lag),
            ("CERTIFICATES", certificates),
            ("SHORTEST", |agent| {
                until(&text(&agent["shortestCertificate"], "expires"))
            }),
        ],
    );
    Ok(())
}

fn lag(agent: &Value) -> String {
    if let Some(refused) = agent["refused"].as_str() {
        return format!("REFUSED {refused}");
    }
    match (agent["changesBehind"].as_u64(), agent["error"].is_string()) {
        (_, true) => String::new(),
        (None, false) => "waiting".to_owned(),
        (Some(0), false) => "current".to_owned(),
        (Some(behind), false) => format!("{behind} behind"),
    }
}

fn certificates(agent: &Value) -> String {
    match agent["certificatesFailing"].as_u64() {
        None | Some(0) => text(agent, "certificates"),
        Some(failing) => format!("{} ({failing} failing)", text(agent, "certificates")),
    }
}

fn text(item: &Value, key: &str) -> String {
    match &item[key] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list(item: &Value, key: &str) -> String {
    let items: Vec<&str> = item[key]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    items.join(",")
}

fn ports(item: &Value) -> String {
    let ports: Vec<String> = item["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| port["port"].to_string())
        .collect();
    ports.join(",")
}

fn protocol(item: &Value) -> String {
    match item["hostNetwork"] == true {
        true => "TCP (host network)".to_owned(),
        false => text(item, "protocol"),
    }
}

fn identity(item: &Value) -> String {
    match item["mutualTls"] == true {
        true => text(item, "sourceIdentity"),
        false => "none (plaintext)".to_owned(),
    }
}

/// Time left until an RFC 3339 time.
fn until(time: &str) -> String {
    if time.is_empty() {
        return "none".to_owned();
    }
    let Ok(end) = time.parse::<Timestamp>() else {
        return time.to_owned();
    };
    let left = end.as_second() - Timestamp::now().as_second();
    match left > 0 {
        true => duration(left),
        false => format!("EXPIRED {} ago", duration(-left)),
    }
}

/// Seconds in the two largest units.
fn duration(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

fn bytes(value: &Value) -> String {
    let bytes = value.as_u64().unwrap_or(0);
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(5), "5s");
        assert_eq!(duration(65), "1m05s");
        assert_eq!(duration(3600 * 23 + 60), "23h01m");
        assert_eq!(duration(86_400 * 2), "2d00h");
    }

    #[test]
    fn a_plaintext_caller_is_shown_as_such() {
        assert_eq!(identity(&json!({"mutualTls": false})), "none (plaintext)");
        assert!(until("2020-01-01T00:00:00Z").starts_with("EXPIRED"));
        assert_eq!(until(""), "none");
        assert_eq!(lag(&json!({"changesBehind": 0})), "current");
        assert_eq!(lag(&json!({"changesBehind": 3})), "3 behind");
        let refused = json!({"changesBehind": 0, "refused": "a policy: no such field"});
        assert_eq!(lag(&refused), "REFUSED a policy: no such field");
    }
}
