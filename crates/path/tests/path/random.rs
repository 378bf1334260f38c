//! Ten thousand random questions about random meshes: what `why` says, and what the functions of the data plane do with
//! the same connection or request, one draw after the other. The order of the phases is written here a second time, from
//! `agent/src/outbound.rs`, `waypoint/src/http/phases.rs` and `agent/src/inbound.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

use karst_discovery::{State, Update};
use karst_model::{
    addr::Network,
    name::{GatewayKey, ServiceKey},
    policy::{Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, StringMatch},
    protocol::{AppProtocol, HBONE_PORT, TunnelProtocol},
    route::{
        Attachment, Backend, Clients, HeaderMatch, HttpMatch, HttpRule, PathMatch, Route,
        RouteRules, ValueMatch, WeightedBackend,
    },
    service::{Service, ServicePort, Vip},
    waypoint_policy::{
        PathPattern, PolicyTarget, RequestAction, RequestClause, RequestMatch, RequestRule,
        WaypointPolicy,
    },
    workload::{GatewayAddr, GatewayDestination, Health, Workload},
};
use karst_path::{
    Facts,
    outbound::{self, Choose as _, Hop},
    why::{AskedRequest, Question, Verdict, answer},
};
use karst_policy::{
    Compiled, Connection,
    request::{Asked, GatewayRef, RequestPolicies, applies},
};
use karst_routing::{
    balance::Candidates,
    request::{Request, Scheme, Seen, remote_ip},
    table::{Routes, Table},
};
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::draw::{Draw, wanted};

const CASES: u64 = 10_000;
/// Draws of the data plane for each question.
const DRAWS: usize = 4;
/// Proxies that the waypoint believes.
const TRUSTED: usize = 2;
const NAMESPACES: [&str; 2] = ["shop", "bank"];

/// A mesh: what `why` is asked about, and the same for the data plane.
struct Mesh {
    facts: Facts,
    state: State,
    waypoint: State,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
}

fn gateway() -> GatewayKey {
    GatewayKey {
        namespace: "shop".into(),
        name: "w".into(),
    }
}

fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
    }
}

fn service(namespace: &str, name: &str, ip: [u8; 4], bound: bool) -> Service {
    let key = key(namespace, name);
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    Service {
        addresses: vec![Vip {
            network: Network::default(),
            ip: ip.into(),
            prefix_len: None,
        }],
        ports: BTreeMap::from([(80, port)]),
        waypoint: bound.then(|| GatewayAddr {
            destination: GatewayDestination::Service(self::key("shop", "w")),
            hbone_port: HBONE_PORT,
        }),
        ..Service::new(&key.namespace, &key.hostname)
    }
}

fn strings(rng: &mut impl Rng, of: &[&str]) -> Vec<StringMatch> {
    let some = (0..rng.random_range(0..3)).map(|_| {
        let text: Arc<str> = (*of.choose(rng).unwrap()).into();
        match rng.random_range(0..5) {
            0 => StringMatch::Prefix(text),
            _ => StringMatch::Exact(text),
        }
    });
    some.collect()
}

fn connection_match(rng: &mut impl Rng) -> Match {
    let mut one = Match::default();
    match rng.random_range(0..5) {
        0 => one.namespaces = strings(rng, &NAMESPACES),
        1 => one.not_namespaces = strings(rng, &NAMESPACES),
        2 => {
            let principals = ["cluster.local/ns/shop/sa/a", "cluster.local/ns/shop/sa/w"];
            one.principals = strings(rng, &principals);
        }
        3 => one.not_principals = vec![StringMatch::Presence],
        _ => one.destination_ports = vec![*[80, 8080].choose(rng).unwrap()],
    }
    one
}

fn policy(rng: &mut impl Rng, number: usize) -> Authorization {
    let clause = |rng: &mut _| Clause {
        matches: vec![connection_match(rng)],
    };
    Authorization {
        key: format!("{}/p-{number}", NAMESPACES.choose(rng).unwrap())
            .parse()
            .unwrap(),
        scope: *[
            PolicyScope::Namespace,
            PolicyScope::Global,
            PolicyScope::WorkloadSelector,
        ]
        .choose(rng)
        .unwrap(),
        action: *[Action::Allow, Action::Deny].choose(rng).unwrap(),
        dry_run: rng.random_ratio(1, 6),
        rules: (0..rng.random_range(0..3))
            .map(|_| Rule {
                clauses: (0..rng.random_range(0..3)).map(|_| clause(rng)).collect(),
            })
            .collect(),
    }
}

fn request_policy(rng: &mut impl Rng, number: usize) -> WaypointPolicy {
    let one = |rng: &mut StdRng| RequestMatch {
        methods: strings(rng, &["GET", "POST"]),
        paths: strings(rng, &["/a", "/b"])
            .into_iter()
            .map(PathPattern::Text)
            .collect(),
        connection: match rng.random_ratio(1, 3) {
            true => connection_match(rng),
            false => Match::default(),
        },
        // The client that the outer one of two proxies saw.
        remote_ips: match rng.random_ratio(1, 4) {
            true => vec![IpBlock {
                ip: "203.0.113.0".parse().unwrap(),
                prefix_len: 24,
            }],
            false => Vec::new(),
        },
        ..RequestMatch::default()
    };
    let mut own = StdRng::seed_from_u64(rng.random());
    WaypointPolicy {
        key: format!("shop/r-{number}").parse().unwrap(),
        targets: vec![match rng.random_range(0..3) {
            0 => PolicyTarget::Gateway {
                namespace: "shop".into(),
                name: "w".into(),
            },
            _ => PolicyTarget::Service(key("shop", ["s0", "s1"].choose(rng).unwrap())),
        }],
        action: *[RequestAction::Allow, RequestAction::Deny]
            .choose(rng)
            .unwrap(),
        provider: None,
        dry_run: rng.random_ratio(1, 6),
        rules: (0..rng.random_range(0..3))
            .map(|_| RequestRule {
                clauses: vec![RequestClause {
                    matches: vec![one(&mut own)],
                }],
            })
            .collect(),
    }
}

fn route(rng: &mut impl Rng, number: usize) -> Route {
    let one = |rng: &mut StdRng| HttpMatch {
        path: Some(match rng.random_range(0..3) {
            0 => PathMatch::Exact("/a".into()),
            1 => PathMatch::Prefix("/b".into()),
            _ => PathMatch::Prefix("/".into()),
        }),
        method: rng.random_ratio(1, 3).then(|| "GET".into()),
        headers: match rng.random_ratio(1, 3) {
            true => vec![HeaderMatch {
                name: "x-a".into(),
                value: ValueMatch::Exact("1".into()),
            }],
            false => Vec::new(),
        },
        ..HttpMatch::default()
    };
    let backend = |rng: &mut StdRng| WeightedBackend {
        backend: match rng.random_range(0..6) {
            0 => Backend::Invalid("gone".into()),
            n => Backend::Service {
                service: key("shop", ["s0", "s1", "s2", "nowhere", "s1"][n - 1]),
                port: 80,
                subset: None,
            },
        },
        weight: rng.random_range(0..3),
        filters: Vec::new(),
    };
    let mut own = StdRng::seed_from_u64(rng.random());
    Route {
        key: format!("HTTPRoute/shop/r-{number}").parse().unwrap(),
        created: rng.random_range(0..3),
        attachments: vec![Attachment {
            service: key("shop", "s0"),
            port: None,
            clients: match rng.random_ratio(1, 4) {
                true => Clients::Namespace("bank".into()),
                false => Clients::All,
            },
        }],
        rules: RouteRules::Http(
            (0..rng.random_range(1..3))
                .map(|_| HttpRule {
                    matches: (0..rng.random_range(1..3)).map(|_| one(&mut own)).collect(),
                    backends: (0..rng.random_range(0..3))
                        .map(|_| backend(&mut own))
                        .collect(),
                    ..HttpRule::default()
                })
                .collect(),
        ),
    }
}

impl Mesh {
    fn random(rng: &mut impl Rng) -> Self {
        let services: Vec<Arc<Service>> = (0..3u8)
            .map(|n| {
                let bound = n < 2 && rng.random_ratio(2, 3);
                Arc::new(service("shop", &format!("s{n}"), [10, 96, 0, n + 1], bound))
            })
            .collect();
        let policies: Vec<Authorization> = (0..rng.random_range(0..4))
            .map(|n| policy(rng, n))
            .collect();
        let mut workloads: Vec<Arc<Workload>> = (1..=5u8)
            .map(|n| {
                let namespace = *NAMESPACES.choose(rng).unwrap();
                let name = format!("p-{n}");
                let ports = BTreeMap::from([(80, 8080)]);
                let of: BTreeMap<_, _> = services
                    .iter()
                    .filter(|_| rng.random_ratio(1, 2))
                    .map(|one| (one.key.clone(), ports.clone()))
                    .collect();
                Arc::new(Workload {
                    name: name.as_str().into(),
                    namespace: namespace.into(),
                    service_account: (*["a", "b"].choose(rng).unwrap()).into(),
                    addresses: vec![[10, 0, 0, n].into()],
                    tunnel: match rng.random_ratio(3, 4) {
                        true => TunnelProtocol::Hbone,
                        false => TunnelProtocol::None,
                    },
                    health: match rng.random_ratio(4, 5) {
                        true => Health::Healthy,
                        false => Health::Unhealthy,
                    },
                    services: of,
                    policies: policies
                        .iter()
                        .filter(|_| rng.random_ratio(1, 2))
                        .map(|one| one.key.clone())
                        .collect(),
                    ..Workload::new(&format!("c//Pod/{namespace}/{name}"))
                })
            })
            .collect();
        let own = service("shop", "w", [10, 96, 0, 9], false);
        workloads.push(Arc::new(Workload {
            name: "w-0".into(),
            namespace: "shop".into(),
            service_account: "w".into(),
            addresses: vec![[10, 0, 0, 9].into()],
            native_tunnel: true,
            health: match rng.random_ratio(9, 10) {
                true => Health::Healthy,
                false => Health::Unhealthy,
            },
            services: BTreeMap::from([(own.key.clone(), BTreeMap::from([(80, 8080)]))]),
            ..Workload::new("c//Pod/shop/w-0")
        }));
        let updates = || {
            let of_policies = policies.iter().cloned().map(Arc::new).map(Update::Policy);
            let of_workloads = workloads.iter().cloned().map(Update::Workload);
            let of_services = services.iter().cloned().chain([Arc::new(own.clone())]);
            of_policies
                .chain(of_services.map(Update::Service))
                .chain(of_workloads)
        };
        let routes = (0..rng.random_range(0..3)).map(|n| Update::Route(Arc::new(route(rng, n))));
        let mut l7: Vec<Update> = routes.collect();
        let requests = 0..rng.random_range(0..3);
        l7.extend(requests.map(|n| Update::WaypointPolicy(Arc::new(request_policy(rng, n)))));
        let (state, waypoint) = (State::new(), State::new());
        state.apply(updates());
        waypoint.apply(l7.clone());
        let mut facts = Facts::new("cluster.local");
        facts.apply(updates());
        facts.apply_to(&gateway(), l7);
        facts.trust_proxies(&gateway(), TRUSTED);
        Self {
            facts,
            state,
            waypoint,
            workloads,
            services,
        }
    }
}

/// What the data plane does with one connection or request.
struct Plane<'a> {
    mesh: &'a Mesh,
    source: &'a Workload,
    asked: &'a AskedRequest,
    draw: Draw,
}

impl Plane<'_> {
    fn happens(&self, dialled: SocketAddr) -> Verdict {
        let state = &self.mesh.state;
        if self.source.tunnel == TunnelProtocol::None {
            return self.plain(dialled);
        }
        let network = Network::default();
        let Ok(way) = outbound::resolve(state, &network, &self.draw, self.source, dialled) else {
            return Verdict::Fails;
        };
        match (&way.waypoint, &way.service) {
            (Some(_), Some(service)) => self.waypoint(&way.workload.unwrap(), service, dialled),
            _ => self.arrives(way.workload.as_deref(), &way.hop, self.source),
        }
    }

    fn plain(&self, dialled: SocketAddr) -> Verdict {
        let at = karst_model::addr::NetworkAddr::new(Network::default(), dialled.ip());
        let state = &self.mesh.state;
        let (workload, target) = match state.service_at(&at, &self.source.namespace) {
            Some(service) => {
                let endpoints = state.endpoints(&service.key);
                let chosen = self
                    .draw
                    .endpoint(self.source, &service, dialled, &endpoints);
                let Ok(chosen) = chosen else {
                    return Verdict::Fails;
                };
                let ip = chosen.ip().unwrap();
                (
                    Some(chosen.workload),
                    SocketAddr::new(ip, chosen.target_port),
                )
            }
            None => (state.workload_at(&at), dialled),
        };
        self.arrives(
            workload.as_deref(),
            &Hop::Direct { addr: target },
            self.source,
        )
    }

    fn arrives(&self, workload: Option<&Workload>, hop: &Hop, from: &Workload) -> Verdict {
        let Some(workload) = workload.filter(|one| one.tunnel == TunnelProtocol::Hbone) else {
            return Verdict::Allowed;
        };
        let (source, target) = match hop {
            Hop::Direct { addr } => (None, *addr),
            Hop::Tunnel(tunnel) => (Some(from.identity()), tunnel.target),
        };
        let applies = self.mesh.state.policies_for(workload);
        let compiled = Compiled::compile(applies.policies.into_iter(), &applies.missing);
        let decision = compiled.decide(&Connection {
            source,
            source_ip: from.addresses[0],
            destination: target,
        });
        match decision.is_allowed() {
            true => Verdict::Allowed,
            false => Verdict::Denied,
        }
    }

    fn policies(&self, service: &Service) -> RequestPolicies {
        let key = service.waypoint.is_some().then_some(&service.key);
        let gateway = GatewayRef {
            namespace: "shop",
            name: "w",
            class: "istio-waypoint",
        };
        let all = self.mesh.waypoint.waypoint_policies().into_iter();
        RequestPolicies::compile(all.filter(|one| applies(one, key, gateway)), &[])
    }

    fn decide(&self, service: &Service, request: &Request, dialled: SocketAddr) -> bool {
        let connection = Connection {
            source: Some(self.source.identity()),
            source_ip: self.source.addresses[0],
            destination: dialled,
        };
        let asked = Asked {
            request,
            connection: &connection,
            remote_ip: remote_ip(request.headers(), connection.source_ip, TRUSTED),
            sni: None,
        };
        self.policies(service).decide(&asked).is_allowed()
    }

    fn waypoint(&self, replica: &Workload, service: &Service, dialled: SocketAddr) -> Verdict {
        let request = head(self.asked);
        let routes = self.mesh.waypoint.routes_of(&service.key);
        let table = Table::compile(&service.key, dialled.port(), routes);
        let picked = match table.routes(Some(&self.source.namespace)) {
            Routes::Http(table) => match table.pick(&request) {
                Some(picked) => Some(picked.rule.clone()),
                None => return Verdict::Fails,
            },
            _ => None,
        };
        if !self.decide(service, &request, dialled) {
            return Verdict::Denied;
        }
        let Some(rule) = picked else {
            return self.endpoint(replica, service);
        };
        let random = self.draw.0.borrow_mut().random();
        let backend = rule.weights.pick(random).and_then(|n| rule.backends.get(n));
        let Some(Backend::Service { service: key, .. }) = backend.map(|one| &one.backend) else {
            return Verdict::Fails;
        };
        let Some(other) = self.mesh.state.service(key) else {
            return Verdict::Fails;
        };
        if other.key != service.key && !self.decide(&other, &request, dialled) {
            return Verdict::Denied;
        }
        self.endpoint(replica, &other)
    }

    fn endpoint(&self, replica: &Workload, service: &Service) -> Verdict {
        let dialled = SocketAddr::new(service.addresses[0].ip, 80);
        let endpoints = self.mesh.state.endpoints(&service.key);
        let Ok(candidates) = Candidates::new(&wanted(replica, service, dialled), &endpoints) else {
            return Verdict::Fails;
        };
        let chosen = candidates
            .choices()
            .choose(&mut *self.draw.0.borrow_mut())
            .unwrap();
        let target = SocketAddr::new(chosen.ip().unwrap(), chosen.target_port);
        let hop = outbound::hop(&chosen.workload, target, &[]);
        self.arrives(Some(&chosen.workload), &hop, replica)
    }
}

fn head(asked: &AskedRequest) -> Request {
    let mut built = http::Request::builder()
        .method(asked.method.as_str())
        .uri(&asked.path)
        .header("host", "s0");
    for (name, value) in &asked.headers {
        built = built.header(name, value);
    }
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    Request::new(built.body(()).unwrap().into_parts().0, seen).unwrap()
}

#[test]
fn what_is_answered_is_what_happens() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..CASES {
        let mut rng = StdRng::seed_from_u64(seed);
        let mesh = Mesh::random(&mut rng);
        let source = mesh.workloads[rng.random_range(0..5)].clone();
        let to_pod = rng.random_ratio(1, 4);
        let dialled: SocketAddr = match to_pod {
            true => (mesh.workloads[rng.random_range(0..5)].addresses[0], 8080).into(),
            false => {
                let service = mesh.services.choose(&mut rng).unwrap();
                (
                    service.addresses[0].ip,
                    *[80, 80, 80, 81].choose(&mut rng).unwrap(),
                )
                    .into()
            }
        };
        let request = AskedRequest {
            method: (*["GET", "POST"].choose(&mut rng).unwrap()).to_owned(),
            path: (*["/a", "/b/c", "/x"].choose(&mut rng).unwrap()).to_owned(),
            headers: [("x-a", "1"), ("x-forwarded-for", "203.0.113.9, 192.0.2.4")]
                .into_iter()
                .filter(|_| rng.random())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        let question = Question {
            source: source.addresses[0].to_string(),
            destination: dialled.to_string(),
            namespace: None,
            request: Some(request.clone()),
            trusted_proxies: None,
        };
        let said = answer(&mesh.facts, &question, SystemTime::now()).unwrap();
        let plane = Plane {
            mesh: &mesh,
            source: &source,
            asked: &request,
            draw: Draw::of(seed ^ 0x5eed),
        };
        let mut happened: Vec<Verdict> = (0..DRAWS).map(|_| plane.happens(dialled)).collect();
        happened.dedup();
        let agrees = match said.verdict {
            Verdict::Depends => true,
            verdict => happened == [verdict],
        };
        assert!(agrees, "seed {seed}: {happened:?}\n{said}");
        *counts.entry(format!("{:?}", said.verdict)).or_default() += 1;
    }
    // Every outcome is well represented, and most questions have one answer.
    for verdict in ["Allowed", "Denied", "Fails", "Depends"] {
        assert!(
            counts.get(verdict).copied().unwrap_or(0) > 300,
            "{counts:?}"
        );
    }
    assert!(counts["Depends"] < 4000, "{counts:?}");
}
