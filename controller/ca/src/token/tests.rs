//! Join tokens once, node tokens renewed, both over a restart.

use super::*;
use crate::authenticate::{AuthError, Authenticator as _, KeySetAuthenticator};
use karst_identity::clock::Clock;

const HOUR: Duration = Duration::from_secs(3600);

fn open(dir: &Path) -> Tokens {
    Tokens::load_or_create(dir, AgentAccount::default()).unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

async fn caller(tokens: &Tokens, token: &str, now: SystemTime) -> Result<Caller, AuthError> {
    KeySetAuthenticator::new(tokens.node_keys(), Clock::from_fn(move || now))
        .authenticate(token)
        .await
}

#[tokio::test]
async fn a_join_token_gives_a_node_token_once_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = open(dir.path());
    let join = tokens.issue_join("node-a", [9; 32], HOUR, now()).unwrap();
    assert_eq!(JoinToken::parse(&join).unwrap().root, [9; 32]);
    // The controller restarts between issue and use, and again after.
    let tokens = open(dir.path());
    let node_token = tokens.redeem_join(&join, "node-a", now()).unwrap();
    let used = |tokens: &Tokens| {
        matches!(
            tokens.redeem_join(&join, "node-a", now()),
            Err(JoinError::Used { .. })
        )
    };
    assert!(used(&tokens));
    let tokens = open(dir.path());
    assert!(used(&tokens));
    let caller = caller(&tokens, &node_token, now()).await.unwrap();
    assert_eq!(
        caller.to_string(),
        "karst-system/karst-agent on node node-a"
    );
    assert_eq!(caller.pod_uid, None);
}

#[test]
fn bad_join_tokens_are_refused_by_name() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tokens, strangers) = (open(dir.path()), open(other.path()));
    let join = tokens.issue_join("node-a", [9; 32], HOUR, now()).unwrap();
    let redeem = |token: &str, node: &str, at| tokens.redeem_join(token, node, at).unwrap_err();
    assert!(matches!(
        redeem("junk", "node-a", now()),
        JoinError::Token(_)
    ));
    assert!(matches!(
        redeem(&join, "node-b", now()),
        JoinError::OtherNode { .. }
    ));
    assert!(matches!(
        redeem(&join, "node-a", now() + 2 * HOUR),
        JoinError::Expired { .. }
    ));
    let foreign = strangers
        .issue_join("node-a", [9; 32], HOUR, now())
        .unwrap();
    assert!(matches!(redeem(&foreign, "node-a", now()), JoinError::Seal));
    let (mut changed, _, seal) = JoinToken::split(&join).unwrap();
    changed.node = "node-b".into();
    let changed = JoinToken::with_seal(&changed.sealed_text(), &seal);
    assert!(matches!(redeem(&changed, "node-b", now()), JoinError::Seal));
    // None of these attempts has used it up.
    tokens.redeem_join(&join, "node-a", now()).unwrap();
}

#[test]
fn what_cannot_be_remembered_is_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let tokens = open(&state);
    let join = tokens.issue_join("node-a", [9; 32], HOUR, now()).unwrap();
    let away = dir.path().join("away");
    std::fs::rename(&state, &away).unwrap();
    assert!(matches!(
        tokens.redeem_join(&join, "node-a", now()),
        Err(JoinError::Remember(_))
    ));
    std::fs::rename(&away, &state).unwrap();
    tokens.redeem_join(&join, "node-a", now()).unwrap();
}

#[test]
fn the_used_set_is_bounded_and_forgets_what_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let full: std::collections::BTreeMap<String, u64> = (0..used::USED_MAX)
        .map(|n| (format!("id{n}"), 1_800_003_600))
        .collect();
    std::fs::write(
        dir.path().join("used-join-tokens.json"),
        serde_json::to_vec(&full).unwrap(),
    )
    .unwrap();
    let tokens = open(dir.path());
    let join = tokens
        .issue_join("node-a", [9; 32], 100 * HOUR, now())
        .unwrap();
    assert!(matches!(
        tokens.redeem_join(&join, "node-a", now()),
        Err(JoinError::Full(_))
    ));
    tokens
        .redeem_join(&join, "node-a", now() + 50 * HOUR)
        .unwrap();
}

#[tokio::test]
async fn node_tokens_expire_and_are_renewed_by_their_holder_only() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = open(dir.path());
    let join = tokens.issue_join("node-a", [9; 32], HOUR, now()).unwrap();
    let first = tokens.redeem_join(&join, "node-a", now()).unwrap();
    let holder = caller(&tokens, &first, now() + 12 * HOUR).await.unwrap();
    let second = tokens.renew_node(&holder, now() + 12 * HOUR).unwrap();
    assert!(matches!(
        caller(&tokens, &first, now() + 25 * HOUR).await,
        Err(AuthError::Expired(_))
    ));
    assert_eq!(
        caller(&tokens, &second, now() + 25 * HOUR)
            .await
            .unwrap()
            .node,
        "node-a"
    );
    let foreign_key = Caller {
        key_id: "other".into(),
        ..holder.clone()
    };
    assert!(matches!(
        tokens.renew_node(&foreign_key, now()),
        Err(IssueError::NotOurs)
    ));
}

#[tokio::test]
async fn a_waypoints_token_speaks_for_its_account_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = open(dir.path());
    let waypoint = "shop/waypoint".parse().unwrap();
    let join = tokens
        .issue_join_as(Some(&waypoint), "node-a", [9; 32], HOUR, now())
        .unwrap();
    let first = tokens.redeem_join(&join, "node-a", now()).unwrap();
    let holder = caller(&tokens, &first, now()).await.unwrap();
    assert_eq!(holder.to_string(), "shop/waypoint on node node-a");
    let second = tokens.renew_node(&holder, now()).unwrap();
    let renewed = caller(&tokens, &second, now()).await.unwrap();
    assert_eq!(renewed.to_string(), "shop/waypoint on node node-a");
    for bad in ["waypoint", "/waypoint", "shop/", "shop/a/b", "Shop/a"] {
        assert!(bad.parse::<AgentAccount>().is_err(), "{bad}");
    }
}

#[test]
fn impossible_tokens_are_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = open(dir.path());
    for node in ["", "Node", "a b", "a/b", &"a".repeat(254)] {
        assert!(
            matches!(
                tokens.issue_join(node, [9; 32], HOUR, now()),
                Err(IssueError::Node(_))
            ),
            "{node}"
        );
    }
    assert!(matches!(
        tokens.issue_join("a", [9; 32], 1000 * HOUR, now()),
        Err(IssueError::Life(_))
    ));
}
