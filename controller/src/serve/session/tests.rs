//! One stream against tables that change, with a client that is as plain as a map.

use std::collections::BTreeMap;

use karst_proto::{core, discovery::Resource, rpc};
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::serve::resources::{Content, Publication, Resources};

fn put(table: TableKey, name: &str, value: &str) -> Publication {
    let type_url = match table {
        TableKey::Authorization => type_url::AUTHORIZATION,
        _ => type_url::ADDRESS,
    };
    let aliases = vec![format!("/{name}")];
    let content = Content {
        type_url,
        value: value.into(),
        aliases,
        groups: Vec::new(),
        covers_all: false,
    };
    Publication {
        table,
        name: name.into(),
        content: Some(content),
    }
}

fn gone(table: TableKey, name: &str) -> Publication {
    Publication {
        table,
        name: name.into(),
        content: None,
    }
}

fn subscribe(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ask(names: &[&str], not: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        resource_names_unsubscribe: not.iter().map(|n| (*n).to_owned()).collect(),
        ..subscribe(type_url::ADDRESS)
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..subscribe(&response.type_url)
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    response
        .resources
        .iter()
        .map(|bytes| Resource::decode(bytes.clone()).unwrap().name)
        .collect()
}

fn next(session: &mut Session, resources: &Resources) -> Option<DeltaDiscoveryResponse> {
    session.next_response(&resources.read()).unwrap()
}

#[test]
fn every_type_is_answered_also_with_nothing() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    let types = [
        type_url::AUTHORIZATION,
        type_url::ADDRESS,
        type_url::NODE_WORKLOAD,
        "type.googleapis.com/x",
    ];
    for type_url in types {
        session.handle(subscribe(type_url)).unwrap();
    }
    for type_url in types {
        let response = next(&mut session, &resources).unwrap();
        assert_eq!(
            (response.type_url.as_str(), response.resources.len()),
            (type_url, 0)
        );
    }
    assert_eq!(next(&mut session, &resources), None);
}

#[test]
fn a_node_gets_its_own_pods_only() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    resources.publish([
        put(TableKey::Node("n1".into()), "mine", "1"),
        put(TableKey::Node("n2".into()), "other", "1"),
    ]);
    session.handle(subscribe(type_url::NODE_WORKLOAD)).unwrap();
    assert_eq!(names(&next(&mut session, &resources).unwrap()), ["mine"]);
}

#[test]
fn on_demand_answers_what_is_asked_says_what_is_not_there_and_follows_it() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    resources.publish([
        put(TableKey::Address, "a", "1"),
        put(TableKey::Address, "b", "1"),
    ]);
    session.handle(ask(&["*"], &["*"])).unwrap();
    assert!(next(&mut session, &resources).unwrap().resources.is_empty());
    session.handle(ask(&["/a", "/nobody"], &[])).unwrap();
    let answer = next(&mut session, &resources).unwrap();
    assert_eq!(
        (names(&answer), answer.removed_resources),
        (vec!["a".to_owned()], vec!["/nobody".to_owned()])
    );
    resources.publish([
        put(TableKey::Address, "b", "2"),
        put(TableKey::Address, "a", "2"),
    ]);
    assert_eq!(names(&next(&mut session, &resources).unwrap()), ["a"]);
    resources.publish([put(TableKey::Address, "nobody", "1")]);
    assert_eq!(
        names(&next(&mut session, &resources).unwrap()),
        ["nobody"],
        "it came after it was asked for"
    );
    resources.publish([gone(TableKey::Address, "a"), gone(TableKey::Address, "b")]);
    session
        .handle(DeltaDiscoveryRequest {
            response_nonce: "4".into(),
            ..ask(&[], &[])
        })
        .unwrap();
    assert_eq!(
        next(&mut session, &resources).unwrap().removed_resources,
        ["a"]
    );
}

#[test]
fn a_client_that_does_not_answer_gets_four_messages_and_then_all_that_changed_at_once() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    session.handle(subscribe(type_url::ADDRESS)).unwrap();
    let mut sent = Vec::new();
    for n in 0..20 {
        resources.publish([
            put(TableKey::Address, "a", &n.to_string()),
            put(TableKey::Address, &format!("b{n}"), "1"),
        ]);
        sent.extend(next(&mut session, &resources));
    }
    assert_eq!(sent.len(), UNACKED_MAX);
    assert_eq!(session.handle(ack(&sent[3])).unwrap(), Handled::Acked);
    let rest = next(&mut session, &resources).unwrap();
    assert_eq!(rest.resources.len(), 17, "16 new names, and `a` once");
    let nack = DeltaDiscoveryRequest {
        error_detail: Some(rpc::Status {
            message: "no".into(),
            ..rpc::Status::default()
        }),
        ..ack(&rest)
    };
    assert_eq!(
        session.handle(nack.clone()).unwrap(),
        Handled::Nacked("no".into())
    );
    assert_eq!(session.handle(nack).unwrap(), Handled::Stale);
}

#[test]
fn a_policy_goes_only_when_the_addresses_before_it_are_acknowledged() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    resources.publish([
        put(TableKey::Authorization, "ns/p", "1"),
        put(TableKey::Address, "w", "names p"),
    ]);
    session.handle(subscribe(type_url::AUTHORIZATION)).unwrap();
    session.handle(subscribe(type_url::ADDRESS)).unwrap();
    for expected in ["ns/p", "w"] {
        let response = next(&mut session, &resources).unwrap();
        assert_eq!(names(&response), [expected]);
        session.handle(ack(&response)).unwrap();
    }
    resources.publish([
        put(TableKey::Address, "w", "names none"),
        gone(TableKey::Authorization, "ns/p"),
    ]);
    let workload = next(&mut session, &resources).unwrap();
    assert_eq!(names(&workload), ["w"]);
    assert_eq!(next(&mut session, &resources), None);
    session.handle(ack(&workload)).unwrap();
    assert_eq!(
        next(&mut session, &resources).unwrap().removed_resources,
        ["ns/p"]
    );
}

#[test]
fn a_policy_that_no_address_names_goes_at_once() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    resources.publish([
        put(TableKey::Authorization, "ns/p", "1"),
        put(TableKey::Address, "w", "names none"),
    ]);
    session.handle(subscribe(type_url::AUTHORIZATION)).unwrap();
    session.handle(subscribe(type_url::ADDRESS)).unwrap();
    for _ in 0..2 {
        let response = next(&mut session, &resources).unwrap();
        session.handle(ack(&response)).unwrap();
    }
    resources.publish([gone(TableKey::Authorization, "ns/p")]);
    let response = next(&mut session, &resources).expect("nothing else comes to wake the stream");
    assert_eq!(response.removed_resources, ["ns/p"]);
}

#[test]
fn our_agents_get_a_large_first_answer_in_parts() {
    let (mut session, resources) = (Session::new("n1".into()), Resources::new());
    let large = "x".repeat(300_000);
    resources.publish((0..10).map(|n| put(TableKey::Address, &n.to_string(), &large)));
    let node = core::Node {
        user_agent_name: dialect::USER_AGENT.into(),
        ..core::Node::default()
    };
    session
        .handle(DeltaDiscoveryRequest {
            node: Some(node),
            ..subscribe(type_url::ADDRESS)
        })
        .unwrap();
    let parts: Vec<_> = std::iter::from_fn(|| next(&mut session, &resources)).collect();
    assert_eq!(
        parts
            .iter()
            .map(|part| part.resources.len())
            .collect::<Vec<_>>(),
        [4, 4, 2]
    );
    let more: Vec<_> = parts
        .iter()
        .map(|part| part.system_version_info == dialect::MORE_FOLLOWS)
        .collect();
    assert_eq!(more, [true, true, false]);
}

/// Streams begin, break and begin again while the tables change; in the end the client's map is the table, and a
/// stream that begins with everything is sent nothing.
#[test]
fn any_history_converges_and_resync_sends_nothing_twice() {
    for seed in 0..3_000 {
        converge(seed);
    }
}

/// Name to version, as a client holds them.
type Client = BTreeMap<String, String>;

fn take(client: &mut Client, response: &DeltaDiscoveryResponse) {
    for bytes in &response.resources {
        let resource = Resource::decode(bytes.clone()).unwrap();
        client.insert(resource.name, resource.version);
    }
    for name in &response.removed_resources {
        client.remove(name);
    }
}

fn begin(client: &Client) -> Session {
    let mut session = Session::new("n1".into());
    session.chunk_bytes = 60;
    let held = client.clone().into_iter().collect();
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: held,
        ..subscribe(type_url::ADDRESS)
    };
    session.handle(request).unwrap();
    session
}

fn converge(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let resources = Resources::new();
    let mut client = Client::from([("from an earlier life".to_owned(), "1".to_owned())]);
    let mut session = begin(&client);
    for _ in 0..rng.random_range(0..40) {
        let name = rng.random_range(0..8).to_string();
        match rng.random_range(0..10) {
            0..4 => drop(resources.publish([put(
                TableKey::Address,
                &name,
                &rng.random_range(0..5).to_string(),
            )])),
            4 => drop(resources.publish([gone(TableKey::Address, &name)])),
            5 => session = begin(&client),
            _ => {
                if let Some(response) = next(&mut session, &resources) {
                    take(&mut client, &response);
                    session.handle(ack(&response)).unwrap();
                }
            }
        }
    }
    while let Some(response) = next(&mut session, &resources) {
        take(&mut client, &response);
        session.handle(ack(&response)).unwrap();
    }
    let tables = resources.read();
    let table = tables.table(&TableKey::Address).unwrap();
    let live = table
        .since(0)
        .filter_map(|(_, name, live)| Some((name.to_string(), live?.version.to_string())));
    assert_eq!(client, live.collect::<Client>(), "seed {seed}");
    let again = next(&mut begin(&client), &resources).unwrap();
    assert_eq!(
        (again.resources.len(), again.removed_resources.len()),
        (0, 0),
        "seed {seed}"
    );
}

fn waypoint(gateway: &str) -> Peer {
    Peer::Waypoint {
        gateway: gateway.parse().unwrap(),
        replica: "r".into(),
    }
}

#[test]
fn a_waypoint_gets_its_own_routes_and_policies_and_an_agent_none() {
    let resources = Resources::new();
    let (ours, theirs) = (
        "shop/waypoint".parse().unwrap(),
        "web/waypoint".parse().unwrap(),
    );
    resources.publish([
        put(TableKey::Routes(ours), "HTTPRoute/shop/a", "1"),
        put(TableKey::Routes(theirs), "HTTPRoute/web/a", "1"),
        put(
            TableKey::WaypointPolicies("shop/waypoint".parse().unwrap()),
            "shop/p",
            "1",
        ),
        put(
            TableKey::RateLimits("shop/waypoint".parse().unwrap()),
            "shop/limit",
            "1",
        ),
        put(TableKey::Node("n1".into()), "pod", "1"),
    ]);
    let all = |peer: Peer| {
        let mut session = Session::new(peer);
        let mut seen = Vec::new();
        for type_url in [
            type_url::NODE_WORKLOAD,
            type_url::WAYPOINT_POLICY,
            type_url::REQUEST_AUTHENTICATION,
            type_url::RATE_LIMIT,
            type_url::SERVICE_TRAFFIC,
            type_url::ADDRESS,
            type_url::ROUTE,
        ] {
            session.handle(subscribe(type_url)).unwrap();
            let response = next(&mut session, &resources).unwrap();
            seen.extend(names(&response));
            session.handle(ack(&response)).unwrap();
        }
        assert_eq!(
            session.acked_all() > 0,
            matches!(session.peer, Peer::Waypoint { .. })
        );
        seen
    };
    assert_eq!(
        all(waypoint("shop/waypoint")),
        ["shop/p", "shop/limit", "HTTPRoute/shop/a"]
    );
    assert_eq!(all(waypoint("web/waypoint")), ["HTTPRoute/web/a"]);
    assert_eq!(all("n1".into()), ["pod"]);
}

#[test]
fn a_request_policy_goes_after_the_services_that_it_was_for() {
    let resources = Resources::new();
    let table = || TableKey::WaypointPolicies("shop/waypoint".parse().unwrap());
    let mut session = Session::new(waypoint("shop/waypoint"));
    resources.publish([
        put(TableKey::Address, "s", "bound"),
        put(table(), "shop/p", "1"),
    ]);
    session
        .handle(subscribe(type_url::WAYPOINT_POLICY))
        .unwrap();
    session.handle(subscribe(type_url::ADDRESS)).unwrap();
    for expected in ["shop/p", "s"] {
        let response = next(&mut session, &resources).unwrap();
        assert_eq!(
            names(&response),
            [expected],
            "the policy is there before what it protects"
        );
        session.handle(ack(&response)).unwrap();
    }
    resources.publish([
        put(TableKey::Address, "s", "unbound"),
        gone(table(), "shop/p"),
    ]);
    let service = next(&mut session, &resources).unwrap();
    assert_eq!(names(&service), ["s"]);
    assert_eq!(next(&mut session, &resources), None);
    session.handle(ack(&service)).unwrap();
    let policy = next(&mut session, &resources).unwrap();
    assert_eq!(policy.removed_resources, ["shop/p"]);
}
