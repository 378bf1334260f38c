//! Round trips, defaults, and what is refused: each error names its field.

use std::collections::BTreeMap;

use karst_model::{
    addr::{Network, NetworkAddr},
    enrollment::{CaptureOptions, EnrollMode, Generation, NodeWorkload, Plaintext},
    name::{PolicyKey, ServiceKey},
    policy::{
        Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, ServiceAccountMatch,
        StringMatch,
    },
    protocol::{AppProtocol, TunnelProtocol},
    service::{LoadBalancingMode, Naming, Scope, Service, ServicePort, SessionAffinity, Vip},
    workload::{GatewayAddr, GatewayDestination, SealedPort, Workload},
};
use prost::Message as _;

use super::*;
use crate::{security, workload as wire};

fn decode(message: &wire::Address) -> Result<Address, ConvertError> {
    decode_address(&message.encode_to_vec(), &mut Interner::default())
}

fn workload() -> Workload {
    let service = ServiceKey {
        namespace: "shop".into(),
        hostname: "orders.shop.svc.cluster.local".into(),
    };
    let gateway = NetworkAddr::new(Network("n2".into()), "fd00::1".parse().unwrap());
    Workload {
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap()],
        tunnel: TunnelProtocol::Hbone,
        waypoint: Some(GatewayAddr {
            destination: GatewayDestination::Service(service.clone()),
            hbone_port: 15008,
        }),
        network_gateway: Some(GatewayAddr {
            destination: GatewayDestination::Address(gateway),
            hbone_port: 15009,
        }),
        sealed: vec![
            SealedPort {
                port: 8080,
                waypoint: Some(GatewayAddr {
                    destination: GatewayDestination::Service(service.clone()),
                    hbone_port: 15008,
                }),
            },
            SealedPort {
                port: 8443,
                waypoint: None,
            },
        ],
        capacity: 0,
        services: BTreeMap::from([(service, BTreeMap::from([(80, 8080), (443, 8443)]))]),
        policies: vec![PolicyKey {
            namespace: "shop".into(),
            name: "p".into(),
        }],
        cluster_id: "c1".into(),
        labels: [
            ("track".into(), "canary".into()),
            ("version".into(), "v2".into()),
        ]
        .into(),
        ..Workload::new("c1//Pod/shop/orders")
    }
}

fn service() -> Service {
    let port = ServicePort {
        target_port: 0,
        app_protocol: AppProtocol::Grpc,
    };
    let vip = |ip: &str, prefix_len| Vip {
        network: Network::default(),
        ip: ip.parse().unwrap(),
        prefix_len,
    };
    let mut service = Service {
        addresses: vec![vip("10.96.0.1", None), vip("240.240.0.0", Some(16))],
        ports: BTreeMap::from([(80, port)]),
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into()],
        naming: Naming::Asked,
        waypoint_optional: true,
        ..Service::new("shop", "orders.shop.svc.cluster.local")
    };
    service.load_balancing.mode = LoadBalancingMode::Failover;
    service.load_balancing.routing_preference = vec![Scope::Network, Scope::Zone];
    service.load_balancing.session_affinity = Some(SessionAffinity {
        idle_timeout_seconds: 10_800,
    });
    service
}

#[test]
fn workloads_and_services_round_trip() {
    assert_eq!(
        decode(&workload_to(&workload())).unwrap(),
        Address::Workload(workload())
    );
    assert_eq!(
        decode(&service_to(&service())).unwrap(),
        Address::Service(service())
    );
    assert_eq!(workload_aliases(&workload()), ["/10.0.0.1", "/fd00::2"]);
    assert_eq!(
        service_aliases(&service()),
        ["/10.96.0.1", "/240.240.0.0/16"]
    );
    assert!(
        workload_aliases(&Workload {
            host_network: true,
            ..workload()
        })
        .is_empty()
    );
}

#[test]
fn empty_fields_mean_istios_defaults() {
    let bare = wire::Workload {
        uid: "u".into(),
        ..wire::Workload::default()
    };
    let message = wire::Address {
        r#type: Some(wire::address::Type::Workload(bare)),
    };
    let Address::Workload(found) = decode(&message).unwrap() else {
        panic!("not a workload")
    };
    assert_eq!(
        (&*found.trust_domain.0, &*found.service_account),
        ("cluster.local", "default")
    );
    assert_eq!((&*found.cluster_id, found.capacity), ("Kubernetes", 1));
}

#[test]
fn node_workloads_round_trip() {
    let pod = NodeWorkload {
        pod_uid: "u".into(),
        name: "a".into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
        workload_uid: "c//Pod/shop/a".into(),
        addresses: vec!["fd00::2".parse().unwrap()],
        mode: EnrollMode::Ambient,
        generation: Generation(7),
        plaintext: Plaintext::Entering,
        capture: CaptureOptions {
            exclude_outbound_ports: vec![22],
            exclude_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            exclude_inbound_ports: vec![9000],
            dns_capture: Some(false),
            registry_only: true,
        },
        probe_ports: vec![8080],
    };
    assert_eq!(
        decode_node_workload(&encode_node_workload(&pod), &mut Interner::default()).unwrap(),
        pod
    );
}

fn refused(edit: impl FnOnce(&mut wire::Workload)) -> String {
    let mut message = workload_to(&workload());
    if let Some(wire::address::Type::Workload(workload)) = &mut message.r#type {
        edit(workload);
    }
    decode(&message).unwrap_err().to_string()
}

#[test]
fn errors_name_their_field() {
    assert_eq!(refused(|w| w.uid.clear()), "uid: missing");
    assert_eq!(
        refused(|w| w.addresses[1].push(0)),
        "addresses[1]: an address of 17 bytes, expected 4 or 16"
    );
    assert_eq!(
        refused(|w| w.tunnel_protocol = 2),
        "tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"
    );
    assert_eq!(
        refused(|w| w.tunnel_protocol = 9),
        "tunnel_protocol: unknown value 9"
    );
    assert_eq!(refused(|w| w.status = 9), "status: unknown value 9");
    assert_eq!(
        refused(|w| w.waypoint = Some(Default::default())),
        "waypoint.destination: missing"
    );
    assert_eq!(
        refused(|w| w.authorization_policies.push("p".into())),
        "authorization_policies[1]: \"p\" is not of the form <namespace>/<name>"
    );
    let garbage = decode_address(&[0xff; 9], &mut Interner::default()).unwrap_err();
    assert_eq!(garbage.to_string(), "not a istio.workload.Address");
}

fn policy(action: Action) -> Authorization {
    let m = Match {
        namespaces: vec![StringMatch::Prefix("a".into())],
        principals: vec![StringMatch::Exact("x".into()), StringMatch::Presence],
        not_principals: vec![StringMatch::Suffix("z".into())],
        source_ips: vec![IpBlock {
            ip: "10.0.0.0".parse().unwrap(),
            prefix_len: 8,
        }],
        not_destination_ports: vec![9000],
        service_accounts: vec![ServiceAccountMatch {
            namespace: "n".into(),
            service_account: "s".into(),
        }],
        ..Match::default()
    };
    let rule = Rule {
        clauses: vec![
            Clause { matches: vec![m] },
            Clause {
                matches: vec![Match::default()],
            },
        ],
    };
    let key = PolicyKey {
        namespace: "shop".into(),
        name: "p".into(),
    };
    Authorization {
        key,
        scope: PolicyScope::Namespace,
        action,
        dry_run: true,
        rules: vec![rule, Rule::default()],
    }
}

fn decode_policy(bytes: &[u8]) -> Authorization {
    decode_authorization(bytes, &mut Interner::default()).unwrap()
}

#[test]
fn policies_round_trip_also_with_what_was_unreadable() {
    for action in [Action::Allow, Action::Deny] {
        let mut original = policy(action);
        original.rules[0].clauses[1].matches = vec![Match {
            unreadable: true,
            ..Match::default()
        }];
        assert_eq!(
            decode_policy(&authorization_to(&original).encode_to_vec()),
            original
        );
    }
}

fn edited(edit: impl FnOnce(&mut security::Match)) -> Match {
    let mut message = authorization_to(&policy(Action::Allow));
    edit(&mut message.rules[0].clauses[0].matches[0]);
    decode_policy(&message.encode_to_vec())
        .rules
        .swap_remove(0)
        .clauses
        .swap_remove(0)
        .matches
        .swap_remove(0)
}

#[test]
fn what_cannot_be_read_makes_its_match_unreadable() {
    assert!(!edited(|_| {}).unreadable);
    assert!(
        edited(|m| m
            .namespaces
            .push(security::StringMatch { match_type: None }))
        .unreadable
    );
    assert!(edited(|m| m.source_ips[0].length = 33).unreadable);
    assert!(edited(|m| m.source_ips[0].address = vec![1, 2, 3]).unreadable);
    assert!(edited(|m| m.destination_ports.push(65_536)).unreadable);
    assert!(edited(|m| m.extensions.push(security::Extension::default())).unreadable);
}

/// Field 15 as a varint, appended to the innermost container: match, clause, rule, policy.
#[test]
fn an_unknown_field_makes_its_container_unreadable() {
    let unknown = [0x78, 0x01];
    let nest = |depth: usize| {
        let wrap = |tag: u8, mut inner: Vec<u8>, mark: bool| {
            if mark {
                inner.extend(unknown);
            }
            let mut out = vec![tag, u8::try_from(inner.len()).unwrap()];
            out.append(&mut inner);
            out
        };
        let port_80 = vec![0x4a, 0x01, 80];
        let m = wrap(0x12, port_80, depth == 0);
        let clause = wrap(0x0a, m, depth == 1);
        let rule = wrap(0x2a, clause, depth == 2);
        let mut policy = vec![0x0a, 1, b'p', 0x12, 1, b'n'];
        policy.extend(rule);
        if depth == 3 {
            policy.extend(unknown);
        }
        decode_policy(&policy).rules
    };
    let unreadable = Rule {
        clauses: vec![Clause {
            matches: vec![Match {
                unreadable: true,
                ..Match::default()
            }],
        }],
    };
    for depth in 0..4 {
        assert_eq!(
            nest(depth),
            std::slice::from_ref(&unreadable),
            "depth {depth}"
        );
    }
    assert_eq!(nest(4)[0].clauses[0].matches[0].destination_ports, [80]);
}

#[test]
fn a_policy_without_a_readable_scope_or_action_is_refused() {
    for (scope, action, expected) in [
        (9, 0, "scope: unknown value 9"),
        (0, 9, "action: unknown value 9"),
    ] {
        let message = security::Authorization {
            scope,
            action,
            ..authorization_to(&policy(Action::Allow))
        };
        let error =
            decode_authorization(&message.encode_to_vec(), &mut Interner::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let interner = &mut Interner::default();
        let _ = (decode_address(&bytes, interner), decode_authorization(&bytes, interner));
        let _ = decode_node_workload(&bytes, interner);
    }
}
