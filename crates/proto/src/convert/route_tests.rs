//! Routes and request policies: round trips of everything that they can say, and what happens to the rest.

use std::{sync::Arc, time::Duration};

use karst_model::{
    external::{AuthorizerProtocol, CheckedBody, ExternalAuthorizer, HttpAuthorizer},
    policy::{IpBlock, Match, StringMatch},
    route::{
        Attachment, Backend, ClaimMatch, Clients, ConnectionMatch, Cors, DirectResponse, Fault,
        FaultAbort, FaultAnswer, FaultDelay, HeaderChanges, HeaderMatch, HostMatch, HttpFilter,
        HttpMatch, HttpRule, Mirror, OriginMatch, PathChange, PathMatch, QueryMatch, Redirect,
        RetryPolicy, Rewrite, Route, RouteKey, RouteKind, RouteRules, SourceMatch, TcpRule,
        Timeouts, TlsRule, ValueMatch, WeightedBackend,
    },
    traffic::{SessionKind, SessionPersistence},
    waypoint_policy::{
        ClaimValues, HeaderValues, PathPattern, PolicyTarget, RequestAction, RequestClause,
        RequestMatch, RequestRule, WaypointPolicy,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, decode_route, decode_waypoint_policy, route_to, waypoint_policy_to,
};
use crate::karst as wire;

fn read_route(bytes: &[u8]) -> Result<Route, ConvertError> {
    decode_route(bytes, &mut Interner::default())
}

fn backend(name: &str, weight: u32) -> WeightedBackend {
    WeightedBackend {
        backend: Backend::Service {
            service: format!("shop/{name}").parse().unwrap(),
            port: 80,
            subset: (weight == 0).then(|| "v2".into()),
        },
        weight,
        filters: Vec::new(),
    }
}

fn route(rules: RouteRules) -> Route {
    let attachment = |port, clients| Attachment {
        service: "shop/cart.shop.svc.cluster.local".parse().unwrap(),
        port,
        clients,
    };
    Route {
        key: RouteKey {
            kind: RouteKind::HttpRoute,
            namespace: "shop".into(),
            name: "cart".into(),
        },
        created: 17,
        attachments: vec![
            attachment(None, Clients::All),
            attachment(Some(80), Clients::Namespace("web".into())),
        ],
        rules,
    }
}

fn everything() -> HttpRule {
    let header = |name: &str, value| HeaderMatch {
        name: name.into(),
        value,
    };
    let changes = HeaderChanges {
        set: vec![("a".into(), "1".into())],
        add: vec![("b".into(), "2".into()), ("b".into(), "3".into())],
        remove: vec!["c".into()],
    };
    HttpRule {
        name: Some("r".into()),
        matches: vec![
            HttpMatch::default(),
            HttpMatch {
                hosts: vec![
                    HostMatch::Exact("a".into()),
                    HostMatch::Suffix(".example.com".into()),
                ],
                path: Some(PathMatch::Prefix("/v1".into())),
                method: Some("GET".into()),
                headers: vec![
                    header("x", ValueMatch::Exact(String::new().into())),
                    header("y", ValueMatch::Present),
                    header("z", ValueMatch::Absent),
                    header("p", ValueMatch::Prefix("q".into())),
                ],
                query: vec![QueryMatch {
                    name: "q".into(),
                    value: ValueMatch::Regex("[0-9]+".into()),
                }],
                ignore_path_case: true,
                port: Some(80),
                source: source(),
                claims: vec![ClaimMatch {
                    path: vec!["realm".into(), "groups".into()],
                    value: ValueMatch::Not(Box::new(ValueMatch::Exact("a".into()))),
                }],
            },
            HttpMatch {
                path: Some(PathMatch::Start("/v".into())),
                ..HttpMatch::default()
            },
        ],
        filters: vec![
            HttpFilter::RequestHeaders(changes.clone()),
            HttpFilter::ResponseHeaders(changes),
            HttpFilter::Rewrite(Rewrite {
                host: Some("h".into()),
                path: Some(PathChange::Full("/".into())),
            }),
            HttpFilter::Rewrite(Rewrite {
                host: None,
                path: Some(PathChange::Regex {
                    pattern: "a(b)".into(),
                    substitution: r"\1".into(),
                }),
            }),
            HttpFilter::Fault(Fault {
                delay: Some(FaultDelay {
                    wait: Duration::from_secs(7),
                    millionths: 1_000_000,
                }),
                abort: Some(FaultAbort {
                    answer: FaultAnswer::Grpc(14),
                    millionths: 1,
                }),
            }),
            HttpFilter::Fault(Fault {
                delay: None,
                abort: Some(FaultAbort {
                    answer: FaultAnswer::Http(555),
                    millionths: 0,
                }),
            }),
            HttpFilter::Redirect(Redirect {
                scheme: Some("https".into()),
                host: None,
                port: Some(8443),
                keep_port: true,
                path: Some(PathChange::Prefix("/x".into())),
                status: 308,
            }),
            HttpFilter::Mirror(Mirror {
                backend: Backend::Invalid("not permitted".into()),
                numerator: 1,
                denominator: 3,
                shadow_host: true,
            }),
            HttpFilter::Cors(Cors {
                allow_origins: vec![
                    OriginMatch::Any,
                    OriginMatch::Exact("https://a".into()),
                    OriginMatch::Wildcard {
                        scheme: "https://".into(),
                        suffix: ".a".into(),
                    },
                    OriginMatch::Prefix("https://b".into()),
                    OriginMatch::Regex(".*".into()),
                ],
                allow_credentials: true,
                allow_methods: vec!["*".into()],
                allow_headers: vec!["x".into()],
                expose_headers: vec!["y".into()],
                max_age_seconds: Some(0),
                forward_unmatched: true,
            }),
            HttpFilter::Direct(DirectResponse {
                status: 500,
                body: "b".into(),
                reason: "r".into(),
            }),
        ],
        backends: vec![backend("a", 90), backend("b", 0)],
        timeouts: Timeouts {
            request: Some(Duration::from_millis(1_500)),
            backend_request: None,
        },
        retry: Some(RetryPolicy {
            attempts: 3,
            statuses: vec![500, 503],
            backoff: Some(Duration::from_micros(10)),
            on_connection_failure: true,
            on_server_error: true,
            grpc_statuses: vec![1, 14],
            remote_localities: true,
            avoid_previous: false,
        }),
        session: Some(SessionPersistence {
            name: "s".into(),
            kind: SessionKind::Cookie { permanent: true },
            absolute_timeout: Some(Duration::from_secs(60)),
            idle_timeout: None,
        }),
    }
}

fn source() -> SourceMatch {
    SourceMatch {
        namespace: Some("web".into()),
        labels: vec![("app".into(), "web".into())],
        principal: Some(ValueMatch::Prefix("td/ns/".into())),
    }
}

fn connection() -> ConnectionMatch {
    let block = |ip: &str| IpBlock {
        ip: ip.parse().unwrap(),
        prefix_len: 8,
    };
    ConnectionMatch {
        hosts: vec![HostMatch::Suffix(".b".into())],
        port: Some(443),
        destinations: vec![block("10.0.0.0")],
        client: Some(block("11.0.0.0")),
        source: source(),
    }
}

#[test]
fn routes_round_trip() {
    let tls = TlsRule {
        name: None,
        hosts: vec![HostMatch::Exact("a".into())],
        matches: vec![connection()],
        backends: vec![backend("a", 1)],
    };
    let tcp = TcpRule {
        name: Some("t".into()),
        matches: vec![connection(), ConnectionMatch::default()],
        backends: vec![backend("a", 1)],
    };
    for rules in [
        RouteRules::Http(vec![everything(), HttpRule::default()]),
        RouteRules::Http(Vec::new()),
        RouteRules::Tls(vec![tls]),
        RouteRules::Tcp(vec![tcp]),
    ] {
        let route = route(rules);
        assert_eq!(
            read_route(&route_to(&route).encode_to_vec()).unwrap(),
            route
        );
    }
}

#[track_caller]
fn refused(expected: &str, edit: impl FnOnce(&mut wire::Route)) {
    let mut message = route_to(&route(RouteRules::Http(vec![everything()])));
    edit(&mut message);
    let error = read_route(&message.encode_to_vec()).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

fn first_rule(message: &mut wire::Route) -> &mut wire::HttpRule {
    match &mut message.rules {
        Some(wire::route::Rules::Http(http)) => &mut http.rules[0],
        _ => panic!("an HTTP route"),
    }
}

#[test]
fn a_route_that_cannot_be_read_is_refused_and_says_where() {
    refused("kind: unknown value 9", |m| m.kind = 9);
    refused("name: missing", |m| m.name.clear());
    refused("rules: missing", |m| m.rules = None);
    refused("attachments[1]: 70000 is not a port", |m| {
        m.attachments[1].port = 70_000;
    });
    refused("rules[0]: missing", |m| {
        first_rule(m).matches[1].path = Some(wire::PathMatch::default());
    });
    refused("rules[0]: missing", |m| {
        first_rule(m).filters[0].kind = None
    });
    refused(
        "rules[0]: a duration below zero or beyond all bounds",
        |m| {
            first_rule(m).request_timeout = Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            });
        },
    );
    refused("rules[0]: 99 is not a status of HTTP", |m| {
        first_rule(m).retry.as_mut().unwrap().statuses[0] = 99;
    });
}

#[test]
fn a_field_of_a_later_version_refuses_the_route() {
    let mut bytes = route_to(&route(RouteRules::Http(Vec::new()))).encode_to_vec();
    bytes.extend([0xf8, 0x06, 0x01]);
    let error = read_route(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "route: holds a field that this version does not know"
    );
}

#[test]
fn names_of_routes_round_trip_and_refuse_other_shapes() {
    let key = route(RouteRules::Tcp(Vec::new())).key;
    assert_eq!(key.to_string(), "HTTPRoute/shop/cart");
    assert_eq!(key.to_string().parse::<RouteKey>().unwrap(), key);
    for bad in [
        "",
        "HTTPRoute/shop",
        "UDPRoute/a/b",
        "HTTPRoute//b",
        "HTTPRoute/a/b/c",
    ] {
        assert!(bad.parse::<RouteKey>().is_err(), "{bad}");
    }
}

fn policy(action: RequestAction, m: RequestMatch) -> WaypointPolicy {
    WaypointPolicy {
        key: "shop/p".parse().unwrap(),
        targets: vec![
            PolicyTarget::Service("shop/cart".parse().unwrap()),
            PolicyTarget::Gateway {
                namespace: "shop".into(),
                name: "waypoint".into(),
            },
            PolicyTarget::GatewayClass("istio-waypoint".into()),
        ],
        action,
        provider: None,
        dry_run: true,
        rules: vec![RequestRule {
            clauses: vec![RequestClause { matches: vec![m] }, RequestClause::default()],
        }],
    }
}

fn full_match() -> RequestMatch {
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let block = |ip: &str| IpBlock {
        ip: ip.parse().unwrap(),
        prefix_len: 8,
    };
    RequestMatch {
        connection: Match {
            principals: vec![StringMatch::Presence],
            destination_ports: vec![80],
            ..Match::default()
        },
        methods: exact("GET"),
        not_methods: exact("PUT"),
        paths: vec![
            PathPattern::Text(StringMatch::Prefix("/a".into())),
            PathPattern::Template("/b/{*}".into()),
        ],
        not_paths: vec![PathPattern::Text(StringMatch::Suffix("/z".into()))],
        hosts: exact("h"),
        not_hosts: exact("i"),
        headers: vec![HeaderValues {
            name: "x".into(),
            values: exact("1"),
            not_values: exact("2"),
        }],
        remote_ips: vec![block("10.0.0.0")],
        not_remote_ips: vec![block("11.0.0.0")],
        sni: exact("s"),
        not_sni: exact("t"),
        request_principals: exact("u"),
        not_request_principals: exact("v"),
        audiences: exact("w"),
        not_audiences: exact("x"),
        presenters: exact("y"),
        not_presenters: exact("z"),
        claims: vec![ClaimValues {
            path: vec!["realm".into(), "roles".into()],
            values: exact("1"),
            not_values: exact("2"),
        }],
    }
}

fn read_policy(
    message: &wire::WaypointPolicy,
    extra: &[u8],
) -> Result<WaypointPolicy, ConvertError> {
    let mut bytes = message.encode_to_vec();
    bytes.extend(extra);
    decode_waypoint_policy(&bytes, &mut Interner::default())
}

#[test]
fn request_policies_round_trip_also_with_what_was_unreadable() {
    let unreadable = RequestMatch {
        connection: Match {
            unreadable: true,
            ..Match::default()
        },
        ..RequestMatch::default()
    };
    for action in [
        RequestAction::Allow,
        RequestAction::Deny,
        RequestAction::Audit,
        RequestAction::Custom,
    ] {
        for m in [full_match(), RequestMatch::default(), unreadable.clone()] {
            let policy = policy(action, m);
            let message = waypoint_policy_to(&policy);
            assert_eq!(read_policy(&message, &[]).unwrap(), policy);
        }
    }
}

#[test]
fn providers_round_trip_and_one_that_cannot_be_read_is_none() {
    let http = HttpAuthorizer {
        path_prefix: "/check".into(),
        include_headers: vec![StringMatch::Prefix("x-".into())],
        additional_headers: vec![("x-a".into(), "1".into())],
        upstream_on_allow: vec![StringMatch::Exact("x-user".into())],
        downstream_on_allow: vec![StringMatch::Suffix("-id".into())],
        downstream_on_deny: vec![StringMatch::Presence],
    };
    for protocol in [AuthorizerProtocol::Grpc, AuthorizerProtocol::Http(http)] {
        let mut policy = policy(RequestAction::Custom, full_match());
        policy.provider = Some(Arc::new(ExternalAuthorizer {
            name: "ask".into(),
            service: "auth/ask.auth.svc.cluster.local".parse().unwrap(),
            port: 9000,
            timeout: Duration::from_millis(250),
            fail_open: true,
            status_on_error: 503,
            clear_route_cache: true,
            body: Some(CheckedBody {
                max_bytes: 8192,
                allow_partial: true,
                pack_as_bytes: true,
            }),
            protocol,
        }));
        let mut message = waypoint_policy_to(&policy);
        assert_eq!(read_policy(&message, &[]).unwrap(), policy);
        message.provider.as_mut().unwrap().protocol = None;
        assert_eq!(read_policy(&message, &[]).unwrap().provider, None);
    }
}

/// The first match after `edit`, and with bytes after the message.
fn edited(edit: impl FnOnce(&mut wire::RequestMatch), extra: &[u8]) -> RequestMatch {
    let mut message = waypoint_policy_to(&policy(RequestAction::Deny, full_match()));
    edit(&mut message.rules[0].clauses[0].matches[0]);
    read_policy(&message, extra).unwrap().rules[0].clauses[0].matches[0].clone()
}

#[test]
fn what_cannot_be_read_of_a_request_policy_fails_closed() {
    assert!(!edited(|_| {}, &[]).connection.unreadable);
    assert!(
        edited(|m| m.paths[0].kind = None, &[])
            .connection
            .unreadable
    );
    assert!(
        edited(|m| m.methods[0].match_type = None, &[])
            .connection
            .unreadable
    );
    assert!(
        edited(|m| m.remote_ips[0].length = 99, &[])
            .connection
            .unreadable
    );
    assert!(
        edited(|m| m.headers[0].values[0].match_type = None, &[])
            .connection
            .unreadable
    );
    assert!(
        edited(|_| {}, &[0xf8, 0x06, 0x01]).connection.unreadable,
        "a field of a later version"
    );
}

#[test]
fn a_request_policy_without_a_readable_frame_is_refused() {
    let check = |expected: &str, edit: fn(&mut wire::WaypointPolicy)| {
        let mut message = waypoint_policy_to(&policy(RequestAction::Deny, full_match()));
        edit(&mut message);
        assert_eq!(
            read_policy(&message, &[]).unwrap_err().to_string(),
            expected
        );
    };
    check("name: missing", |m| m.name.clear());
    check("action: unknown value 0", |m| m.action = 0);
    check("targets: missing", |m| m.targets.clear());
    check("targets[0]: missing", |m| m.targets[0].kind = None);
}
