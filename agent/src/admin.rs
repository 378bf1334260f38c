//! The agent's own pages, on loopback only: configuration and state. Metrics and readiness are `karst-runtime`'s.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use http::Method;
use karst_runtime::{
    admin::{Response, Router},
    build_info::BUILD,
};
use karst_telemetry::logging::LogHandle;
use serde_json::json;

use crate::{
    capture::{CapturedPods, CapturedWatch, Held},
    mesh::Mesh,
};

/// Connections that `/connections` shows at most.
const MAX_SHOWN: usize = 1000;

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
        .logging(logs)
}

fn config_dump(mesh: &Mesh, captured: Option<&CapturedPods>) -> serde_json::Value {
    let pods: Vec<_> = captured
        .into_iter()
        .flat_map(BTreeMap::values)
        .map(|Held { pod, capture }| {
            json!({
                "podUid": pod.pod_uid, "name": pod.name, "namespace": pod.namespace,
                "identity": pod.identity, "addresses": pod.addresses, "netnsCookie": pod.cookie.0,
                "generation": capture.generation, "plaintextOpen": capture.plaintext_open,
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
