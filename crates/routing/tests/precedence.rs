//! Precedence and merging of routes: one test for each sentence of the Gateway API v1.6 (`HTTPRouteSpec.Hostnames`,
//! `HTTPRouteRule.Matches`, `HTTPPathMatch`, `HTTPHeaderMatch`, `HTTPQueryParamMatch`, `GRPCRouteRule.Matches`, GEP-1294).
//! Each test is named after its sentence and cites it.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::sync::Arc;

use http::{Method, Version, header};
use karst_model::{
    name::ServiceKey,
    policy::IpBlock,
    route::{
        Attachment, Clients, ConnectionMatch, HeaderMatch, HostMatch, HttpMatch, HttpRule,
        PathMatch, QueryMatch, Route, RouteKey, RouteKind, RouteRules, SourceMatch, TcpRule,
        TlsRule, ValueMatch,
    },
};
use karst_routing::{
    request::{Request, Scheme, Seen, Sender},
    table::{Dialled, Routes, Table},
};

fn service() -> ServiceKey {
    "shop/orders.shop.svc.cluster.local".parse().unwrap()
}

fn attachment(clients: Clients) -> Attachment {
    Attachment {
        service: service(),
        port: None,
        clients,
    }
}

/// A producer's route of one rule for each match. `name` is `namespace/name`.
fn route(kind: RouteKind, name: &str, created: i64, matches: Vec<HttpMatch>) -> Route {
    let (namespace, name) = name.split_once('/').unwrap();
    let rule = |m| HttpRule {
        matches: vec![m],
        ..HttpRule::default()
    };
    Route {
        key: RouteKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        },
        created,
        attachments: vec![attachment(Clients::All)],
        rules: RouteRules::Http(matches.into_iter().map(rule).collect()),
    }
}

fn http_route(matches: Vec<HttpMatch>) -> Route {
    route(RouteKind::HttpRoute, "shop/r", 0, matches)
}

fn grpc_route(matches: Vec<HttpMatch>) -> Route {
    route(RouteKind::GrpcRoute, "shop/r", 0, matches)
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Exact(path.into())),
        ..HttpMatch::default()
    }
}

fn prefix(path: &str) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Prefix(path.into())),
        ..HttpMatch::default()
    }
}

fn regex(path: &str) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Regex(path.into())),
        ..HttpMatch::default()
    }
}

fn method(method: &str, m: HttpMatch) -> HttpMatch {
    HttpMatch {
        method: Some(method.into()),
        ..m
    }
}

fn headers(names: &[&str], m: HttpMatch) -> HttpMatch {
    let header = |name: &&str| HeaderMatch {
        name: (*name).into(),
        value: ValueMatch::Exact("1".into()),
    };
    HttpMatch {
        headers: names.iter().map(header).collect(),
        ..m
    }
}

fn query(names: &[&str], m: HttpMatch) -> HttpMatch {
    let param = |name: &&str| QueryMatch {
        name: (*name).into(),
        value: ValueMatch::Exact("1".into()),
    };
    HttpMatch {
        query: names.iter().map(param).collect(),
        ..m
    }
}

fn host(name: &str, m: HttpMatch) -> HttpMatch {
    let host = match name.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.into()),
        None => HostMatch::Exact(name.into()),
    };
    HttpMatch {
        hosts: vec![host],
        ..m
    }
}

fn table(routes: Vec<Route>) -> Table {
    let table = Table::compile(&service(), 80, routes.into_iter().map(Arc::new));
    assert_eq!(table.problems(), []);
    table
}

/// `METHOD host/path?query [name: value]…` as a request.
fn request(line: &str) -> Request {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (host, path) = target.split_at(target.find('/').unwrap());
    let mut builder = http::Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .version(Version::HTTP_11)
        .header(header::HOST, host);
    for pair in words {
        let (name, value) = pair.split_once('=').unwrap();
        builder = builder.header(name, value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    Request::new(parts, seen).unwrap()
}

/// `route rule` of what takes the request for a client, or why nothing does.
fn picked_by(table: &Table, client: Option<&str>, line: &str) -> String {
    match table.routes(client) {
        Routes::None => "no routes".to_owned(),
        Routes::Http(table) => match table.pick(&request(line)) {
            None => "404".to_owned(),
            Some(picked) => format!("{} {}", picked.rule.route.key.name, picked.rule.index),
        },
        Routes::Tls(_) => "tls".to_owned(),
        Routes::Tcp(rule) => format!("tcp {}", rule.route.key.name),
        Routes::OrderedTcp(_) => "virtual service".to_owned(),
    }
}

fn picked(table: &Table, line: &str) -> String {
    picked_by(table, None, line)
}

/// Asks which rule of one route takes the requests, with the rules in this order and in the reverse.
fn check(
    of: fn(Vec<HttpMatch>) -> Route,
    matches: &[HttpMatch],
    expected: &[(&str, Option<usize>)],
) {
    let len = matches.len();
    let reversed = matches.iter().rev().cloned().collect();
    let (forwards, backwards) = (table(vec![of(matches.to_vec())]), table(vec![of(reversed)]));
    for (line, rule) in expected {
        let name =
            |rule: Option<usize>| rule.map_or_else(|| "404".to_owned(), |rule| format!("r {rule}"));
        assert_eq!(picked(&forwards, line), name(*rule), "{line}");
        assert_eq!(
            picked(&backwards, line),
            name(rule.map(|rule| len - 1 - rule)),
            "{line}, reversed"
        );
    }
}

// --- HTTPRouteRule.Matches

/// "this rule will be matched if **any** one of the matches is satisfied"
#[test]
fn any_match_of_a_rule_will_do() {
    let mut route = http_route(vec![prefix("/foo")]);
    let RouteRules::Http(rules) = &mut route.rules else {
        unreachable!();
    };
    rules[0].matches.push(prefix("/v2/foo"));
    let table = table(vec![route]);
    assert_eq!(picked(&table, "GET h/v2/foo"), "r 0");
    assert_eq!(picked(&table, "GET h/foo"), "r 0");
    assert_eq!(picked(&table, "GET h/v2"), "404");
}

/// "Multiple match types are ANDed together"
#[test]
fn the_conditions_of_a_match_must_all_hold() {
    let all = method("POST", headers(&["a", "b"], query(&["q"], prefix("/foo"))));
    check(
        http_route,
        &[all],
        &[
            ("POST h/foo?q=1 a=1 b=1", Some(0)),
            ("GET h/foo?q=1 a=1 b=1", None),
            ("POST h/foo?q=2 a=1 b=1", None),
            ("POST h/foo?q=1 a=1", None),
            ("POST h/fo?q=1 a=1 b=1", None),
        ],
    );
}

/// "If no matches are specified, the default is a prefix path match on "/", which has the effect of matching every HTTP
/// request": CONNECT and `OPTIONS *` are requests too.
#[test]
fn a_prefix_of_a_slash_takes_every_request() {
    let table = table(vec![http_route(vec![prefix("/")])]);
    let Routes::Http(http) = table.routes(None) else {
        panic!("no HTTP routes");
    };
    for (method, uri) in [
        (Method::OPTIONS, "*"),
        (Method::CONNECT, "example.com:443"),
        (Method::GET, "/"),
    ] {
        let (parts, ()) = http::Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "example.com:443")
            .body(())
            .unwrap()
            .into_parts();
        let seen = Seen {
            scheme: Scheme::Http,
            port: 80,
        };
        assert!(
            http.pick(&Request::new(parts, seen).unwrap()).is_some(),
            "{uri}"
        );
    }
}

/// "precedence must be given to the match having: "Exact" path match."
#[test]
fn an_exact_path_comes_first() {
    let matches = [
        method("GET", headers(&["a"], prefix("/a/b"))),
        exact("/a/b"),
    ];
    check(
        http_route,
        &matches,
        &[("GET h/a/b a=1", Some(1)), ("GET h/a/b/c a=1", Some(0))],
    );
}

/// ""Prefix" path match with largest number of characters."
#[test]
fn the_longest_prefix_comes_next() {
    let matches = [method("GET", prefix("/a")), prefix("/a/b"), prefix("/")];
    check(
        http_route,
        &matches,
        &[
            ("GET h/a/b/c", Some(1)),
            ("GET h/a/c", Some(0)),
            ("GET h/x", Some(2)),
        ],
    );
}

/// "Method match."
#[test]
fn a_method_comes_before_headers() {
    let matches = [
        headers(&["a", "b"], prefix("/")),
        method("GET", prefix("/")),
    ];
    check(
        http_route,
        &matches,
        &[("GET h/ a=1 b=1", Some(1)), ("PUT h/ a=1 b=1", Some(0))],
    );
}

/// "Largest number of header matches."
#[test]
fn more_headers_come_before_more_parameters() {
    let matches = [
        query(&["q", "r"], headers(&["a"], prefix("/"))),
        headers(&["a", "b"], prefix("/")),
    ];
    check(
        http_route,
        &matches,
        &[
            ("GET h/?q=1&r=1 a=1 b=1", Some(1)),
            ("GET h/?q=1&r=1 a=1", Some(0)),
        ],
    );
}

/// "Largest number of query param matches."
#[test]
fn more_parameters_come_next() {
    let matches = [query(&["q"], prefix("/")), query(&["q", "r"], prefix("/"))];
    check(
        http_route,
        &matches,
        &[("GET h/?q=1&r=1", Some(1)), ("GET h/?q=1", Some(0))],
    );
}

/// "Note: The precedence of RegularExpression path matches are implementation-specific": after exact paths, before
/// prefixes, the longer expression first.
#[test]
fn an_expression_stands_between_exact_paths_and_prefixes() {
    let matches = [
        exact("/a/b"),
        regex("/a/[a-z]"),
        regex("/a/.*"),
        prefix("/a/b"),
    ];
    check(
        http_route,
        &matches,
        &[
            ("GET h/a/b", Some(0)),
            ("GET h/a/c", Some(1)),
            ("GET h/a/b/c", Some(2)),
        ],
    );
}

/// "If ties still exist across multiple Routes […] The oldest Route based on creation timestamp."
#[test]
fn the_oldest_route_wins_a_tie() {
    let of = |name, created| route(RouteKind::HttpRoute, name, created, vec![prefix("/")]);
    let table = table(vec![of("shop/a", 2), of("shop/b", 1), of("shop/c", 3)]);
    assert_eq!(picked(&table, "GET h/"), "b 0");
}

/// "The Route appearing first in alphabetical order by "{namespace}/{name}"": as one text, in which `-` comes before `/`.
#[test]
fn then_the_first_in_alphabetical_order() {
    let of = |name| route(RouteKind::HttpRoute, name, 0, vec![prefix("/")]);
    let by_name = table(vec![of("shop/b"), of("shop/a")]);
    assert_eq!(picked(&by_name, "GET h/"), "a 0");
    let by_namespace = table(vec![of("shop/a"), of("shop-2/z")]);
    assert_eq!(picked(&by_namespace, "GET h/"), "z 0");
}

/// "precedence must be given to the match having": criteria of matches come before the age of routes.
#[test]
fn age_decides_only_ties() {
    let of = |name, created, m| route(RouteKind::HttpRoute, name, created, vec![m]);
    let table = table(vec![
        of("shop/old", 0, prefix("/")),
        of("shop/new", 9, method("GET", prefix("/"))),
    ]);
    assert_eq!(picked(&table, "GET h/"), "new 0");
}

/// "If ties still exist within an HTTPRoute, matching precedence MUST be granted to the FIRST matching rule (in list
/// order) with a match meeting the above criteria."
#[test]
fn within_a_route_the_first_rule_wins_a_tie() {
    let matches = vec![headers(&["a"], prefix("/")), headers(&["b"], prefix("/"))];
    let table = table(vec![http_route(matches)]);
    assert_eq!(picked(&table, "GET h/ a=1 b=1"), "r 0");
    assert_eq!(picked(&table, "GET h/ b=1"), "r 1");
}

/// "When no rules matching a request have been successfully attached to the parent a request is coming from, a HTTP 404
/// status code MUST be returned."
#[test]
fn what_no_rule_takes_is_404() {
    assert_eq!(
        picked(&table(vec![http_route(vec![prefix("/a")])]), "GET h/b"),
        "404"
    );
    assert_eq!(picked(&table(vec![]), "GET h/b"), "no routes");
}

// --- HTTPPathMatch

/// "an exact path match on `/abc` will only match requests to `/abc`, NOT `/abc/`, `/Abc`, or `/abcd`"
#[test]
fn an_exact_path_is_exact() {
    let expected = [
        ("GET h/abc", Some(0)),
        ("GET h/abc/", None),
        ("GET h/Abc", None),
        ("GET h/abcd", None),
    ];
    check(http_route, &[exact("/abc")], &expected);
}

/// "the paths `/abc`, `/abc/`, and `/abc/def` would all match the prefix `/abc`, but the path `/abcd` would not"
#[test]
fn a_prefix_ends_where_an_element_ends() {
    let expected = [
        ("GET h/abc", Some(0)),
        ("GET h/abc/", Some(0)),
        ("GET h/abc/def", Some(0)),
        ("GET h/abcd", None),
    ];
    check(http_route, &[prefix("/abc")], &expected);
}

/// "When specified, a trailing `/` is ignored."
#[test]
fn a_slash_at_the_end_of_a_prefix_is_ignored() {
    check(
        http_route,
        &[prefix("/abc/")],
        &[("GET h/abc", Some(0)), ("GET h/abc/d", Some(0))],
    );
    let tie = table(vec![http_route(vec![prefix("/abc"), prefix("/abc/")])]);
    assert_eq!(picked(&tie, "GET h/abc/d"), "r 0");
}

/// "Matching is case-sensitive"
#[test]
fn paths_are_compared_with_case() {
    check(
        http_route,
        &[prefix("/abc"), regex("/x[a-z]")],
        &[("GET h/ABC", None), ("GET h/xA", None)],
    );
}

// --- HTTPHeaderMatch, HTTPQueryParamMatch

/// "Name matching MUST be case-insensitive."
#[test]
fn names_of_headers_are_compared_without_case() {
    check(
        http_route,
        &[headers(&["x-version"], prefix("/"))],
        &[("GET h/ X-Version=1", Some(0))],
    );
}

/// "If multiple entries specify equivalent header names, only the first entry with an equivalent name MUST be considered
/// for a match."
#[test]
fn the_first_entry_for_a_header_counts() {
    let mut m = headers(&["a", "a"], prefix("/"));
    m.headers[1].value = ValueMatch::Exact("2".into());
    check(
        http_route,
        &[m.clone()],
        &[("GET h/ a=1", Some(0)), ("GET h/ a=2", None)],
    );
    // Nor does the second count in precedence.
    check(
        http_route,
        &[m, headers(&["a", "b"], prefix("/"))],
        &[("GET h/ a=1 b=1", Some(1))],
    );
}

/// "If multiple entries specify equivalent query param names, only the first entry […] MUST be considered for a match."
#[test]
fn the_first_entry_for_a_parameter_counts() {
    let mut m = query(&["q", "q"], prefix("/"));
    m.query[1].value = ValueMatch::Exact("2".into());
    check(
        http_route,
        &[m],
        &[("GET h/?q=1", Some(0)), ("GET h/?q=2", None)],
    );
}

/// "it is *recommended* that implementations should match against the first value of the param"
#[test]
fn of_a_repeated_parameter_the_first_value_counts() {
    let expected = [
        ("GET h/?q=1&q=2", Some(0)),
        ("GET h/?q=2&q=1", None),
        ("GET h/?%71=%31", Some(0)),
    ];
    check(http_route, &[query(&["q"], prefix("/"))], &expected);
}

/// "This must be an exact string match." (names of parameters)
#[test]
fn names_of_parameters_are_compared_with_case() {
    check(
        http_route,
        &[query(&["Q"], prefix("/"))],
        &[("GET h/?q=1", None), ("GET h/?Q=1", Some(0))],
    );
}

// --- HTTPRouteSpec.Hostnames

/// "Implementations MUST ignore any port value specified in the HTTP Host header while performing a match"
#[test]
fn the_port_of_a_host_is_ignored() {
    let expected = [
        ("GET a.io:8080/", Some(0)),
        ("GET A.IO/", Some(0)),
        ("GET b.io/", None),
    ];
    check(http_route, &[host("a.io", prefix("/"))], &expected);
}

/// "`*.example.com` would match both `test.example.com`, and `foo.test.example.com`, but not `example.com`"
#[test]
fn a_wildcard_takes_one_label_or_more() {
    let expected = [
        ("GET test.example.com/", Some(0)),
        ("GET foo.test.example.com/", Some(0)),
        ("GET example.com/", None),
        ("GET xexample.com/", None),
    ];
    check(http_route, &[host("*.example.com", prefix("/"))], &expected);
}

/// "precedence must be given to rules from the HTTPRoute with the largest number of: Characters in a matching
/// non-wildcard hostname."
#[test]
fn an_exact_host_comes_before_wildcards_and_paths() {
    let matches = [
        host("*.long.example.com", exact("/a")),
        host("a.long.example.com", prefix("/")),
    ];
    check(
        http_route,
        &matches,
        &[
            ("GET a.long.example.com/a", Some(1)),
            ("GET b.long.example.com/a", Some(0)),
        ],
    );
}

/// "Characters in a matching hostname."
#[test]
fn the_longest_wildcard_comes_next() {
    let matches = [
        host("*.com", exact("/a")),
        host("*.example.com", prefix("/")),
        exact("/a"),
    ];
    check(
        http_route,
        &matches,
        &[
            ("GET x.example.com/a", Some(1)),
            ("GET x.com/a", Some(0)),
            ("GET x.org/a", Some(2)),
        ],
    );
}

/// "If ties exist across multiple Routes, the matching precedence rules for HTTPRouteMatches takes over." A host whose
/// rules do not take the request gives none of them precedence.
#[test]
fn a_host_without_a_matching_rule_leaves_it_to_the_next() {
    let matches = [
        host("a.io", prefix("/a")),
        host("*.io", prefix("/")),
        prefix("/"),
    ];
    check(
        http_route,
        &matches,
        &[
            ("GET a.io/b", Some(1)),
            ("GET a.io/a", Some(0)),
            ("GET a.org/b", Some(2)),
        ],
    );
}

// --- GRPCRouteRule.Matches

/// "If no matches are specified, the implementation MUST match every gRPC request."
#[test]
fn a_grpc_match_without_a_method_takes_all() {
    check(
        grpc_route,
        &[HttpMatch::default()],
        &[("POST h/pkg.Svc/Call", Some(0))],
    );
}

/// "Precedence MUST be given to the rule with the largest number of: Characters in a matching service."
#[test]
fn a_grpc_service_comes_before_a_method_of_any_service() {
    let matches = [
        regex("/[^/]+/Call"),
        prefix("/pkg.Svc"),
        HttpMatch::default(),
    ];
    check(
        grpc_route,
        &matches,
        &[
            ("POST h/pkg.Svc/Call", Some(1)),
            ("POST h/pkg.Other/Call", Some(0)),
            ("POST h/pkg.Other/Else", Some(2)),
        ],
    );
}

/// "Characters in a matching method."
#[test]
fn a_grpc_method_comes_before_its_service_alone() {
    let matches = [
        headers(&["a", "b"], prefix("/pkg.Svc")),
        exact("/pkg.Svc/Call"),
    ];
    check(
        grpc_route,
        &matches,
        &[("POST h/pkg.Svc/Call a=1 b=1", Some(1))],
    );
}

/// "Header matches."
#[test]
fn more_grpc_headers_come_next() {
    let matches = [
        headers(&["a"], exact("/pkg.Svc/Call")),
        headers(&["a", "b"], exact("/pkg.Svc/Call")),
    ];
    check(
        grpc_route,
        &matches,
        &[
            ("POST h/pkg.Svc/Call a=1 b=1", Some(1)),
            ("POST h/pkg.Svc/Call a=1", Some(0)),
        ],
    );
}

/// "The oldest Route", "The Route appearing first in alphabetical order", "the first matching rule"
#[test]
fn grpc_ties_end_as_those_of_http() {
    let of = |name, created| {
        route(
            RouteKind::GrpcRoute,
            name,
            created,
            vec![exact("/s/m"), exact("/s/m")],
        )
    };
    assert_eq!(
        picked(&table(vec![of("shop/a", 2), of("shop/b", 1)]), "POST h/s/m"),
        "b 0"
    );
    assert_eq!(
        picked(&table(vec![of("shop/b", 1), of("shop/a", 1)]), "POST h/s/m"),
        "a 0"
    );
}

// --- GEP-1294 (routes of a Service)

/// "If multiple routes with different types both bind to the same Service and Port pair, only a single route type should
/// be applied": GRPCRoute, HTTPRoute, TLSRoute, TCPRoute. "Merging MUST not be done between GRPCRoutes and HTTPRoutes."
#[test]
fn only_one_kind_of_routes_is_applied() {
    let with = |kind, rules| Route {
        rules,
        ..route(kind, "shop/r", 0, vec![])
    };
    let tcp = with(
        RouteKind::TcpRoute,
        RouteRules::Tcp(vec![TcpRule::default()]),
    );
    let tls = with(
        RouteKind::TlsRoute,
        RouteRules::Tls(vec![TlsRule::default()]),
    );
    let (http, grpc) = (
        http_route(vec![prefix("/h")]),
        grpc_route(vec![prefix("/g")]),
    );
    let all = table(vec![tcp.clone(), tls.clone(), http.clone(), grpc]);
    assert_eq!(picked(&all, "GET h/g"), "r 0");
    assert_eq!(picked(&all, "GET h/h"), "404");
    let without_grpc = table(vec![tcp.clone(), tls.clone(), http]);
    assert_eq!(picked(&without_grpc, "GET h/h"), "r 0");
    assert_eq!(picked(&table(vec![tcp.clone(), tls]), "GET h/"), "tls");
    assert_eq!(picked(&table(vec![tcp]), "GET h/"), "tcp r");
}

/// "If `port` is set, the implementation MUST associate the route only with that port."
#[test]
fn a_route_of_a_port_is_only_of_that_port() {
    let mut route = http_route(vec![prefix("/")]);
    route.attachments[0].port = Some(81);
    assert_eq!(picked(&table(vec![route.clone()]), "GET h/"), "no routes");
    route.attachments[0].port = Some(80);
    assert_eq!(picked(&table(vec![route]), "GET h/"), "r 0");
}

/// "If `port` is not set, the implementation MUST associate the route with all ports defined in the Service."
#[test]
fn a_route_without_a_port_is_of_all() {
    for port in [80, 81] {
        let routes = [Arc::new(http_route(vec![prefix("/")]))];
        let table = Table::compile(&service(), port, routes);
        assert_eq!(picked(&table, "GET h/"), "r 0");
    }
}

/// "Requests from a namespace with consumer routes will utilize the (possibly merged) set of routes in the consumer
/// namespace. Requests from other namespaces will utilize the (possibly merged) set of routes in the producer namespace"
#[test]
fn a_namespaces_own_routes_replace_the_producers() {
    let producer = route(
        RouteKind::HttpRoute,
        "shop/producer",
        0,
        vec![prefix("/"), prefix("/p")],
    );
    let consumer = |name, path| Route {
        attachments: vec![attachment(Clients::Namespace("front".into()))],
        ..route(RouteKind::HttpRoute, name, 0, vec![prefix(path)])
    };
    let table = table(vec![
        producer,
        consumer("front/one", "/c"),
        consumer("front/two", "/d"),
    ]);
    for (client, path, expected) in [
        (Some("front"), "/c", "one 0"),
        (Some("front"), "/d", "two 0"),
        (Some("front"), "/p", "404"),
        (Some("back"), "/c", "producer 0"),
        (Some("shop"), "/p", "producer 1"),
        (None, "/p", "producer 1"),
    ] {
        let line = format!("GET h{path}");
        assert_eq!(
            picked_by(&table, client, &line),
            expected,
            "{client:?} {path}"
        );
    }
}

// --- TLSRoute, TCPRoute

#[test]
fn tls_routes_go_by_the_most_specific_server_name() {
    let rule = |hosts: &[&str]| TlsRule {
        hosts: hosts
            .iter()
            .map(|name| host(name, HttpMatch::default()).hosts.remove(0))
            .collect(),
        ..TlsRule::default()
    };
    let of = |name, created, hosts: &[&str]| Route {
        rules: RouteRules::Tls(vec![rule(hosts)]),
        ..route(RouteKind::TlsRoute, name, created, vec![])
    };
    let routes = vec![
        of("shop/young", 2, &["a.io", "*.io"]),
        of("shop/old", 1, &["a.io"]),
        of("shop/any", 3, &[]),
    ];
    let table = table(routes);
    let Routes::Tls(tls) = table.routes(None) else {
        panic!("no TLS routes");
    };
    for (sni, expected) in [
        (Some("a.io"), "old"),
        (Some("B.io"), "young"),
        (Some("a.org"), "any"),
        (None, "any"),
    ] {
        let dialled = Dialled {
            sni,
            port: 80,
            destination: None,
            client: None,
            sender: &Sender::default(),
        };
        let name = tls
            .pick(&dialled)
            .map(|rule| rule.route.key.name.to_string());
        assert_eq!(name.as_deref(), Some(expected), "{sni:?}");
    }
}

#[test]
fn of_tcp_routes_the_oldest_is_applied() {
    let of = |name, created| Route {
        rules: RouteRules::Tcp(vec![TcpRule::default()]),
        ..route(RouteKind::TcpRoute, name, created, vec![])
    };
    assert_eq!(
        picked(&table(vec![of("shop/a", 2), of("shop/b", 1)]), "GET h/"),
        "tcp b"
    );
}

#[test]
fn rules_of_a_virtual_service_for_connections_are_tried_in_their_order() {
    let block = |ip: &str, prefix_len| IpBlock {
        ip: ip.parse().unwrap(),
        prefix_len,
    };
    let of = |name: &str, m| TcpRule {
        name: Some(name.into()),
        matches: vec![m],
        ..TcpRule::default()
    };
    let labelled = ConnectionMatch {
        source: SourceMatch {
            labels: vec![("app".into(), "a".into())],
            ..SourceMatch::default()
        },
        ..ConnectionMatch::default()
    };
    let there = ConnectionMatch {
        destinations: vec![block("10.1.0.0", 16), block("fd00::", 8)],
        ..ConnectionMatch::default()
    };
    let from = ConnectionMatch {
        client: Some(block("10.9.0.0", 24)),
        port: Some(80),
        ..ConnectionMatch::default()
    };
    let rules = vec![of("label", labelled), of("to", there), of("from", from)];
    let table = table(vec![Route {
        rules: RouteRules::Tcp(rules),
        ..route(RouteKind::VirtualServiceTcp, "shop/vs", 1, vec![])
    }]);
    let Routes::OrderedTcp(tcp) = table.routes(None) else {
        panic!("no rules");
    };
    assert!(tcp.asks_sender());
    let app = Sender {
        labels: vec![("app".into(), "a".into())].into(),
        ..Sender::default()
    };
    let nobody = Sender::default();
    for (sender, destination, client, port, expected) in [
        (&app, "10.1.2.3", "10.9.0.1", 80, Some("label")),
        (&nobody, "10.1.2.3", "10.9.0.1", 80, Some("to")),
        (&nobody, "fd00::1", "10.9.0.1", 80, Some("to")),
        (&nobody, "::ffff:10.1.0.1", "10.9.1.1", 80, Some("to")),
        (&nobody, "10.2.0.1", "10.9.0.255", 80, Some("from")),
        (&nobody, "10.2.0.1", "10.9.0.255", 81, None),
        (&nobody, "10.2.0.1", "10.9.1.1", 80, None),
    ] {
        let dialled = Dialled {
            sni: None,
            port,
            destination: Some(destination.parse().unwrap()),
            client: Some(client.parse().unwrap()),
            sender,
        };
        let name = tcp.pick(&dialled).and_then(|rule| rule.name.clone());
        assert_eq!(name.as_deref(), expected, "{destination} {client} {port}");
    }
}

// --- what is wrong harms only itself

#[test]
fn an_expression_that_cannot_be_compiled_is_reported_and_left_out() {
    let bad_header = HttpMatch {
        headers: vec![HeaderMatch {
            name: "a b".into(),
            value: ValueMatch::Absent,
        }],
        ..prefix("/")
    };
    let bad_value = HttpMatch {
        query: vec![QueryMatch {
            name: "q".into(),
            value: ValueMatch::Regex("(".into()),
        }],
        ..prefix("/")
    };
    let matches = vec![
        regex("/(a"),
        regex("(x{1000}){1000}"),
        regex("/ok.*"),
        bad_header,
        bad_value,
        prefix("/p"),
    ];
    let table = Table::compile(&service(), 80, [Arc::new(http_route(matches))]);
    let mut rules: Vec<usize> = table
        .problems()
        .iter()
        .map(|problem| problem.rule)
        .collect();
    rules.sort_unstable();
    assert_eq!(rules, [0, 1, 3, 4], "{:?}", table.problems());
    assert_eq!(picked(&table, "GET h/ok"), "r 2");
    assert_eq!(picked(&table, "GET h/p"), "r 5");
    assert_eq!(picked(&table, "GET h/x"), "404");
}
