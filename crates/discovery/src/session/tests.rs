//! The session against a server that loses, repeats, reorders and garbles, from seeds.

use std::collections::BTreeMap;

use karst_model::{
    route::{Route, RouteRules},
    waypoint_policy::{PolicyTarget, RequestAction, WaypointPolicy},
    workload::Workload,
};
use karst_proto::{convert, type_url};
use prost::Message as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::state::State;

fn node() -> core::Node {
    core::Node {
        id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".into(),
        ..core::Node::default()
    }
}

fn workload(uid: &str, name: &str) -> Workload {
    Workload {
        name: name.into(),
        cluster_id: "c".into(),
        ..Workload::new(uid)
    }
}

fn resource(uid: &str, name: &str) -> Resource {
    let value = convert::workload_to(&workload(uid, name)).encode_to_vec();
    let any = prost_types::Any {
        type_url: type_url::ADDRESS.into(),
        value,
    };
    Resource {
        name: uid.into(),
        version: format!("{:016x}", name.len()),
        resource: Some(any),
        aliases: Vec::new(),
    }
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        nonce: nonce.into(),
        type_url: type_url::ADDRESS.into(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

#[test]
fn a_stream_opens_with_a_wildcard_per_kind_and_the_node_once() {
    let requests = Session::new(node(), &Kind::ALL).start();
    let urls: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(
        urls,
        [
            type_url::TRUST_DOMAINS,
            type_url::AUTHORIZATION,
            type_url::ADDRESS,
            type_url::NODE_WORKLOAD,
            type_url::TELEMETRY
        ]
    );
    assert_eq!(requests.iter().filter(|r| r.node.is_some()).count(), 1);
    assert!(
        requests
            .iter()
            .all(|r| r.resource_names_subscribe.is_empty() && r.response_nonce.is_empty())
    );
}

#[test]
fn one_bad_resource_harms_only_itself() {
    let mut session = Session::new(node(), &[Kind::Address]);
    session.handle(response("1", vec![resource("bad", "old")], &[]));
    let mut garbage = resource("bad", "newer");
    garbage.resource.as_mut().unwrap().value = vec![0xff; 7];
    let unnamed = resource("other", "x");
    let wrong_name = Resource {
        name: "not-other".into(),
        ..unnamed
    };
    let handled = session.handle(response(
        "2",
        vec![garbage, resource("good", "g"), wrong_name],
        &[],
    ));
    assert_eq!(
        handled.updates,
        [Update::Workload(workload("good", "g").into())]
    );
    assert_eq!(handled.reply.response_nonce, "2");
    let message = handled.reply.error_detail.unwrap().message;
    assert!(
        message.contains("bad: not a istio.workload.Address; not-other: named so"),
        "{message}"
    );
    let held = &session.start()[0].initial_resource_versions;
    assert_eq!(
        held["bad"],
        format!("{:016x}", 3),
        "the version of its last good form"
    );
    assert!(held.contains_key("good") && !held.contains_key("not-other"));
}

#[test]
fn restored_names_are_held_without_a_version() {
    let mut session = Session::new(node(), &[Kind::Address]);
    session.hold(Kind::Address, ["a".into()]);
    assert_eq!(session.start()[0].initial_resource_versions["a"], "");
    session.handle(response("1", Vec::new(), &["a"]));
    assert!(session.start()[0].initial_resource_versions.is_empty());
}

#[test]
fn an_unknown_type_is_refused_and_a_partial_first_answer_is_not_an_answer() {
    let mut session = Session::new(node(), &[Kind::Address]);
    let unknown = DeltaDiscoveryResponse {
        type_url: "x".into(),
        nonce: "n".into(),
        ..Default::default()
    };
    assert!(session.handle(unknown).reply.error_detail.is_some());
    let part = DeltaDiscoveryResponse {
        system_version_info: dialect::MORE_FOLLOWS.into(),
        ..response("1", vec![], &[])
    };
    session.handle(part);
    assert!(!session.is_synced());
    session.handle(response("2", vec![], &[]));
    assert!(session.is_synced());
}

/// A server with a truth, and a wire that misbehaves. After any history, a stream that is served honestly by what the
/// client says it holds brings state and truth together, and sends nothing that is the same already.
#[test]
fn any_history_converges_after_an_honest_stream() {
    for seed in 0..10_000 {
        converge(seed);
    }
}

fn converge(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut session = Session::new(node(), &[Kind::Address]);
    let state = State::new();
    let mut truth: BTreeMap<String, String> = BTreeMap::new();
    for step in 0..rng.random_range(0..12) {
        let mut resources = Vec::new();
        let mut removed = Vec::new();
        for _ in 0..rng.random_range(0..4) {
            let uid = format!("w{}", rng.random_range(0..6));
            match rng.random_range(0..5) {
                0 => {
                    truth.remove(&uid);
                    removed.push(uid);
                }
                1 => resources.push(garbled(&uid, &mut rng)),
                2 => removed.push(format!("unknown{}", rng.random_range(0..3))),
                _ => {
                    let name = "n".repeat(rng.random_range(1..9));
                    resources.push(resource(&uid, &name));
                    truth.insert(uid, name);
                }
            }
        }
        // Lost in mid-message: never decoded, never applied.
        if rng.random_range(0..4) == 0 {
            continue;
        }
        let removed: Vec<_> = removed.iter().map(String::as_str).collect();
        let message = response(&step.to_string(), resources, &removed);
        for _ in 0..rng.random_range(1..3) {
            let handled = session.handle(message.clone());
            assert_eq!(handled.reply.response_nonce, step.to_string());
            state.apply(handled.updates);
        }
    }
    let held = session.start().remove(0).initial_resource_versions;
    let differs = |(uid, name): (&String, &String)| {
        let fresh = resource(uid, name);
        (held.get(uid) != Some(&fresh.version)).then_some(fresh)
    };
    let resources = truth.iter().filter_map(differs).collect();
    let gone: Vec<_> = held
        .keys()
        .filter(|name| !truth.contains_key(*name))
        .map(String::as_str)
        .collect();
    state.apply(session.handle(response("last", resources, &gone)).updates);
    let found: BTreeMap<_, _> = state
        .workloads()
        .iter()
        .map(|w| (w.uid.to_string(), w.name.to_string()))
        .collect();
    assert_eq!(found, truth, "seed {seed}");
    let versions = truth
        .iter()
        .map(|(uid, name)| (uid.clone(), resource(uid, name).version));
    assert_eq!(
        session.start()[0].initial_resource_versions,
        versions.collect(),
        "seed {seed}"
    );
}

fn garbled(uid: &str, rng: &mut StdRng) -> Resource {
    let mut resource = resource(uid, "garbled");
    let Some(any) = &mut resource.resource else {
        return resource;
    };
    match rng.random_range(0..4) {
        0 => resource.resource = None,
        1 => any.type_url.push('x'),
        2 => resource.name.push('x'),
        _ => {
            let mut noise = vec![0xff; 3];
            noise.extend(rng.next_u64().to_be_bytes());
            any.value = noise;
        }
    }
    resource
}

#[test]
fn a_waypoint_follows_routes_and_request_policies_to_their_end() {
    let (mut session, state) = (Session::new(node(), &Kind::WAYPOINT), State::new());
    let route = Route {
        key: "HTTPRoute/shop/r".parse().unwrap(),
        created: 0,
        attachments: Vec::new(),
        rules: RouteRules::Http(Vec::new()),
    };
    let policy = WaypointPolicy {
        key: "shop/p".parse().unwrap(),
        targets: vec![PolicyTarget::GatewayClass("istio-waypoint".into())],
        action: RequestAction::Deny,
        provider: None,
        dry_run: false,
        rules: Vec::new(),
    };
    let resources = [
        (
            type_url::ROUTE,
            "HTTPRoute/shop/r",
            convert::route_to(&route).encode_to_vec(),
        ),
        (
            type_url::WAYPOINT_POLICY,
            "shop/p",
            convert::waypoint_policy_to(&policy).encode_to_vec(),
        ),
    ];
    for (type_url, name, value) in resources {
        let any = prost_types::Any {
            type_url: type_url.into(),
            value,
        };
        let resource = Resource {
            name: name.into(),
            resource: Some(any),
            ..Resource::default()
        };
        let mut response = response("1", vec![resource], &[]);
        response.type_url = type_url.into();
        let handled = session.handle(response);
        assert!(handled.rejected.is_empty(), "{:?}", handled.rejected);
        state.apply(handled.updates);
    }
    assert_eq!(*state.routes()[0], route);
    assert_eq!(*state.waypoint_policies()[0], policy);
    for (type_url, name) in [
        (type_url::ROUTE, "HTTPRoute/shop/r"),
        (type_url::WAYPOINT_POLICY, "shop/p"),
    ] {
        let mut gone = response("2", Vec::new(), &[name]);
        gone.type_url = type_url.into();
        state.apply(session.handle(gone).updates);
    }
    assert!(state.routes().is_empty() && state.waypoint_policies().is_empty());
}
