//! `karst why --last`: what agents and waypoints denied, or could not carry, lately. Each of them keeps a bounded number
//! and tells its controller; nothing is written to a disk.

use std::process::ExitCode;

use jiff::Timestamp;
use karst_path::why::printable;
use serde_json::Value;

use super::{Format, json};
use crate::{output, reads::Reads};

/// Shows the incidents of a pod, or all (`""`), the oldest first.
pub(super) async fn show(
    reads: &Reads<'_>,
    pod: &str,
    namespace: Option<&str>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let (within, name) = match pod.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (namespace, pod),
    };
    let mut items = reads.all("incidents", within).await?;
    items.retain(|item| name.is_empty() || is_of(item, name));
    items.sort_by_key(|item| item["at"].as_u64());
    match format {
        Format::Json => json(&Value::Array(items))?,
        Format::Text if items.is_empty() => {
            let of = match name {
                "" => String::new(),
                name => format!(" to or from {}", printable(name)),
            };
            output::line(format!("nothing was denied or failed lately{of}"));
        }
        Format::Text => items.iter().for_each(|item| output::line(line(item))),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether one end is the pod, or a pod of that owner.
fn is_of(item: &Value, name: &str) -> bool {
    ["source", "destination"]
        .iter()
        .any(|end| item[end]["workload"].as_str() == Some(name))
}

/// `time KIND source -> destination (what): reason`.
fn line(item: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at = item["at"].as_i64().unwrap_or(0);
    let at =
        Timestamp::from_millisecond(at).map_or_else(|_beyond| String::new(), |at| at.to_string());
    let end = |end: &Value| {
        let (namespace, workload) = (text(&end["namespace"]), text(&end["workload"]));
        let name = match workload.is_empty() {
            true => text(&end["address"]),
            false => format!("{namespace}/{workload}"),
        };
        match name.is_empty() {
            true => "unknown".to_owned(),
            false => name,
        }
    };
    let service = match text(&item["service"]) {
        service if service.is_empty() => String::new(),
        service => format!(" for {service}"),
    };
    let request = match text(&item["method"]) {
        method if method.is_empty() => String::new(),
        method => format!(" {method} {} {}", text(&item["path"]), item["status"]),
    };
    let line = format!(
        "{at} {:<6} {} -> {}{service}{request} [{} {}]: {}",
        text(&item["kind"]),
        end(&item["source"]),
        end(&item["destination"]),
        text(&item["direction"]),
        text(&item["flag"]),
        text(&item["reason"]),
    );
    printable(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hostile_path_stays_in_its_line() {
        let item = json!({
            "at": 1_700_000_000_000_u64, "kind": "denied", "direction": "waypoint", "flag": "-",
            "source": {"namespace": "shop", "workload": "front"}, "destination": {"address": "10.0.0.1:80"},
            "method": "GET", "path": "/\n2026 denied\u{1b}[2J", "status": 403, "reason": "no rule",
        });
        let line = line(&item);
        assert!(!line.contains('\n') && !line.contains('\u{1b}'), "{line}");
        assert!(
            line.contains("shop/front -> 10.0.0.1:80") && line.ends_with("no rule"),
            "{line}"
        );
    }
}
