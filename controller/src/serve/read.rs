//! The read API: what `karst status` and its sisters show. JSON over HTTP on the pod's own loopback, which only a port
//! forward reaches, and only with a token of which the API server says whose it is and what it may see.
//!
//! ```text
//! karst ── TokenRequest for a reader's service account ──► API server
//!       ── port-forward: GET /read/v1/... + token ──► here ── TokenReview, SubjectAccessReview ──► API server
//! ```
//!
//! What may be seen is a permission to `list` the virtual resources `agents`, `workloads`, `services`, `policies`,
//! `certificates`, `connections`, `incidents` and `edges` of group `karst.dev`, in one namespace or in all. Questions
//! ([`why`]) show of each namespace what its `policies` permission lets be seen. No user's own credential comes here.

mod access;
mod view;
mod why;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use http::{Method, StatusCode, header};
use karst_proto::reads::Subject;
use karst_runtime::admin::{Request, Response, Router};
use serde_json::{Value, json};

pub use self::access::{Access, AccessError};
use super::{acks::Acks, nodes::Nodes, observations::Observed, resources::Resources};
use crate::deploy::Waypoints;

/// Where it listens: loopback only.
pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// What can be read.
#[derive(Clone)]
pub struct Reads {
    pub access: Arc<Access>,
    pub resources: Arc<Resources>,
    pub acks: Arc<Acks>,
    pub nodes: Arc<Nodes>,
    pub observed: Arc<Observed>,
    /// The waypoints that are deployed.
    pub waypoints: Arc<Waypoints>,
    /// Domain of service names.
    pub cluster_domain: String,
    /// Name of this replica.
    pub replica: String,
}

/// The virtual resources, as roles name them.
const RESOURCES: &[(&str, &str)] = &[
    ("agents", "agents that are connected to this replica"),
    ("workloads", "pods and other workloads"),
    ("services", "services"),
    ("policies", "authorization policies as agents have them"),
    ("certificates", "certificates on the nodes"),
    ("connections", "live connections that policy admitted"),
    ("incidents", "what was denied or failed lately"),
    ("edges", "who talks to whom"),
];

/// The pages.
pub fn pages(reads: Reads) -> Router {
    let questions = [
        ("why", "what would happen to a connection or a request"),
        ("describe", "what touches an object"),
    ];
    let router = questions
        .into_iter()
        .fold(Router::new(), |router, (name, help)| {
            let reads = reads.clone();
            router.route(
                Method::POST,
                &format!("/read/v1/{name}"),
                help,
                move |request| {
                    let reads = reads.clone();
                    async move { reads.question(name, &request).await }
                },
            )
        });
    RESOURCES.iter().fold(router, |router, (name, help)| {
        let reads = reads.clone();
        router.route(
            Method::GET,
            &format!("/read/v1/{name}"),
            help,
            move |request| {
                let reads = reads.clone();
                async move { reads.answer(name, &request).await }
            },
        )
    })
}

impl Reads {
    async fn answer(&self, resource: &str, request: &Request) -> Response {
        let namespace = request
            .parameter("namespace")
            .filter(|name| !name.is_empty());
        let token = bearer(request);
        match self.access.check(token, resource, namespace).await {
            Ok(()) => {}
            Err(error) => return refusal(&error),
        }
        let items = match resource {
            "agents" => self.agents().await,
            "certificates" => self.certificates(namespace).await,
            "connections" => self.connections(namespace).await,
            "incidents" => self.observed.incidents(namespace),
            "edges" => self.observed.edges(namespace),
            kind => view::table(kind, &self.resources.read(), namespace),
        };
        Response::json(&json!({"replica": self.replica, "items": items}))
    }

    async fn agents(&self) -> Vec<Value> {
        let revision = self.resources.read().revision();
        let acked = self.acks.by_node();
        let answers = self.nodes.ask(Subject::Status).await;
        let behind = |node: &str| Some(revision.saturating_sub(acked.get(node)?.acked));
        let refused = |node: &str| acked.get(node)?.refused.clone();
        let mut agents: Vec<Value> = answers
            .iter()
            .map(|(node, answer)| match answer {
                Ok(answer) => {
                    let status = answer.status.clone().unwrap_or_default();
                    view::agent(node, &status, behind(node), refused(node))
                }
                Err(error) => json!({"node": node, "error": error.to_string()}),
            })
            .collect();
        // An agent's streams may go to different replicas: what it acknowledges here, it may be asked elsewhere.
        let elsewhere = acked
            .keys()
            .filter(|node| !answers.iter().any(|(asked, _)| **asked == ***node));
        agents.extend(elsewhere.map(|node| {
            json!({"node": &**node, "changesBehind": behind(node), "refused": refused(node)})
        }));
        agents
    }

    async fn certificates(&self, namespace: Option<&str>) -> Vec<Value> {
        let mut items = Vec::new();
        for (node, answer) in self.nodes.ask(Subject::Status).await {
            let certificates = answer.ok().and_then(|answer| answer.status);
            let certificates = certificates.unwrap_or_default().certificates;
            items.extend(
                certificates
                    .iter()
                    .map(|certificate| view::certificate(&node, certificate)),
            );
        }
        view::within(items, namespace)
    }

    async fn connections(&self, namespace: Option<&str>) -> Vec<Value> {
        let mut items = Vec::new();
        for (node, answer) in self.nodes.ask(Subject::Connections).await {
            let connections = answer.unwrap_or_default().connections;
            items.extend(
                connections
                    .iter()
                    .map(|connection| view::connection(&node, connection)),
            );
        }
        view::within(items, namespace)
    }
}

fn bearer(request: &Request) -> &str {
    let token = request.headers.get(header::AUTHORIZATION);
    token
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default()
}

fn refusal(error: &AccessError) -> Response {
    let status = match error {
        AccessError::Unknown => StatusCode::UNAUTHORIZED,
        AccessError::Denied { .. } => StatusCode::FORBIDDEN,
        AccessError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Response::plain(status, format!("{error}\n"))
}
