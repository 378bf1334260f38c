//! Tokens of users and the keys of their issuers, both as strangers write them.

use std::sync::{Arc, OnceLock};

use http::{HeaderValue, Request as HttpRequest, header};
use karst_model::{
    token::{CLOCK_SKEW, RequestAuthentication, TokenKeys, TokenRule, TokenSource},
    waypoint_policy::PolicyTarget,
};
use karst_policy::token::{KeySet, TokenRules};
use karst_routing::request::{Request, Scheme, Seen};

use crate::Target;

/// A token, and what claims to be a JWK set.
pub const TOKEN: Target = Target {
    name: "token",
    run,
    seeds,
};

/// RFC 8037, appendix A: its public key, and its signature, which is of another message.
const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const TOKEN_SEED: &str = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJpc3MiLCJzdWIiOiJhIn0.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn rules() -> &'static TokenRules {
    static RULES: OnceLock<TokenRules> = OnceLock::new();
    RULES.get_or_init(|| {
        let rule = TokenRule {
            issuer: "iss".into(),
            audiences: Vec::new(),
            keys: TokenKeys::Published(KEYS.into()),
            sources: vec![
                TokenSource::Header {
                    name: "authorization".into(),
                    prefix: "Bearer ".into(),
                },
                TokenSource::Cookie("token".into()),
            ],
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            space_delimited: Vec::new(),
            clock_skew: CLOCK_SKEW,
        };
        TokenRules::new([&Arc::new(RequestAuthentication {
            key: karst_model::name::PolicyKey {
                namespace: "shop".into(),
                name: "users".into(),
            },
            targets: vec![PolicyTarget::GatewayClass("istio-waypoint".into())],
            rules: vec![rule],
        })])
    })
}

fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(keys) = KeySet::read(text)
    {
        assert!(keys.counts().0 > 0);
    }
    for name in [header::AUTHORIZATION, header::COOKIE] {
        let prefix: &[u8] = if name == header::COOKIE {
            b"token="
        } else {
            b"Bearer "
        };
        let Ok(value) = HeaderValue::from_bytes(&[prefix, bytes].concat()) else {
            continue;
        };
        let built = HttpRequest::builder()
            .uri("/")
            .header(header::HOST, "a")
            .header(name, value);
        let Ok(request) = built.body(()) else {
            continue;
        };
        let seen = Seen {
            scheme: Scheme::Http,
            port: 80,
        };
        let Ok(mut request) = Request::new(request.into_parts().0, seen) else {
            continue;
        };
        // Nobody has the key, so nobody is anybody.
        let _refused_or_none = rules().authenticate(&mut request, 1_800_000_000);
        assert!(request.token().is_none());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        TOKEN_SEED.as_bytes().to_vec(),
        KEYS.as_bytes().to_vec(),
        br#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#.to_vec(),
    ]
}
