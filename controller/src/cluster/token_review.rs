//! Who calls, by TokenReview: the API server says whose token it is, and to which node and pod it is bound.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use karst_ca::{AuthError, Authenticator, Caller, authenticate::TOKEN_SIZE_MAX, token::AUDIENCE};
use karst_k8s_api::k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus,
};
use karst_runtime::clock::Clock;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{Api, Client, api::PostParams};
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Semaphore;

use super::reviewed::{Reviewed, digest};

/// Reviews under way at once; further callers wait.
const REVIEWS_MAX: usize = 32;
/// Longest wait for a review, its queue included.
const PATIENCE: Duration = Duration::from_secs(5);
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Asks the API server, and remembers the answer for a short while.
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    answers: Mutex<Reviewed>,
    slots: Semaphore,
    clock: Clock,
    asked: Counter,
    failed: Counter,
}

impl TokenReviewer {
    pub fn new(client: Client, clock: Clock, registry: &Registry) -> Self {
        let asked = "Tokens that the API server was asked about";
        let failed = "Tokens about which the API server gave no answer";
        Self {
            reviews: Api::all(client),
            answers: Mutex::default(),
            slots: Semaphore::new(REVIEWS_MAX),
            clock,
            asked: registry.register("karst_token_reviews", asked, Counter::default()),
            failed: registry.register("karst_token_reviews_failed", failed, Counter::default()),
        }
    }

    async fn review(&self, bearer: &str) -> Result<TokenReviewStatus, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(bearer.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let asked = async {
            let _slot = self.slots.acquire().await;
            self.asked.inc();
            let params = PostParams::default();
            self.reviews.create(&params, &review).await
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        let unavailable = |reason: String| {
            self.failed.inc();
            AuthError::Unavailable(reason)
        };
        match answer {
            Ok(Ok(review)) => Ok(review.status.unwrap_or_default()),
            Ok(Err(error)) => Err(unavailable(Chain(&error).to_string())),
            Err(_elapsed) => Err(unavailable(format!(
                "the API server gave no answer within {PATIENCE:?}"
            ))),
        }
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Result<Caller, AuthError>> {
        let now = self.clock.now().monotonic;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.find(key, now)
    }
}

#[async_trait::async_trait]
impl Authenticator for TokenReviewer {
    async fn authenticate(&self, bearer: &str) -> Result<Caller, AuthError> {
        if bearer.is_empty() {
            return Err(AuthError::Missing);
        }
        if bearer.len() > TOKEN_SIZE_MAX {
            return Err(AuthError::TooLarge(bearer.len()));
        }
        let expiry = expiry(bearer)?;
        let key = digest(bearer);
        if let Some(answer) = self.remembered(&key) {
            return answer;
        }
        let answer = caller(self.review(bearer).await?);
        let now = self.clock.now();
        let left = (UNIX_EPOCH + expiry)
            .duration_since(now.wall)
            .unwrap_or_default();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.remember(key, answer.clone(), left, now.monotonic);
        answer
    }
}

/// When the token says that it ends, since 1970. Nothing else of it is believed before the API server has spoken; what
/// is no token at all never reaches it.
fn expiry(bearer: &str) -> Result<Duration, AuthError> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let malformed = |reason: String| AuthError::Malformed(reason);
    let mut parts = bearer.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("expected three parts".to_owned()));
    };
    let json = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|error| malformed(error.to_string()))?;
    let claims: Claims =
        serde_json::from_slice(&json).map_err(|error| malformed(error.to_string()))?;
    Ok(Duration::from_secs(claims.exp))
}

/// The caller that an answer names.
fn caller(status: TokenReviewStatus) -> Result<Caller, AuthError> {
    if status.authenticated != Some(true) {
        let reason = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(AuthError::Rejected(reason));
    }
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(AuthError::Audience(audiences));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name
        .strip_prefix(SERVICE_ACCOUNT)
        .and_then(|account| account.split_once(':'));
    let extra = user.extra.unwrap_or_default();
    match (account, only(&extra, NODE_NAME)) {
        (Some((namespace, service_account)), Some(node)) => Ok(Caller {
            node,
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_uid: only(&extra, POD_UID),
            key_id: String::new(),
        }),
        _ => Err(AuthError::Unbound),
    }
}

/// The one value that is not empty; none where there are several.
fn only(extra: &BTreeMap<String, Vec<String>>, name: &str) -> Option<String> {
    match extra.get(name)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: serde_json::Value) -> Result<Caller, AuthError> {
        caller(serde_json::from_value(status).unwrap())
    }

    fn agent() -> serde_json::Value {
        json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:karst-system:karst-agent",
                "extra": {NODE_NAME: ["n1"], POD_UID: ["uid"], "authentication.kubernetes.io/pod-name": ["karst-agent-x"]},
            },
        })
    }

    #[test]
    fn an_agent_is_its_account_on_its_node() {
        let caller = answer(agent()).unwrap();
        assert_eq!(caller.to_string(), "karst-system/karst-agent on node n1");
        assert_eq!(caller.pod_uid.as_deref(), Some("uid"));
    }

    #[test]
    fn whatever_is_less_is_nobody() {
        let with = |path: &str, value: serde_json::Value| {
            let mut status = agent();
            *status.pointer_mut(path).unwrap() = value;
            answer(status)
        };
        let rejected = json!({"authenticated": false, "error": "token has expired"});
        assert_eq!(
            answer(rejected),
            Err(AuthError::Rejected("token has expired".to_owned()))
        );
        assert!(answer(json!({})).is_err());
        assert!(matches!(
            with("/audiences", json!(["https://kubernetes.default.svc"])),
            Err(AuthError::Audience(_))
        ));
        let node = format!("/user/extra/{}", NODE_NAME.replace('/', "~1"));
        for value in [json!([]), json!([""]), json!(["n1", "n2"])] {
            assert_eq!(with(&node, value), Err(AuthError::Unbound));
        }
        for name in [
            "admin",
            "system:serviceaccount:karst-system",
            "system:node:n1",
        ] {
            assert_eq!(
                with("/user/username", name.into()),
                Err(AuthError::Unbound),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_token_is_not_sent_anywhere() {
        let claims = |json: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(json));
        assert_eq!(expiry(&claims(r#"{"exp": 5}"#)), Ok(Duration::from_secs(5)));
        for text in [
            "",
            "a.b",
            "a.b.c.d",
            "e30.!.c2ln",
            &claims("{}"),
            &claims("[]"),
        ] {
            assert!(
                matches!(expiry(text), Err(AuthError::Malformed(_))),
                "{text:?}"
            );
        }
    }
}
