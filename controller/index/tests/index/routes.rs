//! Routes of the Gateway API: what each waypoint is told, and what each parent of a route says.

use std::time::Duration;

use karst_k8s_api::{Kind, ObjectKey};
use karst_model::route::{
    Attachment, Backend, Clients, HeaderMatch, HostMatch, HttpFilter, HttpMatch, HttpRule, Mirror,
    OriginMatch, PathChange, PathMatch, Route, RouteRules, ValueMatch,
};

use crate::world::{Model, World};

/// Namespaces `shop` with a waypoint and a label, and `web` with neither; a few services.
const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: w}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: Hostname, value: w}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{name: web, port: 80}, {name: admin, port: 90}, {name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart-v2, namespace: shop}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {name: site, namespace: web}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{port: 80}]}
";

fn world(more: &str) -> World {
    World::of(&format!("{MESH}\n---{more}"))
}

/// An HTTPRoute `r` of namespace `shop`, on service cart; `rules` in YAML, deep under `rules:`.
fn http(rules: &str) -> World {
    world(&http_route("shop", CART, rules))
}

const CART: &str = "[{group: '', kind: Service, name: cart}]";
const TO_CART: &str = "backendRefs: [{name: cart, port: 80}]";

fn http_route(namespace: &str, parents: &str, rules: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: {namespace}, generation: 7, creationTimestamp: 2026-01-01T00:00:00Z}}
spec:
  parentRefs: {parents}
  rules:
{rules}
"
    )
}

/// The route `r` as waypoint `shop/w` has it.
fn told(world: &World) -> Option<&Route> {
    let gateway = "shop/w".parse().unwrap();
    let mut routes = world.model.routes.iter();
    let found = routes.find(|((of, key), _)| *of == gateway && &*key.name == "r");
    found.map(|(_, route)| &**route)
}

fn rules(world: &World) -> &[HttpRule] {
    match &told(world).expect("the route is told").rules {
        RouteRules::Http(rules) => rules,
        other => panic!("{other:?}"),
    }
}

/// `Type=Status/Reason` of each condition of the route's parents.
fn conditions(world: &World) -> Vec<Vec<String>> {
    let mut statuses = world.model.route_statuses.values();
    let parents = statuses.find(|status| &*status.route.name == "r");
    let parents = parents.map(|status| status.parents.clone());
    parents
        .unwrap_or_default()
        .iter()
        .map(|parent| {
            let all = parent.conditions.iter();
            all.map(|one| format!("{}={}/{}", one.kind, one.status, one.reason))
                .collect()
        })
        .collect()
}

fn message(world: &World, kind: &str) -> String {
    let statuses = world.model.route_statuses.values();
    let conditions = statuses
        .flat_map(|status| &status.parents)
        .flat_map(|parent| &parent.conditions);
    let mut wanted = conditions.filter(|one| one.kind.to_string() == kind);
    wanted
        .next()
        .map(|one| one.message.clone())
        .unwrap_or_default()
}

const FINE: [&str; 3] = [
    "Accepted=true/Accepted",
    "ResolvedRefs=true/ResolvedRefs",
    "Programmed=true/Programmed",
];

/// The route is not accepted, for this reason and with this in its message.
#[track_caller]
fn refused(rules: &str, reason: &str, part: &str) {
    let world = http(rules);
    assert_eq!(
        conditions(&world)[0][0],
        format!("Accepted=false/{reason}"),
        "{rules}"
    );
    let message = message(&world, "Accepted");
    assert!(message.contains(part), "{rules}: {message}");
    assert!(told(&world).is_none(), "{rules}");
}

#[test]
fn a_route_goes_to_the_waypoint_of_its_service_and_nowhere_else() {
    let world = http(&format!("  - {TO_CART}"));
    let route = told(&world).unwrap();
    assert_eq!(route.created, 1_767_225_600);
    let service = "shop/cart.shop.svc.cluster.local".parse().unwrap();
    assert_eq!(
        route.attachments,
        [Attachment {
            service,
            port: None,
            clients: Clients::All
        }]
    );
    assert_eq!(conditions(&world), [FINE]);
    assert_eq!(world.model.routes.len(), 1);
    let status = &world.model.route_statuses[&ObjectKey::new(Kind::HttpRoute, "shop", "r")];
    assert_eq!(status.observed_generation, Some(7));
}

#[test]
fn a_rule_without_a_match_takes_everything() {
    let everything = [HttpMatch {
        path: Some(PathMatch::Prefix("/".into())),
        ..HttpMatch::default()
    }];
    for text in [
        format!("  - {TO_CART}"),
        format!("  - matches: [{{}}]\n    {TO_CART}"),
        format!("  - matches: [{{path: {{}}}}]\n    {TO_CART}"),
    ] {
        assert_eq!(rules(&http(&text))[0].matches, everything, "{text}");
    }
    let world = world(&http_route("shop", CART, "").replace("  rules:\n", ""));
    assert_eq!(rules(&world)[0].matches, everything);
    assert_eq!(rules(&world)[0].backends, []);
}

#[test]
fn every_kind_of_match_is_lowered() {
    let world = world(
        &http_route(
            "shop",
            CART,
            "  - name: all
    matches:
    - path: {type: Exact, value: /a}
      method: GET
      headers: [{name: X-One, value: '1'}, {name: x-one, value: '2'}, {type: RegularExpression, name: two, value: '[a-z]+'}]
      queryParams: [{name: q, value: v}, {name: Q, value: w}, {name: q, value: x}]
    - path: {type: RegularExpression, value: '/v[0-9]+/.*'}
    backendRefs: [{name: cart, port: 80, weight: 90}, {name: cart-v2, port: 80, weight: 0}]",
        )
        .replace("  rules:", "  hostnames: [a.example.com, '*.example.org']\n  rules:"),
    );
    let [rule] = rules(&world) else { panic!() };
    assert_eq!(rule.name.as_deref(), Some("all"));
    let [first, second] = &rule.matches[..] else {
        panic!()
    };
    assert_eq!(first.hosts, [], "a service is told by its address");
    assert!(message(&world, "Accepted").contains("spec.hostnames has no effect"));
    assert_eq!(conditions(&world), [FINE]);
    assert_eq!(first.path, Some(PathMatch::Exact("/a".into())));
    assert_eq!(first.method.as_deref(), Some("GET"));
    let header = |name: &str, value| HeaderMatch {
        name: name.into(),
        value,
    };
    assert_eq!(
        first.headers,
        [
            header("x-one", ValueMatch::Exact("1".into())),
            header("two", ValueMatch::Regex("[a-z]+".into()))
        ],
        "of equal names the first counts"
    );
    let names: Vec<&str> = first.query.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["q", "Q"]);
    assert_eq!(second.path, Some(PathMatch::Regex("/v[0-9]+/.*".into())));
    let weights: Vec<u32> = rule.backends.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [90, 0]);
}

#[test]
fn every_kind_of_filter_is_lowered() {
    let world = http(
        "  - matches: [{path: {value: /old}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: A, value: '1'}], add: [{name: b, value: '2'}], remove: [c]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: A, value: '1'}]}
    - type: URLRewrite
      urlRewrite: {hostname: h.example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: cart-v2, port: 80}, percent: 5}
    - type: RequestMirror
      requestMirror: {backendRef: {name: cart-v2, port: 80}, fraction: {numerator: 1, denominator: 3}}
    - type: CORS
      cors: {allowOrigins: ['https://a.example.com', 'https://*.example.com', 'http://*:8080'], allowCredentials: true, allowMethods: ['*']}
    backendRefs:
    - name: cart
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [d]}}]
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {codes: [503], attempts: 3, backoff: 100ms}
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443}}]",
    );
    assert_eq!(conditions(&world), [FINE]);
    let [rule, redirect] = rules(&world) else {
        panic!()
    };
    let [
        _,
        _,
        HttpFilter::Rewrite(rewrite),
        HttpFilter::Mirror(fifth),
        HttpFilter::Mirror(third),
        HttpFilter::Cors(cors),
    ] = &rule.filters[..]
    else {
        panic!("{:?}", rule.filters)
    };
    assert_eq!(rewrite.path, Some(PathChange::Prefix("/new".into())));
    let share = |one: &Mirror| (one.numerator, one.denominator);
    assert_eq!((share(fifth), share(third)), ((5, 100), (1, 3)));
    let wildcard = |scheme: &str, suffix: &str| OriginMatch::Wildcard {
        scheme: scheme.into(),
        suffix: suffix.into(),
    };
    assert_eq!(
        cors.allow_origins[1..],
        [
            wildcard("https://", ".example.com"),
            wildcard("http://", ":8080")
        ]
    );
    assert_eq!(cors.max_age_seconds, Some(5));
    assert_eq!(rule.backends[0].filters.len(), 1);
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(10)));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, &retry.statuses[..]), (3, &[503][..]));
    let HttpFilter::Redirect(redirect) = &redirect.filters[0] else {
        panic!()
    };
    assert_eq!((redirect.status, redirect.port), (302, Some(8443)));
}

#[test]
fn a_zero_duration_is_no_limit() {
    let world = http(&format!(
        "  - timeouts: {{request: 0s, backendRequest: 5s}}\n    {TO_CART}"
    ));
    assert_eq!(rules(&world)[0].timeouts.request, None);
    assert_eq!(
        rules(&world)[0].timeouts.backend_request,
        Some(Duration::from_secs(5))
    );
}

#[test]
fn what_cannot_be_had_is_refused_and_named() {
    let rule = |text: &str| format!("  - {text}\n    {TO_CART}");
    let unsupported = |text: &str, part: &str| refused(&rule(text), "UnsupportedValue", part);
    unsupported("matches: [{path: {type: Glob, value: /a}}]", "Glob");
    unsupported(
        "matches: [{path: {type: RegularExpression, value: '('}}]",
        "cannot be read",
    );
    unsupported(
        "matches: [{path: {type: RegularExpression, value: '(?:a{1000}){1000}'}}]",
        "too large",
    );
    unsupported("matches: [{path: {value: a}}]", "does not begin with /");
    unsupported("matches: [{method: FETCH}]", "FETCH");
    unsupported(
        "matches: [{headers: [{type: Prefix, name: a, value: b}]}]",
        "Prefix",
    );
    unsupported(
        "matches: [{headers: [{name: 'a b', value: b}]}]",
        "not the name of a header",
    );
    unsupported("timeouts: {request: 1.5s}", "1.5s");
    unsupported("timeouts: {request: 1s, backendRequest: 2s}", "longer");
    unsupported("retry: {codes: [200]}", "200");
    unsupported("retry: {attempts: 0}", "attempts");
    unsupported("filters: [{type: Magic}]", "Magic");
    unsupported(
        "filters: [{type: RequestHeaderModifier}]",
        "lacks the field",
    );
    unsupported(
        "filters: [{type: CORS, requestHeaderModifier: {}}]",
        "has the field",
    );
    unsupported(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [A]}}]",
        "two ways",
    );
    unsupported(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Transfer-Encoding, value: b}]}}]",
        "transfer-encoding",
    );
    unsupported(
        "matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
        "PathPrefix",
    );
    unsupported(
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 80}, fraction: {numerator: 2, denominator: 1}}}]",
        "requestMirror",
    );
    unsupported(
        "filters: [{type: CORS, cors: {allowOrigins: ['*', 'https://a']}}]",
        "everything",
    );
    unsupported(
        "filters: [{type: CORS, cors: {allowOrigins: ['ftp://a']}}]",
        "ftp://a",
    );
    let incompatible = |text: &str| refused(text, "IncompatibleFilters", "");
    incompatible(&rule(
        "filters: [{type: RequestRedirect, requestRedirect: {}}]",
    ));
    incompatible(
        "  - filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {hostname: a}}]",
    );
    incompatible(&rule(
        "filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]",
    ));
    refused(
        "  - backendRefs: [{name: cart, port: 80, weight: 1000001}]",
        "UnsupportedValue",
        "1000001",
    );
    refused(
        "  - backendRefs: [{name: cart, port: 80, weight: -1}]",
        "UnsupportedValue",
        "-1",
    );
    refused(
        "  - filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]",
        "UnsupportedValue",
        "304",
    );
}

#[test]
fn a_rule_that_does_not_hold_is_dropped_and_the_others_stay() {
    let world = http(&format!(
        "  - matches: [{{method: FETCH}}]\n    {TO_CART}\n  - name: good\n    {TO_CART}\n  - name: good\n    {TO_CART}"
    ));
    assert_eq!(rules(&world).len(), 1);
    assert_eq!(
        conditions(&world)[0],
        [
            FINE[0],
            FINE[1],
            "PartiallyInvalid=true/UnsupportedValue",
            FINE[2]
        ]
    );
    let message = message(&world, "PartiallyInvalid");
    assert!(message.starts_with("Dropped Rule"), "{message}");
    assert!(
        message.contains("rules[0]") && message.contains("rules[2]"),
        "{message}"
    );
}

#[test]
fn a_filter_that_must_not_be_skipped_answers_with_500() {
    for (filter, reason) in [
        (
            "{type: ExtensionRef, extensionRef: {group: g, kind: Magic, name: m}}",
            "InvalidKind",
        ),
        (
            "{type: ExternalAuth, externalAuth: {protocol: HTTP}}",
            "UnsupportedValue",
        ),
    ] {
        let world = http(&format!("  - filters: [{filter}]\n    {TO_CART}"));
        assert_eq!(
            conditions(&world)[0][1],
            format!("ResolvedRefs=false/{reason}")
        );
        assert!(matches!(
            &rules(&world)[0].filters[0],
            HttpFilter::Direct(direct) if direct.status == 500
        ));
    }
}

/// The only backend of the route, and `ResolvedRefs`.
fn backend(reference: &str) -> (Backend, String) {
    let world = http(&format!("  - backendRefs: [{reference}]"));
    (
        rules(&world)[0].backends[0].backend.clone(),
        conditions(&world)[0][1].clone(),
    )
}

#[test]
fn a_backend_that_does_not_resolve_keeps_its_share_and_says_why() {
    for (reference, reason) in [
        ("{name: nobody, port: 80}", "BackendNotFound"),
        ("{name: cart, port: 81}", "BackendNotFound"),
        ("{name: cart}", "BackendNotFound"),
        ("{name: cart, kind: Pod, port: 80}", "InvalidKind"),
        ("{name: cart, group: example.com, port: 80}", "InvalidKind"),
        ("{name: alias, port: 80}", "InvalidKind"),
        ("{name: site, namespace: web, port: 80}", "RefNotPermitted"),
        (
            "{name: nobody, namespace: web, port: 80}",
            "RefNotPermitted",
        ),
        ("{name: cart, port: 443}", "UnsupportedProtocol"),
    ] {
        let (backend, resolved) = backend(reference);
        assert!(matches!(backend, Backend::Invalid(_)), "{reference}");
        assert_eq!(
            resolved,
            format!("ResolvedRefs=false/{reason}"),
            "{reference}"
        );
    }
}

#[test]
fn a_grant_permits_and_its_end_forbids() {
    let grant = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: web}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service}]
";
    let mut world = http("  - backendRefs: [{name: site, namespace: web, port: 80}]");
    let resolved = |world: &World| conditions(world)[0][1].clone();
    assert_eq!(resolved(&world), "ResolvedRefs=false/RefNotPermitted");
    world.apply(grant);
    assert_eq!(conditions(&world), [FINE]);
    world.apply(&grant.replace(
        "to: [{group: '', kind: Service}]",
        "to: [{group: '', kind: Service, name: other}]",
    ));
    assert_eq!(resolved(&world), "ResolvedRefs=false/RefNotPermitted");
    world.apply(grant);
    world.apply(&grant.replace("namespace: shop}", "namespace: other}"));
    assert_eq!(resolved(&world), "ResolvedRefs=false/RefNotPermitted");
    world.apply(grant);
    world.delete(Kind::ReferenceGrant, "web", "g");
    assert_eq!(resolved(&world), "ResolvedRefs=false/RefNotPermitted");
}

#[test]
fn backends_are_found_when_they_come_and_lost_when_they_go() {
    let service = "
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}]}
";
    let mut world = http("  - backendRefs: [{name: late, port: 80}]");
    assert_eq!(
        conditions(&world)[0][1],
        "ResolvedRefs=false/BackendNotFound"
    );
    world.apply(service);
    assert_eq!(conditions(&world), [FINE]);
    world.apply(&service.replace("port: 80", "port: 81"));
    assert_eq!(
        conditions(&world)[0][1],
        "ResolvedRefs=false/BackendNotFound"
    );
    world.apply(service);
    assert_eq!(conditions(&world), [FINE]);
    world.delete(Kind::Service, "shop", "late");
    assert_eq!(
        conditions(&world)[0][1],
        "ResolvedRefs=false/BackendNotFound"
    );
    assert_eq!(world.model, Model::of_snapshot(&world.index));
}

/// What a parent of this form says first.
fn accepted(parent: &str) -> Vec<String> {
    let world = world(&http_route(
        "shop",
        &format!("[{parent}]"),
        &format!("  - {TO_CART}"),
    ));
    conditions(&world)
        .into_iter()
        .map(|mut all| all.remove(0))
        .collect()
}

#[test]
fn a_parent_takes_the_route_or_says_why_not() {
    for (parent, expected) in [
        (
            "{group: '', kind: Service, name: cart, port: 80}",
            "Accepted=true/Accepted",
        ),
        (
            "{group: '', kind: Service, name: cart, sectionName: admin}",
            "Accepted=true/Accepted",
        ),
        (
            "{group: '', kind: Service, name: cart, port: 81}",
            "Accepted=false/NoMatchingParent",
        ),
        (
            "{group: '', kind: Service, name: cart, port: 80, sectionName: admin}",
            "Accepted=false/NoMatchingParent",
        ),
        (
            "{group: '', kind: Service, name: nobody}",
            "Accepted=false/NoMatchingParent",
        ),
        (
            "{group: '', kind: Service, name: bare}",
            "Accepted=false/UnsupportedValue",
        ),
        (
            "{group: '', kind: Service, name: alias}",
            "Accepted=false/UnsupportedValue",
        ),
        (
            "{group: '', kind: Pod, name: cart}",
            "Accepted=false/UnsupportedValue",
        ),
        ("{name: w}", "Accepted=false/NotAllowedByListeners"),
    ] {
        assert_eq!(accepted(parent), [expected], "{parent}");
    }
    for others in [
        "{name: ingress}",
        "{group: example.com, kind: Mesh, name: m}",
    ] {
        assert!(
            accepted(others).is_empty(),
            "{others} is another controller's"
        );
    }
}

#[test]
fn a_port_of_a_parent_is_the_one_that_is_routed() {
    let world = world(&http_route(
        "shop",
        "[{group: '', kind: Service, name: cart, sectionName: admin}, {group: '', kind: Service, name: cart-v2, port: 80}]",
        &format!("  - {TO_CART}"),
    ));
    let route = told(&world).unwrap();
    let ports: Vec<Option<u16>> = route.attachments.iter().map(|one| one.port).collect();
    assert_eq!(ports, [Some(90), Some(80)]);
}

#[test]
fn a_consumer_route_is_for_clients_of_its_own_namespace() {
    let parents = "[{group: '', kind: Service, name: cart, namespace: shop}]";
    let world = world(&http_route(
        "web",
        parents,
        "  - backendRefs: [{name: cart, namespace: shop, port: 80}, {name: cart-v2, namespace: shop, port: 80}]",
    ));
    let route = told(&world).unwrap();
    assert_eq!(
        route.attachments[0].clients,
        Clients::Namespace("web".into())
    );
    let backends: Vec<bool> = rules(&world)[0]
        .backends
        .iter()
        .map(|one| matches!(one.backend, Backend::Service { .. }))
        .collect();
    assert_eq!(
        backends,
        [true, false],
        "its own parent needs no grant, everything else does"
    );
    assert_eq!(
        conditions(&world)[0][1],
        "ResolvedRefs=false/RefNotPermitted"
    );
}

#[test]
fn a_route_of_a_service_without_waypoint_says_that_it_does_nothing() {
    let mut world = world(&http_route(
        "web",
        "[{group: '', kind: Service, name: site}]",
        "  - backendRefs: [{name: site, port: 80}]",
    ));
    assert_eq!(conditions(&world)[0][2], "Programmed=false/NoWaypoint");
    assert!(world.model.routes.is_empty());
    world.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: site, namespace: web, labels: {istio.io/use-waypoint: w}}
spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: web}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: Hostname, value: w}]}
",
    );
    assert_eq!(conditions(&world), [FINE]);
    let gateways: Vec<String> = world
        .model
        .routes
        .keys()
        .map(|(one, _)| one.to_string())
        .collect();
    assert_eq!(gateways, ["web/w"]);
    world.delete(Kind::Gateway, "web", "w");
    assert_eq!(conditions(&world)[0][2], "Programmed=false/NoWaypoint");
    assert!(world.model.routes.is_empty());
}

#[test]
fn a_route_that_goes_leaves_nothing() {
    let mut world = http(&format!("  - {TO_CART}"));
    world.delete(Kind::HttpRoute, "shop", "r");
    assert!(world.model.routes.is_empty() && world.model.route_statuses.is_empty());
    assert_eq!(world.model, Model::of_snapshot(&world.index));
}

fn other(kind: &str, rules: &str) -> World {
    world(&http_route("shop", CART, rules).replace("kind: HTTPRoute", &format!("kind: {kind}")))
}

#[test]
fn grpc_methods_become_paths() {
    let path = |method: &str| {
        let text = format!("  - matches: [{{method: {method}}}]\n    {TO_CART}");
        let world = other("GRPCRoute", &text);
        match told(&world).map(|route| &route.rules) {
            Some(RouteRules::Http(rules)) => rules[0].matches[0].path.clone(),
            _ => None,
        }
    };
    assert_eq!(
        path("{service: a.B, method: C}"),
        Some(PathMatch::Exact("/a.B/C".into()))
    );
    assert_eq!(
        path("{service: a.B}"),
        Some(PathMatch::Prefix("/a.B".into()))
    );
    assert_eq!(
        path("{method: C}"),
        Some(PathMatch::Regex("/[^/]+/C".into()))
    );
    assert_eq!(
        path("{type: RegularExpression, service: 'a|b', method: 'C.*'}"),
        Some(PathMatch::Regex("/(?:a|b)/(?:C.*)".into()))
    );
    for bad in [
        "{}",
        "{service: 'a/b'}",
        "{method: 'C.*'}",
        "{type: Glob, service: a}",
        "{type: RegularExpression, service: 'a)|(b'}",
    ] {
        assert_eq!(path(bad), None, "{bad}");
    }
    let redirect = other(
        "GRPCRoute",
        "  - filters: [{type: RequestRedirect, requestRedirect: {}}]",
    );
    assert_eq!(
        conditions(&redirect)[0][0],
        "Accepted=false/UnsupportedValue"
    );
}

#[test]
fn connections_have_one_rule() {
    let tcp = other("TCPRoute", &format!("  - {TO_CART}\n  - {TO_CART}"));
    assert!(matches!(&told(&tcp).unwrap().rules, RouteRules::Tcp(rules) if rules.len() == 1));
    assert_eq!(
        conditions(&tcp)[0][2],
        "PartiallyInvalid=true/UnsupportedValue"
    );

    let without_host = other("TLSRoute", &format!("  - {TO_CART}"));
    assert_eq!(
        conditions(&without_host)[0][0],
        "Accepted=false/UnsupportedValue"
    );
    let tls = http_route("shop", CART, "  - backendRefs: [{name: cart, port: 443}]")
        .replace("kind: HTTPRoute", "kind: TLSRoute")
        .replace("  rules:", "  hostnames: ['*.example.com']\n  rules:");
    let tls = world(&tls);
    assert_eq!(conditions(&tls), [FINE], "TLS goes to a port of TLS");
    assert!(matches!(
        &told(&tls).unwrap().rules,
        RouteRules::Tls(rules) if rules[0].hosts == [HostMatch::Suffix(".example.com".into())]
    ));
}

#[test]
fn entries_have_routes_and_are_backends() {
    let world = world(&format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: ext, namespace: shop}}
spec:
  hosts: [a.example.com, b.example.com]
  addresses: [240.0.0.1]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
---{}",
        http_route(
            "shop",
            "[{group: networking.istio.io, kind: ServiceEntry, name: ext}]",
            "  - backendRefs: [{group: networking.istio.io, kind: ServiceEntry, name: ext, port: 80}]"
        )
    ));
    assert_eq!(conditions(&world), [FINE]);
    let route = told(&world).unwrap();
    let hosts: Vec<&str> = route
        .attachments
        .iter()
        .map(|one| &*one.service.hostname)
        .collect();
    assert_eq!(hosts, ["a.example.com", "b.example.com"]);
}
