//! Each filter by the examples of the specification.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use karst_model::route::{OriginMatch, PathChange};

use super::*;
use crate::request::{Scheme, Seen};

fn request(method: &str, target: &str, port: u16, headers: &[(&str, &str)]) -> Request {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).unwrap();
    parts.uri = target.parse().unwrap();
    parts.version = Version::HTTP_11;
    parts
        .headers
        .insert(header::HOST, HeaderValue::from_static("shop.io:8080"));
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        parts
            .headers
            .append(name, HeaderValue::from_str(value).unwrap());
    }
    let seen = Seen {
        scheme: Scheme::Http,
        port,
    };
    Request::new(parts, seen).unwrap()
}

fn list(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

/// The table of `HTTPPathModifier.ReplacePrefixMatch`, and its edges.
#[test]
fn prefixes_are_replaced_as_the_specification_lists() {
    for (path, prefix, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
        ("/", "", "/xyz", "/xyz/"),
    ] {
        let change = PathChange::Prefix(replacement.into());
        let rewrite = Rewrite::compile(&route::Rewrite {
            host: None,
            path: Some(change),
        });
        let mut request = request("GET", &format!("{path}?q=1"), 80, &[]);
        rewrite
            .unwrap()
            .apply(&mut request, MatchedPath::Prefix(prefix))
            .unwrap();
        assert_eq!(
            request.path_and_query(),
            format!("{expected}?q=1"),
            "{path} {prefix} {replacement}"
        );
    }
}

#[test]
fn a_rewrite_changes_host_and_whole_path() {
    let rewrite = Rewrite::compile(&route::Rewrite {
        host: Some("other.io".into()),
        path: Some(PathChange::Full("/one".into())),
    });
    let mut request = request("GET", "/full/one/two", 80, &[]);
    rewrite
        .unwrap()
        .apply(&mut request, MatchedPath::Prefix("/full"))
        .unwrap();
    assert_eq!((request.host(), request.path()), ("other.io", "/one"));
    assert_eq!(request.headers()[header::HOST], "other.io");
}

#[test]
fn header_changes_set_add_and_remove() {
    let pair = |name: &str, value: &str| (name.into(), value.into());
    let changes = HeaderChanges::compile(&route::HeaderChanges {
        set: vec![
            pair("X-Set", "new"),
            pair("x-set", "ignored"),
            pair("Host", "set.io"),
        ],
        add: vec![pair("X-Add", "bar,baz")],
        remove: list(&["X-Remove"]),
    });
    let sent = [
        ("x-set", "old"),
        ("x-set", "old2"),
        ("x-add", "foo"),
        ("x-remove", "1"),
        ("x-stay", "1"),
    ];
    let mut request = request("GET", "/", 80, &sent);
    changes.unwrap().apply_to_request(&mut request);
    for (name, expected) in [
        ("x-set", Some("new")),
        ("x-add", Some("foo,bar,baz")),
        ("x-remove", None),
        ("x-stay", Some("1")),
    ] {
        let value = request
            .header(name)
            .map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(value.as_deref(), expected, "{name}");
    }
    assert_eq!(request.host(), "set.io");
}

#[test]
fn filters_that_cannot_be_applied_are_refused() {
    let pair = |name: &str, value: &str| vec![(Arc::from(name), Arc::from(value))];
    let changes = |set| {
        HttpFilter::RequestHeaders(route::HeaderChanges {
            set,
            ..route::HeaderChanges::default()
        })
    };
    let redirect = |status, scheme: Option<&str>, host: Option<&str>| {
        HttpFilter::Redirect(route::Redirect {
            scheme: scheme.map(Into::into),
            host: host.map(Into::into),
            port: None,
            keep_port: false,
            path: None,
            status,
        })
    };
    let path = |text: &str| {
        HttpFilter::Rewrite(route::Rewrite {
            host: None,
            path: Some(PathChange::Full(text.into())),
        })
    };
    let mirror = |numerator, denominator| {
        HttpFilter::Mirror(route::Mirror {
            backend: Backend::Invalid("".into()),
            numerator,
            denominator,
            shadow_host: false,
        })
    };
    for bad in [
        changes(pair("a b", "1")),
        changes(pair("a", "1\n2")),
        changes(pair("Content-Length", "5")),
        changes(pair("transfer-encoding", "chunked")),
        changes(pair("host", "a,b")),
        redirect(304, None, None),
        redirect(302, Some("ftp"), None),
        redirect(302, None, Some("a/b")),
        path("no-slash"),
        path("/a?b"),
        mirror(1, 0),
        mirror(3, 2),
    ] {
        assert!(Filter::compile(&bad).is_err(), "{bad:?}");
    }
}

/// The port rules of `HTTPRequestRedirectFilter.Port`.
#[test]
fn locations_are_made_as_the_specification_says() {
    for (scheme, host, port, dialled, expected) in [
        // "If redirect scheme is empty, the redirect port MUST be the Gateway Listener port."
        (None, None, None, 8080, "http://shop.io:8080/a?q=1"),
        // "A Location header that will use HTTP and use port 80" has no port.
        (None, None, None, 80, "http://shop.io/a?q=1"),
        (None, Some("other.io"), None, 80, "http://other.io/a?q=1"),
        // "If redirect scheme is not-empty, the redirect port MUST be the well-known port".
        (Some("https"), None, None, 8080, "https://shop.io/a?q=1"),
        (Some("http"), None, None, 8080, "http://shop.io/a?q=1"),
        (
            Some("https"),
            None,
            Some(443),
            8080,
            "https://shop.io/a?q=1",
        ),
        (
            Some("https"),
            None,
            Some(80),
            8080,
            "https://shop.io:80/a?q=1",
        ),
        (None, None, Some(8083), 80, "http://shop.io:8083/a?q=1"),
        (
            None,
            Some("example.org"),
            Some(8083),
            80,
            "http://example.org:8083/a?q=1",
        ),
    ] {
        let redirect = Redirect::compile(&route::Redirect {
            scheme: scheme.map(Into::into),
            host: host.map(Into::into),
            port,
            keep_port: false,
            path: None,
            status: 302,
        });
        let request = request("GET", "/a?q=1", dialled, &[]);
        let (status, location) = redirect
            .unwrap()
            .answer(&request, MatchedPath::Prefix(""))
            .unwrap();
        assert_eq!(
            (status.as_u16(), location.to_str().unwrap()),
            (302, expected)
        );
    }
}

#[test]
fn redirects_replace_paths_and_carry_their_status() {
    for status in [301, 302, 303, 307, 308] {
        let redirect = Redirect::compile(&route::Redirect {
            scheme: None,
            host: None,
            port: None,
            keep_port: false,
            path: Some(PathChange::Prefix("/new".into())),
            status,
        });
        let request = request("GET", "/old/x", 80, &[]);
        let (found, location) = redirect
            .unwrap()
            .answer(&request, MatchedPath::Prefix("/old"))
            .unwrap();
        assert_eq!(
            (found.as_u16(), location.to_str().unwrap()),
            (status, "http://shop.io/new/x")
        );
    }
}

#[test]
fn mirrors_take_their_share() {
    let mirror = |numerator, denominator| {
        Mirror::compile(&route::Mirror {
            backend: Backend::Invalid("".into()),
            numerator,
            denominator,
            shadow_host: false,
        })
        .unwrap()
    };
    assert!(mirror(1, 1).takes(u64::MAX) && !mirror(0, 100).takes(0));
    let half = mirror(50, 100);
    assert!(half.takes(u64::MAX / 2) && !half.takes(u64::MAX / 2 + 1));
}

fn cors(
    origins: Vec<OriginMatch>,
    credentials: bool,
    methods: &[&str],
    headers: &[&str],
    expose: &[&str],
) -> Cors {
    Cors::compile(&route::Cors {
        allow_origins: origins,
        allow_credentials: credentials,
        allow_methods: list(methods),
        allow_headers: list(headers),
        expose_headers: list(expose),
        max_age_seconds: Some(3600),
        forward_unmatched: false,
    })
    .unwrap()
}

fn origins() -> Vec<OriginMatch> {
    vec![
        OriginMatch::Exact("https://www.foo.com".into()),
        OriginMatch::Wildcard {
            scheme: "https://".into(),
            suffix: ".bar.com".into(),
        },
    ]
}

fn preflight(origin: &str, method: &str, headers: Option<&str>) -> Request {
    let mut sent = vec![
        ("origin", origin),
        ("access-control-request-method", method),
    ];
    sent.extend(headers.map(|headers| ("access-control-request-headers", headers)));
    request("OPTIONS", "/", 80, &sent)
}

fn text(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| {
            let name = name.as_str().trim_start_matches("access-control-");
            format!("{name}: {}", value.to_str().unwrap())
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_preflight_from_an_allowed_origin_gets_what_is_allowed() {
    let rules = cors(
        origins(),
        true,
        &["GET", "OPTIONS"],
        &["x-header-1", "x-header-2"],
        &["x-header-3"],
    );
    for origin in [
        "https://www.foo.com",
        "https://WWW.foo.com:443",
        "https://www.bar.com",
        "https://xpto.www.bar.com",
    ] {
        let CorsOutcome::Preflight(status, headers) = rules.handle(&preflight(origin, "GET", None))
        else {
            panic!("{origin}");
        };
        assert_eq!(status, 204);
        assert_eq!(
            text(&headers),
            [
                "allow-credentials: true",
                "allow-headers: x-header-1, x-header-2",
                "allow-methods: GET, OPTIONS",
                &format!("allow-origin: {origin}"),
                "expose-headers: x-header-3",
                "max-age: 3600",
                "vary: origin",
            ]
        );
    }
}

#[test]
fn other_origins_get_no_cors_headers() {
    let rules = cors(origins(), true, &["GET"], &[], &[]);
    for origin in [
        "https://foobar.com",
        "http://www.foo.com",
        "https://bar.com",
        "https://www.foo.com:8443",
        "https://.bar.com.evil",
        "null",
    ] {
        let answer = rules.handle(&preflight(origin, "GET", None));
        assert_eq!(
            answer,
            CorsOutcome::Preflight(StatusCode::NO_CONTENT, HeaderMap::new()),
            "{origin}"
        );
        let actual = rules.handle(&request("GET", "/", 80, &[("origin", origin)]));
        assert_eq!(actual, CorsOutcome::NotCors, "{origin}");
    }
    assert_eq!(
        rules.handle(&request("GET", "/", 80, &[])),
        CorsOutcome::NotCors
    );
}

#[test]
fn stars_stay_stars_only_without_credentials() {
    let any = vec![OriginMatch::Any];
    let without = cors(any.clone(), false, &["*"], &["*"], &["*"]);
    let CorsOutcome::Preflight(_, headers) =
        without.handle(&preflight("https://a.io", "PUT", Some("x-a")))
    else {
        panic!("no preflight");
    };
    let expected = [
        "allow-headers: *",
        "allow-methods: *",
        "allow-origin: *",
        "expose-headers: *",
        "max-age: 3600",
    ];
    assert_eq!(text(&headers), expected);

    let with = cors(any, true, &["*"], &["*"], &["*"]);
    let CorsOutcome::Preflight(_, headers) = with.handle(&preflight("https://a.io", "PUT", None))
    else {
        panic!("no preflight");
    };
    let expected = [
        "allow-credentials: true",
        "allow-methods: PUT",
        "allow-origin: https://a.io",
        "max-age: 3600",
        "vary: origin",
    ];
    assert_eq!(
        text(&headers),
        expected,
        "without asked headers none are allowed"
    );
}

#[test]
fn an_actual_request_gets_its_origin_back() {
    let rules = cors(origins(), false, &["GET"], &["x-a"], &["x-b"]);
    let outcome = rules.handle(&request(
        "GET",
        "/",
        80,
        &[("origin", "https://www.foo.com")],
    ));
    let CorsOutcome::Actual(headers) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        text(&headers),
        [
            "allow-origin: https://www.foo.com",
            "expose-headers: x-b",
            "vary: origin"
        ]
    );
    let mut response = HeaderMap::new();
    response.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    cors::put_into(&mut response, &headers);
    assert_eq!(response.get_all(header::VARY).iter().count(), 2);
    assert_eq!(
        response[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        "https://www.foo.com"
    );
}

#[test]
fn faults_take_their_share_of_even_draws_and_refuse_what_is_none() {
    use karst_model::route::{Fault, FaultAbort, FaultAnswer, FaultDelay};
    let fault = |millionths, status, wait| {
        Filter::compile(&HttpFilter::Fault(Fault {
            delay: Some(FaultDelay { wait, millionths }),
            abort: Some(FaultAbort {
                answer: FaultAnswer::Http(status),
                millionths,
            }),
        }))
    };
    let second = std::time::Duration::from_secs(1);
    let Ok(Filter::Fault(quarter)) = fault(250_000, 503, second) else {
        panic!("it can be applied");
    };
    // In the middle of each share, so that none lies on a border.
    let draws = (0..10_000_u64).map(|at| at * (u64::MAX / 10_000) + u64::MAX / 20_000);
    let hit = draws.clone().filter(|draw| quarter.abort(*draw).is_some());
    assert_eq!(hit.count(), 2_500);
    let late = draws.filter(|draw| quarter.delay(*draw) == Some(second));
    assert_eq!(late.count(), 2_500);
    assert!(fault(1_000_001, 503, second).is_err());
    assert!(fault(1, 199, second).is_err());
    assert!(fault(1, 503, second * 3_601).is_err());
}

#[test]
fn paths_are_replaced_letter_by_letter_or_by_what_an_expression_finds() {
    let rewrite = |change, path, matched| {
        let rewrite = route::Rewrite {
            host: None,
            path: Some(change),
        };
        let mut request = request("GET", path, 80, &[]);
        let applied = Rewrite::compile(&rewrite)
            .unwrap()
            .apply(&mut request, matched);
        applied.is_ok().then(|| request.path_and_query().to_owned())
    };
    let regex = |pattern: &str, substitution: &str| PathChange::Regex {
        pattern: pattern.into(),
        substitution: substitution.into(),
    };
    let whole = MatchedPath::Whole;
    for (change, path, matched, expected) in [
        (
            PathChange::Prefix("/new".into()),
            "/older?q",
            MatchedPath::Start(4),
            Some("/newer?q"),
        ),
        (
            PathChange::Prefix("/v1/".into()),
            "/a",
            MatchedPath::Start(1),
            Some("/v1/a"),
        ),
        (PathChange::Prefix("/x/".into()), "/a/b", whole, Some("/x/")),
        (
            regex("/([a-z]+)/([0-9]+)", r"/\2/\1"),
            "/a/1/b/2?q=/c/3",
            whole,
            Some("/1/a/2/b?q=/c/3"),
        ),
        (regex("b", r"\0\\"), "/ab", whole, Some(r"/ab\")),
        (regex("^/", ""), "/ab", whole, None),
    ] {
        assert_eq!(
            rewrite(change, path, matched).as_deref(),
            expected,
            "{path}"
        );
    }
}

#[test]
fn a_redirect_to_where_the_request_is_leads_back() {
    let asked = request("GET", "/a?q=1", 8080, &[]);
    for (location, expected) in [
        ("http://shop.io:8080/a?q=1", true),
        ("http://shop.io/a?q=1", false),
        ("http://shop.io:8080/b?q=1", false),
        ("https://shop.io:8080/a?q=1", false),
    ] {
        let location = HeaderValue::from_static(location);
        assert_eq!(Redirect::leads_back(&location, &asked), expected);
    }
}

#[test]
fn a_copy_is_told_by_its_host() {
    let mirror = |shadow_host| {
        Mirror::compile(&route::Mirror {
            backend: Backend::Invalid("".into()),
            numerator: 1,
            denominator: 1,
            shadow_host,
        })
        .unwrap()
    };
    assert_eq!(mirror(false).host_of_copy("a.io"), None);
    for (sent, expected) in [
        ("a.io", "a.io-shadow"),
        ("a.io:80", "a.io-shadow:80"),
        ("[::1]", "[::1]-shadow"),
    ] {
        assert_eq!(mirror(true).host_of_copy(sent).as_deref(), Some(expected));
    }
}
