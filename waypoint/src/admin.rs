//! The waypoint's own pages, on loopback only: configuration, state, routes. Metrics and readiness are
//! `karst-runtime`'s.

use std::sync::{Arc, atomic::Ordering};

use http::Method;
use karst_routing::breaker::Slots;
use karst_runtime::{
    admin::{Response, Router},
    build_info::BUILD,
};
use karst_telemetry::logging::LogHandle;
use serde_json::{Value, json};

use crate::{
    mesh::Mesh,
    services::{Cluster, Port, Slot},
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
        "traffic": mesh.state.traffic(),
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
        "requestsInFlight": slot.in_flight.load(Ordering::Relaxed),
        "ports": ports.collect::<Vec<_>>(),
    })
}

fn show_port(number: u16, port: &Port) -> Value {
    let clusters = port.clusters().map(|cluster| show_cluster(cluster));
    let problems = port.table.problems().iter().map(|problem| {
        json!({ "route": problem.route.to_string(), "rule": problem.rule, "what": problem.what })
    });
    json!({
        "port": number,
        "appProtocol": port.app_protocol,
        "sets": clusters.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}

fn show_cluster(cluster: &Cluster) -> Value {
    let (live, limits) = (&cluster.live, &cluster.policy.connections);
    let endpoints = cluster.members().iter().map(|member| {
        let (endpoint, health) = (&member.endpoint, &member.health);
        json!({
            "workload": endpoint.workload.uid.to_string(),
            "address": endpoint.addr.to_string(),
            "inFlight": endpoint.in_flight(),
            "ejected": health.is_ejected(),
            "ejections": health.ejections.load(Ordering::Relaxed),
            "failsItsCheck": health.is_failing(),
        })
    });
    let is_open = |slots: &Slots, max: Option<u32>| max.is_some_and(|max| slots.used() >= max);
    json!({
        "subset": live.key.subset,
        "policy": *cluster.policy,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ejected": live.ejected(),
        "ejections": live.ejections.load(Ordering::Relaxed),
        "requests": live.requests.used(),
        "pending": live.pending.used(),
        "connections": live.connections.used(),
        "retries": live.retries.used(),
        "overflows": live.overflows.load(Ordering::Relaxed),
        "requestsAreFull": is_open(&live.requests, limits.max_requests),
        "connectionsAreFull": is_open(&live.connections, limits.max),
    })
}
