//! A mesh on loopback: a CA, a waypoint, workloads with addresses of their own (127.x.y.z, so that each can listen on
//! 15008), and the state that ties them together.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use clap::Parser as _;
use karst_ca::authority::{Authority, AuthorityConfig, LocalSigner};
use karst_discovery::{State, Update};
use karst_hbone::{Authority as Target, ServerConfig, relay, server, tls};
use karst_identity::{Store, StoreConfig, clock::Clock};
use karst_model::{
    addr::Network,
    identity::{SpiffeId, TrustDomain},
    name::ServiceKey,
    protocol::{AppProtocol, TunnelProtocol},
    route::{
        Attachment, Backend, Clients, HttpMatch, HttpRule, PathMatch, Route, RouteKey, RouteKind,
        RouteRules, WeightedBackend,
    },
    service::{Service, ServicePort, Vip},
    workload::{GatewayAddr, GatewayDestination, Workload},
};
use karst_runtime::{
    drain::{self, Drain},
    supervise::{Shutdown, spawn_connection},
};
use karst_telemetry::metrics::Registry;
use karst_waypoint::{config::Config, mesh::Mesh, workers::Workers};
use tokio::{
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use crate::app::App;

/// Runs a test on one thread; a stuck one fails.
pub(crate) fn local<'a, T: 'a>(
    test: impl Future<Output = T> + 'a,
) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    local_for(Duration::from_secs(60), test)
}

/// The same for a test that has more to do.
pub(crate) fn local_for<'a, T: 'a>(
    limit: Duration,
    test: impl Future<Output = T> + 'a,
) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    let test = Box::pin(tokio::time::timeout(limit, Box::pin(test)));
    Box::pin(async {
        let local = LocalSet::new();
        local.run_until(test).await.expect("the test is stuck")
    })
}

/// An address of this machine that no other test of this process uses.
pub(crate) fn fresh_ip() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id() % 200;
    Ipv4Addr::from(0x7f00_0000 | ((process + 20) << 16) | number)
}

pub(crate) fn spiffe(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId {
        trust_domain: TrustDomain::default(),
        namespace: namespace.into(),
        service_account: account.into(),
    }
}

pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
    }
}

/// The whole mesh of a test.
pub(crate) struct World {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) state: Arc<State>,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) waypoint: SocketAddr,
    pub(crate) drain: Option<Drain>,
    stop: Shutdown,
    threads: Vec<JoinHandle<()>>,
    _ca: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.mesh.stopped.cancel();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl World {
    /// A mesh whose waypoint runs with these further flags.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        karst_identity::tls::install_provider();
        let ca = tempfile::tempdir().unwrap();
        let authority = AuthorityConfig::new(ca.path().join("ca"), TrustDomain::default());
        let authority = Authority::load_or_create(authority, SystemTime::now()).unwrap();
        let signer = LocalSigner {
            authority: Arc::new(authority),
            clock: Clock::system(),
        };
        let store = Store::new(StoreConfig::default(), Arc::new(signer)).unwrap();
        let stop = Shutdown::new();
        spawn_connection("identities", store.clone().run(stop.clone()));

        let base = [
            "karst-waypoint",
            "--gateway",
            "waypoint",
            "--namespace",
            "shop",
        ];
        let config = Config::parse_from(base.iter().chain(&["--worker-threads", "2"]).chain(flags));
        store.require(&config.identity()).unwrap();
        let state = Arc::new(State::new());
        let registry = Registry::new();
        let mesh = Mesh::new(
            config,
            state.clone(),
            store.clone(),
            &registry,
            Shutdown::new(),
        );
        spawn_connection("services", mesh.clone().follow_changes());
        spawn_connection("names", mesh.clone().follow_names());
        let follow = mesh.recorder().follow(mesh.stopped.clone());
        spawn_connection("recording", follow);
        spawn_connection("export", mesh.export(&registry));
        let (workers, threads) = Workers::start(mesh.config.workers(), &mesh).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let waypoint = listener.local_addr().unwrap();
        let (drain, watch) = drain::channel();
        spawn_connection(
            "hbone listener",
            karst_waypoint::accept(listener, mesh.clone(), workers, watch),
        );
        Self {
            mesh,
            state,
            store,
            registry,
            waypoint,
            drain: Some(drain),
            stop,
            threads,
            _ca: ca,
        }
    }

    /// A service behind the waypoint with one port, 80; the virtual address is returned.
    pub(crate) fn service(&self, name: &str, app_protocol: AppProtocol) -> SocketAddr {
        let vip = fresh_ip();
        let mut service = Service::new("shop", &key(name).hostname);
        service.addresses.push(Vip {
            network: Network::default(),
            ip: vip.into(),
            prefix_len: None,
        });
        service.ports.insert(
            80,
            ServicePort {
                target_port: 8080,
                app_protocol,
            },
        );
        service.waypoint = Some(GatewayAddr {
            destination: GatewayDestination::Service(self.mesh.config.own_service()),
            hbone_port: 15008,
        });
        self.state.apply([Update::Service(Arc::new(service))]);
        SocketAddr::new(vip.into(), 80)
    }

    /// A workload of a service whose application is `app`, behind an agent.
    pub(crate) async fn workload(&self, service: &str, name: &str, app: &Rc<App>) -> Ipv4Addr {
        let ip = fresh_ip();
        app.listen(SocketAddr::from((ip, 8080))).await;
        let account = spiffe("shop", name);
        self.agent(ip, &account).await;
        self.add_workload(service, name, ip, TunnelProtocol::Hbone);
        ip
    }

    /// Tells the mesh of a workload.
    pub(crate) fn add_workload(
        &self,
        service: &str,
        name: &str,
        ip: Ipv4Addr,
        tunnel: TunnelProtocol,
    ) {
        let uid = format!("Kubernetes//Pod/shop/{name}");
        let mut workload = Workload {
            name: name.into(),
            namespace: "shop".into(),
            service_account: name.into(),
            addresses: vec![IpAddr::from(ip)],
            tunnel,
            workload_name: name.into(),
            ..Workload::new(&uid)
        };
        workload.services.insert(key(service), [(80, 8080)].into());
        self.state.apply([Update::Workload(Arc::new(workload))]);
    }

    /// The agent of a workload: HBONE on 15008, everything to the application.
    pub(crate) async fn agent(&self, ip: Ipv4Addr, identity: &SpiffeId) {
        self.store.require(identity).unwrap();
        let credential = self.store.wait(identity, Duration::from_secs(20)).await;
        let credential = credential.unwrap();
        let listener = TcpListener::bind((ip, 15008)).await.unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let config = credential.server_config();
                tokio::task::spawn_local(async move {
                    let io = tls::tls_accept(stream, config, Duration::from_secs(10)).await;
                    let Ok(io) = io else { return };
                    let (_drain, watch) = drain::channel();
                    let _ended = server::serve(io, &ServerConfig::default(), watch, |incoming| {
                        tokio::task::spawn_local(deliver(incoming));
                    })
                    .await;
                });
            }
        });
    }

    /// A route on service `web` with these rules.
    pub(crate) fn route(&self, name: &str, rules: Vec<HttpRule>) {
        self.attach(RouteKind::HttpRoute, name, RouteRules::Http(rules));
    }

    /// A route of any kind on service `web`.
    pub(crate) fn attach(&self, kind: RouteKind, name: &str, rules: RouteRules) {
        let route = Route {
            key: RouteKey {
                kind,
                namespace: "shop".into(),
                name: name.into(),
            },
            created: 0,
            attachments: vec![Attachment {
                service: key("web"),
                port: None,
                clients: Clients::All,
            }],
            rules,
        };
        self.state.apply([Update::Route(Arc::new(route))]);
    }

    /// The value of a metric line that holds all of `parts`.
    pub(crate) fn metric(&self, parts: &[&str]) -> f64 {
        let text = self.registry.encode();
        let lines = text
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until such a metric is at least this.
    pub(crate) async fn metric_reaches(&self, parts: &[&str], value: f64) {
        while self.metric(parts) < value {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn deliver(incoming: karst_hbone::Incoming) {
    let Target::Addr(addr) = incoming.request.authority else {
        return incoming.reject(::http::StatusCode::BAD_REQUEST);
    };
    match TcpStream::connect(addr).await {
        Ok(application) => {
            let tunnel = incoming.accept(None).unwrap();
            relay(application, tunnel, &karst_hbone::Flow::default()).await;
        }
        Err(_refused) => incoming.reject(::http::StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// A rule that takes everything, to these services with these weights.
pub(crate) fn rule(backends: &[(&str, u32)]) -> HttpRule {
    HttpRule {
        matches: vec![HttpMatch {
            path: Some(PathMatch::Prefix("/".into())),
            ..HttpMatch::default()
        }],
        backends: backends
            .iter()
            .map(|(service, weight)| WeightedBackend {
                backend: Backend::Service {
                    service: key(service),
                    port: 80,
                    subset: None,
                },
                weight: *weight,
                filters: Vec::new(),
            })
            .collect(),
        ..HttpRule::default()
    }
}
