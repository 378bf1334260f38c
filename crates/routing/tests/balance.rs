//! Endpoint choice: each rule by example, and as properties over random services, endpoints and places.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{net::SocketAddr, sync::Arc};

use karst_model::{
    addr::{Network, NetworkAddr},
    name::WorkloadUid,
    protocol::AppProtocol,
    service::{HealthPolicy, IpFamilies, LoadBalancingMode, Scope, Service, ServicePort},
    workload::{GatewayAddr, GatewayDestination, Health, Workload},
};
use karst_routing::balance::{
    Choice, EndpointAddress, Families, Mode, NoEndpoint, Request, choose,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

const PORT: u16 = 80;

fn service(mode: LoadBalancingMode, scopes: &[Scope]) -> Service {
    let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
    service.ports.insert(
        PORT,
        ServicePort {
            target_port: 8080,
            app_protocol: AppProtocol::Tcp,
        },
    );
    service.load_balancing.mode = mode;
    service.load_balancing.routing_preference = scopes.to_vec();
    service
}

fn endpoint(uid: &str, node: &str) -> Workload {
    let mut workload = Workload::new(uid);
    workload.addresses = vec!["10.1.0.1".parse().unwrap()];
    workload.node = node.into();
    workload
}

fn pick(
    service: &Service,
    source: &Workload,
    endpoints: &[Workload],
    seed: u64,
) -> Result<Choice, NoEndpoint> {
    pick_at(service, source, endpoints, "10.96.0.1:80", None, seed)
}

fn pick_at(
    service: &Service,
    source: &Workload,
    endpoints: &[Workload],
    dialled: &str,
    sticky: Option<&WorkloadUid>,
    seed: u64,
) -> Result<Choice, NoEndpoint> {
    let dialled: SocketAddr = dialled.parse().unwrap();
    let endpoints: Vec<Arc<Workload>> = endpoints.iter().cloned().map(Arc::new).collect();
    let request = Request {
        service,
        port: PORT,
        dialled,
        source,
        sticky,
        mode: Mode::Standard,
    };
    choose(&request, &endpoints, &mut SmallRng::seed_from_u64(seed))
}

/// Names of all endpoints that are chosen over many draws.
fn chosen(service: &Service, source: &Workload, endpoints: &[Workload]) -> Vec<String> {
    let draws = (0..200).filter_map(|seed| pick(service, source, endpoints, seed).ok());
    let mut names: Vec<String> = draws
        .map(|choice| choice.workload.uid.to_string())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn weights_decide_in_proportion() {
    let (service, source) = (
        service(LoadBalancingMode::Unspecified, &[]),
        Workload::new("client"),
    );
    let mut endpoints = [
        endpoint("one", ""),
        endpoint("three", ""),
        endpoint("none", ""),
    ];
    (endpoints[1].capacity, endpoints[2].capacity) = (3, 0);
    let mut count = [0_u32; 3];
    for seed in 0..40_000 {
        let choice = pick(&service, &source, &endpoints, seed).unwrap();
        count[endpoints
            .iter()
            .position(|e| e.uid == choice.workload.uid)
            .unwrap()] += 1;
    }
    assert_eq!(count[2], 0);
    assert!((9_500..10_500).contains(&count[0]), "{count:?}");
}

#[test]
fn failover_takes_the_nearest_that_is_usable() {
    let service = service(
        LoadBalancingMode::Failover,
        &[Scope::Region, Scope::Zone, Scope::Node],
    );
    let place = |uid: &str, region: &str, zone: &str, node: &str| {
        let mut workload = endpoint(uid, node);
        (workload.locality.region, workload.locality.zone) = (region.into(), zone.into());
        workload
    };
    let source = place("client", "r", "z", "n");
    let mut endpoints = [
        place("node", "r", "z", "n"),
        place("zone", "r", "z", "m"),
        place("region", "r", "y", "n"),
        place("far", "q", "z", "n"),
    ];
    for expected in ["node", "zone", "region", "far"] {
        assert_eq!(chosen(&service, &source, &endpoints), [expected]);
        endpoints
            .iter_mut()
            .find(|e| &*e.uid.0 == expected)
            .unwrap()
            .health = Health::Unhealthy;
    }
    let error = pick(&service, &source, &endpoints, 0).unwrap_err();
    assert!(
        error.to_string().ends_with("port 80: 4 not ready"),
        "{error}"
    );
}

#[test]
fn the_own_network_outranks_every_locality() {
    let service = service(
        LoadBalancingMode::Failover,
        &[Scope::Network, Scope::Region, Scope::Zone],
    );
    let place = |uid: &str, network: &str, region: &str| {
        let mut workload = endpoint(uid, "");
        (workload.network, workload.locality.region) = (Network(network.into()), region.into());
        workload
    };
    let source = place("client", "here", "r");
    let (other, near, far) = (
        place("own", "here", "q"),
        place("near", "there", "r"),
        place("far", "there", "q"),
    );
    assert_eq!(
        chosen(&service, &source, &[other, near.clone(), far.clone()]),
        ["own"]
    );
    assert_eq!(
        chosen(&service, &source, &[near, far]),
        ["near"],
        "a mismatch is skipped, localities still order"
    );
}

#[test]
fn unspecified_mode_ignores_scopes_and_passthrough_chooses_nothing() {
    let source = endpoint("client", "n");
    let endpoints = [endpoint("a", "n"), endpoint("b", "m")];
    assert_eq!(
        chosen(
            &service(LoadBalancingMode::Unspecified, &[Scope::Node]),
            &source,
            &endpoints
        ),
        ["a", "b"]
    );
    let passthrough = service(LoadBalancingMode::Passthrough, &[]);
    assert!(matches!(
        pick(&passthrough, &source, &endpoints, 0),
        Err(NoEndpoint::Passthrough { .. })
    ));
}

#[test]
fn a_named_port_is_looked_up_per_endpoint_and_missing_skips_only_that_one() {
    let mut service = service(LoadBalancingMode::Unspecified, &[]);
    let source = Workload::new("client");
    let (mut own, without) = (endpoint("own", ""), endpoint("without", ""));
    own.services
        .entry(service.key.clone())
        .or_default()
        .insert(PORT, 9090);
    let ports = |service: &Service| {
        let draws = (0..100)
            .map(|seed| pick(service, &source, &[own.clone(), without.clone()], seed).unwrap());
        draws
            .map(|choice| (choice.workload.uid.to_string(), choice.target_port))
            .collect::<Vec<_>>()
    };
    assert!(
        ports(&service).contains(&("without".into(), 8080)),
        "the number of the service, where there is one"
    );
    service.ports.get_mut(&PORT).unwrap().target_port = 0;
    assert!(
        ports(&service)
            .iter()
            .all(|port| *port == ("own".into(), 9090))
    );
    let error = pick(&service, &source, &[without], 0).unwrap_err();
    assert!(
        error.to_string().contains("1 without the target port"),
        "{error}"
    );
    service.ports.clear();
    assert!(matches!(
        pick(&service, &source, &[own], 0),
        Err(NoEndpoint::UnknownPort { port: PORT, .. })
    ));
}

#[test]
fn the_address_follows_the_dialled_one_and_the_allowed_families() {
    let source = Workload::new("client");
    let (v4, v6, other) = ("10.1.0.1", "fd00::1", "10.1.0.2");
    for (families, addresses, dialled, expected) in [
        (
            IpFamilies::Automatic,
            vec![v6, v4],
            "10.96.0.1:80",
            Some(v4),
        ),
        (IpFamilies::Dual, vec![v4, v6], "[fd96::1]:80", Some(v6)),
        (IpFamilies::Dual, vec![v4], "[fd96::1]:80", Some(v4)),
        (IpFamilies::V4Only, vec![v6, v4], "[fd96::1]:80", Some(v4)),
        (IpFamilies::V6Only, vec![v4], "10.96.0.1:80", None),
        (
            IpFamilies::Automatic,
            vec![v4, other],
            "10.1.0.2:80",
            Some(other),
        ),
        (
            IpFamilies::Automatic,
            vec![v4, other],
            "[::ffff:10.1.0.2]:80",
            Some(other),
        ),
        (IpFamilies::V6Only, vec![v4], "10.1.0.1:80", Some(v4)),
    ] {
        let mut service = service(LoadBalancingMode::Unspecified, &[]);
        service.ip_families = families;
        let mut endpoint = endpoint("a", "");
        endpoint.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = pick_at(&service, &source, &[endpoint], dialled, None, 0)
            .ok()
            .and_then(|choice| choice.ip());
        assert_eq!(
            found,
            expected.map(|ip| ip.parse().unwrap()),
            "{families:?} {addresses:?} {dialled}"
        );
    }
}

#[test]
fn an_endpoint_without_address_is_reached_by_name_or_by_its_network_gateway() {
    let service = service(LoadBalancingMode::Unspecified, &[]);
    let source = Workload::new("client");
    let mut named = endpoint("named", "");
    (named.addresses, named.hostname) = (vec![], Some("db.example.com".into()));
    let choice = pick(&service, &source, &[named], 0).unwrap();
    let expected = EndpointAddress::Hostname {
        name: "db.example.com".into(),
        families: Families::PreferV4,
    };
    assert_eq!((choice.address, choice.target_port), (expected, 8080));

    let gateway = GatewayAddr {
        destination: GatewayDestination::Address(NetworkAddr::new(
            Network::default(),
            "10.9.9.9".parse().unwrap(),
        )),
        hbone_port: 15008,
    };
    let mut remote = endpoint("remote", "");
    (remote.addresses, remote.network, remote.network_gateway) =
        (vec![], Network("there".into()), Some(gateway.clone()));
    assert_eq!(
        pick(&service, &source, &[remote.clone()], 0)
            .unwrap()
            .address,
        EndpointAddress::Gateway(gateway)
    );
    remote.network = source.network.clone();
    assert!(
        pick(&service, &source, &[remote], 0).is_err(),
        "a gateway serves other networks only"
    );
}

#[test]
fn affinity_holds_while_its_endpoint_may_be_chosen() {
    let service = service(LoadBalancingMode::Failover, &[Scope::Node]);
    let source = endpoint("client", "n");
    let mut endpoints = [
        endpoint("a", "n"),
        endpoint("b", "n"),
        endpoint("c", "n"),
        endpoint("remote", "m"),
    ];
    let sticky = |endpoints: &[Workload], uid: &str| {
        let uid: WorkloadUid = uid.into();
        let draws = (0..100).map(|seed| {
            pick_at(
                &service,
                &source,
                endpoints,
                "10.96.0.1:80",
                Some(&uid),
                seed,
            )
            .unwrap()
        });
        draws.filter(|choice| choice.workload.uid == uid).count()
    };
    assert_eq!(sticky(&endpoints, "b"), 100);
    assert_eq!(sticky(&endpoints, "remote"), 0, "a nearer one has come");
    assert_eq!(sticky(&endpoints, "gone"), 0);
    endpoints[1].health = Health::Unhealthy;
    assert_eq!(sticky(&endpoints, "b"), 0);
}

fn scope() -> impl Strategy<Value = Scope> {
    prop::sample::select(vec![
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
        Scope::Cluster,
        Scope::Network,
    ])
}

fn place(uid: String) -> impl Strategy<Value = Workload> {
    let word = || prop::sample::select(vec!["", "x", "y"]);
    let rest = (any::<bool>(), 0_u32..4, any::<bool>());
    ((word(), word(), word()), (word(), word(), word()), rest).prop_map(
        move |(locality, other, rest)| {
            let mut workload = endpoint(&uid, other.0);
            workload.locality.region = locality.0.into();
            workload.locality.zone = locality.1.into();
            workload.locality.subzone = locality.2.into();
            (workload.cluster_id, workload.network) = (other.1.into(), Network(other.2.into()));
            workload.health = if rest.0 {
                Health::Healthy
            } else {
                Health::Unhealthy
            };
            workload.capacity = rest.1;
            if rest.2 {
                workload
                    .services
                    .entry(service(LoadBalancingMode::Unspecified, &[]).key)
                    .or_default()
                    .insert(PORT, 9090);
            }
            workload
        },
    )
}

fn matching(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}

/// The rank as the facts state it, spelled out.
fn rank(scopes: &[Scope], source: &Workload, endpoint: &Workload) -> usize {
    let mut rank = 0;
    for (index, scope) in scopes.iter().enumerate() {
        let network_first = index == 0 && *scope == Scope::Network;
        match (matching(*scope, source, endpoint), network_first) {
            (true, true) => rank += scopes.len(),
            (true, false) => rank += 1,
            (false, true) => {}
            (false, false) => break,
        }
    }
    rank
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_choice_is_usable_and_none_is_nearer(
        scopes in prop::collection::vec(scope(), 0..4),
        mode in prop::sample::select(vec![LoadBalancingMode::Unspecified, LoadBalancingMode::Strict, LoadBalancingMode::Failover]),
        allow_all in any::<bool>(),
        named_port in any::<bool>(),
        source in place("client".into()),
        endpoints in (0_usize..6).prop_flat_map(|len| (0..len).map(|n| place(format!("e{n}"))).collect::<Vec<_>>()),
        sticky in prop::option::of(0_usize..6),
        seed in any::<u64>(),
    ) {
        let mut service = service(mode, &scopes);
        if allow_all { service.load_balancing.health_policy = HealthPolicy::AllowAll; }
        if named_port { service.ports.get_mut(&PORT).unwrap().target_port = 0; }
        let usable: Vec<&Workload> = endpoints.iter()
            .filter(|e| allow_all || e.health == Health::Healthy)
            .filter(|e| e.capacity > 0 && (!named_port || !e.services.is_empty()))
            .filter(|e| mode != LoadBalancingMode::Strict || scopes.iter().all(|s| matching(*s, &source, e)))
            .collect();
        let sticky = sticky.map(|n| WorkloadUid(format!("e{n}").into()));
        let result = pick_at(&service, &source, &endpoints, "10.96.0.1:80", sticky.as_ref(), seed);
        prop_assert_eq!(result.is_ok(), !usable.is_empty());
        let Ok(choice) = result else { return Ok(()) };
        let rank_of = |e: &Workload| if mode == LoadBalancingMode::Failover { rank(&scopes, &source, e) } else { 0 };
        let best = usable.iter().map(|e| rank_of(e)).max();
        prop_assert!(usable.iter().any(|e| e.uid == choice.workload.uid), "{} is not usable", choice.workload.uid);
        prop_assert_eq!(Some(rank_of(&choice.workload)), best);
        prop_assert_eq!(choice.target_port, if choice.workload.services.is_empty() { 8080 } else { 9090 });
        let holds = |uid: &WorkloadUid| usable.iter().any(|e| e.uid == *uid && Some(rank_of(e)) == best);
        if let Some(uid) = sticky.filter(holds) { prop_assert_eq!(&choice.workload.uid, &uid); }
    }
}
