//! The agent's HTTP pages: metrics and readiness for everybody, configuration and state on loopback only.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use http::{Method, StatusCode};
use karst_runtime::{
    admin::{Response, Router},
    build_info::BUILD,
    readiness::Readiness,
};
use karst_telemetry::{logging::LogHandle, metrics::Registry};
use serde_json::json;

use crate::{
    capture::{CapturedPods, CapturedWatch},
    mesh::Mesh,
};

/// Connections that `/connections` shows at most.
const MAX_SHOWN: usize = 1000;

/// Pages that anybody who reaches the node may read.
pub(crate) fn metrics_pages(registry: &Arc<Registry>) -> Router {
    let page = |registry: Arc<Registry>| {
        move |_request| {
            let text = registry.encode();
            async move {
                Response {
                    status: StatusCode::OK,
                    content_type: karst_telemetry::metrics::CONTENT_TYPE,
                    body: text.into(),
                }
            }
        }
    };
    Router::new()
        .route(
            Method::GET,
            "/metrics",
            "metrics, OpenMetrics text",
            page(registry.clone()),
        )
        .route(
            Method::GET,
            "/stats/prometheus",
            "the same",
            page(registry.clone()),
        )
}

/// `/healthz/ready`: 200, or 500 with what is still pending.
pub(crate) fn ready_pages(readiness: &Readiness) -> Router {
    let readiness = readiness.clone();
    Router::new().route(
        Method::GET,
        "/healthz/ready",
        "readiness",
        move |_request| {
            let pending = readiness.pending();
            async move {
                if pending.is_empty() {
                    Response::text("ready\n")
                } else {
                    Response::plain(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!("waiting for: {}\n", pending.join(", ")),
                    )
                }
            }
        },
    )
}

/// Pages for this node's administrator.
pub(crate) fn admin_pages(mesh: &Arc<Mesh>, captured: CapturedWatch, logs: LogHandle) -> Router {
    let (dump, live, kernel) = (mesh.clone(), mesh.clone(), mesh.clone());
    Router::new()
        .route(
            Method::GET,
            "/config_dump",
            "everything that this agent knows, no keys",
            move |_request| {
                let body = config_dump(&dump, captured.borrow().as_ref());
                async move { Response::json(&body) }
            },
        )
        .route(
            Method::GET,
            "/connections",
            "live inbound connections",
            move |_request| {
                let body = json!(live.live.show(MAX_SHOWN));
                async move { Response::json(&body) }
            },
        )
        .route(
            Method::GET,
            "/kernel",
            "counters of the kernel programs",
            move |_request| {
                let counters: serde_json::Map<_, _> = kernel
                    .datapath
                    .counters()
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), json!(value)))
                    .collect();
                async move { Response::json(&counters.into()) }
            },
        )
        .route(
            Method::POST,
            "/logging",
            "change the log filter: ?level=<filter>, or ?reset",
            move |request| {
                let answer = change_logging(
                    &logs,
                    request.parameter("level"),
                    request.parameter("reset").is_some(),
                );
                async move { answer }
            },
        )
}

fn change_logging(logs: &LogHandle, level: Option<&str>, reset: bool) -> Response {
    let changed = match level {
        _ if reset => logs.reset(),
        Some(level) => logs.set(level),
        None => Ok(()),
    };
    match changed {
        Ok(()) => Response::text(format!("{}\n", logs.current())),
        Err(error) => Response::plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn config_dump(mesh: &Mesh, captured: Option<&CapturedPods>) -> serde_json::Value {
    let pods: Vec<_> = captured
        .into_iter()
        .flat_map(BTreeMap::values)
        .map(|pod| {
            json!({
                "podUid": pod.pod_uid, "name": pod.name, "namespace": pod.namespace,
                "identity": pod.identity, "addresses": pod.addresses, "netnsCookie": pod.cookie.0,
            })
        })
        .collect();
    json!({
        "version": BUILD.json(),
        "config": mesh.config,
        "workloads": mesh.state.workloads(),
        "services": mesh.state.services(),
        "policies": mesh.state.policies(),
        "nodeWorkloads": mesh.state.node_workloads(),
        "capturedPods": pods,
        "certificates": mesh.identities.statuses(),
        "kernelDestinations": mesh.datapath.destinations().unwrap_or_default(),
    })
}

/// All addresses of the node.
pub(crate) fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from(([0u16; 8], port))
}
