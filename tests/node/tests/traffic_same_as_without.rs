//! What applications see of their connections is the same through the mesh as without it: every case runs between two
//! pods of the mesh and between the same pods outside of it, and both accounts must agree.

use std::{net::IpAddr, process::Command};

use karst_test_node::{Lab, Script, eventually};
use serde_json::Value;

/// Where a connection goes: the server's node, and how it is named.
#[derive(Clone, Copy, Debug)]
struct To {
    server: &'static str,
    by: By,
}

#[derive(Clone, Copy, Debug)]
enum By {
    Service,
    V4,
    V6,
    ServiceV4,
    ServiceV6,
}

const OTHER_NODE: &str = "server";
const SAME_NODE: &str = "neighbour";

fn everywhere() -> impl Iterator<Item = To> {
    [OTHER_NODE, SAME_NODE].into_iter().flat_map(|server| {
        [By::Service, By::V4, By::V6, By::ServiceV4, By::ServiceV6].map(|by| To { server, by })
    })
}

struct World {
    lab: Lab,
    status: Value,
}

impl World {
    /// Addresses of a pod or a service in the lab's status.
    fn address(&self, kind: &str, namespace: &str, name: &str, v4: bool) -> IpAddr {
        let all = self.status[kind].as_array().expect("a list");
        let one = all
            .iter()
            .find(|one| one["namespace"] == namespace && one["name"] == name)
            .expect("it is in the status");
        let addresses = one["addresses"].as_array().expect("addresses");
        addresses
            .iter()
            .map(|addr| {
                addr.as_str()
                    .expect("text")
                    .parse::<IpAddr>()
                    .expect("an address")
            })
            .find(|addr| addr.is_ipv4() == v4)
            .expect("an address of the family")
    }

    fn host(&self, namespace: &str, to: To) -> String {
        let ip = match to.by {
            By::Service => return format!("{}.{namespace}", to.server),
            By::V4 => self.address("pods", namespace, to.server, true),
            By::V6 => self.address("pods", namespace, to.server, false),
            By::ServiceV4 => self.address("services", namespace, to.server, true),
            By::ServiceV6 => self.address("services", namespace, to.server, false),
        };
        match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        }
    }

    /// One TCP connection of `namespace`'s client, as `karst-echo tcp` reports it.
    fn tcp(&self, namespace: &str, to: To, port: u16, options: &[&str]) -> Value {
        let target = format!("{}:{port}", self.host(namespace, to));
        let command = [&["karst-echo", "tcp", &target, "--show"], options].concat();
        let ran = self.lab.exec(&format!("{namespace}/client"), &command);
        serde_json::from_str(&ran.success()).expect("a report")
    }

    /// The parts of two reports that must agree.
    #[track_caller]
    fn same(&self, to: To, port: u16, options: &[&str]) -> Value {
        let (with, without) = (
            self.tcp("meshed", to, port, options),
            self.tcp("plain", to, port, options),
        );
        for key in [
            "sent",
            "sent_checksum",
            "received",
            "received_checksum",
            "end",
            "shown",
        ] {
            assert_eq!(
                with[key], without[key],
                "{key}, {to:?} port {port} {options:?}:\nwith    {with}\nwithout {without}"
            );
        }
        with
    }

    /// A request of `karst-echo client`; the lines of its output that do not name the namespace or an address.
    fn call(&self, namespace: &str, to: To, scheme: &str, port: u16) -> Vec<String> {
        let url = format!("{scheme}://{}:{port}/path?query", self.host(namespace, to));
        let ran = self.lab.exec(
            &format!("{namespace}/client"),
            &["karst-echo", "client", &url],
        );
        let differs = |line: &str| {
            [
                "IP=",
                "Host=",
                "ResponseHeader=Date",
                "ResponseHeader=Content-Length",
                "Sec-Websocket",
                "RequestHeader=Sec-Websocket",
            ]
            .iter()
            .any(|part| line.contains(part))
        };
        let output = ran.success();
        let lines = output.lines().filter(|line| !differs(line));
        lines
            .map(|line| line.replace(&format!(".{namespace}"), ".NAMESPACE"))
            .collect()
    }
}

#[test]
fn connections_are_the_same_with_and_without_the_mesh() {
    let lab = Lab::up("tests/fixtures/pair");
    let status = lab.status();
    let world = World { lab, status };
    protocols(&world);
    ends(&world);
    addresses(&world);
    refused(&world);
    unreachable(&world);
    bulk(&world);
    many(&world);
}

fn protocols(world: &World) {
    for to in everywhere() {
        let (http, by_pod) = match to.by {
            By::V4 | By::V6 => (8080, true),
            _ => (80, false),
        };
        let mut calls = vec![("http", http), ("h2c", http), ("ws", http), ("grpc", 7070)];
        if by_pod {
            calls.push(("https", 8443));
        }
        for (scheme, port) in calls {
            let with = world.call("meshed", to, scheme, port);
            let without = world.call("plain", to, scheme, port);
            assert_eq!(with, without, "{scheme} {to:?}");
            assert!(!with.is_empty(), "{scheme} {to:?}");
        }
    }
}

fn ends(world: &World) {
    for to in everywhere() {
        let echoed = world.same(to, 9000, &["--send", "200000"]);
        assert_eq!(echoed["received_checksum"], echoed["sent_checksum"]);
        assert_eq!(echoed["end"], "fin");
        // The server speaks first, and the client says nothing before.
        let banner = world.same(to, 9001, &["--wait-for", "10", "--text", "quit\\n"]);
        assert_eq!(banner["shown"], "220 karst-echo ready\r\nquit\n");
        // Accepted and closed at once.
        assert_eq!(
            world.same(to, 9002, &["--finish", "keep-open"])["end"],
            "fin"
        );
        // The server resets.
        let reset = world.same(to, 9003, &["--text", "x", "--finish", "keep-open"]);
        assert_eq!(reset["end"], "reset");
        // The server answers after the client's half close.
        let counted = world.same(to, 9004, &["--send", "100000"]);
        assert!(
            counted["shown"]
                .as_str()
                .expect("text")
                .starts_with("100000 ")
        );
        // The client resets: nothing is left at the server.
        world.same(to, 9000, &["--text", "x", "--finish", "reset"]);
        if matches!(to.by, By::V4 | By::V6) {
            // The server closes its half first and goes on reading.
            let fin = world.same(to, 9006, &["--send", "100000"]);
            assert_eq!(
                (&fin["end"], &fin["sent"]),
                (&"fin".into(), &100_000.into())
            );
        }
    }
    for server in ["meshed/server", "meshed/neighbour"] {
        eventually("no connection is left at the server", || {
            let left = world.lab.exec(
                server,
                &["ss", "-Htn", "state", "established", "( sport = :9000 )"],
            );
            left.success().trim().is_empty()
        });
    }
}

/// The server sees the client's own address, the client sees what it dialled.
fn addresses(world: &World) {
    for to in everywhere() {
        let port = if matches!(to.by, By::V4 | By::V6) {
            8080
        } else {
            80
        };
        let report = world.tcp("meshed", to, 9000, &["--text", "x"]);
        let socket = |key: &str| -> std::net::SocketAddr {
            report[key]
                .as_str()
                .expect("text")
                .parse()
                .expect("an address")
        };
        let v4 = socket("peer").is_ipv4();
        let own = world.address("pods", "meshed", "client", v4);
        assert_eq!(socket("local").ip(), own, "{to:?}");
        let dialled = match to.by {
            By::V4 | By::V6 => world.address("pods", "meshed", to.server, v4),
            _ => world.address("services", "meshed", to.server, v4),
        };
        assert_eq!(socket("peer"), (dialled, 9000).into(), "{to:?}");
        let url = format!("http://{}:{port}/", world.host("meshed", to));
        let page = world
            .lab
            .exec("meshed/client", &["curl", "-s", "--max-time", "10", &url]);
        let page = page.success();
        assert!(page.contains(&format!("IP={own}\n")), "{to:?}: {page}");
    }
}

/// Nobody listens: the client is reset before any byte and at once. That connect() itself succeeds is documented.
fn refused(world: &World) {
    for to in everywhere().filter(|to| matches!(to.by, By::V4 | By::V6)) {
        let with = world.tcp("meshed", to, 9999, &["--finish", "keep-open"]);
        let without = world.tcp("plain", to, 9999, &["--finish", "keep-open"]);
        assert_eq!(without["end"], "refused", "control");
        assert_eq!(
            (&with["end"], &with["received"]),
            (&"reset".into(), &0.into()),
            "{to:?}: {with}"
        );
        assert!(
            with["total_us"].as_u64().expect("a number") < 1_000_000,
            "at once: {with}"
        );
    }
}

/// A server whose port swallows everything: the client waits, with and without the mesh.
fn unreachable(world: &World) {
    let to = To {
        server: OTHER_NODE,
        by: By::V4,
    };
    for pod in ["meshed/server", "plain/server"] {
        let rules = "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }; \
            add rule inet deaf in tcp dport 9004 drop";
        world.lab.exec_root(pod, &["nft", rules]).success();
    }
    let waited = world.same(to, 9004, &["--timeout", "2", "--finish", "keep-open"]);
    assert_eq!(
        (&waited["end"], &waited["received"]),
        (&"timed-out".into(), &0.into())
    );
    for pod in ["meshed/server", "plain/server"] {
        world
            .lab
            .exec_root(pod, &["nft", "delete table inet deaf"])
            .success();
    }
}

fn bulk(world: &World) {
    const SIZE: &str = "67108864";
    for server in [OTHER_NODE, SAME_NODE] {
        let to = To {
            server,
            by: By::Service,
        };
        let up = world.same(to, 9004, &["--send", SIZE]);
        let shown = up["shown"].as_str().expect("text").trim().to_owned();
        let checksum = up["sent_checksum"].as_str().expect("text");
        assert_eq!(shown, format!("{SIZE} {checksum}"));
        let down = world.same(to, 9005, &["--text", &format!("{SIZE}\\n")]);
        assert_eq!(down["received_checksum"], up["sent_checksum"]);
    }
    // A reader that takes 64 KiB every 2 ms.
    let to = To {
        server: OTHER_NODE,
        by: By::Service,
    };
    let slow = world.same(to, 9005, &["--text", "8388608\\n", "--read-pause-ms", "2"]);
    assert_eq!(slow["received"], 8_388_608);
}

fn many(world: &World) {
    for target in ["server.meshed:9000", "neighbour.meshed:9000"] {
        let command = [
            "karst-echo",
            "load",
            target,
            "--rate",
            "500",
            "--duration",
            "2",
        ];
        let report = world.lab.exec("meshed/client", &command).success();
        let report: Value = serde_json::from_str(&report).expect("a report");
        assert_eq!(report["failures"], 0, "{report}");
        assert!(report["connections"].as_u64() >= Some(1000), "{report}");
    }
}

/// Takes connections and, asked, says how many lines came in all.
const LISTENER: &str = r#"
import socket, sys, threading
came, lock = [0], threading.Lock()
def serve(s):
    lines = 0
    with s:
        while data := s.recv(65536):
            lines += data.count(b"\n")
    with lock:
        came[0] += lines
def listen(server):
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
server = socket.create_server(("::", 9300), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
threading.Thread(target=listen, args=(server,), daemon=True).start()
print("listening", flush=True)
for _ in sys.stdin:
    with lock:
        print(came[0], flush=True)
"#;

/// Connects, sends one line and closes at once, as often as it is told, as programs do that send logs and figures.
const TELLER: &str = r#"
import socket, sys
for line in sys.stdin:
    host, count = line.split()
    for n in range(int(count)):
        with socket.create_connection((host, 9300), timeout=10) as s:
            s.sendall(b"said\n")
    print("told", flush=True)
"#;

/// Stops an agent, or lets it go on.
fn signal(lab: &Lab, node: &str, signal: &str) {
    let status = lab.status();
    let mut nodes = status["nodes"].as_array().expect("nodes").iter();
    let node = nodes.find(|one| one["name"] == node).expect("the node");
    let pid = node["agent"]["pid"].to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.expect("kill").success());
}

/// Whether a connection of the pod waits for the answer to its end (FIN_WAIT1, include/net/tcp_states.h).
fn is_leaving(lab: &Lab, pod: &str) -> bool {
    let table = lab.exec(pod, &["cat", "/proc/net/tcp"]).success();
    let mut states = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    states.any(|state| state == "04")
}

#[test]
fn what_a_client_says_that_has_left_before_the_agent_looks_arrives() {
    const COUNT: u32 = 100;
    let lab = Lab::up("tests/fixtures/pair");
    lab.wait_enrolled();
    for server in ["meshed/server", "meshed/neighbour"] {
        let mut listener = Script::start(&lab, server, LISTENER, &[]);
        assert_eq!(listener.line(), "listening");
        let mut teller = Script::start(&lab, "meshed/client", TELLER, &[]);
        let (namespace, name) = server.split_once('/').expect("a path");
        let host = lab.address(namespace, name);
        signal(&lab, "a", "-STOP");
        let told = teller.ask(&format!("{host} {COUNT}"));
        eventually("the clients have left", || {
            !is_leaving(&lab, "meshed/client")
        });
        signal(&lab, "a", "-CONT");
        assert_eq!(told, "told");
        let mut came = String::new();
        eventually("all lines have come", || {
            came = listener.ask("how many?");
            came == COUNT.to_string()
        });
    }
}

#[test]
#[ignore = "a gibibyte each way takes too long for the rung"]
fn soak_a_gibibyte_each_way_arrives_whole() {
    const SIZE: &str = "1073741824";
    let lab = Lab::up("tests/fixtures/pair");
    let status = lab.status();
    let world = World { lab, status };
    let to = To {
        server: OTHER_NODE,
        by: By::Service,
    };
    let up = world.same(to, 9004, &["--send", SIZE, "--timeout", "300"]);
    let checksum = up["sent_checksum"].as_str().expect("text");
    assert_eq!(
        up["shown"].as_str().expect("text").trim(),
        format!("{SIZE} {checksum}")
    );
    let down = world.same(
        to,
        9005,
        &["--text", &format!("{SIZE}\\n"), "--timeout", "300"],
    );
    assert_eq!(down["received_checksum"], up["sent_checksum"]);
}
