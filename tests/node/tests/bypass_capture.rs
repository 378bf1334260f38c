//! Ways around the capture: each is tried from a pod of the mesh, and each is either captured all the same or refused. A
//! capture of the link between the nodes shows that no text of theirs travelled in the open; the same capture does see
//! the text of the controls.

use std::{collections::BTreeSet, fs};

use karst_test_node::{Capture, Lab, Script, capture::contains, eventually, script::PROBER};

const TECHNIQUES: &str = include_str!("bypass_capture.py");
const BALANCER: &str = include_str!("bypass_balancer.py");

/// An address that nobody has: only a balancer sends it anywhere.
const NOWHERE: &str = "192.0.2.77";

/// A free address of the client's node, for a pod that gives itself another one.
const STOLEN: &str = "10.244.0.99";

struct World {
    lab: Lab,
    /// Runs in meshed/client.
    insider: Script,
    server: String,
    outside: String,
    client: String,
}

impl World {
    fn new() -> Self {
        let lab = Lab::up("tests/fixtures/pair");
        Self {
            insider: Script::start(&lab, "meshed/client", TECHNIQUES, &[]),
            server: lab.address("meshed", "server"),
            outside: lab.address("plain", "server"),
            client: lab.address("meshed", "client"),
            lab,
        }
    }

    /// Tries a technique on the server of the mesh; everything it says is secret.
    fn on_mesh(&mut self, technique: &str, more: &str) -> String {
        let server = self.server.clone();
        self.attempt(technique, &server, more)
    }

    fn attempt(&mut self, technique: &str, host: &str, more: &str) -> String {
        let answer = self.insider.ask(&format!(
            "{technique} {host} 9000 secret-{technique} {more}"
        ));
        eprintln!("{technique} {more}: {answer}");
        answer
    }

    /// The same technique to a pod outside of the mesh: the control.
    fn control(&mut self, technique: &str, more: &str) -> String {
        let question = format!(
            "{technique} {} 9000 control-{technique} {more}",
            self.outside
        );
        self.insider.ask(&question)
    }

    fn pid(&self, namespace: &str, name: &str) -> String {
        self.lab.pod(namespace, name)["pids"][0].to_string()
    }

    /// Captures the link between the nodes during `tries`; nothing secret may be on it, every control must be.
    #[track_caller]
    fn watched(&mut self, controls: &[&str], tries: impl FnOnce(&mut Self)) {
        let wire = Capture::start(&self.lab, "a", "eth0", "ip or ip6");
        tries(self);
        let wire = wire.stop();
        for control in controls {
            let text = format!("control-{control}");
            assert!(
                contains(&wire, text.as_bytes()),
                "the capture does not see {text}"
            );
        }
        assert!(
            !contains(&wire, b"secret-"),
            "plain text of a pod of the mesh on the wire"
        );
    }

    fn kernel(&self, counter: &str) -> u64 {
        let page = self
            .lab
            .agent_page("a", "/kernel")
            .expect("the page is there");
        page[counter].as_u64().expect("a counter")
    }
}

#[test]
fn every_way_around_the_capture_is_captured_or_refused() {
    let mut world = World::new();
    sockets(&mut world);
    packets(&mut world);
    root_of_the_pod(&mut world);
    descriptors(&mut world);
    cgroups(&mut world);
    listeners(&world);
    balancers(&mut world);
    assert_eq!(
        world.on_mesh("plain", ""),
        "ok",
        "all is well after all of this"
    );
}

/// Other ways to make and connect a TCP socket end in the tunnel like the usual one.
fn sockets(world: &mut World) {
    let techniques = [
        "plain",
        "mapped",
        "fastopen",
        "fastopen_connect",
        "mptcp",
        "io_uring",
        "device",
        "marked",
    ];
    world.watched(&techniques, |world| {
        for technique in techniques {
            assert_eq!(world.control(technique, ""), "ok", "control: {technique}");
            let captured = world.kernel("captured");
            assert_eq!(world.on_mesh(technique, ""), "ok", "{technique}");
            assert!(
                world.kernel("captured") > captured,
                "{technique} was captured"
            );
        }
    });
}

/// Packets made by hand are dropped at the pod's link.
fn packets(world: &mut World) {
    let own = world.client.clone();
    let neighbour = world.lab.address("meshed", "neighbour");
    world.watched(&["raw", "packet"], |world| {
        let dropped = |world: &World| {
            ["guard_syn", "guard_source", "guard_malformed"].map(|name| world.kernel(name))
        };
        for technique in ["raw", "raw_fragment", "packet", "vlan"] {
            world.control(technique, &own);
            let before = dropped(world);
            assert_eq!(world.on_mesh(technique, &own), "sent");
            eventually(&format!("{technique} is dropped"), || {
                dropped(world) != before
            });
        }
        let before = world.kernel("guard_source");
        world.on_mesh("raw", &neighbour);
        world.on_mesh("packet", &neighbour);
        let outside = world.outside.clone();
        world.attempt("packet", &outside, &neighbour);
        eventually("spoofed sources are dropped, wherever they go", || {
            world.kernel("guard_source") >= before + 3
        });
        assert_ne!(
            world.on_mesh("bound", &neighbour),
            "ok",
            "a socket with a foreign source"
        );
    });
}

/// Root in the pod with all rights over its own network.
fn root_of_the_pod(world: &mut World) {
    let server = world.server.clone();
    let run =
        |world: &World, command: &str| world.lab.exec_root("meshed/client", &["sh", "-c", command]);
    let change = format!(
        "nft flush ruleset; ip rule add pref 10 lookup 77; \
         ip route add {server}/32 via 169.254.1.1 dev eth0 onlink; ip route add {server}/32 via 169.254.1.1 dev eth0 onlink table 77; \
         ip addr add {STOLEN}/32 dev eth0; \
         (tc qdisc del dev eth0 clsact; tc filter del dev eth0 ingress; ip -batch - </dev/null) 2>/dev/null; ip route get {server}"
    );
    let changed = run(world, &change).success();
    assert!(changed.contains(&server), "{changed}");
    world.watched(&["plain"], |world| {
        assert_eq!(world.control("plain", ""), "ok");
        assert_eq!(
            world.on_mesh("plain", ""),
            "ok",
            "captured after rules and routes changed"
        );
        assert_ne!(
            world.on_mesh("bound", STOLEN),
            "ok",
            "another source of its own"
        );
    });
    // The server's own address on the pod, which serves the same port: it must not become what it talks to.
    run(world, &format!("ip addr add {server}/32 dev lo")).success();
    world.watched(&[], |world| {
        assert_ne!(
            world.on_mesh("plain", ""),
            "ok",
            "an address that the pod took"
        );
    });
    run(
        world,
        &format!(
            "ip addr del {server}/32 dev lo; ip addr del {STOLEN}/32 dev eth0; ip rule del pref 10; ip route del {server}/32; ip route flush table 77"
        ),
    )
    .success();
}

/// Sockets made in one namespace and used in another belong to the one that they were made in.
fn descriptors(world: &mut World) {
    let (inside, outside) = (world.pid("meshed", "client"), world.pid("plain", "client"));
    let mut stranger = Script::start(&world.lab, "plain/client", TECHNIQUES, &[]);
    let server = world.server.clone();
    world.watched(&["from-outside"], |world| {
        let control = format!("plain {} 9000 control-from-outside", world.outside);
        assert_eq!(stranger.ask(&control), "ok");
        let answer = stranger.ask(&format!("passed {server} 9000 secret-passed {inside}"));
        assert_eq!(answer, "ok", "captured as the pod that it was made in");
    });
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: meshed\n\
                  spec:\n  mtls:\n    mode: STRICT\n";
    world.lab.apply("strict.yaml", strict);
    eventually("STRICT refuses pods outside of the mesh", || {
        stranger.ask(&format!("plain {server} 9000 stranger")) != "ok"
    });
    let answer = world
        .insider
        .ask(&format!("passed {server} 9000 stranger {outside}"));
    assert_ne!(
        answer, "ok",
        "a socket of a pod outside of the mesh is refused like the pod"
    );
    world.lab.remove("strict.yaml");
    eventually("PERMISSIVE again", || {
        stranger.ask(&format!("plain {server} 9000 stranger")) == "ok"
    });
}

/// What counts is the network namespace, not the cgroup.
fn cgroups(world: &mut World) {
    let root = cgroup_root();
    let other = world.lab.pod("plain", "client")["cgroup"]
        .as_str()
        .expect("a path")
        .to_owned();
    let other = format!("{other}/exec");
    world.lab.exec("plain/client", &["true"]).success();
    world.watched(&["moved"], |world| {
        for group in [root.as_str(), other.as_str()] {
            assert_eq!(world.control("moved", group), "ok", "control: {group}");
            assert_eq!(world.on_mesh("moved", group), "ok", "{group}");
        }
    });
}

fn cgroup_root() -> String {
    let mounts = fs::read_to_string("/proc/mounts").expect("it is there");
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("cgroup v2 is mounted");
    line.split(' ').nth(1).expect("a path").to_owned()
}

/// Nobody gets anything from the agent's listeners in a pod by dialling them.
fn listeners(world: &World) {
    let lab = &world.lab;
    let table = lab
        .exec_root("meshed/client", &["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .success();
    let served: BTreeSet<u16> = [7070, 8080, 8443].into_iter().chain(9000..=9007).collect();
    let ports: BTreeSet<u16> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words.get(3) == Some(&"0A")).then_some(())?;
            u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok()
        })
        .filter(|port| !served.contains(port))
        .chain([15008])
        .collect();
    assert!(
        ports.len() >= 5,
        "the agent's listeners are in the table: {ports:?}"
    );
    let own = world.client.as_str();
    for (pod, hosts) in [
        ("meshed/client", [own, "127.0.0.1"].as_slice()),
        ("meshed/neighbour", &[own]),
        ("plain/client", &[own]),
    ] {
        let mut caller = Script::start(lab, pod, PROBER, &[]);
        for host in hosts {
            for port in &ports {
                let answer = caller.ask(&format!("{host} {port} GET"));
                assert_ne!(answer, "ok", "{pod} dialled {host}:{port}");
            }
        }
    }
}

/// Other programs on the same hook, before ours (on the pod's own cgroup) and after it (on the root, attached later).
fn balancers(world: &mut World) {
    let vip = service_address(&world.lab);
    let pod_group = world.lab.pod("meshed", "client")["cgroup"]
        .as_str()
        .expect("a path")
        .to_owned();
    let server = world.server.clone();
    let start = |group: &str, from: &str| {
        let balancer = Script::on_host(BALANCER, &[group, from, &server]);
        assert_eq!(balancer.line(), "ready");
        balancer
    };
    world.watched(&["plain"], |world| {
        assert_eq!(world.control("plain", ""), "ok");
        for group in [pod_group.as_str(), &cgroup_root()] {
            let _balancer = start(group, &vip);
            assert_eq!(
                world.attempt("plain", &vip, ""),
                "ok",
                "a service of the mesh, {group}"
            );
            assert_eq!(
                world.on_mesh("plain", ""),
                "ok",
                "a pod of the mesh, {group}"
            );
        }
        let before_ours = start(&pod_group, NOWHERE);
        assert_eq!(
            world.attempt("plain", NOWHERE, ""),
            "ok",
            "its backend is captured"
        );
        drop(before_ours);
        let _after_ours = start(&cgroup_root(), NOWHERE);
        assert_ne!(
            world.attempt("plain", NOWHERE, ""),
            "ok",
            "unseen by our hook, stopped by the guard"
        );
    });
}

fn service_address(lab: &Lab) -> String {
    let status = lab.status();
    let services = status["services"].as_array().expect("services").clone();
    let found = services
        .iter()
        .find(|service| service["namespace"] == "meshed" && service["name"] == "server")
        .expect("the service");
    found["addresses"][0]
        .as_str()
        .expect("an address")
        .to_owned()
}
