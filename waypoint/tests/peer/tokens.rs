//! Tokens of users at the waypoint: who they are to policies, routes and the backend, and what is refused.

use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use karst_discovery::Update;
use karst_model::{
    policy::StringMatch,
    protocol::AppProtocol,
    route::{ClaimMatch, ValueMatch},
    token::{CLOCK_SKEW, ClaimHeader, RequestAuthentication, TokenKeys, TokenRule, TokenSource},
    waypoint_policy::{ClaimValues, PolicyTarget, RequestAction, RequestMatch},
};

use crate::{
    app::{App, Speaks},
    client::{Client, status},
    policy::policy_named,
    rig::{World, key, local, rule},
};

struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#)
    }

    fn token(&self, claims: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// The object that believes this issuer for a service.
    fn believed(&self, service: &str) -> Update {
        Update::RequestAuthentication(Arc::new(RequestAuthentication {
            key: "shop/users".parse().unwrap(),
            targets: vec![PolicyTarget::Service(key(service))],
            rules: vec![TokenRule {
                issuer: "https://issuer".into(),
                audiences: Vec::new(),
                keys: TokenKeys::Published(self.jwks().into()),
                sources: vec![
                    TokenSource::Header {
                        name: "authorization".into(),
                        prefix: "Bearer ".into(),
                    },
                    TokenSource::Param("access_token".into()),
                ],
                forward: false,
                payload_header: None,
                claim_headers: vec![ClaimHeader {
                    header: "x-group".into(),
                    claim: vec!["group".into()],
                }],
                space_delimited: Vec::new(),
                clock_skew: CLOCK_SKEW,
            }],
        }))
    }
}

fn get(token: Option<&str>) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    format!(
        "GET / HTTP/1.1\r\nHost: web\r\n{}\r\n",
        token.unwrap_or_default()
    )
}

const TESTER: &str = r#"{"iss":"https://issuer","sub":"tess","group":"testers"}"#;
const OTHER: &str = r#"{"iss":"https://issuer","sub":"otto","group":"others"}"#;

#[tokio::test]
async fn groups_of_users_reach_their_version_and_the_backend_learns_the_group_alone() {
    local(async {
        let world = World::start(&[]).await;
        let issuer = Issuer::new();
        let vip = world.service("web", AppProtocol::Http11);
        let (v1, v2) = (App::new("v1", Speaks::Http1), App::new("v2", Speaks::Http1));
        for app in [&v1, &v2] {
            world.service(app.name, AppProtocol::Http11);
            world.workload(app.name, app.name, app).await;
        }
        let mut testers = rule(&[("v2", 1)]);
        testers.matches[0].claims.push(ClaimMatch {
            path: vec!["group".into()],
            value: ValueMatch::Exact("testers".into()),
        });
        world.route("canary", vec![testers, rule(&[("v1", 1)])]);
        world.state.apply([issuer.believed("web")]);
        let client = Client::new(&world);
        for (token, expected) in [
            (Some(issuer.token(TESTER)), "v2"),
            (Some(issuer.token(OTHER)), "v1"),
            (None, "v1"),
        ] {
            let answer = client.raw(vip, get(token.as_deref())).await;
            assert!(answer.ends_with(expected), "{answer}");
        }
        let seen = v2.seen();
        assert_eq!(seen[0].headers["x-group"], "testers");
        assert!(!seen[0].headers.contains_key("authorization"));
    })
    .await;
}

#[tokio::test]
async fn a_bad_token_is_401_and_policies_ask_what_a_good_one_says() {
    local(async {
        let world = World::start(&[]).await;
        let (issuer, stranger) = (Issuer::new(), Issuer::new());
        let vip = world.service("web", AppProtocol::Http11);
        let app = App::new("v1", Speaks::Http1);
        world.workload("web", "web-1", &app).await;
        let testers = RequestMatch {
            request_principals: vec![StringMatch::Presence],
            claims: vec![ClaimValues {
                path: vec!["group".into()],
                values: vec![StringMatch::Exact("testers".into())],
                not_values: Vec::new(),
            }],
            ..RequestMatch::default()
        };
        world.state.apply([
            issuer.believed("web"),
            policy_named("testers", "web", RequestAction::Allow, testers),
        ]);
        let client = Client::new(&world);
        let forged = stranger.token(TESTER);
        let good = issuer.token(TESTER);
        // Both objects take effect a moment later; until then nobody is believed.
        while status(&client.raw(vip, get(Some(&good))).await) != "200" {
            tokio::task::yield_now().await;
        }
        for (token, expected) in [
            (Some(issuer.token(OTHER)), "403"),
            (None, "403"),
            (Some(forged.clone()), "401"),
            (Some("x.y.z".to_owned()), "401"),
            (
                Some(issuer.token(r#"{"iss":"https://issuer","exp":5}"#)),
                "401",
            ),
        ] {
            let answer = client.raw(vip, get(token.as_deref())).await;
            assert_eq!(status(&answer), expected, "{answer}");
        }
        let answer = client.raw(vip, get(Some(&forged))).await;
        assert!(answer.contains("Jwt verification fails"), "{answer}");
        assert!(
            answer
                .to_lowercase()
                .contains("www-authenticate: bearer realm=\"http://web/\""),
            "{answer}"
        );
        assert!(!answer.contains(&forged));
        world
            .metric_reaches(&["response_flags=\"UAEX\""], 4.0)
            .await;
        world
            .metric_reaches(
                &["karst_waypoint_tokens_rejected", "reason=\"signature\""],
                2.0,
            )
            .await;
        assert_eq!(app.seen().len(), 1);

        // Other keys: what was remembered of the old ones is worth nothing.
        world.state.apply([stranger.believed("web")]);
        let swapped = async || {
            let answer = client.raw(vip, get(Some(&forged))).await;
            status(&answer) == "200"
        };
        while !swapped().await {}
        let answer = client.raw(vip, get(Some(&issuer.token(TESTER)))).await;
        assert_eq!(status(&answer), "401", "{answer}");
    })
    .await;
}
