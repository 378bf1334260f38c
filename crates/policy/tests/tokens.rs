//! Tokens: every algorithm and every way to be wrong by hand, then random requests against a naive evaluator that knows by
//! construction what each token is worth.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::header;
use karst_model::{
    token::{CLOCK_SKEW, ClaimHeader, RequestAuthentication, TokenKeys, TokenRule, TokenSource},
    waypoint_policy::PolicyTarget,
};
use karst_policy::token::{KeySet, Rejected, TokenRules};
use karst_routing::request::{Request, Scheme, Seen};
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key pair that signs tokens.
enum Signer {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair, &'static str, &'static str),
    Rsa(Box<RsaKeyPair>, &'static str),
}

impl Signer {
    fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    fn ec(of: &'static EcdsaSigningAlgorithm, alg: &'static str, curve: &'static str) -> Self {
        Self::Ec(EcdsaKeyPair::generate(of).unwrap(), alg, curve)
    }

    fn rsa(alg: &'static str) -> Self {
        Self::Rsa(
            Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            alg,
        )
    }

    fn alg(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_, alg, _) | Self::Rsa(_, alg) => alg,
        }
    }

    fn jwk(&self, id: Option<&str>) -> Value {
        let mut jwk = match self {
            Self::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key())})
            }
            Self::Ec(pair, _, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": base64(x), "y": base64(y)})
            }
            Self::Rsa(pair, _) => {
                // RSAPublicKey: a sequence of the modulus, 256 bytes after a zero, and the exponent, 3 bytes.
                let der = pair.public_key().as_ref();
                let (n, e) = (&der[9..265], &der[der.len() - 3..]);
                json!({"kty": "RSA", "use": "sig", "n": base64(n), "e": base64(e)})
            }
        };
        if let Some(id) = id {
            jwk["kid"] = id.into();
        }
        jwk
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ec(pair, ..) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(pair, alg) => {
                let padding: &'static dyn RsaEncoding = match *alg {
                    "RS256" => &RSA_PKCS1_SHA256,
                    _ => &RSA_PSS_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    fn token(&self, id: Option<&str>, claims: &str) -> String {
        let mut head = json!({"alg": self.alg()});
        if let Some(id) = id {
            head["kid"] = id.into();
        }
        self.signed(&head.to_string(), claims)
    }

    fn signed(&self, head: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64(head), base64(claims));
        let signature = base64(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

fn jwks(keys: &[Value]) -> TokenKeys {
    TokenKeys::Published(json!({"keys": keys}).to_string().into())
}

fn bearer() -> TokenSource {
    TokenSource::Header {
        name: "authorization".into(),
        prefix: "Bearer ".into(),
    }
}

fn rule(keys: TokenKeys) -> TokenRule {
    TokenRule {
        issuer: "iss".into(),
        audiences: Vec::new(),
        keys,
        sources: vec![bearer(), TokenSource::Param("access_token".into())],
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: Vec::new(),
        clock_skew: CLOCK_SKEW,
    }
}

fn rules(rules: Vec<TokenRule>) -> TokenRules {
    TokenRules::new([&Arc::new(RequestAuthentication {
        key: "shop/users".parse().unwrap(),
        targets: vec![PolicyTarget::GatewayClass("istio-waypoint".into())],
        rules,
    })])
}

fn request(uri: &str, headers: &[(&str, String)]) -> Request {
    let mut builder = http::Request::builder()
        .uri(uri)
        .header(header::HOST, "orders");
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    Request::new(parts, seen).unwrap()
}

fn with_token(token: &str) -> Request {
    request("/", &[("authorization", format!("Bearer {token}"))])
}

/// The principal that comes of a token alone.
fn outcome(rules: &TokenRules, token: &str) -> Result<Option<String>, Rejected> {
    let mut request = with_token(token);
    rules.authenticate(&mut request, NOW)?;
    let principal = request.token().and_then(|token| token.principal());
    Ok(principal.map(str::to_owned))
}

const ALICE: &str = r#"{"iss":"iss","sub":"alice"}"#;

#[test]
fn every_algorithm_verifies_its_own_signatures_and_no_others() {
    let make = || {
        vec![
            Signer::ed(),
            Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", "P-256"),
            Signer::ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384", "P-384"),
            Signer::ec(&ECDSA_P521_SHA512_FIXED_SIGNING, "ES512", "P-521"),
            Signer::rsa("RS256"),
            Signer::rsa("PS256"),
        ]
    };
    let (ours, theirs) = (make(), make());
    let all: Vec<Value> = ours.iter().map(|one| one.jwk(Some(one.alg()))).collect();
    let rules = rules(vec![rule(jwks(&all))]);
    for (own, other) in ours.iter().zip(&theirs) {
        let alg = own.alg();
        let alice = Ok(Some("iss/alice".to_owned()));
        assert_eq!(
            outcome(&rules, &own.token(Some(alg), ALICE)),
            alice,
            "{alg}"
        );
        assert_eq!(
            outcome(&rules, &own.token(None, ALICE)),
            alice,
            "{alg} without kid"
        );
        let forged = other.token(Some(alg), ALICE);
        assert_eq!(outcome(&rules, &forged), Err(Rejected::Signature), "{alg}");
        let unknown = own.token(Some("gone"), ALICE);
        assert_eq!(
            outcome(&rules, &unknown),
            Err(Rejected::KeyUnknown),
            "{alg}"
        );
        // The same signature over something else.
        let mut parts: Vec<String> = own.token(None, ALICE).split('.').map(Into::into).collect();
        parts[1] = base64(r#"{"iss":"iss","sub":"admin"}"#);
        assert_eq!(
            outcome(&rules, &parts.join(".")),
            Err(Rejected::Signature),
            "{alg}"
        );
    }
}

#[test]
fn none_shared_secrets_and_confused_algorithms_are_refused() {
    let rsa = Signer::rsa("RS256");
    let jwk = rsa.jwk(Some("k"));
    let rules = rules(vec![rule(jwks(std::slice::from_ref(&jwk)))]);
    for alg in [
        "none", "None", "NONE", "HS256", "HS512", "ES256K", "", "RS1",
    ] {
        let head = json!({"alg": alg, "kid": "k"}).to_string();
        let message = format!("{}.{}", base64(&head), base64(ALICE));
        // The public key as a secret.
        let secret = hmac::Key::new(hmac::HMAC_SHA256, jwk["n"].as_str().unwrap().as_bytes());
        for signature in [
            String::new(),
            base64(hmac::sign(&secret, message.as_bytes())),
        ] {
            let token = format!("{message}.{signature}");
            assert_eq!(outcome(&rules, &token), Err(Rejected::Algorithm), "{alg}");
        }
    }
    let other = rsa.signed(r#"{"alg":"ES256","kid":"k"}"#, ALICE);
    assert_eq!(outcome(&rules, &other), Err(Rejected::KeyUnknown));
    let other = rsa.signed(r#"{"alg":"PS256","kid":"k"}"#, ALICE);
    assert_eq!(outcome(&rules, &other), Err(Rejected::Signature));
    for secret in [
        json!({"keys": [{"kty": "oct", "k": base64("secret")}]}),
        json!({"keys": [{"kty": "RSA", "n": base64([0xff; 128]), "e": "AQAB"}]}),
        json!({"keys": []}),
        json!([]),
    ] {
        assert!(KeySet::read(&secret.to_string()).is_err(), "{secret}");
    }
}

#[test]
fn what_has_two_meanings_or_no_form_is_refused() {
    let ed = Signer::ed();
    let rules = rules(vec![rule(jwks(&[ed.jwk(None)]))]);
    let check =
        |token: &str, expected| assert_eq!(outcome(&rules, token), Err(expected), "{token}");
    check(
        &ed.token(None, r#"{"iss":"iss","sub":"a","sub":"b"}"#),
        Rejected::Payload,
    );
    check(
        &ed.signed(r#"{"alg":"EdDSA","alg":"none"}"#, ALICE),
        Rejected::Header,
    );
    check(
        &ed.signed(r#"{"alg":"EdDSA","crit":["exp"]}"#, ALICE),
        Rejected::Header,
    );
    check(
        &ed.signed(r#"{"alg":"EdDSA","kid":7}"#, ALICE),
        Rejected::Header,
    );
    check(
        &ed.token(None, r#"{"iss":"iss","sub":7}"#),
        Rejected::Payload,
    );
    check(
        &ed.token(None, r#"{"iss":"iss","exp":"soon"}"#),
        Rejected::Payload,
    );
    check(
        &ed.token(None, r#"{"iss":"iss","exp":-1}"#),
        Rejected::Payload,
    );
    check(&ed.token(None, "[]"), Rejected::Payload);
    check("a.b", Rejected::Malformed);
    check("a.b.c.d", Rejected::Malformed);
    check("..", Rejected::Header);
    let padded = format!("{}==", ed.token(None, ALICE));
    check(&padded, Rejected::Malformed);
    check(&"x".repeat(70_000), Rejected::TooLarge);
    let large = format!(
        r#"{{"iss":"iss","sub":"alice","x":"{}"}}"#,
        "y".repeat(47_000)
    );
    let large = ed.token(None, &large);
    assert!(large.len() > 62_000, "{}", large.len());
    assert_eq!(outcome(&rules, &large), Ok(Some("iss/alice".to_owned())));
    let headers: Vec<(&str, String)> = (0..17)
        .map(|_| ("authorization", format!("Bearer {large}")))
        .collect();
    assert_eq!(
        rules.authenticate(&mut request("/", &headers), NOW),
        Err(Rejected::TooLarge)
    );
}

#[test]
fn times_hold_within_the_skew_also_for_what_is_remembered() {
    let ed = Signer::ed();
    let rules = rules(vec![rule(jwks(&[ed.jwk(None)]))]);
    let at = |claims: &str, now| {
        let token = ed.token(None, claims);
        let mut last = None;
        for _ in 0..2 {
            last = Some(rules.authenticate(&mut with_token(&token), now));
        }
        last.unwrap()
    };
    let exp = format!(r#"{{"iss":"iss","exp":{NOW}}}"#);
    assert_eq!(at(&exp, NOW + 60), Ok(()));
    assert_eq!(at(&exp, NOW + 61), Err(Rejected::Expired));
    let nbf = format!(r#"{{"iss":"iss","nbf":{NOW}.9}}"#);
    assert_eq!(at(&nbf, NOW - 60), Ok(()));
    assert_eq!(at(&nbf, NOW - 61), Err(Rejected::NotYetValid));
    // One token, whose time runs out.
    let token = ed.token(None, &exp);
    for (now, expected) in [
        (NOW, Ok(())),
        (NOW + 60, Ok(())),
        (NOW + 61, Err(Rejected::Expired)),
    ] {
        assert_eq!(rules.authenticate(&mut with_token(&token), now), expected);
    }
}

#[test]
fn without_a_token_a_request_passes_without_a_principal_and_without_what_tokens_say() {
    let ed = Signer::ed();
    let rules = rules(vec![TokenRule {
        payload_header: Some("x-payload".into()),
        claim_headers: vec![ClaimHeader {
            header: "x-group".into(),
            claim: vec!["realm".into(), "group".into()],
        }],
        ..rule(jwks(&[ed.jwk(None)]))
    }]);
    let forged = [
        ("x-payload", "admin".to_owned()),
        ("x-group", "admins".to_owned()),
        ("authorization", "Basic abc".to_owned()),
    ];
    let mut asked = request("/", &forged);
    assert_eq!(rules.authenticate(&mut asked, NOW), Ok(()));
    assert!(asked.token().is_none());
    assert!(!asked.headers().contains_key("x-payload") && !asked.headers().contains_key("x-group"));
    assert_eq!(asked.headers()["authorization"], "Basic abc");

    let claims = r#"{"iss":"iss","sub":"a","realm":{"group":"staff"}}"#;
    let token = ed.token(None, claims);
    let mut asked = request(&format!("/?a=1&access_token={token}&b=2"), &[]);
    assert_eq!(rules.authenticate(&mut asked, NOW), Ok(()));
    assert_eq!(asked.path_and_query(), "/?a=1&b=2");
    assert_eq!(asked.headers()["x-group"], "staff");
    assert_eq!(asked.headers()["x-payload"], base64(claims));
    let shown = rules
        .without_tokens(&format!("a=1&access_token={token}"))
        .unwrap();
    assert_eq!(shown, "a=1&access_token=(hidden)");
}

#[test]
fn an_audience_for_somebody_else_is_403_and_missing_keys_are_401() {
    let ed = Signer::ed();
    let audienced = rules(vec![TokenRule {
        audiences: vec!["https://shop/".into()],
        ..rule(jwks(&[ed.jwk(None)]))
    }]);
    let good = ed.token(None, r#"{"iss":"iss","sub":"a","aud":["x","shop"]}"#);
    assert!(outcome(&audienced, &good).is_ok());
    let bad = outcome(
        &audienced,
        &ed.token(None, r#"{"iss":"iss","aud":"other"}"#),
    );
    assert_eq!(
        (bad.clone(), bad.unwrap_err().status()),
        (Err(Rejected::Audience), 403)
    );
    let missing = rules(vec![rule(TokenKeys::Missing("down".into()))]);
    let bad = outcome(&missing, &good);
    assert_eq!(
        (bad.clone(), bad.unwrap_err().status()),
        (Err(Rejected::NoKeys), 401)
    );
}

// --- random requests

/// A token, and what is true of it.
struct Known {
    text: String,
    issuer: Option<&'static str>,
    subject: String,
    audience: Option<&'static str>,
    expires: Option<u64>,
    not_before: Option<u64>,
    key_id: Option<&'static str>,
    signer: usize,
    /// Something is wrong with its form or its signature.
    broken: bool,
}

struct KnownRule {
    issuer: &'static str,
    audiences: Vec<&'static str>,
    /// Signers, and the names that their keys have.
    keys: Vec<(usize, Option<&'static str>)>,
    sources: Vec<usize>,
    forward: bool,
}

const ISSUERS: [&str; 3] = ["a", "b", "c"];
const AUDIENCES: [&str; 3] = ["x", "y", "z"];
const IDS: [&str; 3] = ["k0", "k1", "k2"];
const SETS: usize = 250;
const REQUESTS: usize = 4_000;

fn sources() -> [TokenSource; 4] {
    [
        bearer(),
        TokenSource::Header {
            name: "x-token".into(),
            prefix: "".into(),
        },
        TokenSource::Param("t".into()),
        TokenSource::Cookie("c".into()),
    ]
}

fn some<T: Copy>(rng: &mut impl Rng, of: &[T], chance: f64) -> Vec<T> {
    of.iter()
        .copied()
        .filter(|_| rng.random_bool(chance))
        .collect()
}

fn known_token(rng: &mut impl Rng, signers: &[Signer], number: usize) -> Known {
    let time = |rng: &mut StdRng| {
        rng.random_bool(0.4)
            .then(|| NOW - 150 + rng.random_range(0..300))
    };
    let mut times = StdRng::seed_from_u64(rng.random());
    let mut known = Known {
        text: String::new(),
        issuer: rng.random_bool(0.95).then(|| *ISSUERS.choose(rng).unwrap()),
        subject: format!("u{number}"),
        audience: rng
            .random_bool(0.7)
            .then(|| *AUDIENCES.choose(rng).unwrap()),
        expires: time(&mut times),
        not_before: time(&mut times),
        key_id: rng.random_bool(0.7).then(|| *IDS.choose(rng).unwrap()),
        signer: rng.random_range(0..signers.len()),
        broken: false,
    };
    let mut claims = json!({"sub": known.subject});
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            claims[name] = value;
        }
    };
    set("iss", known.issuer.map(Into::into));
    set("aud", known.audience.map(Into::into));
    set("exp", known.expires.map(Into::into));
    set("nbf", known.not_before.map(Into::into));
    let claims = claims.to_string();
    known.text = signers[known.signer].token(known.key_id, &claims);
    let (text, broken) = match rng.random_range(0..10_u8) {
        0 => {
            let mut parts: Vec<String> = known.text.split('.').map(Into::into).collect();
            parts[1] = base64(claims.replace("\"u", "\"v"));
            (parts.join("."), true)
        }
        1 => (format!("{}.", known.text), true),
        2 => {
            let doubled = claims.replacen('{', "{\"sub\":\"x\",", 1);
            (signers[known.signer].token(known.key_id, &doubled), true)
        }
        3 => (known.text[..known.text.len() - 4].to_owned(), true),
        _ => (known.text.clone(), false),
    };
    (known.text, known.broken) = (text, broken);
    known
}

fn known_rule(rng: &mut impl Rng, signers: usize) -> KnownRule {
    let mut keys: Vec<_> = (0..signers).filter(|_| rng.random_bool(0.6)).collect();
    if keys.is_empty() {
        keys.push(0);
    }
    KnownRule {
        issuer: ISSUERS.choose(rng).unwrap(),
        audiences: match rng.random_bool(0.5) {
            true => some(rng, &AUDIENCES, 0.5),
            false => Vec::new(),
        },
        keys: keys
            .into_iter()
            .map(|key| (key, rng.random_bool(0.7).then(|| *IDS.choose(rng).unwrap())))
            .collect(),
        sources: some(rng, &[0, 1, 2, 3], 0.5),
        forward: rng.random(),
    }
}

fn holds(token: &Known, rule: &KnownRule, now: u64) -> bool {
    let named = |id: Option<&str>| match (token.key_id, id) {
        (Some(wanted), Some(id)) => wanted == id,
        _ => true,
    };
    !token.broken
        && token.issuer == Some(rule.issuer)
        && token.expires.is_none_or(|until| now <= until + 60)
        && token.not_before.is_none_or(|from| now + 60 >= from)
        && (rule.audiences.is_empty()
            || token
                .audience
                .is_some_and(|one| rule.audiences.contains(&one)))
        && rule
            .keys
            .iter()
            .any(|(key, id)| *key == token.signer && named(*id))
}

#[derive(Debug, PartialEq)]
enum Expected {
    Nobody,
    User(String),
    Refused,
}

/// What should come of it, and which places should be empty afterwards.
fn naive(rules: &[KnownRule], sent: &[(usize, &Known)], now: u64) -> (Expected, Vec<usize>) {
    let mut sorted: Vec<&KnownRule> = rules.iter().collect();
    sorted.sort_by_key(|rule| rule.issuer);
    let mut found_any = false;
    for rule in sorted {
        let found: Vec<&Known> = rule
            .sources
            .iter()
            .flat_map(|source| sent.iter().filter(move |(at, _)| at == source))
            .map(|(_, token)| *token)
            .collect();
        let Some(first) = found.first() else {
            continue;
        };
        found_any = true;
        if found.iter().all(|token| holds(token, rule, now)) {
            let user = format!("{}/{}", rule.issuer, first.subject);
            let emptied = if rule.forward {
                Vec::new()
            } else {
                rule.sources.clone()
            };
            return (Expected::User(user), emptied);
        }
    }
    match found_any {
        true => (Expected::Refused, Vec::new()),
        false => (Expected::Nobody, Vec::new()),
    }
}

fn sent_request(sent: &[(usize, &Known)]) -> Request {
    let mut uri = "/p".to_owned();
    let mut headers = Vec::new();
    for (at, token) in sent {
        match at {
            0 => headers.push(("authorization", format!("Bearer {}", token.text))),
            1 => headers.push(("x-token", token.text.clone())),
            2 => {
                let joint = if uri.contains('?') { '&' } else { '?' };
                uri.push_str(&format!("{joint}t={}", token.text));
            }
            _ => headers.push(("cookie", format!("a=b; c={}", token.text))),
        }
    }
    request(&uri, &headers)
}

fn is_empty(request: &Request, at: usize) -> bool {
    match at {
        0 => !request.headers().contains_key("authorization"),
        1 => !request.headers().contains_key("x-token"),
        2 => request.query_param("t").is_none(),
        _ => request
            .header("cookie")
            .is_none_or(|all| !all.windows(2).any(|two| two == b"c=")),
    }
}

#[test]
fn a_million_random_requests_agree_with_the_naive_evaluator() {
    let mut rng = StdRng::seed_from_u64(67);
    let signers = [
        Signer::ed(),
        Signer::ed(),
        Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", "P-256"),
    ];
    let (mut users, mut refused) = (0, 0);
    for set in 0..SETS {
        let tokens: Vec<Known> = (0..16)
            .map(|n| known_token(&mut rng, &signers, n))
            .collect();
        let known: Vec<KnownRule> = (0..rng.random_range(1..4))
            .map(|_| known_rule(&mut rng, signers.len()))
            .collect();
        let written = known.iter().map(|one| TokenRule {
            issuer: one.issuer.into(),
            audiences: one.audiences.iter().map(|text| (*text).into()).collect(),
            sources: one
                .sources
                .iter()
                .map(|at| sources()[*at].clone())
                .collect(),
            forward: one.forward,
            clock_skew: Duration::from_secs(60),
            ..rule(jwks(
                &one.keys
                    .iter()
                    .map(|(key, id)| signers[*key].jwk(*id))
                    .collect::<Vec<_>>(),
            ))
        });
        let compiled = rules(written.collect());
        for case in 0..REQUESTS {
            let sent: Vec<(usize, &Known)> =
                (0..*[0, 1, 1, 1, 1, 2, 2, 3].choose(&mut rng).unwrap())
                    .map(|_| (rng.random_range(0..4), tokens.choose(&mut rng).unwrap()))
                    .collect();
            let now = NOW - 150 + rng.random_range(0..300);
            let (expected, emptied) = naive(&known, &sent, now);
            let mut asked = sent_request(&sent);
            let found = match compiled.authenticate(&mut asked, now) {
                Err(_) => Expected::Refused,
                Ok(()) => match asked.token() {
                    None => Expected::Nobody,
                    Some(token) => Expected::User(token.principal().unwrap().to_owned()),
                },
            };
            assert_eq!(found, expected, "set {set} case {case}");
            assert!(
                emptied.iter().all(|at| is_empty(&asked, *at)),
                "set {set} case {case}"
            );
            users += usize::from(matches!(found, Expected::User(_)));
            refused += usize::from(found == Expected::Refused);
        }
    }
    assert!(users > 25_000 && refused > 200_000, "{users} {refused}");
}
