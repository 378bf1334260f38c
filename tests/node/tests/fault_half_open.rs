//! A node that vanishes without a word: its peers notice, applications are told, and the next connection is dialled anew.

use std::time::{Duration, Instant};

use karst_test_node::{Lab, Script, eventually, script::PROBER};

/// Pings are answered within 20 s or the peer is gone; the next ping is at most 10 s away. What is on top is for a busy
/// machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(45);

/// Holds a connection, exchanges one byte, then says when it ends.
const HOLDER: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], 9000), timeout=5)
s.sendall(b"x")
assert s.recv(1) == b"x"
s.settimeout(None)
print("held", flush=True)
try:
    print("ended" if s.recv(1) == b"" else "bytes", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"#;

/// Takes 15008 off the air on a node, in silence; gone with the node's namespace at the latest.
fn silence(lab: &Lab, node: &str, on: bool) {
    let rules = match on {
        true => {
            "add table inet silence; \
             add chain inet silence forward { type filter hook forward priority 0; }; \
             add rule inet silence forward tcp dport 15008 drop; \
             add rule inet silence forward tcp sport 15008 drop"
        }
        false => "delete table inet silence",
    };
    lab.exec_node(node, &["nft", rules]).success();
}

#[test]
fn a_peer_that_vanishes_is_noticed_and_dialled_anew() {
    let lab = Lab::up("tests/fixtures/pair");
    let server = lab.address("meshed", "server");
    let mut prober = Script::start(&lab, "meshed/client", PROBER, &[]);
    let question = format!("{server} 9000 x");
    eventually("the tunnel", || prober.ask(&question) == "ok");
    let holder = Script::start(&lab, "meshed/client", HOLDER, &[&server]);
    assert_eq!(holder.line(), "held");

    silence(&lab, "b", true);
    let since = Instant::now();
    assert_ne!(prober.ask(&question), "ok", "control: nothing passes");
    let told = holder.line_within(NOTICED_WITHIN);
    let after = since.elapsed();
    silence(&lab, "b", false);
    eprintln!("the application was told {told:?} after {after:?}");
    assert_eq!(told.as_deref(), Some("ConnectionResetError"));
    eventually("a new tunnel", || prober.ask(&question) == "ok");
    let log = lab.agent_log("a");
    assert!(
        log.lines()
            .any(|line| line.contains("connection failed") && line.contains(&server)),
        "the agent says what it could not reach"
    );
}
