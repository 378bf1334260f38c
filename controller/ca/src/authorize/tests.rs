//! Every refusal, and the two ways to be allowed.

use karst_model::identity::{TrustDomain, TrustDomains};

use super::*;

struct Pods;

impl NodeView for Pods {
    fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        (node, namespace, service_account) == ("node-a", "shop", "orders")
    }

    fn pod(&self, uid: &str) -> Option<PodFacts> {
        (uid == "uid-1").then(|| PodFacts {
            node: "node-a".into(),
            namespace: "karst-system".into(),
            service_account: "karst-agent".into(),
        })
    }
}

fn rules() -> Rules {
    let rules = Rules::new(TrustDomain::default(), &AgentAccount::default());
    rules.own.insert(Account {
        namespace: "shop".into(),
        service_account: "waypoint".into(),
    });
    rules
}

fn caller(node: &str, namespace: &str, service_account: &str, pod_uid: Option<&str>) -> Caller {
    Caller {
        node: node.into(),
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod_uid: pod_uid.map(Into::into),
        key_id: String::new(),
    }
}

fn check(caller: &Caller, id: &str, reason: Result<(), &str>) {
    let outcome = may_issue(&rules(), caller, &id.parse().unwrap(), &Pods);
    assert_eq!(
        outcome.map_err(|refusal| refusal.reason()),
        reason,
        "{caller} for {id}"
    );
}

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

#[test]
fn an_agent_gets_the_identities_of_its_own_node_only() {
    let agent = |node, uid| caller(node, "karst-system", "karst-agent", uid);
    check(&agent("node-a", None), ORDERS, Ok(()));
    check(&agent("node-a", Some("uid-1")), ORDERS, Ok(()));
    check(&agent("node-b", None), ORDERS, Err("not_on_node"));
    check(&agent("node-a", None), WAYPOINT, Err("not_on_node"));
    check(
        &agent("node-a", None),
        "spiffe://cluster.local/ns/karst-system/sa/karst-agent",
        Err("not_on_node"),
    );
    check(
        &agent("node-a", None),
        "spiffe://other.org/ns/shop/sa/orders",
        Err("trust_domain"),
    );
    check(&agent("node-a", Some("uid-2")), ORDERS, Err("unknown_pod"));
    check(&agent("node-b", Some("uid-1")), ORDERS, Err("other_pod"));
}

#[test]
fn an_identity_is_given_out_by_every_name_of_the_mesh() {
    let rules = rules();
    let agent = caller("node-a", "karst-system", "karst-agent", None);
    let renamed: SpiffeId = "spiffe://new.example/ns/shop/sa/orders".parse().unwrap();
    assert!(may_issue(&rules, &agent, &renamed, &Pods).is_err());
    rules.trust.set(TrustDomains {
        own: TrustDomain("new.example".into()),
        aliases: vec![TrustDomain::default()],
    });
    for id in [&renamed, &ORDERS.parse().unwrap()] {
        assert_eq!(may_issue(&rules, &agent, id, &Pods), Ok(()), "{id}");
    }
    let elsewhere: SpiffeId = "spiffe://new.example/ns/shop/sa/carts".parse().unwrap();
    assert!(may_issue(&rules, &agent, &elsewhere, &Pods).is_err());
    // Who names no identity is older than the names, and knows the first.
    let waypoint = caller("node-b", "shop", "waypoint", None);
    assert_eq!(
        wanted(&rules, &waypoint, None).unwrap().to_string(),
        WAYPOINT
    );
}

#[test]
fn a_listed_account_gets_its_own_and_a_pod_gets_nothing() {
    let waypoint = caller("node-b", "shop", "waypoint", None);
    check(&waypoint, WAYPOINT, Ok(()));
    check(&waypoint, ORDERS, Err("not_its_own"));
    check(
        &caller("node-a", "shop", "orders", None),
        ORDERS,
        Err("not_listed"),
    );
    check(
        &caller("node-a", "other", "waypoint", None),
        WAYPOINT,
        Err("not_listed"),
    );
}

#[test]
fn the_wanted_identity_is_the_named_one_or_the_callers() {
    let agent = caller("node-a", "karst-system", "karst-agent", None);
    assert_eq!(
        wanted(&rules(), &agent, Some(ORDERS)).unwrap().to_string(),
        ORDERS
    );
    let own = wanted(&rules(), &agent, None).unwrap().to_string();
    assert_eq!(own, "spiffe://cluster.local/ns/karst-system/sa/karst-agent");
    assert_eq!(
        wanted(&rules(), &agent, Some("spiffe://x"))
            .unwrap_err()
            .reason(),
        "malformed"
    );
}

#[test]
fn all_refusals_sound_the_same_to_the_caller() {
    assert_eq!(
        Refusal::NotListed.public(),
        Refusal::UnknownPod("uid".into()).public()
    );
}
