//! What a waypoint reads: paths and heads of requests from clients, routes from the controller.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Method, Uri, Version, request::Parts};
use karst_model::{
    name::ServiceKey,
    route::{
        Attachment, Clients, HeaderMatch, HostMatch, HttpFilter, HttpMatch, HttpRule, PathMatch,
        QueryMatch, Redirect, Route, RouteKey, RouteKind, RouteRules, ValueMatch,
    },
};
use karst_routing::{
    filter::{Filter, MatchedPath},
    pattern,
    request::{
        Form, Request, Scheme, Seen, Sender, Upgrade, normalise_path, normalise_pattern, remote_ip,
        strip_hop_by_hop,
    },
    table::{Dialled, Routes, Table},
};

use crate::Target;

/// The path of a request.
pub const PATH: Target = Target {
    name: "request_path",
    run: run_path,
    seeds: path_seeds,
};

/// A head: method and target in the first line, headers as `name: value` in the others. A first line that begins with
/// `2` stands for HTTP/2, with `0` for HTTP/1.0.
pub const HEAD: Target = Target {
    name: "request_head",
    run: run_head,
    seeds: head_seeds,
};

/// Routes of one service as JSON, or else one regular expression.
pub const ROUTES: Target = Target {
    name: "routes",
    run: run_routes,
    seeds: route_seeds,
};

const SEEN: Seen = Seen {
    scheme: Scheme::Http,
    port: 80,
};

fn run_path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _pattern = normalise_pattern(text);
    let path = format!("/{text}");
    let Ok(normal) = normalise_path(&path) else {
        return;
    };
    assert_eq!(
        normalise_path(&normal).as_deref(),
        Ok(&*normal),
        "{path:?}: twice is not as once"
    );
    assert_eq!(
        normalise_pattern(&normal),
        normal,
        "{path:?}: a pattern of it does not find it"
    );
    assert!(
        normal.starts_with('/') && normal.is_ascii() && !normal.contains("//"),
        "{normal:?}"
    );
    let lower = normal.to_ascii_lowercase();
    assert!(
        !lower.contains("%2f") && !lower.contains("%5c") && !lower.contains('\\'),
        "{normal:?}"
    );
    let dots = |segment: &str| segment == "." || segment == "..";
    assert!(!normal.split('/').any(dots), "{normal:?}");
}

fn run_head(bytes: &[u8]) {
    let Some(parts) = head(bytes) else {
        return;
    };
    let version = parts.version;
    let Ok(mut request) = Request::new(parts, SEEN) else {
        return;
    };
    let names: Vec<HeaderName> = request.headers().keys().cloned().collect();
    for name in &names {
        assert!(request.header(name.as_str()).is_some(), "{name} is lost");
    }
    let _params = request.query_params().count();
    let _client = remote_ip(request.headers(), IpAddr::from([10, 0, 0, 1]), 2);
    strip_hop_by_hop(request.headers_mut(), Upgrade::Keep);
    let (path, host) = (
        request.path_and_query().to_owned(),
        request.host().to_owned(),
    );
    let form = if version > Version::HTTP_11 {
        Form::Origin
    } else {
        Form::Absolute
    };
    let mut written = request
        .into_parts(form)
        .expect("what was read can be written");
    // Whoever reads what was written, in the other version, must read the same.
    written.version = if form == Form::Origin {
        Version::HTTP_11
    } else {
        Version::HTTP_2
    };
    if host.is_empty() {
        return;
    }
    let again = Request::new(written, SEEN).expect("what was written can be read");
    assert_eq!((again.path_and_query(), again.host()), (&*path, &*host));
}

fn head(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let (mut parts, ()) = http::Request::new(()).into_parts();
    let first = lines.next()?;
    let (version, first) = match first {
        [b'2', rest @ ..] => (Version::HTTP_2, rest),
        [b'0', rest @ ..] => (Version::HTTP_10, rest),
        line => (Version::HTTP_11, line),
    };
    let space = first.iter().position(|byte| *byte == b' ')?;
    parts.version = version;
    parts.method = Method::from_bytes(&first[..space]).ok()?;
    parts.uri = Uri::try_from(&first[space + 1..]).ok()?;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            parts.headers.append(name, value);
        }
    }
    Some(parts)
}

fn run_routes(bytes: &[u8]) {
    let Ok(routes) = serde_json::from_slice::<Vec<Route>>(bytes) else {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _refused = pattern::check(text);
        }
        return;
    };
    let table = Table::compile(&service(), 80, routes.into_iter().map(Arc::new));
    let sender = Sender::default();
    let dialled = Dialled {
        sni: Some("a.io"),
        port: 80,
        destination: None,
        client: None,
        sender: &sender,
    };
    for client in [None, Some("shop"), Some("front")] {
        match table.routes(client) {
            Routes::Http(table) => {
                for line in [
                    "GET /a/b?q=1\nhost: a.io\nx-a: 1",
                    "CONNECT a.io:1\nhost: a.io:1",
                    "2OPTIONS *\nhost: b",
                ] {
                    let parts = head(line.as_bytes()).expect("the line is a head");
                    let mut request = Request::new(parts, SEEN).expect("the head is a request");
                    let Some(picked) = table.pick(&request) else {
                        continue;
                    };
                    let filters = picked.rule.filters.iter();
                    filters.for_each(|filter| apply(filter, &mut request, picked.matched));
                }
            }
            Routes::Tls(table) => drop(table.pick(&dialled).cloned()),
            Routes::OrderedTcp(table) => drop(table.pick(&dialled).cloned()),
            Routes::Tcp(_) | Routes::None => {}
        }
    }
}

fn apply(filter: &Filter, request: &mut Request, matched: MatchedPath<'_>) {
    match filter {
        Filter::RequestHeaders(changes) => changes.apply_to_request(request),
        Filter::ResponseHeaders(changes) => changes.apply(request.headers_mut()),
        Filter::Redirect(redirect) => drop(redirect.answer(request, matched)),
        Filter::Rewrite(rewrite) => drop(rewrite.apply(request, matched)),
        Filter::Mirror(mirror) => {
            mirror.takes(u64::MAX);
        }
        Filter::Cors(cors) => drop(cors.handle(request)),
        Filter::Fault(fault) => {
            fault.delay(u64::MAX);
            fault.abort(0);
        }
        Filter::Direct(_) => {}
    }
}

fn service() -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: "orders".into(),
    }
}

fn path_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "a/b",
        "a//./b/../c",
        "%61%2e%2E/x",
        "a%2fb",
        "..;/a",
        "%c0%af",
        "%e0%80%af",
        "a{b}%25",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

fn head_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "GET /a/../%61?q=%31&r\nHost: A.io:80\nx-a: 1\nX-A: 2\ncookie: a\ncookie: b",
        "2POST http://a.io/x\nhost: a.io\nte: trailers\nx-forwarded-for: 1.1.1.1, [fd00::1]:80",
        "0GET /",
        "CONNECT a.io:443\nhost: a.io:443",
        "OPTIONS *\nHost: [::1]:80",
        "GET http://b.io./ab\nHost: a.io\nConnection: upgrade, x-a\nUpgrade: websocket\nx-a: 1",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

fn route_seeds() -> Vec<Vec<u8>> {
    let rule = HttpRule {
        matches: vec![
            HttpMatch {
                hosts: vec![
                    HostMatch::Exact("a.io".into()),
                    HostMatch::Suffix(".io".into()),
                ],
                path: Some(PathMatch::Prefix("/a".into())),
                method: Some("GET".into()),
                headers: vec![HeaderMatch {
                    name: "x-a".into(),
                    value: ValueMatch::Exact("1".into()),
                }],
                query: vec![QueryMatch {
                    name: "q".into(),
                    value: ValueMatch::Regex("[0-9]+".into()),
                }],
                ..HttpMatch::default()
            },
            HttpMatch {
                path: Some(PathMatch::Regex("/a/.*".into())),
                ..HttpMatch::default()
            },
        ],
        filters: vec![HttpFilter::Redirect(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: Some(8443),
            keep_port: false,
            path: None,
            status: 302,
        })],
        ..HttpRule::default()
    };
    let route = Route {
        key: RouteKey {
            kind: RouteKind::HttpRoute,
            namespace: "shop".into(),
            name: "r".into(),
        },
        created: 1,
        attachments: vec![Attachment {
            service: service(),
            port: None,
            clients: Clients::All,
        }],
        rules: RouteRules::Http(vec![rule]),
    };
    let json = serde_json::to_vec(&[route]).expect("a route can be written");
    vec![
        json,
        b"(a|b{2,3})[^/]+\\d*?".to_vec(),
        b"(?i)x(?:y){1000}{1000}".to_vec(),
    ]
}
