//! Kill -9 of an agent: until it is back, nothing goes in plain text between pods of the mesh, in either direction, while
//! everything outside of the mesh and DNS go on; afterwards all is as before.

use karst_test_node::{Capture, Lab, Script, capture::contains, eventually, script::PROBER};

/// Looks names up and says what came.
const RESOLVER: &str = r#"
import socket, sys
for line in sys.stdin:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(line.strip(), 80, socket.AF_INET, socket.SOCK_STREAM)}
        print("ok", *sorted(found), flush=True)
    except OSError as error:
        print("failed", error, flush=True)
"#;

const ON: &str = "istio.io/dataplane-mode: ambient";
const OFF: &str = "istio.io/dataplane-mode: none";

/// The pods that talk, and what they are asked to do.
struct World {
    lab: Lab,
    server: String,
    outside: String,
    client: Script,
    stranger: Script,
    resolver: Script,
}

impl World {
    fn new() -> Self {
        let lab = Lab::up("tests/fixtures/pair");
        Self {
            server: lab.address("meshed", "server"),
            outside: lab.address("plain", "server"),
            client: Script::start(&lab, "meshed/client", PROBER, &[]),
            stranger: Script::start(&lab, "plain/client", PROBER, &[]),
            resolver: Script::start(&lab, "meshed/client", RESOLVER, &[]),
            lab,
        }
    }

    fn mesh(&mut self, text: &str) -> String {
        self.client.ask(&format!("{} 9000 {text}", self.server))
    }

    /// From a pod of the mesh to one outside of it, by address: the control that the capture sees plain text.
    fn outside(&mut self, text: &str) -> String {
        self.client.ask(&format!("{} 9000 {text}", self.outside))
    }

    /// From a pod outside of the mesh to one in it.
    fn inward(&mut self, text: &str) -> String {
        self.stranger.ask(&format!("{} 9000 {text}", self.server))
    }

    #[track_caller]
    fn works(&mut self, when: &str) {
        eventually(&format!("traffic in the mesh {when}"), || {
            self.mesh("again") == "ok"
        });
        assert_eq!(self.outside("again"), "ok", "outside of the mesh {when}");
        eventually(&format!("traffic into the mesh {when}"), || {
            self.inward("again") == "ok"
        });
        assert!(
            self.resolver.ask("server.plain").starts_with("ok"),
            "DNS {when}"
        );
    }

    /// Kernel state and identity of a node's pods as its agent tells them.
    fn enrolled(&self, node: &str) -> Vec<String> {
        let seen = self.lab.enrolled_as_seen_by(node);
        seen.expect("the agent answers")
    }

    fn restarts(&self, node: &str) -> u64 {
        let status = self.lab.status();
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        let found = nodes.iter().find(|n| n["name"] == node).expect("the node");
        found["agent"]["restarts"].as_u64().expect("a number")
    }
}

#[test]
fn no_plaintext_while_an_agent_is_dead_and_all_is_well_afterwards() {
    let mut world = World::new();
    world.works("before");
    let enrolled = world.enrolled("b");
    dead_source(&mut world);
    dead_destination(&mut world);
    by_itself(&mut world);
    assert_eq!(world.enrolled("b"), enrolled, "the same state as before");
    without_controller(&mut world);
}

/// The agent of the client's node is dead: what the client dials in the mesh is refused, the rest goes on.
fn dead_source(world: &mut World) {
    let wire = Capture::start(&world.lab, "a", "any", "tcp");
    world.lab.karst(&["kill-agent", "a", "--hold"]).success();
    for round in 0..20 {
        assert_ne!(
            world.mesh(&format!("secret-1-{round}")),
            "ok",
            "without an agent"
        );
        assert_eq!(world.outside(&format!("control-1-{round}")), "ok");
        assert!(
            world.resolver.ask("server.plain").starts_with("ok"),
            "DNS without an agent"
        );
    }
    // A service of the mesh, by name and virtual address, too.
    let name = world.resolver.ask("server.meshed");
    assert!(name.starts_with("ok"), "{name}");
    let address = name.split(' ').nth(1).expect("an address").to_owned();
    assert_ne!(
        world.client.ask(&format!("{address} 9000 secret-1-vip")),
        "ok"
    );
    world.lab.karst(&["restart-agent", "a"]).success();
    world.works("after the restart of the client's agent");
    let wire = wire.stop();
    assert!(
        contains(&wire, b"control-1-"),
        "control: the capture sees plain text"
    );
    assert!(
        !contains(&wire, b"secret-1-"),
        "plain text left a pod of the mesh"
    );
}

/// The agent of the server's node is dead: nobody reaches the server, in plain text neither.
fn dead_destination(world: &mut World) {
    let wire = Capture::start(&world.lab, "b", "any", "tcp");
    world.lab.karst(&["kill-agent", "b", "--hold"]).success();
    for round in 0..5 {
        assert_ne!(
            world.mesh(&format!("secret-2-{round}")),
            "ok",
            "without an agent"
        );
        assert_ne!(
            world.inward(&format!("refused-2-{round}")),
            "ok",
            "plain text was accepted"
        );
        assert_eq!(world.outside(&format!("control-2-{round}")), "ok");
    }
    world.lab.karst(&["restart-agent", "b"]).success();
    world.works("after the restart of the server's agent");
    let wire = wire.stop();
    assert!(
        contains(&wire, b"control-2-"),
        "control: the capture sees plain text"
    );
    assert!(
        !contains(&wire, b"secret-2-"),
        "plain text between pods of the mesh"
    );
    assert!(
        !contains(&wire, b"refused-2-"),
        "a pod of the mesh took plain text unseen"
    );
}

/// Killed under traffic and left alone: it comes back, and at no instant is there plain text.
fn by_itself(world: &mut World) {
    let wire = Capture::start(&world.lab, "a", "any", "tcp");
    let (before_a, before_b) = (world.restarts("a"), world.restarts("b"));
    for node in ["a", "b"] {
        world.lab.karst(&["kill-agent", node]).success();
        for round in 0..30 {
            world.mesh(&format!("secret-3-{node}-{round}"));
        }
        assert_eq!(world.outside("control-3"), "ok");
    }
    world.works("after both agents came back by themselves");
    assert!(world.restarts("a") > before_a && world.restarts("b") > before_b);
    let wire = wire.stop();
    assert!(contains(&wire, b"control-3"), "control");
    for (dead, text) in [("a", b"secret-3-a"), ("b", b"secret-3-b")] {
        assert!(
            !contains(&wire, text),
            "plain text while the agent of {dead} came back; the controller: {}",
            world.lab.controller_log()
        );
    }
}

/// With the controller away an agent starts from what it knows: pods that exist go on.
fn without_controller(world: &mut World) {
    world.lab.karst(&["kill-controller", "--hold"]).success();
    world.works("without a controller");
    world.lab.karst(&["kill-agent", "b"]).success();
    world.works("after an agent's restart without a controller");
    world.lab.karst(&["kill-agent", "a"]).success();
    world.works("after the other agent's restart without a controller");
    world.lab.karst(&["restart-controller"]).success();
    world.works("with the controller back");
    // It is: what changes is heard of again.
    world.lab.edit("mesh.yaml", ON, OFF);
    world.lab.wait_enrolled();
}
