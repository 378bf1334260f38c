//! Random policies and requests out of a small vocabulary, so that values meet, nearly meet and miss each other.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{Version, header};
use karst_model::{
    identity::{SpiffeId, TrustDomain},
    name::PolicyKey,
    policy::{IpBlock, Match, ServiceAccountMatch, StringMatch},
    waypoint_policy::{
        ClaimValues, HeaderValues, PathPattern, PolicyTarget, RequestAction, RequestClause,
        RequestMatch, RequestRule, WaypointPolicy,
    },
};
use karst_routing::{
    request::{Request, Scheme, Seen},
    token::Token,
};
use rand::{Rng, RngExt, seq::IndexedRandom};
use serde_json::{Value, json};

use super::Connection;

const NAMES: [&str; 5] = ["a", "ab", "b", "bc", "shop"];
const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "GETS"];
const PORTS: [u16; 3] = [80, 81, 8080];
/// Normalised already.
const PATHS: [&str; 19] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/a/b/",
    "/ab",
    "/a@b",
    "/a%40b",
    "/a%C3%A9",
    "/a/b%3B/c",
    "/A",
    "/x.txt",
    "/a/x.txt",
    "/a;x",
    "/a;x/b",
    "/;/a",
    "/a/b/c/d",
    "/b/a",
];
/// Spellings of policies' authors.
const WRITTEN: [&str; 6] = ["/%61", "/a//b", "/a/./b", "/a%c3%a9", "/%61/b", "//a"];
const TEMPLATES: [&str; 12] = [
    "/{*}",
    "/a/{*}",
    "/{*}/b",
    "/a/{**}",
    "/{**}",
    "/a/{*}/c",
    "/a/{**}/c",
    "/a/{**}/",
    "/a%40b/{**}",
    "/{*}.txt",
    "a/{*}",
    "/{**}/{*}",
];
const AUTHORITIES: [&str; 7] = [
    "orders",
    "Orders",
    "orders:80",
    "orders.shop.",
    "orders.shop",
    "pay.example.com",
    "PAY.example.com:8080",
];
const HOSTS: [&str; 6] = [
    "orders",
    "orders.shop",
    "orders:80",
    "example.com",
    ".Example.com",
    "pay.example.com.",
];
const HEADERS: [&str; 3] = ["x-role", "x-user", "X-Empty"];
const VALUES: [&str; 6] = ["admin", "adm", "admin,user", "user, admin", "", "min"];
const ADDRESSES: [&str; 6] = [
    "10.0.0.1",
    "10.0.1.1",
    "11.0.0.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "fd00:0:0:1::1",
];
const PRINCIPALS: [&str; 3] = ["issuer/alice", "issuer/bob", "other/alice"];

/// Requests with which one set of policies is asked.
pub(crate) const REQUESTS_PER_SET: usize = 4;

pub(crate) struct PolicySet {
    pub(crate) policies: Vec<Arc<WaypointPolicy>>,
    pub(crate) missing: Vec<PolicyKey>,
}

/// A request as the naive evaluator sees it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authority: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) connection: Connection,
    pub(crate) remote_ip: IpAddr,
    pub(crate) sni: Option<String>,
    pub(crate) user: Option<User>,
}

/// What a verified token says.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) principal: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) presenter: Option<String>,
    /// Paths, and values as JSON.
    pub(crate) claims: Vec<(&'static [&'static str], &'static str)>,
}

/// Paths of claims, the last of which no token has.
const CLAIMS: [&[&str]; 4] = [&["scope"], &["group"], &["realm", "roles"], &["group", "x"]];
const CLAIM_VALUES: [&str; 9] = [
    r#""a""#,
    r#""a b""#,
    r#"["a","bc"]"#,
    r#"["ab",7,true]"#,
    "7",
    "true",
    r#""""#,
    "[]",
    r#"{"y":[1]}"#,
];
const CLAIM_WORDS: [&str; 8] = ["a", "b", "ab", "a b", "bc", "7", "true", "x"];

impl Case {
    /// Principal, namespace and account of the client.
    pub(crate) fn source(&self) -> Option<(String, String, String)> {
        let id = self.connection.source.as_ref()?;
        let (domain, namespace, account) = (
            &id.trust_domain.0,
            id.namespace.to_string(),
            id.service_account.to_string(),
        );
        Some((
            format!("{domain}/ns/{namespace}/sa/{account}"),
            namespace,
            account,
        ))
    }

    /// The same as the product sees it.
    pub(crate) fn request(&self) -> Request {
        let mut builder = http::Request::builder()
            .method(&*self.method)
            .uri(&*self.path)
            .version(Version::HTTP_11)
            .header(header::HOST, &*self.authority);
        for (name, value) in &self.headers {
            builder = builder.header(&**name, &**value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let seen = Seen {
            scheme: Scheme::Http,
            port: self.connection.destination.port(),
        };
        let mut request = Request::new(parts, seen).unwrap();
        if let Some(user) = &self.user {
            request.set_token(Arc::new(user.token()));
        }
        request
    }
}

impl User {
    fn token(&self) -> Token {
        let (issuer, subject) = self.principal.split_once('/').unwrap();
        let mut claims = json!({"iss": issuer, "sub": subject, "aud": self.audiences});
        if let Some(presenter) = &self.presenter {
            claims["azp"] = presenter.as_str().into();
        }
        for (path, value) in &self.claims {
            let value: Value = serde_json::from_str(value).unwrap();
            match path {
                [name] => claims[*name] = value,
                [outer, inner] => claims[*outer] = json!({*inner: value}),
                _ => panic!("no such path among the cases"),
            }
        }
        Token::new(claims.as_object().unwrap().clone(), &[])
    }
}

pub(crate) fn policy_set(rng: &mut impl Rng) -> PolicySet {
    let len = match rng.random_range(0..100_u8) {
        0 => rng.random_range(10..40),
        1..=30 => 1,
        _ => rng.random_range(0..5),
    };
    let policies = (0..len).map(|index| Arc::new(policy(index, rng))).collect();
    let missing = if rng.random_ratio(1, 24) {
        vec!["shop/missing".parse().unwrap()]
    } else {
        vec![]
    };
    PolicySet { policies, missing }
}

fn policy(index: usize, rng: &mut impl Rng) -> WaypointPolicy {
    use RequestAction::{Allow, Audit, Deny};
    WaypointPolicy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: format!("p{index}").into(),
        },
        targets: vec![PolicyTarget::GatewayClass("istio-waypoint".into())],
        action: *[Allow, Allow, Deny, Deny, Audit].choose(rng).unwrap(),
        provider: None,
        dry_run: rng.random_ratio(1, 5),
        rules: several(rng, &[1, 6, 3, 1], |rng| RequestRule {
            clauses: several(rng, &[1, 10, 4, 1], |rng| RequestClause {
                matches: several(rng, &[1, 12, 4, 1], a_match),
            }),
        }),
    }
}

/// A list whose length is drawn by weight: `weights[n]` for `n` entries.
fn several<T, R: Rng>(rng: &mut R, weights: &[u32], one: impl Fn(&mut R) -> T) -> Vec<T> {
    let mut point = rng.random_range(0..weights.iter().sum());
    let len = weights.iter().position(|weight| {
        point < *weight || {
            point -= weight;
            false
        }
    });
    (0..len.unwrap_or(0)).map(|_| one(rng)).collect()
}

fn a_match<R: Rng>(rng: &mut R) -> RequestMatch {
    let mut m = RequestMatch {
        connection: Match {
            unreadable: rng.random_ratio(1, 60),
            ..Match::default()
        },
        ..RequestMatch::default()
    };
    for _ in 0..*[0, 1, 1, 1, 1, 1, 2, 2, 3].choose(rng).unwrap() {
        add_group(&mut m, rng);
    }
    m
}

fn add_group<R: Rng>(m: &mut RequestMatch, rng: &mut R) {
    let c = &mut m.connection;
    match rng.random_range(0..32_u8) {
        0 => c.namespaces = list(rng, |rng| string(rng, &NAMES)),
        1 => c.not_namespaces = list(rng, |rng| string(rng, &NAMES)),
        2 => c.principals = list(rng, principal),
        3 => c.not_principals = list(rng, principal),
        4 => c.source_ips = list(rng, block),
        5 => c.destination_ports = list(rng, port),
        6 => c.not_destination_ports = list(rng, port),
        7 => c.service_accounts = list(rng, account),
        8 => c.not_service_accounts = list(rng, account),
        9 | 10 => m.methods = list(rng, |rng| string(rng, &METHODS)),
        11 => m.not_methods = list(rng, |rng| string(rng, &METHODS)),
        12..=14 => m.paths = list(rng, path),
        15 | 16 => m.not_paths = list(rng, path),
        17 => m.hosts = list(rng, |rng| string(rng, &HOSTS)),
        18 => m.not_hosts = list(rng, |rng| string(rng, &HOSTS)),
        19 => m.remote_ips = list(rng, block),
        20 => m.not_remote_ips = list(rng, block),
        21 => m.sni = list(rng, |rng| string(rng, &HOSTS)),
        22 => m.not_sni = list(rng, |rng| string(rng, &HOSTS)),
        23 => m.request_principals = list(rng, |rng| string(rng, &PRINCIPALS)),
        24 => m.not_request_principals = list(rng, |rng| string(rng, &PRINCIPALS)),
        27 => m.audiences = list(rng, |rng| string(rng, &NAMES)),
        28 => m.not_audiences = list(rng, |rng| string(rng, &NAMES)),
        29 => m.presenters = list(rng, |rng| string(rng, &NAMES)),
        30 => m.not_presenters = list(rng, |rng| string(rng, &NAMES)),
        25 => m.claims = list(rng, claim_values),
        31 => m.claims = vec![claim_values(rng)],
        _ => m.headers = list(rng, header_values),
    }
}

fn header_values<R: Rng>(rng: &mut R) -> HeaderValues {
    let name = HEADERS.choose(rng).unwrap().to_lowercase().into();
    let mut values = || several(rng, &[4, 6, 2], |rng| string(rng, &VALUES));
    HeaderValues {
        name,
        values: values(),
        not_values: values(),
    }
}

fn claim_values<R: Rng>(rng: &mut R) -> ClaimValues {
    let path = CLAIMS.choose(rng).unwrap();
    let mut values = || several(rng, &[4, 6, 2], |rng| string(rng, &CLAIM_WORDS));
    ClaimValues {
        path: path.iter().map(|name| (*name).into()).collect(),
        values: values(),
        not_values: values(),
    }
}

fn list<T, R: Rng>(rng: &mut R, one: impl Fn(&mut R) -> T) -> Vec<T> {
    let len = if rng.random_ratio(1, 12) {
        rng.random_range(9..14)
    } else {
        rng.random_range(1..4)
    };
    (0..len).map(|_| one(rng)).collect()
}

fn string<R: Rng>(rng: &mut R, of: &[&str]) -> StringMatch {
    let text = (*of.choose(rng).unwrap()).to_owned();
    cut(rng, &text)
}

fn cut<R: Rng>(rng: &mut R, text: &str) -> StringMatch {
    let cut = rng.random_range(0..=text.len());
    match rng.random_range(0..10_u8) {
        0 => StringMatch::Presence,
        1..=5 => StringMatch::Exact(text.into()),
        6 | 7 => StringMatch::Prefix(text[..cut].into()),
        _ => StringMatch::Suffix(text[cut..].into()),
    }
}

fn path<R: Rng>(rng: &mut R) -> PathPattern {
    match rng.random_range(0..8_u8) {
        0 | 1 => PathPattern::Template((*TEMPLATES.choose(rng).unwrap()).into()),
        2 => PathPattern::Text(StringMatch::Exact((*WRITTEN.choose(rng).unwrap()).into())),
        _ => PathPattern::Text(string(rng, &PATHS)),
    }
}

fn principal<R: Rng>(rng: &mut R) -> StringMatch {
    let text = identity(rng).principal().to_string();
    cut(rng, &text)
}

fn port(rng: &mut impl Rng) -> u16 {
    *PORTS.choose(rng).unwrap()
}

fn account(rng: &mut impl Rng) -> ServiceAccountMatch {
    ServiceAccountMatch {
        namespace: (*NAMES.choose(rng).unwrap()).into(),
        service_account: (*NAMES.choose(rng).unwrap()).into(),
    }
}

fn block(rng: &mut impl Rng) -> IpBlock {
    let ip = address(rng);
    let host = if ip.is_ipv4() { 32 } else { 128 };
    let prefix_len = *[host, host, host - 8, host - 16, host - 31, 0, host + 1]
        .choose(rng)
        .unwrap();
    IpBlock { ip, prefix_len }
}

fn address(rng: &mut impl Rng) -> IpAddr {
    ADDRESSES.choose(rng).unwrap().parse().unwrap()
}

fn identity(rng: &mut impl Rng) -> SpiffeId {
    let domain = TrustDomain((*["cluster.local", "td"].choose(rng).unwrap()).into());
    SpiffeId::new(
        &domain,
        NAMES.choose(rng).unwrap(),
        NAMES.choose(rng).unwrap(),
    )
}

pub(crate) fn case<R: Rng>(rng: &mut R) -> Case {
    let text = |rng: &mut R, of: &[&str]| (*of.choose(rng).unwrap()).to_owned();
    let headers = several(rng, &[3, 4, 3, 1], |rng| {
        (text(rng, &HEADERS), text(rng, &VALUES))
    });
    Case {
        method: text(rng, &METHODS),
        path: text(rng, &PATHS),
        authority: text(rng, &AUTHORITIES),
        headers,
        connection: Connection {
            source: rng.random_ratio(5, 6).then(|| identity(rng)),
            source_ip: address(rng),
            destination: SocketAddr::new(address(rng), port(rng)),
        },
        remote_ip: address(rng),
        sni: rng
            .random::<bool>()
            .then(|| text(rng, &["orders", "Pay.example.com", "orders.shop"])),
        user: rng.random_ratio(2, 3).then(|| User {
            principal: text(rng, &PRINCIPALS),
            audiences: several(rng, &[1, 3, 1], |rng| text(rng, &NAMES)),
            presenter: rng.random::<bool>().then(|| text(rng, &NAMES)),
            claims: (0..3)
                .filter(|_| rng.random_ratio(2, 3))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|at| (CLAIMS[at], *CLAIM_VALUES.choose(rng).unwrap()))
                .collect(),
        }),
    }
}
