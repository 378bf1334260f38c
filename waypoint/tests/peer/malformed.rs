//! Requests that two readers could read in two ways, or that are no requests: each gets the status that the RFC asks
//! for, and none of them reaches the application.

use karst_model::protocol::AppProtocol;

use crate::{
    app::{App, Speaks},
    client::{Client, status},
    rig::{World, local},
};

/// (what, bytes, status)
const FORMS: &[(&str, &str, &str)] = &[
    ("no host", "GET / HTTP/1.1\r\n\r\n", "400"),
    (
        "two hosts",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "400",
    ),
    (
        "the same host twice",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "host with a space",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "400",
    ),
    (
        "host with user info",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "400",
    ),
    (
        "host with a path",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "400",
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "400",
    ),
    (
        "length list",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nabcd",
        "400",
    ),
    (
        "length with a sign",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
        "400",
    ),
    (
        "negative length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "400",
    ),
    (
        "length in hex",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
        "400",
    ),
    (
        "length too large",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "400",
    ),
    (
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "coding that does not end chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "another coding before chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "501",
    ),
    (
        "coding with an unknown name",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "two codings",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "501",
    ),
    (
        "space before the colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
        "400",
    ),
    (
        "folded line",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
        "400",
    ),
    (
        "line without a colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
        "400",
    ),
    (
        "empty header name",
        "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        "400",
    ),
    (
        "control character in a name",
        "GET / HTTP/1.1\r\nHost: a\r\nX\x01A: b\r\n\r\n",
        "400",
    ),
    (
        "control character in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x01c\r\n\r\n",
        "400",
    ),
    (
        "bare CR in a value",
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rc: d\r\n\r\n",
        "400",
    ),
    (
        "method with a space",
        "GE T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "method with a bracket",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    ("no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    (
        "target without a slash",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    ("star for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    (
        "another scheme",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "target with a control character",
        "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "broken escape",
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "encoded slash",
        "GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "encoded NUL",
        "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    (
        "version 1.2 with junk",
        "GET / HTTP/1.1.1\r\nHost: a\r\n\r\n",
        "400",
    ),
    ("version 3", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", "400"),
];

#[tokio::test]
async fn malformed_requests_are_refused_and_reach_nobody() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        let mut wrong = Vec::new();
        for (what, bytes, expected) in FORMS {
            let response = client.raw(vip, bytes).await;
            if status(&response) != *expected {
                wrong.push(format!("{what}: {:?}", status(&response)));
            }
        }
        for seen in app.seen() {
            wrong.push(format!("reached the application: {seen:?}"));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        world
            .metric_reaches(
                &["karst_waypoint_malformed_requests_total"],
                FORMS.len() as f64,
            )
            .await;
    })
    .await;
}

/// Bodies that break off.
const BROKEN: &[&str] = &[
    "zz\r\nabc\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "-1\r\n\r\n",
    "ffffffffffffffffff\r\nabc\r\n",
    "3;a\nb\r\nabc\r\n0\r\n\r\n",
    "3\r\nabcGET /evil HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// A broken chunk cannot be told before the head is on its way: the request is broken off, nothing else follows it.
#[tokio::test]
async fn a_broken_body_smuggles_nothing() {
    local(async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let client = Client::new(&world);
        for (number, chunks) in BROKEN.iter().enumerate() {
            let head = "POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            let evil = format!("GET /evil/{number} HTTP/1.1\r\nHost: a\r\n\r\n");
            client.raw(vip, format!("{head}{chunks}{evil}")).await;
        }
        // With a coding the length does not count, and does not go on (RFC 9112, section 6.3).
        let both = "POST /both HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n";
        client.raw(vip, both).await;
        let after = client.raw(vip, "GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(status(&after), "200", "{after}");
        for seen in app.seen() {
            assert!(!seen.uri.path().starts_with("/evil"), "{seen:?}");
            assert!(!(seen.headers.contains_key("content-length") && seen.headers.contains_key("transfer-encoding")));
        }
    })
    .await;
}
