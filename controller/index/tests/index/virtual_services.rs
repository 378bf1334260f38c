//! VirtualServices: what waypoints are told of them, which of several governs, and what their authors are told.

use std::time::Duration;

use karst_k8s_api::{Kind, ObjectKey};
use karst_model::route::{
    Backend, Clients, FaultAnswer, HttpFilter, HttpRule, OriginMatch, PathChange, PathMatch, Route,
    RouteKind, RouteRules, ValueMatch,
};

use crate::world::World;

const MESH: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: w}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: w, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{value: w}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: ratings, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}, {name: tcp-old, port: 3306}, {name: tls, port: 443, appProtocol: tls}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: site, namespace: web}, spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: reviews, namespace: shop}, spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}}
";

fn service(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-{age:02}T00:00:00Z'}}, spec: {{{spec}}}}}\n"
    )
}

const TO_V1: &str = "route: [{destination: {host: reviews, subset: v1}}]";

/// A world with the VirtualService `r` of namespace `shop` for `reviews`.
fn with(http: &str) -> World {
    let spec = format!("hosts: [reviews], http: [{http}]");
    World::of(&format!("{MESH}{}", service("shop", "r", 1, &spec)))
}

fn told<'a>(world: &'a World, kind: RouteKind, name: &str) -> Option<&'a Route> {
    let mut routes = world.model.routes.iter();
    let found = routes.find(|((_, key), _)| key.kind == kind && *key.name == *name);
    found.map(|(_, route)| &**route)
}

fn rules(world: &World) -> &[HttpRule] {
    let route = told(world, RouteKind::VirtualService, "r").expect("the route is told");
    match &route.rules {
        RouteRules::Http(rules) => rules,
        other => panic!("{other:?}"),
    }
}

/// `Type=status message` of each condition.
fn said(world: &World, name: &str) -> Vec<String> {
    let key = ObjectKey::new(Kind::VirtualService, "shop", name);
    let conditions = world.model.conditions.get(&key).into_iter().flatten();
    conditions
        .map(|one| format!("{}={} {}", one.kind, one.status, one.message))
        .collect()
}

/// `service:port@clients` of each attachment.
fn attached(world: &World, kind: RouteKind, name: &str) -> Vec<String> {
    let Some(route) = told(world, kind, name) else {
        return Vec::new();
    };
    let shown = route.attachments.iter().map(|one| {
        let host = one.service.hostname.split('.').next().unwrap();
        let clients = match &one.clients {
            Clients::All => "all",
            Clients::Namespace(namespace) => namespace,
        };
        format!("{host}:{}@{clients}", one.port.unwrap_or(0))
    });
    shown.collect()
}

fn backend(name: &str, port: u16, subset: Option<&str>) -> Backend {
    Backend::Service {
        service: format!("shop/{name}.shop.svc.cluster.local")
            .parse()
            .unwrap(),
        port,
        subset: subset.map(Into::into),
    }
}

/// The rule answers 500, and the condition says this.
#[track_caller]
fn refused(http: &str, part: &str) {
    let world = with(http);
    let rules = rules(&world);
    let answer = rules[0].filters.first();
    assert!(
        matches!(answer, Some(HttpFilter::Direct(direct)) if direct.status == 500),
        "{http}: {rules:?}"
    );
    let said = said(&world, "r").join("\n");
    assert!(said.contains("Accepted=false"), "{http}: {said}");
    assert!(said.contains(part), "{http}: {said}");
}

#[test]
fn a_rule_is_what_istio_says_in_the_words_of_the_model() {
    let world = with(
        "{name: jason, match: [{uri: {prefix: /api}, headers: {end-user: {exact: jason}, '@request.auth.claims.groups': {exact: beta}}, withoutHeaders: {x-debug: {}}, queryParams: {q: {regex: '[0-9]+'}}, method: {exact: GET}, authority: {prefix: shop}, port: 9080, sourceLabels: {app: web}, sourceNamespace: web, ignoreUriCase: true}], route: [{destination: {host: reviews, subset: v2}, weight: 25, headers: {request: {add: {x-v: '2'}}}}, {destination: {host: reviews.shop.svc.cluster.local, subset: v1, port: {number: 9080}}, weight: 75}], timeout: 0.5s, retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,connect-failure,503,unavailable', retryRemoteLocalities: true, retryIgnorePreviousHosts: false, backoff: 10ms}, rewrite: {uri: /v2, authority: other.io}, mirrors: [{destination: {host: ratings, port: {number: 80}}, percentage: {value: 12.5}}], corsPolicy: {allowOrigins: [{exact: 'https://a.io'}, {prefix: 'https://b'}, {regex: '.*c'}], maxAge: 24h}, fault: {delay: {fixedDelay: 7s, percentage: {value: 0.1}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}}",
    );
    let [rule] = rules(&world) else {
        panic!("one rule");
    };
    assert_eq!(rule.name.as_deref(), Some("jason"));
    let m = &rule.matches[0];
    assert_eq!(m.path, Some(PathMatch::Start("/api".into())));
    assert_eq!((m.method.as_deref(), m.port), (Some("GET"), Some(9080)));
    assert!(m.ignore_path_case);
    assert_eq!(m.source.namespace.as_deref(), Some("web"));
    assert_eq!(m.source.labels, [("app".into(), "web".into())]);
    assert_eq!(m.claims[0].path, [std::sync::Arc::from("groups")]);
    let headers: Vec<_> = m
        .headers
        .iter()
        .map(|one| (&*one.name, &one.value))
        .collect();
    assert!(headers.contains(&(":authority", &ValueMatch::Prefix("shop".into()))));
    let absent = ValueMatch::Not(Box::new(ValueMatch::Present));
    assert!(headers.contains(&("x-debug", &absent)));
    assert_eq!(
        rule.backends[0].backend,
        backend("reviews", 9080, Some("v2"))
    );
    assert_eq!((rule.backends[0].weight, rule.backends[1].weight), (25, 75));
    assert_eq!(rule.timeouts.request, Some(Duration::from_millis(500)));
    assert_eq!(rule.timeouts.backend_request, Some(Duration::from_secs(2)));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!(
        (retry.attempts, &*retry.statuses),
        (3, &[502, 503, 504, 503][..])
    );
    assert_eq!(
        (&*retry.grpc_statuses, retry.on_connection_failure),
        (&[14][..], true)
    );
    assert!(retry.remote_localities && !retry.avoid_previous);
    let of = |wanted: fn(&HttpFilter) -> bool| rule.filters.iter().find(|one| wanted(one)).unwrap();
    let HttpFilter::Fault(fault) = of(|one| matches!(one, HttpFilter::Fault(_))) else {
        panic!()
    };
    assert_eq!(fault.delay.as_ref().unwrap().millionths, 1000);
    assert_eq!(fault.abort.as_ref().unwrap().answer, FaultAnswer::Grpc(14));
    let HttpFilter::Rewrite(rewrite) = of(|one| matches!(one, HttpFilter::Rewrite(_))) else {
        panic!()
    };
    assert_eq!(rewrite.path, Some(PathChange::Prefix("/v2".into())));
    let HttpFilter::Mirror(mirror) = of(|one| matches!(one, HttpFilter::Mirror(_))) else {
        panic!()
    };
    assert_eq!((mirror.numerator, mirror.denominator), (125_000, 1_000_000));
    assert!(mirror.shadow_host);
    let HttpFilter::Cors(cors) = of(|one| matches!(one, HttpFilter::Cors(_))) else {
        panic!()
    };
    assert_eq!(
        cors.allow_origins[1],
        OriginMatch::Prefix("https://b".into())
    );
    assert_eq!(cors.max_age_seconds, Some(86_400));
    let said = said(&world, "r").join("\n");
    assert!(
        said.contains("Accepted=true") && said.contains("Programmed=true"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_followed_answers_500_and_says_why() {
    refused(
        "{route: [{destination: {host: reviews}, weight: 0}, {destination: {host: reviews, subset: v1}, weight: 0}]}",
        "add up to nothing",
    );
    let huge = "{destination: {host: reviews}, weight: 2147483647}";
    refused(
        &format!("{{route: [{huge}, {huge}, {huge}]}}"),
        "more than 4294967295",
    );
    refused(
        "{route: [{destination: {host: reviews}, weight: -1}]}",
        "below zero",
    );
    refused(
        &format!("{{timeout: 9000000h, {TO_V1}}}"),
        "http[0].timeout",
    );
    refused(
        &format!(
            "{{fault: {{abort: {{httpStatus: 500, percentage: {{value: 100.5}}}}}}, {TO_V1}}}"
        ),
        "100.5 is not between 0 and 100",
    );
    refused(
        &format!("{{fault: {{abort: {{httpStatus: 700, percentage: {{value: 1}}}}}}, {TO_V1}}}"),
        "700 is not between",
    );
    refused(
        &format!("{{retries: {{attempts: 2, retryOn: sometimes}}, {TO_V1}}}"),
        "neither a condition of Envoy nor a status",
    );
    refused("{redirect: {}}", "would lead to itself");
    refused("{rewrite: {uri: /}}", "neither route nor redirect");
    refused(
        &format!("{{rewrite: {{uriRegexRewrite: {{match: '(a', rewrite: b}}}}, {TO_V1}}}"),
        "unclosed group",
    );
    refused(
        &format!("{{rewrite: {{uriRegexRewrite: {{match: '(a)', rewrite: '\\2'}}}}, {TO_V1}}}"),
        "is no replacement",
    );
    refused(
        &format!("{{headers: {{request: {{set: {{x: '%REQ(y)%'}}}}}}, {TO_V1}}}"),
        "%COMMANDS%",
    );
    refused("{delegate: {name: r}}", "leads to itself");
    refused(
        "{delegate: {name: nobody}}",
        "there is no VirtualService shop/nobody",
    );
}

#[test]
fn an_expression_that_explodes_leaves_its_match_out_and_the_others_hold() {
    let world = with(&format!(
        "{{match: [{{uri: {{regex: '(a{{1000}}){{1000}}'}}}}, {{uri: {{exact: /a}}}}], {TO_V1}}}"
    ));
    let matches = &rules(&world)[0].matches;
    assert_eq!(matches.len(), 1);
    assert!(said(&world, "r").join("\n").contains("too large"));
}

#[test]
fn destinations_that_lead_nowhere_keep_their_share_and_come_back() {
    let spec = "{route: [{destination: {host: reviews, subset: v3}}]}, {route: [{destination: {host: nobody}}]}, {route: [{destination: {host: reviews, port: {number: 1}}}]}";
    let mut world = with(spec);
    let invalid = |world: &World| {
        let backends = rules(world).iter().map(|rule| &rule.backends[0].backend);
        backends
            .filter(|backend| matches!(backend, Backend::Invalid(_)))
            .count()
    };
    assert_eq!(invalid(&world), 3);
    let text = said(&world, "r").join("\n");
    for part in [
        "subset \"v3\"",
        "nobody.shop.svc.cluster.local",
        "no port 1",
    ] {
        assert!(text.contains(part), "{text}");
    }
    world.apply(
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: reviews, namespace: shop}, spec: {host: reviews, subsets: [{name: v3, labels: {version: v3}}]}}",
    );
    assert_eq!(invalid(&world), 2);
    world.apply("{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}");
    assert_eq!(invalid(&world), 1);
    world.delete(Kind::Service, "shop", "nobody");
    assert_eq!(invalid(&world), 2);
}

#[test]
fn of_several_for_one_host_one_governs_and_the_others_say_so() {
    let spec = format!("hosts: [reviews], http: [{{{TO_V1}}}]");
    let mut world = World::of(MESH);
    world.apply(&service("shop", "young", 2, &spec));
    world.apply(&service("shop", "old", 1, &spec));
    let http = RouteKind::VirtualService;
    assert_eq!(attached(&world, http, "old"), ["reviews:9080@all"]);
    assert!(told(&world, http, "young").is_none());
    let text = said(&world, "young").join("\n");
    assert!(
        text.contains("Conflicted=true") && text.contains("shop/old governs"),
        "{text}"
    );
    // The more exact host wins whatever its age; clients' own namespace wins for them.
    world.apply(&service(
        "shop",
        "wild",
        1,
        "hosts: ['*'], http: [{route: [{destination: {host: ratings, port: {number: 80}}}]}]",
    ));
    assert_eq!(
        attached(&world, http, "wild"),
        ["ratings:80@all", "ratings:443@all", "ratings:3306@all"][..1]
    );
    world.apply(&service("web", "consumer", 9, "hosts: [reviews.shop.svc.cluster.local], http: [{route: [{destination: {host: reviews.shop.svc.cluster.local}}]}]"));
    assert_eq!(attached(&world, http, "consumer"), ["reviews:9080@web"]);
    assert_eq!(attached(&world, http, "old"), ["reviews:9080@all"]);
    world.delete(Kind::VirtualService, "shop", "old");
    assert_eq!(attached(&world, http, "young"), ["reviews:9080@all"]);
}

#[test]
fn export_to_says_whose_clients_follow() {
    let http = RouteKind::VirtualService;
    for (export, expected) in [
        ("[]", vec!["reviews:9080@all"]),
        ("['*']", vec!["reviews:9080@all"]),
        ("['.']", vec!["reviews:9080@shop"]),
        ("['.', web]", vec!["reviews:9080@shop", "reviews:9080@web"]),
        ("['~']", vec![]),
    ] {
        let spec = format!("hosts: [reviews], exportTo: {export}, http: [{{{TO_V1}}}]");
        let world = World::of(&format!("{MESH}{}", service("shop", "r", 1, &spec)));
        assert_eq!(attached(&world, http, "r"), expected, "{export}");
    }
}

const ROUTE: &str = "
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: h, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: reviews}], rules: [{backendRefs: [{name: reviews, port: 9080}]}]}}";

#[test]
fn a_route_of_the_gateway_api_comes_before_and_both_say_so() {
    let mut world = with(&format!("{{{TO_V1}}}"));
    let http = RouteKind::VirtualService;
    assert_eq!(attached(&world, http, "r"), ["reviews:9080@all"]);
    world.apply(ROUTE);
    assert!(told(&world, http, "r").is_none());
    let text = said(&world, "r").join("\n");
    assert!(
        text.contains("HTTPRoute/shop/h: routes of the Gateway API come before"),
        "{text}"
    );
    let of_route = |world: &World| {
        let statuses = world.model.route_statuses.values();
        let conditions = statuses
            .flat_map(|status| &status.parents)
            .flat_map(|parent| &parent.conditions);
        let messages: Vec<String> = conditions.map(|one| one.message.clone()).collect();
        messages.join("\n")
    };
    let text = of_route(&world);
    assert!(
        text.contains("in the place of VirtualService shop/r"),
        "{text}"
    );
    // A consumer's VirtualService is not undone by a producer's route.
    world.apply(&service("web", "consumer", 9, "hosts: [reviews.shop.svc.cluster.local], http: [{route: [{destination: {host: reviews.shop.svc.cluster.local}}]}]"));
    assert_eq!(attached(&world, http, "consumer"), ["reviews:9080@web"]);
    world.delete(Kind::HttpRoute, "shop", "h");
    assert_eq!(attached(&world, http, "r"), ["reviews:9080@all"]);
    assert!(said(&world, "r").join("\n").contains("Programmed=true"));
    // The order in which they come does not matter.
    world.apply(ROUTE);
    world.delete(Kind::VirtualService, "shop", "r");
    world.delete(Kind::VirtualService, "web", "consumer");
    assert!(!of_route(&world).contains("in the place of"));
}

#[test]
fn delegates_go_on_with_what_both_ask_for() {
    let root = "hosts: [reviews], http: [{name: root, match: [{uri: {prefix: /a}, headers: {x: {exact: '1'}}}], timeout: 3s, delegate: {name: leaf, namespace: web}}, {route: [{destination: {host: ratings, port: {number: 80}}}]}]";
    let leaf = "http: [{name: leaf, match: [{uri: {prefix: /a/b}}, {uri: {exact: /other}}], route: [{destination: {host: site}}]}, {match: [{uri: {exact: /z}}], route: [{destination: {host: site}}]}, {route: [{destination: {host: site}}], timeout: 5s}]";
    let mut world = World::of(&format!("{MESH}{}", service("shop", "r", 1, root)));
    assert!(
        said(&world, "r")
            .join("\n")
            .contains("there is no VirtualService web/leaf")
    );
    world.apply(&service("web", "leaf", 2, leaf));
    let rules: Vec<_> = rules(&world).to_vec();
    let [first, second, last] = &rules[..] else {
        panic!("{rules:?}");
    };
    assert_eq!(first.name.as_deref(), Some("root-leaf"));
    assert_eq!(first.matches.len(), 1);
    assert_eq!(first.matches[0].path, Some(PathMatch::Start("/a/b".into())));
    assert_eq!(first.matches[0].headers.len(), 1);
    assert_eq!(first.timeouts.request, Some(Duration::from_secs(3)));
    // Short hosts are the delegate's.
    let site = Backend::Service {
        service: "web/site.web.svc.cluster.local".parse().unwrap(),
        port: 80,
        subset: None,
    };
    assert_eq!(first.backends[0].backend, site);
    assert_eq!(second.timeouts.request, Some(Duration::from_secs(5)));
    assert_eq!(second.matches[0].path, Some(PathMatch::Start("/a".into())));
    assert_eq!(last.backends[0].backend, backend("ratings", 80, None));
    let text = said(&world, "r").join("\n");
    assert!(text.contains("asks for other requests"), "{text}");
    let text = world.said(Kind::VirtualService, "web", "leaf").join("\n");
    assert!(text.contains("as delegate of shop/r"), "{text}");
    // One that would lead in a circle answers 500.
    world.apply(&service(
        "web",
        "leaf",
        2,
        "http: [{delegate: {name: r, namespace: shop}}]",
    ));
    assert!(said(&world, "r").join("\n").contains("in a circle"));
}

#[test]
fn parts_go_to_the_ports_of_their_protocols() {
    let spec = "hosts: [ratings], http: [{route: [{destination: {host: ratings, port: {number: 80}}}]}], tcp: [{match: [{port: 3306, sourceLabels: {app: a}}], route: [{destination: {host: reviews}}]}], tls: [{match: [{sniHosts: ['*.io', a.org], port: 443}], route: [{destination: {host: ratings}, weight: 1}, {destination: {host: reviews}, weight: 3}]}]";
    let world = World::of(&format!("{MESH}{}", service("shop", "r", 1, spec)));
    assert_eq!(
        attached(&world, RouteKind::VirtualService, "r"),
        ["ratings:80@all"]
    );
    assert_eq!(
        attached(&world, RouteKind::VirtualServiceTls, "r"),
        ["ratings:443@all"]
    );
    assert_eq!(
        attached(&world, RouteKind::VirtualServiceTcp, "r"),
        ["ratings:3306@all"]
    );
    let RouteRules::Tls(rules) = &told(&world, RouteKind::VirtualServiceTls, "r")
        .unwrap()
        .rules
    else {
        panic!()
    };
    assert_eq!(rules[0].matches[0].hosts.len(), 2);
    // A service of several ports without one named: the port that was dialled.
    assert_eq!(rules[0].backends[0].backend, backend("ratings", 0, None));
    assert_eq!(rules[0].backends[1].weight, 3);
}

#[test]
fn what_has_no_effect_says_so() {
    let http = format!("http: [{{{TO_V1}}}]");
    for (spec, part) in [
        (format!("hosts: [reviews], gateways: [ingress], {http}"), "for the gateways ingress only"),
        (format!("hosts: [nobody.example.com], {http}"), "no service has the host"),
        (format!("hosts: [site.web.svc.cluster.local], {http}"), "bound to no waypoint"),
        ("http: [{route: [{destination: {host: reviews}}]}]".to_owned(), "it has no hosts"),
        (
            "hosts: [reviews], http: [{match: [{gateways: [ingress]}], route: [{destination: {host: reviews}}]}]".to_owned(),
            "no port of a protocol that there are rules for",
        ),
    ] {
        let world = World::of(&format!("{MESH}{}", service("shop", "r", 1, &spec)));
        let said = said(&world, "r").join("\n");
        assert!(said.contains("Programmed=false") && said.contains(part), "{spec}: {said}");
        assert!(told(&world, RouteKind::VirtualService, "r").is_none());
    }
}
