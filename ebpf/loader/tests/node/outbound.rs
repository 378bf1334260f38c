//! What an enrolled pod dials.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use karst_ebpf_loader::Capture;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::world::{World, accept, connect, refusal};

/// Mesh addresses that exist nowhere: only capture can answer.
const VIPS: [&str; 2] = ["10.99.0.5:80", "[fd99::5]:80"];

fn with_vips() -> Option<World> {
    let world = World::enrolled()?;
    let vips = VIPS.map(|vip| vip.parse::<SocketAddr>().unwrap().ip());
    world.kernel().set_destinations(&vips, &[]).unwrap();
    Some(world)
}

#[test]
fn a_mesh_destination_goes_to_the_agent_and_both_names_stay_true() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    for vip in VIPS {
        let vip: SocketAddr = vip.parse().unwrap();
        let client = connect(&pod.netns, vip).unwrap();
        assert_eq!(client.peer_addr().unwrap(), vip);
        let own: IpAddr = if vip.is_ipv4() { pod.v4 } else { pod.v6 };
        assert_eq!(client.local_addr().unwrap().ip(), own);

        let (_accepted, from) = accept(&pod.sockets.outbound);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        assert_eq!(from, client.local_addr().unwrap());
        let cookie = pod.netns.cookie().unwrap();
        assert_eq!(world.kernel().take_orig_dst(cookie, from), Some(vip));
        assert_eq!(
            world.kernel().take_orig_dst(cookie, from),
            None,
            "once only"
        );
    }
    assert_eq!(world.counter("captured"), 2);
}

#[test]
fn a_v4_mapped_destination_is_the_ipv4_one() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    let mapped: SocketAddr = "[::ffff:10.99.0.5]:80".parse().unwrap();
    let client = connect(&pod.netns, mapped).unwrap();
    assert_eq!(client.peer_addr().unwrap(), mapped);
    let (_accepted, from) = accept(&pod.sockets.outbound);
    let cookie = pod.netns.cookie().unwrap();
    let orig = world.kernel().take_orig_dst(cookie, from).unwrap();
    assert_eq!(orig, VIPS[0].parse().unwrap());
}

#[test]
fn a_missing_listener_refuses() {
    let Some(mut world) = with_vips() else { return };
    crate::world::close(&mut world.pods[0].sockets.outbound);
    for vip in VIPS {
        let vip: SocketAddr = vip.parse().unwrap();
        assert_eq!(
            refusal(&world.pods[0].netns, vip),
            ErrorKind::ConnectionRefused
        );
    }
    assert_eq!(world.counter("listener_missing"), 2);
}

#[test]
fn nobody_dials_a_listener_itself() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    let app = pod.app("[::]:8080");
    let port = |listener: &Option<std::net::TcpListener>| {
        listener.as_ref().unwrap().local_addr().unwrap().port()
    };
    let sockets = &pod.sockets;
    let steered = [
        port(&sockets.hbone),
        port(&sockets.inbound),
        port(&sockets.outbound),
        15008,
    ];
    for port in steered {
        for addr in [
            pod.v4,
            pod.v6,
            "127.0.0.1".parse().unwrap(),
            "::1".parse().unwrap(),
        ] {
            assert!(connect(&pod.netns, (addr, port)).is_err(), "{addr} {port}");
        }
    }
    assert!(
        connect(&pod.netns, (pod.v4, 8080)).is_ok(),
        "its own application is fine"
    );
    assert!(connect(&pod.netns, ("127.0.0.1".parse::<IpAddr>().unwrap(), 8080)).is_ok());
    drop(app);
}

#[test]
fn other_namespaces_and_other_destinations_are_left_alone() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let addr = SocketAddr::new(crate::world::NODE.parse().unwrap(), 8080);
    let server = world
        .node
        .run(|| std::net::TcpListener::bind(addr))
        .unwrap()
        .unwrap();
    let direct = connect(&world.pods[0].netns, addr).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), addr);
    assert!(server.accept().is_ok());

    world.kernel().set_destinations(&[addr.ip()], &[]).unwrap();
    assert!(connect(&world.outside, addr).is_ok());
    assert!(server.accept().is_ok());
    assert_eq!(world.counter("captured"), 0);

    connect(&world.pods[0].netns, addr).unwrap();
    assert_eq!(world.counter("captured"), 1);
    world.kernel().set_destinations(&[], &[addr.ip()]).unwrap();
    assert!(world.kernel().destinations().unwrap().is_empty());
    connect(&world.pods[0].netns, addr).unwrap();
    assert_eq!(world.counter("captured"), 1);
}

#[test]
fn an_excluded_port_reaches_a_mesh_destination_directly() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let addr = SocketAddr::new(crate::world::NODE.parse().unwrap(), 9999);
    let server = world
        .node
        .run(|| std::net::TcpListener::bind(addr))
        .unwrap()
        .unwrap();
    world.kernel().set_destinations(&[addr.ip()], &[]).unwrap();
    let capture = Capture {
        exclude_outbound_ports: vec![9999],
        ..Capture::default()
    };
    world.attach(0, &capture, &[]);
    let client = connect(&world.pods[0].netns, addr).unwrap();
    assert_eq!(server.accept().unwrap().1, client.local_addr().unwrap());
    assert_eq!(world.counter("guard_syn"), 0, "the guard knows of it");
}

#[test]
fn a_pod_that_may_dial_known_destinations_only_is_captured_whatever_it_dials() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let addr = SocketAddr::new(crate::world::NODE.parse().unwrap(), 9998);
    let server = world
        .node
        .run(|| std::net::TcpListener::bind(addr))
        .unwrap()
        .unwrap();
    connect(&world.pods[0].netns, addr).unwrap();
    server.accept().unwrap();
    assert_eq!(world.counter("captured"), 0, "the control");
    let capture = Capture {
        all: true,
        ..Capture::default()
    };
    world.attach(0, &capture, &[]);
    connect(&world.pods[0].netns, addr).unwrap();
    assert_eq!(world.counter("captured"), 1);
}

#[test]
fn fast_open_and_multipath_are_captured_too() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    let vip = SockAddr::from(VIPS[0].parse::<SocketAddr>().unwrap());
    for (protocol, flags) in [(Protocol::TCP, libc::MSG_FASTOPEN), (Protocol::MPTCP, 0)] {
        let socket = pod
            .netns
            .run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)));
        let socket = socket.unwrap().unwrap();
        if flags == 0 {
            socket.connect(&vip).unwrap();
        } else {
            socket.send_to_with_flags(b"early", &vip, flags).unwrap();
        }
        let (_accepted, from) = accept(&pod.sockets.outbound);
        let orig = world
            .kernel()
            .take_orig_dst(pod.netns.cookie().unwrap(), from);
        assert_eq!(orig, vip.as_socket(), "{protocol:?}");
        // An MPTCP socket is not its first subflow: what the hook stored with that is not seen here.
        if protocol == Protocol::TCP {
            assert_eq!(socket.peer_addr().unwrap().as_socket(), vip.as_socket());
        }
    }
}

#[test]
fn where_a_client_went_is_known_when_it_has_left_before_it_is_accepted() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    let cookie = pod.netns.cookie().unwrap();
    for vip in VIPS {
        let vip: SocketAddr = vip.parse().unwrap();
        let client = connect(&pod.netns, vip).unwrap();
        // A reset, so that the client's socket ends at once; after a FIN it does when that is acknowledged.
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        let (_accepted, from) = accept(&pod.sockets.outbound);
        assert_eq!(world.kernel().take_orig_dst(cookie, from), Some(vip));
    }
}

#[test]
fn a_client_that_nobody_accepts_is_forgotten() {
    let Some(world) = with_vips() else { return };
    let pod = &world.pods[0];
    let kernel = world.kernel();
    let cookie = pod.netns.cookie().unwrap();
    let vip: SocketAddr = VIPS[0].parse().unwrap();
    let gone = connect(&pod.netns, vip).unwrap();
    let stays = connect(&pod.netns, vip).unwrap();
    let (of_gone, of_stays) = (gone.local_addr().unwrap(), stays.local_addr().unwrap());
    let (accepted, _) = accept(&pod.sockets.outbound);
    // Closed both ways: the client's socket ends at once, within TIME_WAIT's start.
    drop((gone, accepted));
    crate::world::eventually("the client is forgotten", || {
        kernel.forget_left().unwrap() == 1
    });
    assert_eq!(kernel.take_orig_dst(cookie, of_gone), None);
    assert_eq!(kernel.take_orig_dst(cookie, of_stays), Some(vip));
}

/// Not a test of behaviour: prints what the hooks cost. `cargo test --release -p karst-ebpf-loader
/// -- --ignored --nocapture what_a_connect_costs`.
#[test]
#[ignore = "a measurement, run by hand"]
fn what_a_connect_costs() {
    let Some(mut world) = World::bare() else {
        return;
    };
    let addr = SocketAddr::new(crate::world::NODE.parse().unwrap(), 8080);
    let server = world
        .node
        .run(|| std::net::TcpListener::bind(addr))
        .unwrap()
        .unwrap();
    // UDP connects: the hook and nothing else, no packets.
    let udp = |netns: &karst_netns::Netns| {
        let socket = netns
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        let start = std::time::Instant::now();
        (0..1_000_000).for_each(|_| socket.connect(addr).unwrap());
        start.elapsed().as_nanos() / 1_000_000
    };
    let tcp = |netns: &karst_netns::Netns| {
        netns.run(|| {
            let start = std::time::Instant::now();
            for _ in 0..20_000 {
                let client = std::net::TcpStream::connect(addr).unwrap();
                SockRef::from(&client)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                drop((client, server.accept().unwrap()));
            }
            start.elapsed().as_nanos() / 20_000
        })
    };
    let pod = || &world.pods[0].netns;
    let before = [
        (udp(pod()), tcp(pod()).unwrap()),
        (udp(pod()), tcp(pod()).unwrap()),
    ];
    world.load();
    let stranger = (udp(&world.outside), tcp(&world.outside).unwrap());
    let attach = std::time::Instant::now();
    world.attach(0, &Capture::default(), &[]);
    let attach = attach.elapsed();
    world.attach(1, &Capture::default(), &[]);
    let netns = &world.pods[0].netns;
    let enrolled = [
        (udp(netns), tcp(netns).unwrap()),
        (udp(netns), tcp(netns).unwrap()),
    ];
    eprintln!(
        "ns per (udp connect, tcp connect+close): no programs {before:?}, not enrolled {stranger:?}, enrolled, not meshed {enrolled:?}; attach {attach:?}"
    );
}
