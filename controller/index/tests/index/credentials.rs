//! Secrets that DestinationRules name: whose is asked for, what of it arrives at which waypoint, and what holds when it
//! cannot be had.

use std::{collections::BTreeSet, sync::Arc};

use karst_index::{Credential, Delta, Event, ReadSecret, SecretName};
use karst_k8s_api::Kind;
use karst_model::traffic::{Secret, TlsMode, TrustAnchors, UpstreamTls};

use crate::{destination_rules::FROM_EDGE, world::World};

const WORLD: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: w}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: w, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{value: w}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: front, namespace: edge}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}, status: {addresses: [{value: f}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}}
";

fn rule(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: r, namespace: shop}}, spec: {{host: web, {spec}}}}}"
    )
}

fn mutual(name: &str) -> String {
    rule(&format!(
        "trafficPolicy: {{tls: {{mode: MUTUAL, sni: api.example, credentialName: {name}}}}}"
    ))
}

fn name(text: &str) -> SecretName {
    let (namespace, name) = text.split_once('/').unwrap();
    SecretName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn wanted(world: &World) -> Vec<String> {
    let secrets = world.index.secrets();
    secrets.iter().map(ToString::to_string).collect()
}

fn tells(delta: &Delta) -> Option<Vec<String>> {
    let secrets: &BTreeSet<SecretName> = delta.secrets.as_ref()?;
    Some(secrets.iter().map(ToString::to_string).collect())
}

/// A Secret with a certificate, and with roots where these are given.
fn pair(chain: &str, roots: Option<&str>) -> ReadSecret {
    let key = format!("key of {chain}");
    good(Credential {
        pair: Some((chain.into(), Secret::new(&key))),
        roots: roots.map(Into::into),
        revoked: None,
    })
}

fn good(credential: Credential) -> ReadSecret {
    ReadSecret {
        good: Some(Arc::new(credential)),
        problem: None,
    }
}

fn problem(text: &str) -> ReadSecret {
    ReadSecret {
        good: None,
        problem: Some(text.into()),
    }
}

impl World {
    fn read(&mut self, secret: &str, read: ReadSecret) -> Delta {
        let secret = name(secret);
        self.take(vec![Event::Secret { secret, read }])
    }

    fn tls_at(&self, waypoint: &str, port: u16) -> UpstreamTls {
        let service = "shop/web.shop.svc.cluster.local".parse().unwrap();
        let traffic = &self.model.traffic[&(waypoint.parse().unwrap(), service)];
        let policy = traffic.policy(port, None).unwrap();
        policy.tls.clone().unwrap()
    }

    fn tls(&self) -> UpstreamTls {
        self.tls_at("shop/w", 80)
    }

    fn broken(&self) -> String {
        self.tls().broken.unwrap_or_default().to_string()
    }

    fn resolved(&self) -> (bool, String) {
        let conditions = self.model.conditions.iter();
        let mut of = conditions.filter(|(object, _)| object.kind == Kind::DestinationRule);
        let of = of.next().map(|(_, conditions)| conditions.clone());
        let mut of = of.unwrap_or_default().into_iter();
        let one = of.find(|one| one.kind.to_string() == "ResolvedRefs");
        one.map(|one| (one.status, one.message)).unwrap()
    }
}

#[test]
fn a_certificate_comes_from_the_secret_and_until_then_connections_fail() {
    let mut world = World::of(WORLD);
    let delta = world.apply(&mutual("web-client"));
    assert_eq!(tells(&delta), Some(vec!["shop/web-client".to_owned()]));
    assert!(world.broken().contains("has not been read yet"));
    assert!(!world.resolved().0);
    let delta = world.read("shop/web-client", pair("chain", Some("roots")));
    assert_eq!(tells(&delta), None, "the same is wanted");
    let tls = world.tls();
    assert_eq!((tls.mode, tls.broken), (TlsMode::Mutual, None));
    assert_eq!(tls.anchors, TrustAnchors::Pem("roots".into()));
    let own = tls.credential.unwrap();
    assert_eq!(
        (&*own.name, &*own.chain, own.key.expose()),
        ("shop/web-client", "chain", "key of chain")
    );
    assert!(world.resolved().0);
    // It is replaced without anything else.
    world.read("shop/web-client", pair("newer", Some("roots")));
    assert_eq!(&*world.tls().credential.unwrap().chain, "newer");
}

#[test]
fn what_is_broken_keeps_what_was_and_what_is_gone_does_not() {
    let mut world = World::of(WORLD);
    world.apply(&mutual("web-client"));
    let mut read = pair("chain", Some("roots"));
    read.problem = Some("cannot be used: tls.crt is no certificate".into());
    world.read("shop/web-client", read);
    assert_eq!(&*world.tls().credential.unwrap().chain, "chain");
    let (holds, said) = world.resolved();
    assert!(
        !holds
            && said.contains("Secret shop/web-client cannot be used")
            && said.contains("what it held before is used"),
        "{said}"
    );
    world.read("shop/web-client", problem("is not there"));
    assert_eq!(world.tls().credential, None, "the key goes with its Secret");
    assert_eq!(
        world.broken(),
        "Secret shop/web-client is not there: connections fail"
    );
    assert_eq!(world.resolved(), (false, world.broken()));
}

#[test]
fn roots_may_lie_apart_or_be_those_of_the_system_and_are_never_assumed() {
    let mut world = World::of(WORLD);
    world.apply(&mutual("web-client"));
    let delta = world.read("shop/web-client", pair("chain", None));
    let both = ["shop/web-client", "shop/web-client-cacert"].map(str::to_owned);
    assert_eq!(tells(&delta), Some(both.to_vec()));
    world.read("shop/web-client-cacert", problem("is not there"));
    let why = world.broken();
    assert!(
        why.contains("no roots to verify the server by")
            && why.contains("Secret shop/web-client-cacert is not there"),
        "{why}"
    );
    let apart = Credential {
        roots: Some("apart".into()),
        revoked: Some("list".into()),
        ..Credential::default()
    };
    world.read("shop/web-client-cacert", good(apart));
    let tls = world.tls();
    assert_eq!(
        (tls.anchors, tls.crl.as_deref(), tls.broken),
        (TrustAnchors::Pem("apart".into()), Some("list"), None)
    );
    let spec =
        "trafficPolicy: {tls: {mode: MUTUAL, caCertificates: system, credentialName: web-client}}";
    let delta = world.apply(&rule(spec));
    assert_eq!(tells(&delta), Some(vec!["shop/web-client".to_owned()]));
    let tls = world.tls();
    assert_eq!((tls.anchors, tls.broken), (TrustAnchors::System, None));
}

#[test]
fn simple_takes_roots_and_no_certificate() {
    let mut world = World::of(WORLD);
    world.apply(&rule(
        "trafficPolicy: {tls: {mode: SIMPLE, credentialName: 'kubernetes://roots'}}",
    ));
    world.read("shop/roots", pair("chain", Some("roots")));
    let tls = world.tls();
    assert_eq!(
        (tls.mode, tls.anchors, tls.credential, tls.broken),
        (
            TlsMode::Simple,
            TrustAnchors::Pem("roots".into()),
            None,
            None
        )
    );
    // And MUTUAL no roots alone.
    world.apply(&mutual("roots"));
    let alone = Credential {
        roots: Some("roots".into()),
        ..Credential::default()
    };
    world.read("shop/roots", good(alone));
    assert!(world.broken().contains("has no certificate with its key"));
}

#[test]
fn each_waypoint_has_the_secret_of_its_own_namespace_and_nobody_elses_key() {
    let mut world = World::of(WORLD);
    world.apply(FROM_EDGE);
    world.apply(&mutual("web-client"));
    assert_eq!(wanted(&world), ["edge/web-client", "shop/web-client"]);
    world.read("shop/web-client", pair("of shop", Some("roots")));
    world.read("edge/web-client", pair("of edge", Some("roots")));
    for (waypoint, expected) in [("shop/w", "of shop"), ("edge/front", "of edge")] {
        let own = world.tls_at(waypoint, 80).credential.unwrap();
        assert_eq!(&*own.chain, expected);
    }
    let keys = world
        .model
        .traffic
        .values()
        .filter(|one| format!("{one:?}").contains("credential: Some"));
    assert_eq!(keys.count(), 2, "the rows of these two waypoints");
    // One of them sends there no more: its Secret is read no more.
    let delta = world.delete(Kind::HttpRoute, "edge", "r");
    assert_eq!(tells(&delta), Some(vec!["shop/web-client".to_owned()]));
    let delta = world.delete(Kind::DestinationRule, "shop", "r");
    assert_eq!(tells(&delta), Some(Vec::new()));
    // What comes late is kept by nobody: who asks again waits for it to be read again.
    world.read("shop/web-client", pair("late", Some("roots")));
    world.apply(&mutual("web-client"));
    assert!(world.broken().contains("has not been read yet"));
}

#[test]
fn ports_and_subsets_name_their_own() {
    let mut world = World::of(WORLD);
    world.apply(&rule(
        "trafficPolicy: {portLevelSettings: [{port: {number: 81}, tls: {mode: MUTUAL, credentialName: admin}}]}, \
        subsets: [{name: v1, labels: {v: '1'}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: first}}}]",
    ));
    assert_eq!(wanted(&world), ["shop/admin", "shop/first"]);
    world.read("shop/admin", pair("admin", Some("roots")));
    world.read("shop/first", problem("is not there"));
    assert_eq!(
        &*world.tls_at("shop/w", 81).credential.unwrap().chain,
        "admin"
    );
    assert_eq!(
        world.resolved(),
        (
            false,
            "Secret shop/first is not there: connections fail".to_owned()
        )
    );
}

#[test]
fn keys_are_shown_nowhere() {
    let mut world = World::of(WORLD);
    world.apply(&mutual("web-client"));
    let event = Event::Secret {
        secret: name("shop/web-client"),
        read: pair("chain", Some("roots")),
    };
    assert!(!format!("{event:?}").contains("key of chain"));
    let delta = world.take(vec![event]);
    let text = format!("{delta:?} {:?}", world.index.snapshot());
    assert!(text.contains("chain") && !text.contains("key of chain"));
}
