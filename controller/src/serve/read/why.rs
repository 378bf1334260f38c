//! Questions of people: the mesh is put together from the resources as agents and waypoints get them, read by the same
//! code as theirs, and asked. Nothing is kept between questions.

use std::{collections::BTreeSet, time::SystemTime};

use http::StatusCode;
use karst_discovery::{Kind, Update, session::Session};
use karst_model::name::GatewayKey;
use karst_path::{
    Facts, describe,
    why::{AskError, Question, answer},
};
use karst_proto::{
    core,
    discovery::{DeltaDiscoveryResponse, Resource},
};
use karst_runtime::admin::{Request, Response};
use prost::Message as _;
use serde::Deserialize;
use serde_json::json;

use super::{Reads, bearer, refusal};
use crate::serve::resources::{Table, TableKey, Tables};

/// The virtual resource whose permission lets the objects of a namespace be seen in answers.
const RESOURCE: &str = "policies";

/// What `describe` is asked.
#[derive(Deserialize)]
struct Wanted {
    object: String,
    namespace: Option<String>,
}

impl Reads {
    /// Answers `why` or `describe`.
    pub(super) async fn question(&self, which: &'static str, request: &Request) -> Response {
        let token = bearer(request);
        // Before anything is looked at: whether the asker is anybody.
        let all = match self.access.visible(token, RESOURCE, &[]).await {
            Ok(visible) => visible.is_none(),
            Err(error) => return refusal(&error),
        };
        let (resources, domain) = (self.resources.clone(), self.cluster_domain.clone());
        let (body, trusted) = (request.body.clone(), self.waypoints.trusted_proxies());
        let asked = tokio::task::spawn_blocking(move || {
            let mut facts = facts(&resources.read(), &domain);
            for (waypoint, count) in trusted {
                facts.trust_proxies(&waypoint, count.into());
            }
            ask(which, &facts, &body)
        });
        let outcome = match asked.await {
            Ok(outcome) => outcome,
            Err(_panicked) => {
                let text =
                    "the question could not be answered, this is a bug in Karst\n".to_owned();
                return Response::plain(StatusCode::INTERNAL_SERVER_ERROR, text);
            }
        };
        match outcome {
            Err(Wrong::Body(text)) => Response::plain(StatusCode::BAD_REQUEST, text),
            Err(Wrong::Unclear(error)) => {
                // Names of other namespaces are for those who may see all.
                let text = match all || !error.is_about_objects() {
                    true => error.to_string(),
                    false => "what is asked about is not there, or not clear".to_owned(),
                };
                Response::json(&json!({"unclear": text}))
            }
            Ok(answered) => self.shown(token, all, answered).await,
        }
    }

    /// The answer without what its asker may not see.
    async fn shown(&self, token: &str, all: bool, mut answered: Answered) -> Response {
        if !all {
            let namespaces = answered.namespaces();
            let visible = match self.access.visible(token, RESOURCE, &namespaces).await {
                Ok(visible) => visible.unwrap_or(namespaces),
                Err(error) => return refusal(&error),
            };
            let visible: BTreeSet<String> = visible.into_iter().collect();
            if visible.is_empty() {
                let text = format!(
                    "you may list {RESOURCE}.karst.dev in none of the namespaces that this is about\n"
                );
                return Response::plain(StatusCode::FORBIDDEN, text);
            }
            answered.hide(|namespace| visible.contains(namespace));
        }
        Response::json(&match answered {
            Answered::Why(answer) => json!({"answer": *answer}),
            Answered::Described(described) => json!({"described": *described}),
        })
    }
}

/// What came of a question.
enum Answered {
    Why(Box<karst_path::why::Answer>),
    Described(Box<describe::Described>),
}

impl Answered {
    fn namespaces(&self) -> Vec<String> {
        match self {
            Self::Why(answer) => answer.namespaces(),
            Self::Described(described) => described.namespaces(),
        }
    }

    fn hide(&mut self, may_see: impl Fn(&str) -> bool) {
        match self {
            Self::Why(answer) => answer.hide(may_see),
            Self::Described(described) => described.hide(may_see),
        }
    }
}

/// Why there is no answer.
enum Wrong {
    Body(String),
    Unclear(AskError),
}

fn ask(which: &str, facts: &Facts, body: &[u8]) -> Result<Answered, Wrong> {
    let unreadable =
        |error: serde_json::Error| Wrong::Body(format!("the question cannot be read: {error}\n"));
    match which {
        "why" => {
            let question: Question = serde_json::from_slice(body).map_err(unreadable)?;
            let answer = answer(facts, &question, SystemTime::now()).map_err(Wrong::Unclear)?;
            Ok(Answered::Why(Box::new(answer)))
        }
        _ => {
            let wanted: Wanted = serde_json::from_slice(body).map_err(unreadable)?;
            let namespace = wanted.namespace.as_deref();
            let described = describe::describe(facts, &wanted.object, namespace);
            described
                .map(|described| Answered::Described(Box::new(described)))
                .map_err(Wrong::Unclear)
        }
    }
}

/// The mesh as agents and waypoints have it once they have taken everything.
fn facts(tables: &Tables, cluster_domain: &str) -> Facts {
    let mut facts = Facts::new(cluster_domain);
    for key in [TableKey::Authorization, TableKey::Address] {
        if let Some(table) = tables.table(&key) {
            facts.apply(updates(table));
        }
    }
    for (key, table) in tables.own() {
        match waypoint(key) {
            Some(gateway) => facts.apply_to(gateway, updates(table)),
            None => facts.apply(updates(table)),
        }
    }
    facts
}

fn waypoint(key: &TableKey) -> Option<&GatewayKey> {
    match key {
        TableKey::Routes(gateway)
        | TableKey::WaypointPolicies(gateway)
        | TableKey::Traffic(gateway)
        | TableKey::RequestAuthentications(gateway) => Some(gateway),
        _ => None,
    }
}

/// What a client would make of a table: the resources go through a session, as they do there.
fn updates(table: &Table) -> Vec<Update> {
    let live = table.since(0).filter_map(|(_, _, live)| live);
    let resources: Vec<Resource> = live
        .filter_map(|live| Resource::decode(live.encoded.as_ref()).ok())
        .collect();
    let content = resources.iter().find_map(|one| one.resource.as_ref());
    let Some(type_url) = content.map(|content| content.type_url.clone()) else {
        return Vec::new();
    };
    let Some(kind) = Kind::of(&type_url) else {
        return Vec::new();
    };
    let mut session = Session::new(core::Node::default(), &[kind]);
    let response = DeltaDiscoveryResponse {
        type_url,
        resources,
        ..DeltaDiscoveryResponse::default()
    };
    session.handle(response).updates
}
