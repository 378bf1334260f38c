//! One connected UDP socket for all queries, as nginx and c-ares have it: the kernel has put the agent in the resolver's
//! place when it connected, for as long as it lives. It must be answered while its pod is in the mesh, after the pod has
//! left it, and by the next agent.

use std::time::{Duration, Instant};

use karst_test_node::{Lab, Script, eventually};
use rustix::process::{Signal, kill_process};

/// Connects once to the first resolver of `/etc/resolv.conf`, or to the address and port that it is given, and asks it
/// for an IPv4 address per line: `ok` and what was found, or what went wrong. A query is sent once, and a socket that has
/// been ended is made anew for the next.
const ONE_SOCKET: &str = r#"
import random, socket, struct, sys
where = sys.argv[1:] or [next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver")), "53"]
def connected():
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.settimeout(2)
    asking.connect((where[0], int(where[1])))
    return asking
asking = connected()
for line in sys.stdin:
    number = random.randrange(1 << 16)
    name = b"".join(bytes([len(part)]) + part.encode() for part in line.strip().split("."))
    try:
        asking.send(struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + name + b"\0" + struct.pack("!2H", 1, 1))
        answer = asking.recv(4096)
        while answer[:2] != struct.pack("!H", number):
            answer = asking.recv(4096)
        code, found = answer[3] & 15, struct.unpack("!H", answer[6:8])[0]
        print("ok" if found else "none", socket.inet_ntoa(answer[-4:]) if found else code, flush=True)
    except TimeoutError:
        print("failed", "no answer", flush=True)
    except OSError:
        asking = connected()
        print("failed", "ended", flush=True)
"#;

const ON: &str = "istio.io/dataplane-mode: ambient";
const OFF: &str = "istio.io/dataplane-mode: none";

/// A name that nobody but the mesh knows.
const ONLY_IN_THE_MESH: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: only
  namespace: meshed
spec:
  hosts: [only.mesh.example]
  addresses: [192.0.2.7]
  ports:
    - number: 80
      name: http
      protocol: HTTP
  resolution: STATIC
  endpoints:
    - address: 192.0.2.8
";

const SERVICE: &str = "server.plain.svc.cluster.local";

/// Answered at every moment of this time.
const LONG: Duration = Duration::from_secs(1);

struct World {
    lab: Lab,
    asking: Script,
}

impl World {
    fn new() -> Self {
        let lab = Lab::up("tests/fixtures/pair");
        lab.apply("only.yaml", ONLY_IN_THE_MESH);
        let asking = Script::start(&lab, "meshed/client", ONE_SOCKET, &[]);
        let mut world = Self { lab, asking };
        eventually("the mesh's own name is answered", || {
            world.asking.ask("only.mesh.example") == "ok 192.0.2.7"
        });
        world
    }

    #[track_caller]
    fn answered(&mut self, when: &str) {
        let answer = self.asking.ask(SERVICE);
        assert!(answer.starts_with("ok "), "{when}: {answer}");
    }

    /// How many listening sockets the agent and the applications have in the client's pod.
    fn listeners(&self) -> usize {
        let listed = self.lab.exec("meshed/client", &["ss", "-Hltn"]);
        listed.success().lines().count()
    }

    /// Has the namespace leave, and waits until nothing of the capture is left. Every query meanwhile is answered.
    fn leave(&mut self) {
        let captured = self.listeners();
        self.lab.edit("mesh.yaml", ON, OFF);
        self.lab.wait_enrolled();
        eventually("the agent's listeners are closed", || {
            self.answered("while the pod leaves");
            self.listeners() < captured
        });
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            self.answered("after the pod has left");
        }
    }

    fn enter(&mut self) {
        self.lab.edit("mesh.yaml", OFF, ON);
        self.lab.wait_enrolled();
    }

    /// Has the agent wait for an answer of the resolver's that has been lost on the way.
    fn hold_back_a_query(&self) -> Script {
        let pod = "meshed/client";
        let nft = |rules: &str| self.lab.exec_root(pod, &["nft", rules]).success();
        nft(
            "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }; \
            add rule inet deaf in udp sport 53 counter drop",
        );
        let mut held = Script::start(&self.lab, pod, ONE_SOCKET, &[]);
        held.tell("held.back.example");
        eventually("the resolver has answered in vain", || {
            !nft("list table inet deaf").contains("packets 0 ")
        });
        nft("delete table inet deaf");
        held
    }

    /// Port and inode of the agent's socket: nothing else in the pod has one of UDP that is not connected.
    fn agents_socket(&self) -> Option<(String, String)> {
        let listed = self.lab.exec("meshed/client", &["ss", "-Hlune"]).success();
        let words = || listed.split_whitespace();
        let mut ports = words().filter_map(|word| word.rsplit_once(':'));
        let (_, port) = ports.find(|(_, port)| port.parse::<u16>().is_ok())?;
        let inode = words().find_map(|word| word.strip_prefix("ino:"))?;
        Some((port.to_owned(), inode.to_owned()))
    }

    fn agents_port(&self) -> String {
        self.agents_socket().expect("a socket of UDP").0
    }

    /// Has the client's agent end by this command of `karst lab`, and waits for the next one's socket, which is on the same
    /// port. Asks nothing meanwhile: while there is no agent, whoever asks is refused, connects anew, and is past the agents.
    fn replace_agent(&self, command: &str) {
        let (port, ended) = self.agents_socket().expect("a socket of UDP");
        self.lab.karst(&[command, "a"]).success();
        eventually("the next agent has the port", || {
            let now = self.agents_socket();
            now.is_some_and(|(again, inode)| again == port && inode != ended)
        });
    }
}

#[test]
fn a_connected_socket_is_answered_after_its_pod_has_left_the_mesh() {
    let mut world = World::new();
    world.leave();
    // Addresses that lead nowhere outside of the mesh are not told outside of it.
    assert_eq!(world.asking.ask("only.mesh.example"), "none 3");

    let port = world.agents_port();
    let address = world.lab.address("meshed", "client");
    let from_elsewhere = [address.as_str(), &port];
    let mut stranger = Script::start(&world.lab, "plain/client", ONE_SOCKET, &from_elsewhere);
    assert!(stranger.ask(SERVICE).starts_with("failed"));

    world.enter();
    world.answered("back in the mesh");
    assert_eq!(world.asking.ask("only.mesh.example"), "ok 192.0.2.7");
    assert_eq!(world.agents_port(), port);
}

#[test]
fn a_connected_socket_is_answered_by_the_next_agent() {
    let mut world = World::new();
    world.replace_agent("restart-agent");
    eventually("the next agent answers", || {
        world.asking.ask("only.mesh.example") == "ok 192.0.2.7"
    });

    world.lab.wait_enrolled();
    world.leave();
    world.replace_agent("kill-agent");
    world.answered("by the next agent, in a pod that had left before");
    assert_eq!(world.asking.ask("only.mesh.example"), "none 3");

    // One that ends in order may be the last: whoever still asks it is told to connect anew, which leads past it.
    world.lab.karst(&["restart-agent", "a"]).success();
    eventually("it is told to connect anew", || {
        let said = world.asking.ask(SERVICE);
        // Until its drain begins, the old agent answers.
        assert!(said.starts_with("ok ") || said == "failed ended", "{said}");
        said == "failed ended"
    });
    world.answered("past the agents");
}

/// Whoever is not answered any more hears it at once, and asks again: what an agent takes from its socket and drops costs
/// a resolver's five seconds.
#[test]
fn no_query_is_swallowed_while_an_agent_ends() {
    let mut world = World::new();
    let _held = world.hold_back_a_query();
    world.lab.karst(&["restart-agent", "a"]).success();
    eventually("the agent that ends takes no more queries", || {
        let said = world.asking.ask(SERVICE);
        assert!(said.starts_with("ok ") || said == "failed ended", "{said}");
        said == "failed ended"
    });
    world.answered("past the agent that ends");
}

/// Asks the first resolver of `/etc/resolv.conf` for its arguments in turn, as often as the first line says, then says of how many queries an answer
/// came. Each socket has no more of them than answers fit into its own buffer.
const MANY: &str = r#"
import socket, struct, sys
resolver = next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver"))
count, each = int(sys.stdin.readline()), 100
question = lambda name: b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack("!2H", 1, 1)
questions = [question(name) for name in sys.argv[1:]]
asking = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count // each)]
for one in asking:
    one.settimeout(2)
    one.connect((resolver, 53))
    for number in range(each):
        one.send(struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + questions[number % len(questions)])
print("asked", flush=True)
answered = 0
for one in asking:
    try:
        answered += len({one.recv(4096)[:2] for _ in range(each)})
    except TimeoutError:
        break
print(answered, flush=True)
"#;

/// What finds no room while an agent has no processor is asked again only after a resolver's five seconds.
#[test]
fn queries_wait_for_an_agent_that_stands_still() {
    let world = World::new();
    let agent = world.lab.agent("a");
    let names = ["only.mesh.example", "only.the.resolver.knows.example"];
    let mut many = Script::start(&world.lab, "meshed/client", MANY, &names);
    kill_process(agent, Signal::STOP).expect("it runs");
    let asked = many.ask("4000");
    kill_process(agent, Signal::CONT).expect("it has only stopped");
    assert_eq!(asked, "asked");
    assert_eq!(many.line(), "4000");
}
