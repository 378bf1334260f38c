//! Who gets a connection that enters an enrolled pod.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use karst_ebpf_loader::{Capture, Kernel};
use karst_netns::{Family, connect_socket, own_cgroup_id, socket_cookie};
use socket2::SockAddr;

use crate::world::{World, accept, connect, eventually, is_idle, refusal};

#[test]
fn plaintext_and_hbone_are_steered_apart() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    let app = pod.app("[::]:8080");
    for ip in [pod.v4, pod.v6] {
        let client = connect(&world.outside, (ip, 8080)).unwrap();
        let (server, from) = accept(&pod.sockets.inbound);
        assert_eq!(server.local_addr().unwrap().ip().to_canonical(), ip);
        assert_eq!(server.local_addr().unwrap().port(), 8080);
        assert_eq!(from.port(), client.local_addr().unwrap().port());

        connect(&world.outside, (ip, 15008)).unwrap();
        let (server, _) = accept(&pod.sockets.hbone);
        assert_eq!(server.local_addr().unwrap().port(), 15008);
    }
    assert!(is_idle(&app), "the application saw nothing");
}

#[test]
fn a_missing_listener_drops_and_never_passes() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    let app = world.pods[0].app("[::]:8080");
    crate::world::close(&mut world.pods[0].sockets.inbound);
    let pod = &world.pods[0];
    for ip in [pod.v4, pod.v6] {
        assert_eq!(
            refusal(&world.outside, (ip, 8080)),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            refusal(&world.pods[1].netns, (ip, 8080)),
            ErrorKind::ConnectionRefused
        );
    }
    assert!(is_idle(&app));
}

#[test]
fn an_excluded_port_reaches_the_application() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let capture = Capture {
        exclude_inbound_ports: vec![9090],
        ..Capture::default()
    };
    world.attach(0, &capture, &[]);
    let app = world.pods[0].app("[::]:9090");
    connect(&world.outside, (world.pods[0].v4, 9090)).unwrap();
    assert!(app.accept().is_ok());
}

#[test]
fn an_address_that_somebody_added_is_refused() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    let app = pod.app("[::]:8080");
    let added = SocketAddr::new("10.77.0.77".parse().unwrap(), 8080);
    pod.netns
        .run(|| crate::world::output("ip", "addr add 10.77.0.77/24 dev eth0"))
        .unwrap();
    // Not refused but silence: the guard drops the reset, whose source is not the pod's either.
    let client = connect_socket(&world.outside, Family::V4).unwrap();
    client
        .connect(&SockAddr::from(added))
        .expect_err("in progress");
    eventually("refused", || world.counter("foreign_local") > 0);
    eventually("silenced", || world.counter("guard_source") > 0);
    assert!(is_idle(&app));
}

#[test]
fn the_application_sees_the_client_that_the_agent_announced() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    let cases = [
        ("0.0.0.0:8081", 0, "203.0.113.9:1234"),
        ("[::]:8082", 0, "203.0.113.9:1235"),
        ("[::]:8083", 1, "[2001:db8::9]:1236"),
    ];
    for (bind, family, shown) in cases {
        let app = world.pods[0].app(bind);
        let shown: SocketAddr = shown.parse().unwrap();
        world.as_agent(|world| {
            let pod = &world.pods[0];
            let ip = [pod.v4, pod.v6][family];
            let target = SocketAddr::new(ip, app.local_addr().unwrap().port());
            let socket = connect_socket(&pod.netns, Family::of(&target)).unwrap();
            let cookie = socket_cookie(socket.as_fd()).unwrap();
            world.kernel().announce_dial(cookie, shown).unwrap();
            socket.set_nonblocking(false).unwrap();
            socket.connect(&SockAddr::from(target)).unwrap();
            let (server, peer) = app.accept().unwrap();
            for seen in [peer, server.peer_addr().unwrap()] {
                assert_eq!(seen.ip().to_canonical(), shown.ip());
                assert_eq!(seen.port(), shown.port());
            }
        });
    }
}

#[test]
fn a_forged_claim_is_not_shown() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    let app = pod.app("[::]:8080");
    let target = SocketAddr::new(pod.v4, 8080);
    let socket = connect_socket(&pod.netns, Family::V4).unwrap();
    let cookie = socket_cookie(socket.as_fd()).unwrap();
    world
        .kernel()
        .announce_dial(cookie, "203.0.113.9:1".parse().unwrap())
        .unwrap();
    socket.set_nonblocking(false).unwrap();
    // This process is not in the agent's cgroup: the announcement is not for it.
    socket.connect(&SockAddr::from(target)).unwrap();
    assert_eq!(app.accept().unwrap().1.ip().to_canonical(), pod.v4);
}

#[test]
fn an_agent_that_is_taken_over_still_dials_until_its_end() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    let app = world.pods[0].app("[::]:8080");
    let shown: SocketAddr = "203.0.113.9:1".parse().unwrap();
    let dial = |world: &World| {
        let pod = &world.pods[0];
        let socket = connect_socket(&pod.netns, Family::V4).unwrap();
        let cookie = socket_cookie(socket.as_fd()).unwrap();
        world.kernel().announce_dial(cookie, shown).unwrap();
        socket.set_nonblocking(false).unwrap();
        let target = SocketAddr::new(pod.v4, 8080);
        socket.connect(&SockAddr::from(target)).unwrap();
        app.accept().unwrap().1.ip().to_canonical()
    };
    let own = own_cgroup_id().unwrap();
    world.load_after(own);
    assert_eq!(dial(&world), shown.ip());
    assert_eq!(Kernel::known_agents(&world.pin_dir)[1], own);
    world.load();
    assert_eq!(dial(&world), world.pods[0].v4, "it has ended");
}

#[test]
fn the_kubelet_reaches_declared_ports_and_no_other() {
    let Some(world) = World::enrolled() else {
        return;
    };
    world.attach(0, &Capture::default(), &[8080]);
    let pod = &world.pods[0];
    let (declared, other) = (pod.app("[::]:8080"), pod.app("[::]:8081"));
    let probe = |port| {
        connect(&world.node, (pod.v4, port)).unwrap();
        connect(&world.node, (pod.v6, port)).unwrap();
    };

    probe(8080);
    assert!(is_idle(&declared), "not yet known as the kubelet");
    world
        .kernel()
        .set_kubelet_cgroups(&[own_cgroup_id().unwrap()])
        .unwrap();
    probe(8080);
    assert!(declared.accept().is_ok() && declared.accept().is_ok());
    probe(8081);
    assert!(is_idle(&other));

    connect(&world.outside, (pod.v4, 8080)).unwrap();
    assert!(
        is_idle(&declared),
        "the kubelet's cgroup, but not the host's namespace"
    );
    world
        .kernel()
        .set_probe_ports(pod.netns.cookie().unwrap(), &[])
        .unwrap();
    probe(8080);
    assert!(is_idle(&declared));
}
