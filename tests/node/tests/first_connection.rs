//! The thinnest slice: one connection is captured, tunnelled and identified at both ends.

use karst_test_node::{Capture, Lab, capture::contains, until};

#[test]
fn a_connection_between_nodes_travels_in_the_tunnel_with_both_identities() {
    let lab = Lab::up("tests/fixtures/pair");
    let marker = "marker-7f3a-first-connection";
    let url = format!("http://server.meshed/{marker}");
    let wire = Capture::start(&lab, "a", "any", "tcp");
    let page = lab
        .exec("meshed/client", &["curl", "-s", "--max-time", "10", &url])
        .success();
    assert!(
        page.contains(marker),
        "the server shows the path that it was asked for: {page}"
    );
    let captured = wire.stop();
    assert!(!captured.is_empty());

    let control = Capture::start(&lab, "a", "any", "tcp");
    lab.exec(
        "plain/client",
        &[
            "curl",
            "-s",
            "--max-time",
            "10",
            &format!("http://server.plain/{marker}"),
        ],
    )
    .success();
    assert!(
        contains(&control.stop(), marker.as_bytes()),
        "control: outside the mesh the same capture finds the text"
    );
    assert!(
        !contains(&captured, marker.as_bytes()),
        "plain text between two pods of the mesh"
    );

    let line = until("the access log of node b has the connection", || {
        let log = lab.agent_log("b");
        log.lines()
            .find(|line| line.contains("direction=inbound") && line.contains("sa/client"))
            .map(str::to_owned)
    });
    for identity in [
        "spiffe://cluster.local/ns/meshed/sa/client",
        "spiffe://cluster.local/ns/meshed/sa/server",
    ] {
        assert!(line.contains(identity), "{line}");
    }
}
