//! Who is in the mesh, when peers hear of it, and what a node is told.

use karst_index::{Awaited, Event};
use karst_k8s_api::Kind;
use karst_model::{
    enrollment::{EnrollMode, Generation, Plaintext, PodCapture},
    protocol::TunnelProtocol,
};

use crate::world::{World, namespace, pod};

fn mode(world: &World, uid: &str) -> EnrollMode {
    world.node_row(uid).unwrap().mode
}

#[test]
fn a_pod_is_published_only_after_its_node_has_captured_it() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Ambient);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
    world.captured("uid-a", true);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    world.captured("uid-a", false);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
}

/// The namespace of the installation, with a label.
fn installation(label: &str) -> String {
    namespace("karst-system", "none").replace("labels: {", &format!("labels: {{{label}, "))
}

#[test]
fn a_mesh_that_is_taken_away_lets_every_pod_go_as_a_label_does() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    world.captured("uid-a", true);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Enforced);
    world.apply(&installation("karst.dev/release: all"));
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Leaving);
    let told = |world: &World| world.reasons(Kind::Namespace, "", "karst-system");
    assert_eq!(told(&world), ["EveryPodReleased"]);
    // Taken back: it stays, as if nothing had been.
    world.apply(&installation("karst.dev/release: none"));
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Ambient);
    assert!(told(&world).is_empty());
    // No other namespace has a say.
    world.apply(&installation("karst.dev/release: all").replace("karst-system", "shop-2"));
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Ambient);
    // And a pod that comes meanwhile is not asked for.
    world.apply(&(installation("karst.dev/release: all") + &pod("b", "10.0.0.2", "")));
    assert_eq!(mode(&world, "uid-b"), EnrollMode::Off);
    world.delete(Kind::Namespace, "", "karst-system");
    assert_eq!(mode(&world, "uid-b"), EnrollMode::Ambient);
}

fn plaintext(world: &World, uid: &str) -> Plaintext {
    world.node_row(uid).unwrap().plaintext
}

/// A pod that ran before it entered the mesh, and is in it.
fn entered() -> World {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    let published = world.captured_open("uid-a");
    let entering = World::begun(&published);
    assert_eq!(entering.awaited, Awaited::Entering);
    world.take(vec![Event::Acknowledged(entering)]);
    world.captured("uid-a", true);
    world
}

#[test]
fn plain_connections_pass_until_peers_know_of_the_tunnel() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Entering);
    let published = world.captured_open("uid-a");
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Entering);
    let entering = World::begun(&published);
    world.take(vec![Event::Acknowledged(entering.clone())]);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Enforced);
    let late = world.take(vec![Event::Overdue(entering)]);
    assert!(late.is_empty(), "it has ended: {late:?}");
}

#[test]
fn a_pod_that_starts_captured_waits_for_nobody() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    let published = world.captured("uid-a", true);
    assert_eq!(published.transitions, []);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Enforced);
}

#[test]
fn pods_that_enter_together_wait_for_each_other_but_not_for_ever() {
    let both = pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.2", "");
    let mut world = World::of(&(namespace("shop", "ambient") + &both));
    let first = World::begun(&world.captured_open("uid-a"));
    world.take(vec![Event::Acknowledged(first.clone())]);
    assert_eq!(
        plaintext(&world, "uid-a"),
        Plaintext::Entering,
        "b still dials without an identity"
    );
    world.apply(&pod("c", "10.0.0.3", ""));
    world.captured_open("uid-b");
    assert_eq!(
        plaintext(&world, "uid-a"),
        Plaintext::Enforced,
        "c came later"
    );

    let mut world = World::of(&(namespace("shop", "ambient") + &both));
    let first = World::begun(&world.captured_open("uid-a"));
    world.take(vec![Event::Overdue(first)]);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Enforced);
}

#[test]
fn un_enrolment_opens_withdraws_and_releases() {
    let mut world = entered();
    let under = world.generation("uid-a");
    let opening = World::begun(&world.apply(&namespace("shop", "none")));
    assert_eq!(opening.awaited, Awaited::Opening);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Leaving);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    world.reported("uid-a", Some((under, true)));
    assert_eq!(
        world.pod("a").tunnel,
        TunnelProtocol::Hbone,
        "said before the node had heard"
    );
    let withdrawing = World::begun(&world.captured_open("uid-a"));
    assert_eq!(withdrawing.awaited, Awaited::Withdrawing);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Ambient, "still captured");
    let last = world.take(vec![Event::Acknowledged(withdrawing)]);
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Off);
    assert!(last.workloads.is_empty());
}

#[test]
fn a_node_that_does_not_answer_is_not_waited_for() {
    let mut world = entered();
    let opening = World::begun(&world.apply(&namespace("shop", "none")));
    let withdrawing = World::begun(&world.take(vec![Event::Overdue(opening)]));
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
    world.take(vec![Event::Overdue(withdrawing)]);
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Off);
}

#[test]
fn what_was_said_of_one_enrolment_does_not_count_for_the_next() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    let before = world.generation("uid-a");
    world.apply(&namespace("shop", "none"));
    world.apply(&namespace("shop", "ambient"));
    assert!(world.generation("uid-a") > before);
    world.reported("uid-a", Some((before, false)));
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
    world.captured("uid-a", true);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    world.reported("uid-a", Some((before, true)));
    assert_eq!(
        world.pod("a").tunnel,
        TunnelProtocol::Hbone,
        "said before the last"
    );
}

#[test]
fn a_pod_that_its_node_has_lost_is_enrolled_anew() {
    let mut world = entered();
    let before = world.generation("uid-a");
    world.captured("uid-a", false);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::None);
    assert!(world.generation("uid-a") > before);
}

#[test]
fn a_change_of_mind_while_opening_or_withdrawing_publishes_again() {
    let mut world = entered();
    let opening = World::begun(&world.apply(&namespace("shop", "none")));
    let entering = World::begun(&world.apply(&namespace("shop", "ambient")));
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Entering);
    assert!(world.take(vec![Event::Overdue(opening)]).is_empty());
    world.take(vec![Event::Acknowledged(entering)]);
    assert_eq!(plaintext(&world, "uid-a"), Plaintext::Enforced);

    world.apply(&namespace("shop", "none"));
    let withdrawing = World::begun(&world.captured_open("uid-a"));
    let entering = World::begun(&world.apply(&namespace("shop", "ambient")));
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    assert!(
        world
            .take(vec![Event::Acknowledged(withdrawing)])
            .is_empty()
    );
    assert_eq!(entering.awaited, Awaited::Entering);
}

#[test]
fn a_pod_that_was_never_published_is_let_go_at_once() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    assert!(
        world
            .apply(&namespace("shop", "none"))
            .transitions
            .is_empty()
    );
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Off);
}

#[test]
fn who_is_enrolled() {
    let label = |value: &str| format!("  labels: {{istio.io/dataplane-mode: {value}}}");
    let cases = [
        ("ambient", String::new(), EnrollMode::Ambient),
        ("ambient", label("none"), EnrollMode::Off),
        ("none", label("ambient"), EnrollMode::Ambient),
        ("none", String::new(), EnrollMode::Off),
        (
            "ambient",
            "  annotations: {sidecar.istio.io/status: x}".to_owned(),
            EnrollMode::Off,
        ),
    ];
    for (of_namespace, more, expected) in cases {
        let world = World::of(&(namespace("shop", of_namespace) + &pod("a", "10.0.0.1", &more)));
        assert_eq!(mode(&world, "uid-a"), expected, "{of_namespace} {more}");
    }
    let host_network = pod("a", "10.0.0.1", "").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let world = World::of(&(namespace("shop", "ambient") + &host_network));
    assert_eq!(mode(&world, "uid-a"), EnrollMode::Off);
    for (space, more) in [
        ("kube-system", ""),
        (
            "istio-system",
            "  labels: {app.kubernetes.io/part-of: karst}",
        ),
    ] {
        let text =
            (namespace("shop", "ambient") + &pod("a", "10.0.0.1", more)).replace("shop", space);
        assert_eq!(mode(&World::of(&text), "uid-a"), EnrollMode::Off, "{space}");
    }
}

#[test]
fn a_pod_that_ends_takes_its_rows_along() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    world.apply(&pod("a", "10.0.0.1", "").replace("phase: Running", "phase: Succeeded"));
    assert!(world.model.workloads.is_empty() && world.model.nodes.is_empty());
    world.apply(&pod("a", "10.0.0.1", ""));
    world.delete(Kind::Pod, "shop", "a");
    assert!(world.model.workloads.is_empty() && world.model.nodes.is_empty());
}

#[test]
fn a_pod_under_the_name_of_another_starts_anew() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    world.captured("uid-a", true);
    world.apply(
        &pod("a", "10.0.0.2", "")
            .replace("uid-a", "uid-b")
            .replace("n1", "n2"),
    );
    assert_eq!(
        world.pod("a").tunnel,
        TunnelProtocol::None,
        "its own capture is still to come"
    );
    assert!(world.node_row("uid-a").is_none());
    assert_eq!(world.index.node_of(&"uid-b".into()), Some("n2"));
    assert_eq!(world.index.node_of(&"uid-a".into()), None);
}

#[test]
fn what_an_earlier_controller_had_published_stays_so() {
    let capture = |plaintext_open| PodCapture {
        generation: Generation(9),
        plaintext_open,
    };
    let resumed = |capture| Event::Resumed {
        pod_uid: "uid-a".into(),
        capture,
    };
    for open in [false, true] {
        let mut world = World::of(&namespace("shop", "ambient"));
        world.take(vec![resumed(capture(open))]);
        let first = world.apply(&pod("a", "10.0.0.1", ""));
        assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
        assert_eq!(world.generation("uid-a"), 9);
        assert_eq!(first.transitions.len(), usize::from(open));
    }
    // Its label went while no controller ran.
    let mut world = World::of(&namespace("shop", "none"));
    world.take(vec![resumed(capture(false))]);
    let opening = World::begun(&world.apply(&pod("a", "10.0.0.1", "")));
    assert_eq!(opening.awaited, Awaited::Opening);
    assert!(world.generation("uid-a") > 9);
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
}

#[test]
fn capture_options_come_from_annotations_and_bad_ones_are_named() {
    let more = r#"  annotations:
    traffic.sidecar.istio.io/excludeOutboundPorts: "5432, x, 6379"
    traffic.sidecar.istio.io/excludeInboundPorts: "9090"
    traffic.sidecar.istio.io/excludeOutboundIPRanges: "10.9.0.0/16,10.8.0.1"
    traffic.sidecar.istio.io/includeInboundPorts: "80"
    ambient.istio.io/dns-capture: "false""#;
    let world = World::of(&pod("a", "10.0.0.1", more));
    let capture = &world.node_row("uid-a").unwrap().capture;
    assert_eq!(capture.exclude_outbound_ports, [5432, 6379]);
    assert_eq!(capture.exclude_inbound_ports, [9090]);
    let ranges: Vec<String> = capture
        .exclude_outbound_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["10.9.0.0/16", "10.8.0.1/32"]);
    assert_eq!(capture.dns_capture, Some(false));
    assert_eq!(
        world.reasons(Kind::Pod, "shop", "a"),
        ["UnsupportedValue", "Invalid"]
    );
}

#[test]
fn probe_ports_are_those_of_probes_and_hooks_with_names_resolved() {
    let text = pod("a", "10.0.0.1", "").replace(
        "  - name: main\n",
        "  - name: main
    livenessProbe: {httpGet: {port: web}}
    readinessProbe: {tcpSocket: {port: 9091}}
    startupProbe: {grpc: {port: 7000}}
    lifecycle: {preStop: {httpGet: {port: admin}}, postStart: {exec: {command: [x]}}}
",
    );
    assert_eq!(
        World::of(&text).node_row("uid-a").unwrap().probe_ports,
        [7000, 8080, 9090, 9091]
    );
}

#[test]
fn a_workload_that_speaks_hbone_itself_is_marked_so() {
    let world = World::of(&pod(
        "a",
        "10.0.0.1",
        "  labels: {networking.istio.io/tunnel: http}",
    ));
    assert_eq!(world.pod("a").tunnel, TunnelProtocol::Hbone);
    assert!(world.pod("a").native_tunnel);
}

#[test]
fn names_for_telemetry() {
    let owner = |kind: &str, name: &str| {
        format!(
            "  ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: x, controller: true}}]\n"
        )
    };
    let cases = [
        (String::new(), "a", "a", "latest"),
        (
            owner("ReplicaSet", "web-5d9") + "  labels: {pod-template-hash: 5d9}",
            "web",
            "web",
            "latest",
        ),
        (
            owner("Job", "nightly-28000000"),
            "nightly",
            "nightly",
            "latest",
        ),
        (owner("Job", "once-1"), "once-1", "once-1", "latest"),
        (
            owner("StatefulSet", "db") + "  labels: {app: pg, version: v2}",
            "db",
            "pg",
            "v2",
        ),
        (
            "  labels: {service.istio.io/workload-name: w, app.kubernetes.io/name: nm}".to_owned(),
            "w",
            "nm",
            "latest",
        ),
    ];
    for (more, workload, canonical, revision) in cases {
        let world = World::of(&pod("a", "10.0.0.1", &more));
        let pod = world.pod("a");
        let names = (
            &*pod.workload_name,
            &*pod.canonical_name,
            &*pod.canonical_revision,
        );
        assert_eq!(names, (workload, canonical, revision), "{more}");
    }
}

/// Two controllers over the same objects; the second serves no node yet.
fn pair() -> (World, World) {
    let objects =
        namespace("shop", "ambient") + &pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.2", "");
    (World::of(&objects), World::of(&objects))
}

/// What the first has published of the node, as the second hears it.
fn record(of: &World) -> Event {
    let node = of.index.node_of(&"uid-a".into()).unwrap();
    Event::NodeElsewhere {
        node: node.into(),
        published: of.index.published(node).into_iter().collect(),
    }
}

#[test]
fn pods_of_a_node_that_another_controller_serves_stand_as_it_says() {
    let (mut serves, mut follows) = pair();
    follows.take(vec![record(&serves)]);
    assert_eq!(follows.pod("a").tunnel, TunnelProtocol::None);
    let entering = World::begun(&serves.captured_open("uid-a"));
    let followed = follows.take(vec![record(&serves)]);
    assert_eq!(follows.pod("a").tunnel, TunnelProtocol::Hbone);
    assert_eq!(followed.transitions, [], "the other one ends its own steps");
    assert_eq!(follows.pod("b").tunnel, TunnelProtocol::None);
    serves.take(vec![Event::Overdue(entering)]);
    let opening = World::begun(&serves.apply(&namespace("shop", "none")));
    follows.apply(&namespace("shop", "none"));
    assert_eq!(
        follows.pod("a").tunnel,
        TunnelProtocol::Hbone,
        "until the other one withdraws it"
    );
    serves.take(vec![Event::Overdue(opening)]);
    follows.take(vec![record(&serves)]);
    assert_eq!(follows.pod("a").tunnel, TunnelProtocol::None);
}

#[test]
fn a_node_that_comes_over_keeps_its_tunnels() {
    let (mut served, mut serves) = pair();
    served.captured("uid-a", true);
    serves.take(vec![record(&served)]);
    let under = serves.generation("uid-a");
    assert_eq!(under, served.generation("uid-a"));
    let node = serves.index.node_of(&"uid-a".into()).unwrap().into();
    serves.take(vec![Event::NodeHere { node }]);
    assert_eq!(serves.pod("a").tunnel, TunnelProtocol::Hbone);
    serves.reported("uid-a", Some((under, false)));
    assert_eq!(serves.pod("a").tunnel, TunnelProtocol::Hbone);
    serves.captured("uid-b", true);
    assert_eq!(
        serves.pod("b").tunnel,
        TunnelProtocol::Hbone,
        "and goes on from there"
    );
    served.take(vec![record(&serves)]);
    assert_eq!(served.pod("b").tunnel, TunnelProtocol::Hbone);
    serves.reported("uid-a", None);
    served.take(vec![record(&serves)]);
    assert_eq!(served.pod("a").tunnel, TunnelProtocol::None);
}

#[test]
fn pods_that_another_controller_tells_hold_up_nobody_here() {
    let mut world = World::of(&(namespace("shop", "ambient") + &pod("a", "10.0.0.1", "")));
    world.take(vec![record(&world)]);
    let elsewhere = pod("c", "10.0.0.3", "").replace("nodeName: n1", "nodeName: n2");
    world.apply(&elsewhere);
    let entering = World::begun(&world.captured_open("uid-c"));
    world.take(vec![Event::Acknowledged(entering)]);
    assert_eq!(plaintext(&world, "uid-c"), Plaintext::Enforced);
}
