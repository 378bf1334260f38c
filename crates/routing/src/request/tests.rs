//! One request, read once: hosts, targets, headers, and what is refused.

use http::{HeaderName, Uri};

use super::*;

fn read(
    version: Version,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Request, Refusal> {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).unwrap();
    parts.uri = target.parse::<Uri>().unwrap();
    parts.version = version;
    for (name, value) in headers {
        parts.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    Request::new(parts, seen)
}

fn http1(target: &str, headers: &[(&str, &str)]) -> Result<Request, Refusal> {
    read(Version::HTTP_11, "GET", target, headers)
}

fn http2(target: &str, headers: &[(&str, &str)]) -> Result<Request, Refusal> {
    read(Version::HTTP_2, "GET", target, headers)
}

#[test]
fn paths_have_one_spelling() {
    for (path, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a//b///c", "/a/b/c"),
        ("/a/./b/../c", "/a/c"),
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a//../b", "/a/b"),
        ("/%61%2E%2e/%7Eb", "/a../~b"),
        ("/%2e%2e/a", "/a"),
        ("/x/%2e%2e/%61dmin", "/admin"),
        ("/a%20b%c3%a9", "/a%20b%C3%A9"),
        ("/%2561", "/%2561"),
        ("/a{b}|c", "/a%7Bb%7D%7Cc"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a;b=c", "/a;b=c"),
    ] {
        assert_eq!(normalise_path(path).as_deref(), Ok(expected), "{path}");
    }
}

#[test]
fn paths_with_two_readings_are_refused() {
    for (path, expected) in [
        ("/a%2fb", Refusal::PathEncodedSeparator),
        ("/a%5Cb", Refusal::PathEncodedSeparator),
        ("/a\\b", Refusal::PathBackslash),
        ("/a%00", Refusal::PathControl),
        ("/a%0d%0ab", Refusal::PathControl),
        ("/a%7f", Refusal::PathControl),
        ("/%c0%ae%c0%ae/", Refusal::PathOverlong),
        ("/%e0%80%af", Refusal::PathOverlong),
        ("/%f0%80%80%af", Refusal::PathOverlong),
        ("/a%", Refusal::PathEscape),
        ("/a%4", Refusal::PathEscape),
        ("/a%u0061", Refusal::PathEscape),
        ("/é", Refusal::PathNotAscii),
        ("/a/..;/b", Refusal::PathDotParameter),
        ("/a/%2e%2e;x/b", Refusal::PathDotParameter),
    ] {
        assert_eq!(normalise_path(path), Err(expected), "{path}");
    }
}

#[test]
fn the_backend_sees_the_normalised_path_and_the_query_as_sent() {
    let request = http1("/a/../%61?x=%2e/../", &[("host", "h")]).unwrap();
    assert_eq!((request.path(), request.query()), ("/a", Some("x=%2e/../")));
    let parts = request.into_parts(Form::Origin).unwrap();
    assert_eq!(parts.uri, "/a?x=%2e/../");
}

#[test]
fn hosts_are_compared_in_one_form_and_sent_on_as_they_were() {
    for (sent, expected) in [
        ("a.io", "a.io"),
        ("A.Io.:8080", "a.io"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[FD00::1]:80", "[fd00::1]"),
        ("a.io:", "a.io"),
        ("a_b", "a_b"),
    ] {
        let request = http1("/", &[("host", sent)]).unwrap();
        assert_eq!((request.host(), request.authority()), (expected, sent));
        let parts = request.into_parts(Form::Origin).unwrap();
        assert_eq!(parts.headers[header::HOST], sent);
    }
}

#[test]
fn hosts_with_two_readings_are_refused() {
    for bad in [
        "",
        "a b",
        "a,b",
        "user@a.io",
        "a.io:99999",
        "a.io:80:90",
        "a/b",
        "a%2eio",
        "[::1",
        "::1",
        "é.io",
        ".",
        "a.io:+1",
    ] {
        assert!(http1("/", &[("host", bad)]).is_err(), "{bad}");
    }
}

#[test]
fn a_request_has_exactly_one_host() {
    assert_eq!(http1("/", &[]).unwrap_err(), Refusal::HostMissing);
    let twice = [("host", "a"), ("Host", "a")];
    assert_eq!(http1("/", &twice).unwrap_err(), Refusal::HostRepeated(2));
    assert_eq!(read(Version::HTTP_10, "GET", "/", &[]).unwrap().host(), "");
    assert_eq!(http2("/", &[]).unwrap_err(), Refusal::HostMissing);
}

#[test]
fn an_absolute_target_replaces_the_host_of_http1() {
    let request = http1("http://b.io:81/x", &[("host", "a.io")]).unwrap();
    assert_eq!((request.host(), request.path()), ("b.io", "/x"));
    let parts = request.into_parts(Form::Origin).unwrap();
    assert_eq!(parts.headers[header::HOST], "b.io:81");
    assert_eq!(
        http1("http://b.io/", &[]).unwrap_err(),
        Refusal::HostMissing
    );
    assert!(matches!(
        http1("ftp://b.io/", &[("host", "b.io")]),
        Err(Refusal::Scheme(_))
    ));
}

#[test]
fn authority_and_host_of_http2_must_agree() {
    assert!(http2("http://a.io/", &[("host", "A.io")]).is_ok());
    assert!(matches!(
        http2("http://a.io/", &[("host", "b.io")]),
        Err(Refusal::HostsDiffer { .. })
    ));
    assert_eq!(http2("/", &[("host", "a.io")]).unwrap().host(), "a.io");
}

#[test]
fn heads_are_written_in_the_form_of_the_next_hop() {
    let parts = http1("/a?b", &[("host", "a.io:81")])
        .unwrap()
        .into_parts(Form::Absolute)
        .unwrap();
    assert_eq!(parts.uri, "http://a.io:81/a?b");
    assert!(!parts.headers.contains_key(header::HOST));
    let parts = http2("http://a.io/a?b", &[])
        .unwrap()
        .into_parts(Form::Origin)
        .unwrap();
    assert_eq!(parts.uri, "/a?b");
    assert_eq!(parts.headers[header::HOST], "a.io");
}

#[test]
fn targets_without_a_path() {
    let tunnel = read(
        Version::HTTP_11,
        "CONNECT",
        "a.io:443",
        &[("host", "a.io:443")],
    )
    .unwrap();
    assert_eq!((tunnel.path(), tunnel.host()), ("", "a.io"));
    assert_eq!(tunnel.into_parts(Form::Origin).unwrap().uri, "a.io:443");
    let options = read(Version::HTTP_11, "OPTIONS", "*", &[("host", "a.io")]).unwrap();
    assert_eq!(options.path(), "*");
    assert!(http1("*", &[("host", "a.io")]).is_err());
    assert!(http1("a.io:443", &[("host", "a.io")]).is_err());
}

#[test]
fn values_of_a_header_are_one() {
    let sent = [
        ("host", "h:1"),
        ("x-a", "1"),
        ("X-A", "2, 3"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ];
    let request = http1("/p?q", &sent).unwrap();
    for (name, expected) in [
        ("x-a", Some("1,2, 3")),
        ("cookie", Some("a=1; b=2")),
        ("host", Some("h:1")),
        (":authority", Some("h:1")),
        (":method", Some("GET")),
        (":path", Some("/p?q")),
        ("x-b", None),
        ("not a name", None),
    ] {
        let value = request
            .header(name)
            .map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(value.as_deref(), expected, "{name}");
    }
}

#[test]
fn the_client_is_who_trusted_proxies_say() {
    let lines = |lines: &[&str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        headers
    };
    let peer = "10.0.0.9".parse().unwrap();
    for (sent, proxies, expected) in [
        (&["1.1.1.1, 2.2.2.2"][..], 0, "10.0.0.9"),
        (&["1.1.1.1, 2.2.2.2"], 1, "2.2.2.2"),
        (&["1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        (&["1.1.1.1", "2.2.2.2"], 2, "1.1.1.1"),
        (&["1.1.1.1"], 2, "10.0.0.9"),
        (&["[fd00::1]:80"], 1, "fd00::1"),
        (&["::ffff:1.1.1.1"], 1, "1.1.1.1"),
        (&["1.1.1.1:99"], 1, "1.1.1.1"),
        (&["unknown"], 1, "10.0.0.9"),
        (&[], 1, "10.0.0.9"),
    ] {
        let found = remote_ip(&lines(sent), peer, proxies);
        assert_eq!(found.to_string(), expected, "{sent:?} {proxies}");
    }
}

#[test]
fn what_concerns_one_hop_ends_there() {
    let sent = [
        ("host", "h"),
        ("connection", "keep-alive, x-mine, host, authorization"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers, gzip"),
        ("x-mine", "1"),
        ("x-other", "1"),
        ("authorization", "secret"),
        ("transfer-encoding", "chunked"),
    ];
    for (upgrade, expected) in [
        (
            Upgrade::Drop,
            ["authorization", "host", "te", "x-other"].as_slice(),
        ),
        (
            Upgrade::Keep,
            &[
                "authorization",
                "connection",
                "host",
                "te",
                "upgrade",
                "x-other",
            ],
        ),
    ] {
        let mut request = http1("/", &sent).unwrap();
        strip_hop_by_hop(request.headers_mut(), upgrade);
        let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(request.headers()[header::TE], "trailers");
    }
}
