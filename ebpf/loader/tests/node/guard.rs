//! Raw packets from an enrolled pod: what never passes `connect`.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use karst_netns::{Family, Netns, connect_socket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::world::{World, accept, eventually};

/// An IPv4 SYN (checksums left to be wrong: the guard and the raw receiver do not care).
fn syn(src: IpAddr, dst: IpAddr, src_port: u16) -> Vec<u8> {
    packet(src, dst, src_port, 0)
}

fn packet(src: IpAddr, dst: IpAddr, src_port: u16, fragment: u16) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) else {
        panic!("IPv4 only")
    };
    let mut bytes = vec![0x45, 0, 0, 40, 0, 1];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, 6, 0, 0]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(src_port.to_be_bytes());
    bytes.extend(7777_u16.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

fn send(netns: &Netns, dst: IpAddr, bytes: &[u8]) {
    let raw = netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))));
    let dst = SockAddr::from(SocketAddr::new(dst, 0));
    raw.unwrap().unwrap().send_to(bytes, &dst).unwrap();
}

/// Source ports of the TCP packets that arrive, until that of `last`.
fn arrivals(receiver: &Socket, last: u16) -> Vec<u16> {
    let mut ports = Vec::new();
    loop {
        let mut bytes = [0; 128];
        let got = (&*receiver).read(&mut bytes).expect("the control arrives");
        let port = u16::from_be_bytes([bytes[20], bytes[21]]);
        if got >= 40 {
            ports.push(port);
        }
        if port == last {
            return ports;
        }
    }
}

fn receiver(netns: &Netns) -> Socket {
    let socket = netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)));
    let socket = socket.unwrap().unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    socket
}

#[test]
fn spoofed_sources_unapproved_syns_and_fragments_are_dropped() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let (pod, target) = (&world.pods[0], &world.pods[1]);
    let receiver = receiver(&target.netns);
    let spoofed: IpAddr = Ipv4Addr::new(10, 77, 0, 200).into();

    send(&pod.netns, target.v4, &syn(spoofed, target.v4, 1001));
    eventually("guard_source", || world.counter("guard_source") == 1);
    send(
        &pod.netns,
        target.v4,
        &packet(pod.v4, target.v4, 1002, 0x2000),
    );
    eventually("guard_malformed", || world.counter("guard_malformed") == 1);
    send(&pod.netns, target.v4, &syn(pod.v4, target.v4, 1003));
    world.kernel().set_destinations(&[target.v4], &[]).unwrap();
    send(&pod.netns, target.v4, &syn(pod.v4, target.v4, 1004));
    eventually("guard_syn", || world.counter("guard_syn") == 1);
    world.kernel().set_destinations(&[], &[target.v4]).unwrap();
    send(&pod.netns, target.v4, &syn(pod.v4, target.v4, 1005));

    assert_eq!(
        arrivals(&receiver, 1005),
        [1003, 1005],
        "controls arrive, nothing else"
    );
}

/// An IPv6 SYN, behind a destination options header if asked for.
fn syn6(src: IpAddr, dst: IpAddr, src_port: u16, options: bool) -> Vec<u8> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else {
        panic!("IPv6 only")
    };
    let extension: &[u8] = if options {
        &[6, 0, 1, 4, 0, 0, 0, 0]
    } else {
        &[]
    };
    let first = if options { 60 } else { 6 };
    let length = 20 + extension.len() as u8;
    let mut bytes = vec![0x60, 0, 0, 0, 0, length, first, 64];
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(extension);
    bytes.extend(src_port.to_be_bytes());
    bytes.extend(7777_u16.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

#[test]
fn the_same_holds_for_ipv6() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let (pod, target) = (&world.pods[0], &world.pods[1]);
    let raw = pod
        .netns
        .run(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(255))));
    let raw = raw.unwrap().unwrap();
    let receiver = target
        .netns
        .run(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::TCP)));
    let receiver = receiver.unwrap().unwrap();
    receiver
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    let send = |bytes: Vec<u8>| {
        let dst = SockAddr::from(SocketAddr::new(target.v6, 0));
        raw.send_to(&bytes, &dst).unwrap();
    };
    send(syn6("fd77::bad".parse().unwrap(), target.v6, 1001, false));
    eventually("guard_source", || world.counter("guard_source") == 1);
    send(syn6(pod.v6, target.v6, 1002, true));
    eventually("guard_malformed", || world.counter("guard_malformed") == 1);
    send(syn6(pod.v6, target.v6, 1003, false));
    world.kernel().set_destinations(&[target.v6], &[]).unwrap();
    send(syn6(pod.v6, target.v6, 1004, false));
    eventually("guard_syn", || world.counter("guard_syn") == 1);
    world.kernel().set_destinations(&[], &[target.v6]).unwrap();
    send(syn6(pod.v6, target.v6, 1005, false));

    // A raw IPv6 socket gives packets without their IP header: the source port comes first.
    let arrived = [(); 2].map(|()| {
        let mut bytes = [0; 128];
        (&receiver)
            .read_exact(&mut bytes[..20])
            .expect("the controls arrive");
        u16::from_be_bytes([bytes[0], bytes[1]])
    });
    assert_eq!(arrived, [1003, 1005], "controls arrive, nothing else");
}

#[test]
fn the_agent_passes_the_guard() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    let targets = [world.pods[1].v4, world.pods[1].v6];
    world.kernel().set_destinations(&targets, &[]).unwrap();
    world.as_agent(|world| {
        for ip in targets {
            let target = SocketAddr::new(ip, 15008);
            let socket = connect_socket(&world.pods[0].netns, Family::of(&target)).unwrap();
            socket.set_nonblocking(false).unwrap();
            socket.connect(&SockAddr::from(target)).unwrap();
            let (_, from) = accept(&world.pods[1].sockets.hbone);
            assert_eq!(
                from.port(),
                socket.local_addr().unwrap().as_socket().unwrap().port()
            );
        }
    });
    assert_eq!(world.counter("guard_syn"), 0);
}

#[test]
fn a_pod_that_is_released_is_no_longer_guarded() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    world
        .kernel()
        .detach_pod(pod.netns.cookie().unwrap())
        .unwrap();
    let before = world.counter("guard_source");
    let receiver = receiver(&world.node);
    let node: IpAddr = crate::world::NODE.parse().unwrap();
    send(
        &pod.netns,
        node,
        &syn(Ipv4Addr::new(10, 77, 0, 200).into(), node, 1006),
    );
    assert_eq!(arrivals(&receiver, 1006), [1006]);
    assert_eq!(world.counter("guard_source"), before);
    assert!(pod.netns.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn the_host_s_end_of_a_pod_s_link_is_found_from_inside() {
    let Some(world) = World::bare() else { return };
    for pod in &world.pods {
        let found = pod.netns.host_end(&world.node, &[pod.v4]).unwrap();
        assert_eq!(found, Some(pod.host_ifindex));
        assert!(pod.netns.has_address(&[pod.v6]).unwrap());
    }
    let pod = &world.pods[0];
    let stranger = &world.pods[1];
    let wrong = pod.netns.host_end(&world.node, &[stranger.v4]).unwrap();
    assert_eq!(wrong, None, "an address of another pod");
    let elsewhere = pod.netns.host_end(&stranger.netns, &[pod.v4]).unwrap();
    assert_eq!(elsewhere, None, "the other end is not there");
}
