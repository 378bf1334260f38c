//! The index against a model so plain that it cannot be wrong: lists of what is there, searched from end to end.

use std::{net::IpAddr, sync::Arc};

use hashbrown::HashSet;
use karst_model::{
    addr::{Network, NetworkAddr},
    name::{PolicyKey, ServiceKey},
    policy::{Action, Authorization, PolicyScope},
    service::{Service, Vip, Visibility},
    workload::Workload,
};
use proptest::prelude::*;

use super::*;

fn addr(ip: &str) -> NetworkAddr {
    NetworkAddr::new(Network::default(), ip.parse().unwrap())
}

fn pod(name: &str, ip: &str) -> Workload {
    Workload {
        addresses: vec![ip.parse().unwrap()],
        ..Workload::new(&format!("c//Pod/shop/{name}"))
    }
}

fn apply(index: &mut Index, update: Update) -> HashSet<Change> {
    let mut changes = HashSet::new();
    index.apply(update, &mut changes);
    changes
}

fn put(index: &mut Index, workload: Workload) {
    apply(index, Update::Workload(workload.into()));
}

fn uid_at(index: &Index, ip: &str) -> Option<String> {
    index.workloads.at(&addr(ip)).map(|w| w.uid.to_string())
}

#[test]
fn a_reused_address_belongs_to_the_new_pod_also_when_the_old_goes_later() {
    let mut index = Index::default();
    put(&mut index, pod("old", "10.0.0.1"));
    put(&mut index, pod("new", "10.0.0.1"));
    assert_eq!(
        uid_at(&index, "10.0.0.1").as_deref(),
        Some("c//Pod/shop/new")
    );
    apply(
        &mut index,
        Update::Removed(Kind::Address, "c//Pod/shop/old".into()),
    );
    assert_eq!(
        uid_at(&index, "10.0.0.1").as_deref(),
        Some("c//Pod/shop/new")
    );
}

#[test]
fn a_host_network_pod_is_not_found_by_its_address() {
    let mut index = Index::default();
    put(
        &mut index,
        Workload {
            host_network: true,
            ..pod("host", "10.0.0.1")
        },
    );
    assert_eq!(uid_at(&index, "10.0.0.1"), None);
}

#[test]
fn endpoints_may_come_before_their_service_and_unhealthy_ones_replace_healthy() {
    let mut index = Index::default();
    let key = ServiceKey {
        namespace: "shop".into(),
        hostname: "a".into(),
    };
    let mut endpoint = pod("a", "10.0.0.1");
    endpoint.services.insert(key.clone(), Default::default());
    put(&mut index, endpoint.clone());
    apply(
        &mut index,
        Update::Service(Service::new("shop", "a").into()),
    );
    assert_eq!(index.endpoints.list(&key).len(), 1);
    endpoint.health = karst_model::workload::Health::Unhealthy;
    put(&mut index, endpoint.clone());
    assert_eq!(*index.endpoints.list(&key), [Arc::new(endpoint.clone())]);
    endpoint.services.clear();
    put(&mut index, endpoint);
    assert!(index.endpoints.list(&key).is_empty());
}

#[test]
fn a_policy_that_changes_scope_leaves_nothing_behind() {
    let mut index = Index::default();
    let policy = |scope| Authorization {
        key: PolicyKey {
            namespace: "shop".into(),
            name: "p".into(),
        },
        scope,
        action: Action::Deny,
        dry_run: false,
        rules: Vec::new(),
    };
    let mut workload = Workload {
        namespace: "shop".into(),
        ..pod("a", "10.0.0.1")
    };
    apply(
        &mut index,
        Update::Policy(policy(PolicyScope::Namespace).into()),
    );
    assert_eq!(index.policies.for_workload(&workload).policies.len(), 1);
    apply(
        &mut index,
        Update::Policy(policy(PolicyScope::WorkloadSelector).into()),
    );
    assert_eq!(
        index.policies.for_workload(&workload),
        PoliciesFor::default()
    );
    workload.policies.push(policy(PolicyScope::Global).key);
    assert_eq!(index.policies.for_workload(&workload).policies.len(), 1);
    apply(
        &mut index,
        Update::Removed(Kind::Authorization, "shop/p".into()),
    );
    assert_eq!(
        index.policies.for_workload(&workload).missing,
        workload.policies
    );
}

#[test]
fn an_update_that_changes_nothing_is_silent() {
    let mut index = Index::default();
    let update = Update::Workload(pod("a", "10.0.0.1").into());
    assert_eq!(apply(&mut index, update.clone()).len(), 2);
    assert!(apply(&mut index, update).is_empty());
    assert!(apply(&mut index, Update::Removed(Kind::Address, "unknown".into())).is_empty());
}

/// Lists in order of arrival.
#[derive(Default)]
struct Naive {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
}

impl Naive {
    fn apply(&mut self, update: &Update) {
        match update {
            Update::Workload(w) => {
                // An update that changes nothing is not a new claim to an address; both sides count it as one.
                self.workloads.retain(|old| old.uid != w.uid);
                self.workloads.push(w.clone());
            }
            Update::Service(s) => {
                self.services.retain(|old| old.key != s.key);
                self.services.push(s.clone());
            }
            Update::Removed(_, name) => {
                let before = self.workloads.len();
                self.workloads.retain(|w| w.uid.0 != *name);
                if self.workloads.len() == before {
                    self.services.retain(|s| s.key.to_string() != **name);
                }
            }
            _ => {}
        }
    }

    fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let claims = self
            .workloads
            .iter()
            .filter(|w| !w.host_network && w.addresses.contains(&ip));
        claims.max_by_key(|w| {
            (
                w.uid.0.contains("//Pod/"),
                w.tunnel == karst_model::protocol::TunnelProtocol::Hbone,
            )
        })
    }

    fn service_at(&self, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let own = |s: &Service| *s.key.namespace == *namespace;
        let visible = |s: &&Arc<Service>| s.visibility == Visibility::Public || own(s);
        let exact = |s: &&Arc<Service>| {
            s.addresses
                .iter()
                .any(|v| v.prefix_len.is_none() && v.ip == ip)
        };
        let longest = |s: &Service| {
            let nets = s
                .addresses
                .iter()
                .filter_map(|v| Some(ipnet::IpNet::new_assert(v.ip, v.prefix_len?).trunc()));
            nets.filter(|net| net.contains(&ip))
                .map(|net| net.prefix_len())
                .max()
        };
        let mut all: Vec<_> = self.services.iter().filter(visible).collect();
        all.sort_by(|a, b| b.key.cmp(&a.key));
        let found = all
            .iter()
            .filter(|s| exact(s))
            .max_by_key(|s| (own(s), s.canonical));
        let ranged = || {
            all.iter()
                .filter(|s| longest(s).is_some())
                .max_by_key(|s| (own(s), longest(s), s.canonical))
        };
        found.or_else(ranged).copied()
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<Arc<Workload>> {
        let mut found: Vec<_> = self
            .workloads
            .iter()
            .filter(|w| w.services.contains_key(key))
            .cloned()
            .collect();
        found.sort_by(|a, b| a.uid.cmp(&b.uid));
        found
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn ip() -> impl Strategy<Value = IpAddr> {
    (0u8..2, 0u8..4).prop_map(|(net, host)| IpAddr::from([10, 0, net, host]))
}

fn key() -> impl Strategy<Value = ServiceKey> {
    (0usize..3, 0u8..2).prop_map(|(ns, n)| ServiceKey {
        namespace: NAMESPACES[ns].into(),
        hostname: format!("h{n}").into(),
    })
}

fn workload() -> impl Strategy<Value = Workload> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        0u8..5,
        prop::collection::vec(ip(), 0..3),
        flags,
        prop::collection::vec(key(), 0..3),
    )
        .prop_map(
            |(n, addresses, (pod, hbone, host_network), services)| Workload {
                addresses,
                host_network,
                tunnel: if hbone {
                    karst_model::protocol::TunnelProtocol::Hbone
                } else {
                    Default::default()
                },
                services: services
                    .into_iter()
                    .map(|key| (key, Default::default()))
                    .collect(),
                ..Workload::new(&if pod {
                    format!("c//Pod/ns/{n}")
                } else {
                    format!("c/x/ServiceEntry/ns/{n}")
                })
            },
        )
}

fn service() -> impl Strategy<Value = Service> {
    let vip = (
        ip(),
        prop::option::of(prop::sample::select(vec![8u8, 24, 30])),
    )
        .prop_map(|(ip, prefix_len)| Vip {
            network: Network::default(),
            ip,
            prefix_len,
        });
    (
        key(),
        prop::collection::vec(vip, 0..3),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(key, addresses, canonical, private)| Service {
            addresses,
            canonical,
            visibility: if private {
                Visibility::Namespace
            } else {
                Visibility::Public
            },
            ..Service::new(&key.namespace, &key.hostname)
        })
}

fn update() -> impl Strategy<Value = Update> {
    prop_oneof![
        3 => workload().prop_map(|w| Update::Workload(w.into())),
        3 => service().prop_map(|s| Update::Service(s.into())),
        1 => workload().prop_map(|w| Update::Removed(Kind::Address, w.uid.0)),
        1 => key().prop_map(|k| Update::Removed(Kind::Address, k.to_string().into())),
    ]
}

proptest! {
    #[test]
    fn lookups_agree_with_the_naive_model(updates in prop::collection::vec(update(), 0..60)) {
        let (mut index, mut naive) = (Index::default(), Naive::default());
        for update in updates {
            naive.apply(&update);
            apply(&mut index, update);
        }
        for (net, host) in (0..2).flat_map(|net| (0..5).map(move |host| (net, host))) {
            let ip = IpAddr::from([10, 0, net, host]);
            let at = NetworkAddr::new(Network::default(), ip);
            prop_assert_eq!(index.workloads.at(&at), naive.workload_at(ip));
            for namespace in NAMESPACES {
                prop_assert_eq!(index.services.at(&at, namespace), naive.service_at(ip, namespace));
            }
        }
        for (namespace, n) in NAMESPACES.iter().flat_map(|ns| (0..2).map(move |n| (ns, n))) {
            let key = ServiceKey { namespace: (*namespace).into(), hostname: format!("h{n}").into() };
            prop_assert_eq!(&*index.endpoints.list(&key), &naive.endpoints(&key)[..]);
        }
        for workload in &naive.workloads {
            apply(&mut index, Update::Removed(Kind::Address, workload.uid.0.clone()));
        }
        for service in &naive.services {
            apply(&mut index, Update::Removed(Kind::Address, service.key.to_string().into()));
        }
        prop_assert_eq!(index.counts(), Counts::default());
        prop_assert_eq!(index.workloads.addresses().chain(index.services.addresses()).count(), 0);
    }
}
