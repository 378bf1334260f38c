//! Maps filled to their bound: what finds no room is refused or captured, counted, and never let around the mesh.

use std::io::ErrorKind;
use std::net::SocketAddr;

use karst_ebpf_loader::{AttachError, Capture, MapError, MapSizes};

use crate::world::{World, accept, connect, is_idle, refusal};

/// A node whose maps have room for so little.
fn small(sizes: MapSizes) -> Option<World> {
    let mut world = World::bare()?;
    world.sizes = sizes;
    world.load();
    Some(world)
}

fn vip(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 99, 0, last], 80))
}

#[test]
fn a_pod_without_a_place_is_refused_by_name_and_gets_one_when_it_is_free() {
    let Some(world) = small(MapSizes {
        pods: 1,
        ..MapSizes::default()
    }) else {
        return;
    };
    world.attach(0, &Capture::default(), &[]);
    let refused = world.try_attach(1, &Capture::default(), &[]);
    assert!(matches!(refused, Err(AttachError::Full(1))), "{refused:?}");
    // Nobody else notices: the one is captured, the other as before.
    assert_eq!(world.kernel().attached().len(), 1);
    let app = world.pods[1].app("[::]:8080");
    connect(&world.outside, (world.pods[1].v4, 8080)).unwrap();
    assert!(app.accept().is_ok());
    connect(&world.outside, (world.pods[0].v4, 8080)).unwrap();
    accept(&world.pods[0].sockets.inbound);

    let first = world.pods[0].netns.cookie().unwrap();
    world.kernel().detach_pod(first).unwrap();
    world.attach(1, &Capture::default(), &[]);
    connect(&world.outside, (world.pods[1].v4, 8080)).unwrap();
    accept(&world.pods[1].sockets.inbound);
    assert!(is_idle(&app));
}

#[test]
fn a_destination_without_room_is_captured_all_the_same() {
    let Some(world) = small(MapSizes {
        destinations: 2,
        ..MapSizes::default()
    }) else {
        return;
    };
    world.attach(0, &Capture::default(), &[]);
    let kernel = world.kernel();
    let pod = &world.pods[0];
    let all = [1, 2, 3, 4].map(|last| vip(last).ip());
    assert_eq!(kernel.set_destinations(&all, &[]).unwrap(), 2);
    for last in 1..=4 {
        let client = connect(&pod.netns, vip(last)).unwrap();
        let (_stream, seen) = accept(&pod.sockets.outbound);
        let cookie = pod.netns.cookie().unwrap();
        assert_eq!(seen.port(), client.local_addr().unwrap().port());
        assert_eq!(kernel.take_orig_dst(cookie, seen), Some(vip(last)));
    }
    // What may be outside the mesh is captured too, for as long as nobody can tell.
    let stranger: SocketAddr = (world.pods[1].v4, 8080).into();
    let app = world.pods[1].app("[::]:8080");
    let _client = connect(&pod.netns, stranger).unwrap();
    accept(&pod.sockets.outbound);
    assert!(is_idle(&app));

    // With room again, everything finds it by itself.
    assert_eq!(kernel.set_destinations(&[], &all[..2]).unwrap(), 0);
    let mut held = kernel.destinations().unwrap();
    held.sort();
    assert_eq!(held, &all[2..]);
    let _direct = connect(&pod.netns, stranger).unwrap();
    assert!(app.accept().is_ok());
    connect(&pod.netns, vip(4)).unwrap();
    accept(&pod.sockets.outbound);
}

#[test]
fn connections_beyond_the_pending_ones_are_refused_and_counted() {
    let Some(world) = small(MapSizes {
        pending: 4,
        ..MapSizes::default()
    }) else {
        return;
    };
    world.attach(0, &Capture::default(), &[]);
    let kernel = world.kernel();
    kernel.set_destinations(&[vip(1).ip()], &[]).unwrap();
    let pod = &world.pods[0];
    // The agent accepts, and does not ask yet where they wanted to go.
    let waiting: Vec<_> = (0..4)
        .map(|_| connect(&pod.netns, vip(1)).unwrap())
        .collect();
    assert_eq!(
        refusal(&pod.netns, vip(1)),
        ErrorKind::ConnectionRefused,
        "the fifth"
    );
    assert!(world.counter("orig_dst_full") > 0);
    let cookie = pod.netns.cookie().unwrap();
    let (_stream, seen) = accept(&pod.sockets.outbound);
    assert_eq!(seen.port(), waiting[0].local_addr().unwrap().port());
    assert_eq!(kernel.take_orig_dst(cookie, seen), Some(vip(1)));
    connect(&pod.netns, vip(1)).expect("room again");
}

#[test]
fn exclusions_that_do_not_fit_leave_the_pod_as_it_was() {
    let Some(world) = small(MapSizes {
        exclusions: 3,
        ..MapSizes::default()
    }) else {
        return;
    };
    let many = Capture {
        exclude_inbound_ports: (1..=10).collect(),
        ..Capture::default()
    };
    let refused = world.try_attach(0, &many, &[]);
    assert!(
        matches!(
            refused,
            Err(AttachError::Map(MapError::Full {
                map: "EXCLUDED_PORTS"
            }))
        ),
        "{refused:?}"
    );
    assert!(world.kernel().attached().is_empty());
    let probes = world.try_attach(1, &Capture::default(), &[1, 2, 3, 4]);
    assert!(
        matches!(
            probes,
            Err(AttachError::Map(MapError::Full { map: "PROBE_PORTS" }))
        ),
        "{probes:?}"
    );
    // Nothing of either is left behind: all room is there again.
    let some = Capture {
        exclude_inbound_ports: vec![1, 2, 3],
        ..Capture::default()
    };
    world.attach(0, &some, &[]);
    let app = world.pods[0].app("[::]:3");
    connect(&world.outside, (world.pods[0].v4, 3)).unwrap();
    assert!(app.accept().is_ok());
}

#[test]
fn a_restart_keeps_capturing_everything_until_it_knows_better() {
    let Some(mut world) = small(MapSizes {
        destinations: 1,
        ..MapSizes::default()
    }) else {
        return;
    };
    world.attach(0, &Capture::default(), &[]);
    let two = [vip(1).ip(), vip(2).ip()];
    world.kernel().set_destinations(&two, &[]).unwrap();
    world.load();
    connect(&world.pods[0].netns, vip(2)).unwrap();
    accept(&world.pods[0].sockets.outbound);
}

#[test]
fn programs_for_pods_to_come_are_loaded_once() {
    let Some(world) = small(MapSizes::default()) else {
        return;
    };
    let kernel = world.kernel();
    let mut loaded = 0;
    while kernel.prepare().unwrap() {
        loaded += 1;
    }
    assert!((1..=8).contains(&loaded), "{loaded}");
    world.attach(0, &Capture::default(), &[]);
    connect(&world.outside, (world.pods[0].v4, 8080)).unwrap();
    accept(&world.pods[0].sockets.inbound);
    assert!(kernel.prepare().unwrap(), "one was used");
    assert!(!kernel.prepare().unwrap());
    // A place that is free again has its program already, and the next pod there is its own.
    let first = world.pods[0].netns.cookie().unwrap();
    kernel.detach_pod(first).unwrap();
    assert!(!kernel.prepare().unwrap());
    world.attach(1, &Capture::default(), &[]);
    connect(&world.outside, (world.pods[1].v4, 8080)).unwrap();
    accept(&world.pods[1].sockets.inbound);
    assert!(is_idle(world.pods[0].sockets.inbound.as_ref().unwrap()));
}
