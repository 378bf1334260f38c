//! The waypoint's own pages, on loopback only: configuration, state, routes. Metrics and readiness are
//! `karst-runtime`'s.

use std::sync::Arc;

use http::Method;
use karst_runtime::{
    admin::{Response, Router},
    build_info::BUILD,
};
use karst_telemetry::logging::LogHandle;
use serde_json::{Value, json};

use crate::{
    mesh::Mesh,
    services::{Port, Slot},
};

/// Pages for whoever runs the waypoint.
pub(crate) fn admin_pages(mesh: &Arc<Mesh>, logs: LogHandle) -> Router {
    let (dump, services) = (mesh.clone(), mesh.clone());
    Router::new()
        .route(
            Method::GET,
            "/config_dump",
            "everything that this waypoint knows, no keys",
            move |_request| {
                let body = config_dump(&dump);
                async move { Response::json(&body) }
            },
        )
        .route(
            Method::GET,
            "/services",
            "what is compiled for each service that somebody asked for",
            move |_request| {
                let body = json!(
                    services
                        .services
                        .slots()
                        .iter()
                        .map(|slot| show(slot))
                        .collect::<Vec<_>>()
                );
                async move { Response::json(&body) }
            },
        )
        .logging(logs)
}

fn config_dump(mesh: &Mesh) -> Value {
    json!({
        "version": BUILD.json(),
        "config": mesh.config,
        "workloads": mesh.state.workloads(),
        "services": mesh.state.services(),
        "routes": mesh.state.routes(),
        "policies": mesh.state.waypoint_policies(),
        "certificates": mesh.identities.statuses(),
    })
}

fn show(slot: &Slot) -> Value {
    let served = slot.load();
    let ports = served
        .ports
        .iter()
        .map(|(number, port)| show_port(*number, port));
    json!({
        "service": slot.key.to_string(),
        "bound": served.bound,
        "requestsInFlight": slot.in_flight.load(std::sync::atomic::Ordering::Relaxed),
        "ports": ports.collect::<Vec<_>>(),
    })
}

fn show_port(number: u16, port: &Port) -> Value {
    let endpoints = port.endpoints().iter().map(|endpoint| {
        json!({
            "workload": endpoint.workload.uid.to_string(),
            "address": endpoint.addr.to_string(),
            "inFlight": endpoint.in_flight(),
        })
    });
    let problems = port.table.problems().iter().map(|problem| {
        json!({ "route": problem.route.to_string(), "rule": problem.rule, "what": problem.what })
    });
    json!({
        "port": number,
        "appProtocol": port.app_protocol,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}
