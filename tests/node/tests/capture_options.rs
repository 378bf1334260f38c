//! Annotations that take traffic out of the capture, on real traffic; DNS of sockets that are not connected; and a kernel that
//! drops what comes by another way than its answer would go (rp_filter, RFC 3704).

use karst_test_node::{Lab, Script, eventually, script::PROBER};

/// Nobody without an identity may.
const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: meshed
spec:
  mtls:
    mode: STRICT
";

/// A pod of namespace meshed on node a with annotations.
fn pod(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: meshed\n  annotations:\n{annotations}spec:\n  \
         nodeName: a\n  serviceAccountName: client\n  containers:\n    - name: echo\n      command: [karst-echo, server, \
         --mode, \"echo:9000\", --mode, \"echo:9001\"]\n"
    )
}

/// Asks a name server from a socket that is bound and not connected: `SERVER NAME`, answered with the address that the
/// answer came from and the number of records, or what failed.
const RESOLVER: &str = r#"
import socket, struct, sys
for line in sys.stdin:
    server, name = line.split()
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    query = struct.pack("!6H", 4711, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(4)
    s.bind(("0.0.0.0", 0))
    try:
        s.sendto(query, (server, 53))
        answer, sender = s.recvfrom(4096)
        ident, flags, _, count, _, _ = struct.unpack("!6H", answer[:12])
        print(sender[0], sender[1], ident == 4711 and flags & 15 == 0, count, flush=True)
    except OSError as error:
        print("failed", type(error).__name__, flush=True)
    s.close()
"#;

#[test]
fn what_annotations_exclude_goes_as_without_the_mesh_and_nothing_else_does() {
    let lab = Lab::up("tests/fixtures/pair");
    lab.apply("strict.yaml", STRICT);
    let server = lab.address("meshed", "server");
    let mut plain = Script::start(&lab, "plain/client", PROBER, &[]);
    eventually("STRICT holds", || {
        plain.ask(&format!("{server} 9000 x")) != "ok"
    });

    let by_port = pod(
        "by-port",
        "    traffic.sidecar.istio.io/excludeOutboundPorts: \"9001\"\n    \
         traffic.sidecar.istio.io/excludeInboundPorts: \"9001\"\n",
    );
    let by_range = pod(
        "by-range",
        &format!("    traffic.sidecar.istio.io/excludeOutboundIPRanges: \"{server}/32\"\n"),
    );
    lab.apply("options.yaml", &format!("{by_port}---\n{by_range}"));
    lab.wait_enrolled();

    let mut out = Script::start(&lab, "meshed/by-port", PROBER, &[]);
    eventually("a port that is not excluded is tunnelled", || {
        out.ask(&format!("{server} 9000 x")) == "ok"
    });
    let refused = out.ask(&format!("{server} 9001 x"));
    assert!(
        refused.starts_with("failed"),
        "an excluded port goes plainly, which STRICT refuses at the other end: {refused}"
    );
    let address = lab.address("meshed", "by-port");
    assert_eq!(plain.ask(&format!("{address} 9001 x")), "ok", "excluded");
    assert_ne!(plain.ask(&format!("{address} 9000 x")), "ok", "captured");

    let mut out = Script::start(&lab, "meshed/by-range", PROBER, &[]);
    let neighbour = lab.address("meshed", "neighbour");
    eventually("an address that is not excluded is tunnelled", || {
        out.ask(&format!("{neighbour} 9000 x")) == "ok"
    });
    assert_ne!(
        out.ask(&format!("{server} 9000 x")),
        "ok",
        "an excluded address is dialled plainly"
    );
}

#[test]
fn dns_from_sockets_that_are_not_connected_goes_to_the_agent_and_back() {
    let lab = Lab::up("tests/fixtures/pair");
    let configured = lab
        .exec("meshed/client", &["cat", "/etc/resolv.conf"])
        .success();
    let resolver = configured
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .expect("a name server")
        .trim()
        .to_owned();
    let mut asking = Script::start(&lab, "meshed/client", RESOLVER, &[]);
    let expected = format!("{resolver} 53 True 1");
    eventually("the answer seems to come from whom was asked", || {
        asking.ask(&format!("{resolver} server.meshed.svc.cluster.local")) == expected
    });
    let url = "http://127.0.0.1:15020/metrics";
    let page = lab.exec_node("a", &["curl", "-s", url]).success();
    let answered = page
        .lines()
        .any(|line| line.contains("dns") && !line.starts_with('#') && !line.ends_with(" 0"));
    assert!(answered, "the agent answered:\n{page}");
}

/// Whose kernel checks sources strictly: the network namespaces of both nodes and of the pods.
fn filter_strictly(lab: &Lab) {
    let write = "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $file; done";
    for node in lab.nodes() {
        lab.exec_node(&node, &["sh", "-c", write]).success();
    }
    for (namespace, pod) in [
        ("meshed", "client"),
        ("meshed", "server"),
        ("meshed", "neighbour"),
        ("plain", "client"),
    ] {
        let pod = lab.pod(namespace, pod);
        let name = pod["netns"].as_str().expect("a namespace");
        let netns = format!("--net=/run/netns/{name}");
        let mut nsenter = std::process::Command::new("nsenter");
        let status = nsenter.args([&*netns, "sh", "-c", write]).status();
        assert!(status.expect("nsenter").success(), "{name}");
    }
}

#[test]
fn nothing_that_the_mesh_carries_fails_a_strict_check_of_sources() {
    let lab = Lab::up("tests/fixtures/pair");
    lab.wait_enrolled();
    filter_strictly(&lab);
    let server = lab.address("meshed", "server");
    let neighbour = lab.address("meshed", "neighbour");
    let mut inside = Script::start(&lab, "meshed/client", PROBER, &[]);
    let mut outside = Script::start(&lab, "plain/client", PROBER, &[]);
    for target in [&server, &neighbour] {
        for from in [&mut inside, &mut outside] {
            assert_eq!(from.ask(&format!("{target} 9000 x")), "ok", "{target}");
        }
    }
    let plain = lab.address("plain", "server");
    assert_eq!(
        inside.ask(&format!("{plain} 9000 x")),
        "ok",
        "out of the mesh"
    );
    lab.apply("strict.yaml", STRICT);
    eventually("STRICT refuses who is outside", || {
        outside.ask(&format!("{server} 9000 x")) != "ok"
    });
    assert_eq!(
        inside.ask(&format!("{server} 9000 x")),
        "ok",
        "by its tunnel"
    );
}
