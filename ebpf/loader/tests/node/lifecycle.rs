//! Restart, release and removal.

use std::io::ErrorKind;
use std::net::SocketAddr;

use karst_ebpf_loader::{Capture, Kernel};

use crate::world::{Sockets, World, accept, connect, output, refusal};

#[test]
fn a_restart_keeps_pods_and_destinations_and_lets_nothing_through() {
    let Some(mut world) = World::enrolled() else {
        return;
    };
    let vip: SocketAddr = "10.99.0.5:80".parse().unwrap();
    world.kernel().set_destinations(&[vip.ip()], &[]).unwrap();
    let app = world.pods[0].app("[::]:8080");
    let before = world.kernel().attached();
    assert_eq!(before.len(), 2);
    let programs = programs(&world);

    // The agent dies: its listeners close, its programs stay.
    world.kernel = None;
    let sockets = &mut world.pods[0].sockets;
    for listener in [
        &mut sockets.hbone,
        &mut sockets.inbound,
        &mut sockets.outbound,
    ] {
        crate::world::close(listener);
    }
    let pod = &world.pods[0];
    assert_eq!(
        refusal(&world.outside, (pod.v4, 8080)),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(refusal(&pod.netns, vip), ErrorKind::ConnectionRefused);

    world.load();
    assert_eq!(world.kernel().attached(), before);
    assert_eq!(world.kernel().destinations().unwrap(), [vip.ip()]);
    assert_ne!(
        self::programs(&world),
        programs,
        "every program was replaced"
    );
    assert_eq!(
        refusal(&world.outside, (world.pods[0].v4, 8080)),
        ErrorKind::ConnectionRefused
    );

    let sockets = Sockets::open(&world.pods[0].netns);
    world.pods[0].sockets = sockets;
    world.attach(0, &Capture::default(), &[]);
    connect(&world.outside, (world.pods[0].v4, 8080)).unwrap();
    accept(&world.pods[0].sockets.inbound);
    connect(&world.pods[0].netns, vip).unwrap();
    accept(&world.pods[0].sockets.outbound);
    assert!(crate::world::is_idle(&app));
}

/// Program ids behind the pinned links, by link.
fn programs(world: &World) -> Vec<String> {
    let links = std::fs::read_dir(&world.pin_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut links: Vec<_> = links
        .filter(|path| {
            path.to_str().unwrap().contains("/link_karst")
                || path.to_str().unwrap().contains("/pod_")
        })
        .collect();
    links.sort();
    let shown = links.iter().map(|path| {
        output(
            "bpftool",
            &format!("-j link show pinned {}", path.display()),
        )
    });
    let ids = shown.map(|json| {
        json.split("\"prog_id\":")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .to_owned()
    });
    ids.collect()
}

#[test]
fn a_released_pod_is_as_before() {
    let Some(world) = World::enrolled() else {
        return;
    };
    let pod = &world.pods[0];
    let app = pod.app("[::]:8080");
    let cookie = pod.netns.cookie().unwrap();
    let held = connect(&world.outside, (pod.v4, 8080)).unwrap();
    world.kernel().detach_pod(cookie).unwrap();
    world.kernel().detach_pod(cookie).unwrap();
    connect(&world.outside, (pod.v4, 8080)).unwrap();
    assert!(app.accept().is_ok());
    assert_eq!(world.kernel().attached().len(), 1);
    drop(held);
}

#[test]
fn removal_leaves_nothing() {
    let Some(mut world) = World::bare() else {
        return;
    };
    let state = world.node_state();
    world.load();
    world.attach(0, &Capture::default(), &[8080]);
    world.attach(1, &Capture::default(), &[]);
    // A tcx link is pinned and no tool of the node shows it; a clsact qdisc shows.
    let pins = std::fs::read_dir(&world.pin_dir).unwrap().flatten();
    let guards = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("guard_"));
    assert!(
        guards.count() == 2 || world.node_state() != state,
        "guarded"
    );
    let map = output(
        "bpftool",
        &format!("-j map show pinned {}/PODS", world.pin_dir.display()),
    );
    let map_id = map
        .split("\"id\":")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .to_owned();
    let program_ids = programs(&world);
    assert_eq!(program_ids.len(), 11);

    world.kernel = None;
    world
        .node
        .run(|| Kernel::remove(&world.pin_dir))
        .unwrap()
        .unwrap();
    assert!(!world.pin_dir.exists());
    assert_eq!(world.node_state(), state);
    // The kernel frees programs after a grace period.
    crate::world::eventually("programs and maps are freed", || {
        let maps = output("bpftool", "-j map show");
        let programs = output("bpftool", "-j prog show");
        !maps.contains(&format!("\"id\":{map_id},"))
            && program_ids
                .iter()
                .all(|id| !programs.contains(&format!("{{\"id\":{id},")))
    });
    assert!(
        world
            .node
            .run(|| Kernel::remove(&world.pin_dir))
            .unwrap()
            .is_ok(),
        "again is fine"
    );
}

#[test]
fn a_directory_outside_bpffs_is_refused_by_name() {
    let Some(mut world) = World::bare() else {
        return;
    };
    let pins = std::mem::replace(
        &mut world.pin_dir,
        std::env::temp_dir().join("karst-no-bpffs"),
    );
    let cfg = karst_ebpf_loader::KernelConfig {
        pin_dir: world.pin_dir.clone(),
        cgroup_root: karst_netns::cgroup2_root().unwrap(),
        agent_cgroup_id: 1,
        earlier_agent_cgroup_id: None,
        host_netns_cookie: 1,
        kubelet_cgroup_ids: Vec::new(),
        sizes: world.sizes,
    };
    let error = Kernel::load(&cfg).err().unwrap().to_string();
    std::fs::remove_dir_all(&world.pin_dir).unwrap();
    assert!(error.contains("mount -t bpf"), "{error}");
    world.pin_dir = pins;
}

#[test]
fn the_self_test_names_every_feature_and_leaves_nothing() {
    if std::env::var_os("KARST_SKIP_ROOT_TESTS").is_some() {
        return;
    }
    let features = karst_ebpf_loader::probe::self_test();
    assert_eq!(features.len(), 8, "{features:?}");
    for feature in features {
        assert_eq!(feature.result, Ok(()), "{}", feature.name);
    }
    let pins = format!("/sys/fs/bpf/karst-self-test-{}", std::process::id());
    assert!(!std::path::Path::new(&pins).exists());
}
