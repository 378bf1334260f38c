//! Endpoints outside of the mesh: by name, by the address that the client dialled, by the host that it asks for.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use karst_discovery::{Kind, Update};
use karst_identity::tls::provider;
use karst_model::{
    addr::Network,
    protocol::{AppProtocol, TunnelProtocol},
    service::{LoadBalancingMode, Naming, Service, ServicePort, Vip},
    traffic::{TlsMode, TrustAnchors, UpstreamTls},
    workload::{GatewayAddr, GatewayDestination, Workload},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    app::{App, Speaks},
    client::{Client, status},
    mutual::{Ca, answer_all, policy_of},
    rig::{World, fresh_ip, local},
    tcp::hello,
};

/// The addresses of every name that the server is asked for; none: it fails.
type Zone = Arc<Mutex<Option<Vec<Ipv4Addr>>>>;

async fn dns(zone: &Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let zone = zone.clone();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 2_048];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.add_query(query.queries[0].clone());
            let owner = query.queries[0].name().clone();
            match zone.lock().unwrap().clone() {
                None => answer.metadata.response_code = ResponseCode::ServFail,
                Some(all) if query.queries[0].query_type() == RecordType::A => {
                    for ip in all {
                        answer.add_answer(Record::from_rdata(owner.clone(), 0, RData::A(A(ip))));
                    }
                }
                Some(_) => {}
            }
            let bytes = answer.to_vec().unwrap();
            socket.send_to(&bytes, client).await.unwrap();
        }
    });
    addr
}

/// A service of an external host behind the waypoint, port 80 to 8080.
fn external(world: &World, host: &str, change: impl FnOnce(&mut Service)) -> SocketAddr {
    let vip = fresh_ip();
    let mut service = Service::new("shop", host);
    service.addresses.push(Vip {
        network: Network::default(),
        ip: vip.into(),
        prefix_len: None,
    });
    service.ports.insert(
        80,
        ServicePort {
            target_port: 8080,
            app_protocol: AppProtocol::Http11,
        },
    );
    service.waypoint = Some(GatewayAddr {
        destination: GatewayDestination::Service(world.mesh.config.own_service()),
        hbone_port: 15008,
    });
    change(&mut service);
    world.state.apply([Update::Service(Arc::new(service))]);
    SocketAddr::new(vip.into(), 80)
}

/// The endpoint of a host that is known by its name only.
fn named(world: &World, host: &str) {
    let mut workload = Workload::new(&format!("entry/{host}"));
    workload.hostname = Some(host.into());
    let key = Service::new("shop", host).key;
    workload.services.insert(key, [(80, 8080)].into());
    world.state.apply([Update::Workload(Arc::new(workload))]);
}

async fn get(client: &Client, vip: SocketAddr, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    client.raw(vip, request).await
}

#[tokio::test]
async fn an_external_name_is_resolved_followed_and_kept_while_the_resolver_fails() {
    local(async {
        let (old, new) = (fresh_ip(), fresh_ip());
        App::new("old", Speaks::Http1)
            .listen((old, 8080).into())
            .await;
        App::new("new", Speaks::Http1)
            .listen((new, 8080).into())
            .await;
        let zone: Zone = Arc::new(Mutex::new(Some(vec![old])));
        let server = dns(&zone).await;
        let world = World::start(&["--dns", &server.to_string()]).await;
        named(&world, "api.example.com");
        let vip = external(&world, "api.example.com", |_| {});
        let client = Client::new(&world);
        // The first answer may not be there yet.
        while !get(&client, vip, "api.example.com").await.ends_with("old") {
            tokio::task::yield_now().await;
        }
        *zone.lock().unwrap() = None;
        for _ in 0..20 {
            let answer = get(&client, vip, "api.example.com").await;
            assert!(answer.ends_with("old"), "{answer}");
        }
        // The name moves, and is asked for again within the bound of its time to live.
        *zone.lock().unwrap() = Some(vec![new]);
        while !get(&client, vip, "api.example.com").await.ends_with("new") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_service_without_resolution_is_reached_where_the_client_dialled() {
    local(async {
        let world = World::start(&[]).await;
        let app = App::new("there", Speaks::Http1);
        let vip = external(&world, "any.example.com", |service| {
            service.load_balancing.mode = LoadBalancingMode::Passthrough;
        });
        app.listen(vip).await;
        let answer = get(&Client::new(&world), vip, "any.example.com").await;
        assert_eq!(status(&answer), "200", "{answer}");
        assert!(answer.ends_with("there"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_is_asked_for_must_be_of_the_service_and_lead_outside() {
    local(async {
        let zone: Zone = Arc::new(Mutex::new(Some(vec![Ipv4Addr::LOCALHOST])));
        let server = dns(&zone).await;
        let world = World::start(&["--dns", &server.to_string()]).await;
        let vip = external(&world, "*.example.com", |service| {
            service.naming = Naming::Asked;
        });
        let client = Client::new(&world);
        let answer = get(&client, vip, "api.example.org").await;
        assert_eq!(status(&answer), "404", "{answer}");
        assert!(
            answer.contains("is none of service shop/*.example.com"),
            "{answer}"
        );
        // A name of others that leads back here is not followed.
        let answer = get(&client, vip, "api.example.com").await;
        assert_eq!(status(&answer), "503", "{answer}");
        assert!(
            answer.contains("has no address that may be connected"),
            "{answer}"
        );
    })
    .await;
}

/// An address of this machine that is no loopback: a name may lead there. Whoever fetched our dependencies has one.
fn outside_ip() -> IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: only a way is looked up.
    socket.connect("198.51.100.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// Sends a ClientHello for a name; what comes back.
async fn greeted(client: &Client, vip: SocketAddr, name: &str) -> Option<[u8; 5]> {
    let mut io = client.connect(vip).await;
    io.write_all(&hello(name)).await.unwrap();
    let mut greeting = [0; 5];
    io.read_exact(&mut greeting).await.ok()?;
    Some(greeting)
}

#[tokio::test]
async fn tls_goes_to_the_host_that_it_names_if_that_is_of_the_service_and_leads_outside() {
    local(async {
        let outside = outside_ip();
        let IpAddr::V4(ip) = outside else {
            panic!("{outside} is of the wrong family");
        };
        let zone: Zone = Arc::new(Mutex::new(Some(vec![ip])));
        let server = dns(&zone).await;
        let world = World::start(&["--dns", &server.to_string()]).await;
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrived = Arc::new(AtomicUsize::new(0));
        let count = arrived.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                // What arrives is what the client has sent.
                let expected = hello("api.example.com");
                let mut got = vec![0; expected.len()];
                if stream.read_exact(&mut got).await.is_ok() && got == expected {
                    let _gone = stream.write_all(b"there").await;
                }
            }
        });
        let client = Client::new(&world);
        // Declared as TLS, and found out.
        for app_protocol in [AppProtocol::Tls, AppProtocol::Unknown] {
            let vip = external(&world, "*.example.com", |service| {
                service.naming = Naming::Asked;
                let declared = ServicePort {
                    target_port: port,
                    app_protocol,
                };
                service.ports.insert(80, declared);
            });
            let greeting = greeted(&client, vip, "api.example.com").await;
            assert_eq!(greeting.as_ref(), Some(b"there"), "{app_protocol:?}");
            let before = arrived.load(Ordering::Relaxed);
            for other in ["api.example.org", "example.com", "evil-example.com"] {
                assert_eq!(greeted(&client, vip, other).await, None, "{other}");
            }
            // To this very machine, to nowhere, and to what is there of the mesh.
            for addresses in [vec![Ipv4Addr::LOCALHOST], Vec::new()] {
                *zone.lock().unwrap() = Some(addresses);
                let name = format!("n{before}-{}.example.com", fresh_ip());
                assert_eq!(greeted(&client, vip, &name).await, None);
            }
            *zone.lock().unwrap() = Some(vec![ip]);
            let mut pod = Workload::new("Kubernetes//Pod/shop/own");
            pod.addresses = vec![outside];
            pod.tunnel = TunnelProtocol::Hbone;
            let uid = pod.uid.clone();
            world.state.apply([Update::Workload(Arc::new(pod))]);
            assert_eq!(greeted(&client, vip, "api.example.com").await, None);
            assert_eq!(arrived.load(Ordering::Relaxed), before, "nothing arrived");
            world
                .state
                .apply([Update::Removed(Kind::Address, uid.0.clone())]);
        }
    })
    .await;
}

/// Shows the certificate of the name that it is asked for, and that of the first name to whoever asks for another.
#[derive(Debug)]
struct ByName(Vec<(&'static str, Arc<CertifiedKey>)>);

impl ByName {
    fn new(ca: &Ca, names: &[&'static str]) -> Self {
        let certified = |name: &'static str| {
            let (chain, key) = ca.issue(name);
            let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let key = provider().key_provider.load_private_key(key).unwrap();
            (name, Arc::new(CertifiedKey::new(vec![chain], key)))
        };
        Self(names.iter().copied().map(certified).collect())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name();
        let found = self.0.iter().find(|(name, _)| Some(*name) == asked);
        found.or_else(|| self.0.first()).map(|(_, key)| key.clone())
    }
}

/// A server of TLS that answers with the name that it was asked for in the handshake; its port.
async fn tls_server(ip: Ipv4Addr, certificates: ByName) -> u16 {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                let Ok(mut io) = acceptor.accept(stream).await else {
                    return;
                };
                let name = io.get_ref().1.server_name().unwrap_or("-").to_owned();
                answer_all(&mut io, &name).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn tls_of_the_waypoints_own_asks_for_the_host_and_believes_nobody_else() {
    local(async {
        let IpAddr::V4(ip) = outside_ip() else {
            panic!("the address outside is of the wrong family");
        };
        let zone: Zone = Arc::new(Mutex::new(Some(vec![ip])));
        let server = dns(&zone).await;
        let world = World::start(&["--dns", &server.to_string()]).await;
        let ca = Ca::new("outside");
        let hosts = ["a.example.com", "b.example.com"];
        let port = tls_server(ip, ByName::new(&ca, &hosts)).await;
        let vip = external(&world, "*.example.com", |service| {
            service.naming = Naming::Asked;
            let plain = ServicePort {
                target_port: port,
                app_protocol: AppProtocol::Http11,
            };
            service.ports.insert(80, plain);
        });
        let tls = |ca: &Ca| UpstreamTls {
            anchors: TrustAnchors::Pem(ca.pem.as_str().into()),
            ..UpstreamTls::new(TlsMode::Simple)
        };
        let service = Service::new("shop", "*.example.com").key;
        policy_of(&world, service.clone(), tls(&ca));
        let client = Client::new(&world);
        while !get(&client, vip, hosts[0]).await.ends_with(hosts[0]) {
            tokio::task::yield_now().await;
        }
        // Each host by its own name, in turns: no connection of the one serves the other.
        for host in hosts.iter().cycle().take(20) {
            let answer = get(&client, vip, host).await;
            assert_eq!(status(&answer), "200", "{answer}");
            assert!(answer.ends_with(host), "{answer}");
        }
        // The server shows the certificate of another host.
        let answer = get(&client, vip, "c.example.com").await;
        assert_eq!(status(&answer), "503", "{answer}");
        assert!(answer.contains("c.example.com"), "{answer}");
        // Signed by somebody whom the settings do not trust.
        policy_of(&world, service, tls(&Ca::new("others")));
        while status(&get(&client, vip, hosts[1]).await) == "200" {
            tokio::task::yield_now().await;
        }
        for host in hosts {
            let answer = get(&client, vip, host).await;
            assert_eq!(status(&answer), "503", "{answer}");
        }
    })
    .await;
}
