//! A mesh whose pods and services have IPv6 addresses alone: capture, tunnel, names, policy, and what travels.

use karst_test_node::{Capture, Lab, Script, capture::contains, eventually, script::PROBER};

const DENY_CLIENT: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: limits
  namespace: meshed
spec:
  selector:
    matchLabels:
      app: server
  action: DENY
  rules:
    - from:
        - source:
            principals: [cluster.local/ns/meshed/sa/client]
";

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: modes
  namespace: meshed
spec:
  mtls:
    mode: STRICT
";

/// Asks for a name as applications do, and prints the addresses that came back.
const RESOLVER: &str = r#"
import socket, sys
for line in sys.stdin:
    try:
        found = {a[4][0] for a in socket.getaddrinfo(line.strip(), 80, type=socket.SOCK_STREAM)}
        print(*sorted(found), flush=True)
    except OSError as error:
        print("failed", error, flush=True)
"#;

#[test]
fn a_mesh_of_ipv6_alone_is_a_mesh() {
    let lab = Lab::up_ipv6_only("tests/fixtures/pair");
    let status = lab.status();
    let pods = status["pods"].as_array().expect("pods");
    for pod in pods {
        let addresses = pod["addresses"].to_string();
        assert!(!addresses.contains('.'), "an IPv4 address: {pod}");
    }
    let server = lab.address("meshed", "server");
    let mut client = Script::start(&lab, "meshed/client", PROBER, &[]);
    let mut neighbour = Script::start(&lab, "meshed/neighbour", PROBER, &[]);
    let mut outside = Script::start(&lab, "plain/client", PROBER, &[]);

    names(&lab);
    wire(&lab, &mut client, &mut outside);

    // To an address, to a service, on the same node, into and out of the mesh.
    let plain = lab.address("plain", "server");
    for to in [server.as_str(), "server", "neighbour", plain.as_str()] {
        assert_eq!(client.ask(&format!("{to} 9000 hello")), "ok", "to {to}");
    }
    assert_eq!(outside.ask(&format!("{server} 9000 hello")), "ok");
    let log = lab.agent_log("b");
    let wanted = "src.identity=spiffe://cluster.local/ns/meshed/sa/client";
    assert!(log.contains(wanted), "the tunnel carries the identity");

    lab.apply("deny.yaml", DENY_CLIENT);
    eventually("the client is denied", || {
        client.ask("server 9000 hello") != "ok"
    });
    assert_eq!(neighbour.ask("server 9000 hello"), "ok");
    lab.remove("deny.yaml");
    eventually("the client is allowed again", || {
        client.ask("server 9000 hello") == "ok"
    });
    lab.apply("strict.yaml", STRICT);
    eventually("a caller outside the mesh is refused", || {
        outside.ask(&format!("{server} 9000 hello")) != "ok"
    });
    assert_eq!(client.ask("server 9000 hello"), "ok");
}

/// Names have IPv6 addresses alone, and asking for both families costs nothing.
fn names(lab: &Lab) {
    let mut resolver = Script::start(lab, "meshed/client", RESOLVER, &[]);
    for name in [
        "server",
        "server.meshed",
        "server.meshed.svc.cluster.local",
        "server.plain",
    ] {
        let found = resolver.ask(name);
        assert!(
            found.starts_with("fd00:10:96:") && !found.contains('.') && !found.contains(' '),
            "{name} is {found}"
        );
    }
    assert!(resolver.ask("nobody.meshed").starts_with("failed"));
}

/// What the mesh carries between nodes is not to be read; what nobody enrolled is.
fn wire(lab: &Lab, client: &mut Script, outside: &mut Script) {
    let capture = Capture::start(lab, "a", "eth0", "tcp");
    assert_eq!(client.ask("server 9000 marker-of-the-mesh"), "ok");
    assert_eq!(outside.ask("server 9000 marker-of-the-plain"), "ok");
    let bytes = capture.stop();
    assert!(contains(&bytes, b"marker-of-the-plain"), "the control");
    assert!(!contains(&bytes, b"marker-of-the-mesh"));
}
