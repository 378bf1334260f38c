//! Random routes and requests out of a small vocabulary, so that values meet, nearly meet and miss each other.

use std::sync::Arc;

use http::{Method, Version, header};
use karst_model::{
    name::ServiceKey,
    route::{
        Attachment, ClaimMatch, Clients, HeaderMatch, HostMatch, HttpMatch, HttpRule, PathMatch,
        QueryMatch, Route, RouteKey, RouteKind, RouteRules, SourceMatch, ValueMatch,
    },
};
use karst_routing::request::{Request, Scheme, Seen, Sender};
use rand::{Rng, RngExt, seq::IndexedRandom};

pub(crate) const PORT: u16 = 80;

/// Requests with which one set of routes is asked.
pub(crate) const REQUESTS_PER_SET: usize = 16;

const SEGMENTS: [&str; 5] = ["a", "a", "b", "ab", "v1"];
const HOSTS: [&str; 6] = ["a.io", "x.a.io", "y.x.a.io", "b.io", "A.io", "xa.io"];
const SUFFIXES: [&str; 4] = [".a.io", ".x.a.io", ".io", ".A.io"];
const EXPRESSIONS: [&str; 12] = [
    "/a.*",
    "/a/.*",
    "/[ab]",
    "/.*",
    "/a(/b)?",
    "/v[0-9]+/.*",
    "/v1|/v2",
    "/(a|ab)",
    "(/a)+",
    "/[^/]+/b",
    ".*b",
    "/ab?c?",
];
const VALUE_EXPRESSIONS: [&str; 4] = ["a.*", "[ab]+", "a|ab", "(a,)?b"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const NAMES: [&str; 4] = ["x-a", "x-b", "x-c", "host"];
const PARAMS: [&str; 3] = ["q", "r", "Q"];
const VALUES: [&str; 5] = ["a", "b", "ab", "", "a b"];
const LABELS: [(&str, &str); 3] = [("app", "a"), ("app", "b"), ("v", "1")];
const PRINCIPALS: [&str; 2] = ["td/ns/shop/sa/a", "td/ns/front/sa/b"];
const NAMESPACES: [&str; 4] = ["shop", "shop-b", "front", "back"];

/// A request as the naive matcher sees it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    /// The host among them.
    pub(crate) headers: Vec<(String, String)>,
    /// Namespace of the client.
    pub(crate) client: Option<String>,
    /// Labels of its workload.
    pub(crate) labels: Vec<(Arc<str>, Arc<str>)>,
    pub(crate) principal: Option<String>,
}

pub(crate) fn service() -> ServiceKey {
    "shop/orders.shop.svc.cluster.local".parse().unwrap()
}

impl Case {
    /// The same as the product sees it.
    pub(crate) fn request(&self) -> Request {
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| format!("{name}={}", value.replace(' ', "%20")))
            .collect();
        let uri = match query.is_empty() {
            true => self.path.clone(),
            false => format!("{}?{}", self.path, query.join("&")),
        };
        let mut builder = http::Request::builder()
            .method(Method::from_bytes(self.method.as_bytes()).unwrap())
            .uri(uri)
            .version(Version::HTTP_11);
        for (name, value) in &self.headers {
            builder = builder.header(&**name, &**value);
        }
        assert!(builder.headers_ref().unwrap().contains_key(header::HOST));
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let seen = Seen {
            scheme: Scheme::Http,
            port: PORT,
        };
        let mut request = Request::new(parts, seen).unwrap();
        request.set_sender(Arc::new(Sender {
            namespace: self.client.as_deref().map(Into::into),
            labels: self.labels.clone().into(),
            principal: self.principal.as_deref().map(Into::into),
        }));
        request
    }
}

pub(crate) fn routes<R: Rng>(rng: &mut R) -> Vec<Route> {
    let len = match rng.random_range(0..100_u8) {
        0..=3 => rng.random_range(8..30),
        4..=30 => 1,
        _ => rng.random_range(1..6),
    };
    // Mostly one kind, since routes of the other are not applied beside GRPCRoutes.
    let kind = match rng.random_range(0..8_u8) {
        0..=1 => RouteKind::GrpcRoute,
        2..=4 => RouteKind::VirtualService,
        _ => RouteKind::HttpRoute,
    };
    let few = rng.random_ratio(1, 6);
    (0..len).map(|index| route(index, kind, few, rng)).collect()
}

/// `few`: matches that differ in little but headers and parameters, many for one path.
fn route<R: Rng>(index: usize, kind: RouteKind, few: bool, rng: &mut R) -> Route {
    let kind = match rng.random_range(0..24_u8) {
        0 => RouteKind::GrpcRoute,
        1 => RouteKind::HttpRoute,
        2 => RouteKind::VirtualService,
        _ => kind,
    };
    let ordered = kind == RouteKind::VirtualService;
    let namespace: Arc<str> = (*NAMESPACES.choose(rng).unwrap()).into();
    let consumer = rng.random_ratio(1, 4);
    let clients = if consumer {
        Clients::Namespace(namespace.clone())
    } else {
        Clients::All
    };
    let attachment = Attachment {
        service: if rng.random_ratio(1, 40) {
            "shop/other".parse().unwrap()
        } else {
            service()
        },
        port: *[None, Some(PORT), Some(PORT), Some(81)]
            .choose(rng)
            .unwrap(),
        clients,
    };
    Route {
        key: RouteKey {
            kind,
            namespace,
            name: format!("r{index}").into(),
        },
        created: rng.random_range(0..3),
        attachments: vec![attachment],
        rules: RouteRules::Http(some(rng, 1..4, |rng| HttpRule {
            matches: some(rng, if few { 1..9 } else { 0..4 }, |rng| {
                let mut one = http_match(few, rng);
                if ordered {
                    as_istio_writes_it(&mut one, rng);
                }
                one
            }),
            ..HttpRule::default()
        })),
    }
}

fn some<T, R: Rng>(rng: &mut R, len: std::ops::Range<usize>, one: impl Fn(&mut R) -> T) -> Vec<T> {
    let len = rng.random_range(len);
    (0..len).map(|_| one(rng)).collect()
}

fn http_match<R: Rng>(few: bool, rng: &mut R) -> HttpMatch {
    let hosts = if rng.random_ratio(1, 5) {
        some(rng, 1..3, host)
    } else {
        vec![]
    };
    let path = match rng.random_range(0..10_u8) {
        _ if few => Some(PathMatch::Prefix(
            (*["/", "/a"].choose(rng).unwrap()).into(),
        )),
        0 => None,
        1..=4 => Some(PathMatch::Exact(path(rng).into())),
        5..=8 => Some(PathMatch::Prefix(path(rng).into())),
        _ => Some(PathMatch::Regex((*EXPRESSIONS.choose(rng).unwrap()).into())),
    };
    let conditions = match few {
        true => 0..3,
        false => 0..rng.random_range(1..3),
    };
    HttpMatch {
        hosts: if few { vec![] } else { hosts },
        path,
        method: rng
            .random_ratio(1, 4)
            .then(|| (*METHODS.choose(rng).unwrap()).into()),
        headers: some(rng, conditions.clone(), |rng| HeaderMatch {
            name: (*NAMES.choose(rng).unwrap()).into(),
            value: value(rng),
        }),
        query: some(rng, conditions, |rng| QueryMatch {
            name: (*PARAMS.choose(rng).unwrap()).into(),
            value: value(rng),
        }),
        ..HttpMatch::default()
    }
}

/// What only a VirtualService can ask.
fn as_istio_writes_it<R: Rng>(one: &mut HttpMatch, rng: &mut R) {
    if let Some(PathMatch::Prefix(text)) = &one.path
        && rng.random_ratio(3, 4)
    {
        one.path = Some(PathMatch::Start(text.clone()));
    }
    one.ignore_path_case = rng.random_ratio(1, 6);
    for header in &mut one.headers {
        if rng.random_ratio(1, 3) {
            header.value = ValueMatch::Not(Box::new(header.value.clone()));
        }
    }
    if rng.random_ratio(1, 6) {
        one.port = Some(*[PORT, 81].choose(rng).unwrap());
    }
    if rng.random_ratio(1, 6) {
        one.source.namespace = Some((*NAMESPACES.choose(rng).unwrap()).into());
    }
    if rng.random_ratio(1, 6) {
        one.source.labels = some(rng, 1..3, label);
    }
    if rng.random_ratio(1, 8) {
        one.source = SourceMatch {
            principal: Some(ValueMatch::Exact((*PRINCIPALS.choose(rng).unwrap()).into())),
            ..one.source.clone()
        };
    }
    if rng.random_ratio(1, 12) {
        one.claims = vec![ClaimMatch {
            path: vec!["groups".into()],
            value: match rng.random_range(0..3_u8) {
                0 => ValueMatch::Absent,
                1 => ValueMatch::Not(Box::new(value(rng))),
                _ => value(rng),
            },
        }];
    }
}

fn label<R: Rng>(rng: &mut R) -> (Arc<str>, Arc<str>) {
    let (key, value) = LABELS.choose(rng).unwrap();
    ((*key).into(), (*value).into())
}

fn host<R: Rng>(rng: &mut R) -> HostMatch {
    match rng.random() {
        true => HostMatch::Exact((*HOSTS.choose(rng).unwrap()).into()),
        false => HostMatch::Suffix((*SUFFIXES.choose(rng).unwrap()).into()),
    }
}

fn value<R: Rng>(rng: &mut R) -> ValueMatch {
    let text = |rng: &mut R| -> Arc<str> { (*VALUES.choose(rng).unwrap()).into() };
    match rng.random_range(0..10_u8) {
        0 => ValueMatch::Present,
        1 => ValueMatch::Absent,
        2 => ValueMatch::Prefix(text(rng)),
        3 => ValueMatch::Regex((*VALUE_EXPRESSIONS.choose(rng).unwrap()).into()),
        _ => ValueMatch::Exact(text(rng)),
    }
}

fn path<R: Rng>(rng: &mut R) -> String {
    let mut path = String::new();
    for _ in 0..*[0, 1, 1, 1, 2, 2, 3].choose(rng).unwrap() {
        path.push('/');
        path.push_str(SEGMENTS.choose(rng).unwrap());
    }
    if path.is_empty() || rng.random_ratio(1, 5) {
        path.push('/');
    }
    if rng.random_ratio(1, 30) {
        path.replace('a', "%61")
    } else {
        path
    }
}

pub(crate) fn case<R: Rng>(rng: &mut R) -> Case {
    let text = |rng: &mut R, of: &[&str]| (*of.choose(rng).unwrap()).to_owned();
    let host = text(rng, &HOSTS);
    let mut headers = some(rng, 0..4, |rng| {
        (text(rng, &NAMES[..3]), text(rng, &VALUES[..4]))
    });
    headers.push(("host".to_owned(), host.clone()));
    Case {
        method: text(rng, &METHODS),
        host,
        path: match rng.random_ratio(1, 12) {
            true => path(rng).replace("%61", "a").to_uppercase(),
            false => path(rng).replace("%61", "a"),
        },
        query: some(rng, 0..3, |rng| (text(rng, &PARAMS), text(rng, &VALUES))),
        headers,
        client: rng.random_ratio(4, 5).then(|| text(rng, &NAMESPACES)),
        labels: some(rng, 0..3, label),
        principal: rng.random_ratio(2, 3).then(|| text(rng, &PRINCIPALS)),
    }
}
