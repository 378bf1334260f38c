//! Port 53 of an enrolled pod, with and without the agent.

use std::net::{SocketAddr, UdpSocket};

use crate::world::{NODE, World, accept, connect};

fn resolvers() -> [SocketAddr; 2] {
    [
        SocketAddr::new(NODE.parse().unwrap(), 53),
        "[fd77::fe]:53".parse().unwrap(),
    ]
}

fn client(world: &World, resolver: SocketAddr) -> UdpSocket {
    let any = if resolver.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = world.pods[0]
        .netns
        .run(|| UdpSocket::bind(any))
        .unwrap()
        .unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    socket
}

#[test]
fn udp_goes_to_the_agent_and_the_answer_comes_from_the_resolver() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let agent = world.pods[0].sockets.dns_udp.as_ref().unwrap();
    let mut buffer = [0; 16];
    for resolver in resolvers() {
        let connected = client(&world, resolver);
        connected.connect(resolver).unwrap();
        connected.send(b"one").unwrap();
        let (_, from) = agent.recv_from(&mut buffer).unwrap();
        agent.send_to(b"answer", from).unwrap();
        assert_eq!(connected.recv_from(&mut buffer).unwrap(), (6, resolver));
        assert_eq!(connected.peer_addr().unwrap(), resolver);

        let unconnected = client(&world, resolver);
        unconnected.send_to(b"two", resolver).unwrap();
        let (_, from) = agent.recv_from(&mut buffer).unwrap();
        agent.send_to(b"answer", from).unwrap();
        assert_eq!(unconnected.recv_from(&mut buffer).unwrap(), (6, resolver));
    }
    assert_eq!(world.counter("dns"), 4);
}

#[test]
fn tcp_goes_to_the_agent() {
    let Some(world) = World::enrolled() else {
        return;
    };
    for resolver in resolvers() {
        let client = connect(&world.pods[0].netns, resolver).unwrap();
        assert_eq!(client.peer_addr().unwrap(), resolver);
        let (_, from) = accept(&world.pods[0].sockets.dns_tcp);
        let cookie = world.pods[0].netns.cookie().unwrap();
        assert_eq!(world.kernel().take_orig_dst(cookie, from), Some(resolver));
    }
}

#[test]
fn without_the_agent_the_resolver_is_asked() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    crate::world::close(&mut world.pods[0].sockets.dns_udp);
    crate::world::close(&mut world.pods[0].sockets.dns_tcp);
    let mut buffer = [0; 16];
    for addr in resolvers() {
        let resolver = world.node.run(|| UdpSocket::bind(addr)).unwrap().unwrap();
        resolver
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let asking = client(&world, addr);
        asking.connect(addr).unwrap();
        asking.send(b"one").unwrap();
        let (_, from) = resolver.recv_from(&mut buffer).unwrap();
        resolver.send_to(b"answer", from).unwrap();
        assert_eq!(asking.recv(&mut buffer).unwrap(), 6);

        let asking = client(&world, addr);
        asking.send_to(b"two", addr).unwrap();
        assert_eq!(resolver.recv(&mut buffer).unwrap(), 3);

        let server = world
            .node
            .run(|| std::net::TcpListener::bind(addr))
            .unwrap()
            .unwrap();
        connect(&world.pods[0].netns, addr).unwrap();
        assert!(server.accept().is_ok());
    }
}

#[test]
fn strangers_cannot_ask_the_agents_socket() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    let port = pod
        .sockets
        .dns_udp
        .as_ref()
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let stranger = world
        .outside
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    stranger.send_to(b"query", (pod.v4, port)).unwrap();
    crate::world::eventually("the query is refused", || {
        world.counter("listener_dialled") == 1
    });
}
