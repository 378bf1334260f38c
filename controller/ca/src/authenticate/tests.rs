//! Bearer tokens, good and bad.

use jsonwebtoken::{EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn claims() -> Value {
    json!({
        "iss": "https://kubernetes.default.svc", "aud": ["istio-ca"], "exp": NOW + 3600, "nbf": NOW,
        "kubernetes.io": {
            "namespace": "karst-system",
            "node": {"name": "node-a", "uid": "n"},
            "pod": {"name": "agent-x", "uid": "pod-uid"},
            "serviceaccount": {"name": "karst-agent", "uid": "s"},
        },
    })
}

fn sign(key: &KeyPair, claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
}

async fn ask(keys: &KeySet, token: &str) -> Result<Caller, AuthError> {
    KeySetAuthenticator::new(keys.clone(), Clock::from_fn(now))
        .authenticate(token)
        .await
}

#[tokio::test]
async fn a_bound_token_names_node_account_and_pod() {
    let key = KeyPair::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("issuer.pem"), key.public_key_pem()).unwrap();
    std::fs::write(dir.path().join("README"), "not a key").unwrap();
    let keys = KeySet::from_dir(dir.path()).unwrap();
    let caller = ask(&keys, &sign(&key, &claims())).await.unwrap();
    assert_eq!(
        caller.to_string(),
        "karst-system/karst-agent on node node-a"
    );
    assert_eq!(caller.pod_uid.as_deref(), Some("pod-uid"));
}

#[tokio::test]
async fn bad_tokens_are_refused_by_name() {
    let (key, stranger) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut keys = KeySet::default();
    keys.add_public_pem(&key.public_key_pem()).unwrap();
    let with = |field: &str, value: Value| {
        let mut claims = claims();
        claims[field] = value;
        sign(&key, &claims)
    };
    let reason = async |token: &str| ask(&keys, token).await.unwrap_err();
    assert_eq!(reason("").await, AuthError::Missing);
    assert_eq!(
        reason(&"a".repeat(20_000)).await,
        AuthError::TooLarge(20_000)
    );
    assert!(matches!(reason("a.b.c").await, AuthError::Malformed(_)));
    assert!(matches!(
        reason(&sign(&stranger, &claims())).await,
        AuthError::UnknownKey(_)
    ));
    assert_eq!(
        reason(&with("aud", json!("api"))).await,
        AuthError::Audience(vec!["api".into()])
    );
    assert_eq!(
        reason(&with("exp", json!(NOW - 400))).await,
        AuthError::Expired(NOW - 400)
    );
    assert_eq!(
        reason(&with("nbf", json!(NOW + 400))).await,
        AuthError::NotYetValid(NOW + 400)
    );
    assert_eq!(
        reason(&with("kubernetes.io", json!({"namespace": "a"}))).await,
        AuthError::Unbound
    );
    let clocks_differ = with("exp", json!(NOW - 200));
    ask(&keys, &clocks_differ).await.unwrap();
    // The classic forgery: the public key as an HMAC secret.
    let secret = EncodingKey::from_secret(key.public_key_pem().as_bytes());
    let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
    assert_eq!(
        reason(&forged).await,
        AuthError::Algorithm(Algorithm::HS256)
    );
}

#[tokio::test]
async fn a_key_set_in_json_is_read() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let key = KeyPair::generate().unwrap();
    let point = key.public_key_raw();
    let (x, y) = (
        URL_SAFE_NO_PAD.encode(&point[1..33]),
        URL_SAFE_NO_PAD.encode(&point[33..]),
    );
    let mut keys = KeySet::default();
    keys.add_jwks(
        &json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "x": x, "y": y}]}).to_string(),
    )
    .unwrap();
    assert_eq!(
        ask(&keys, &sign(&key, &claims())).await.unwrap().key_id,
        "one"
    );
}

#[test]
fn other_files_than_public_keys_are_refused() {
    let mut keys = KeySet::default();
    let private = KeyPair::generate().unwrap().serialize_pem();
    assert!(matches!(
        keys.add_public_pem(&private),
        Err(KeySetError::Pem)
    ));
    assert!(matches!(keys.add_jwks("{"), Err(KeySetError::Jwks(_))));
}
