//! Namespaces entered for real: needs root, fails without it unless KARST_SKIP_ROOT_TESTS is set.
#![expect(
    unsafe_code,
    reason = "unshare(2) has no safe wrapper for the calling thread"
)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use karst_netns::{
    Family, Netns, cgroup_exists, cgroup_id, cgroup2_root, connect_socket, dropped_datagrams,
    local_connect_socket, netns_cookie, own_cgroup_id, raise_nofile_limit, socket_cookie,
    steered_listener, tcp_listener, udp_socket,
};

/// How long what must happen at once may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A fresh namespace, made on a thread of its own; `None` when the variable allows the skip.
fn fresh() -> Option<Netns> {
    if std::env::var_os("KARST_SKIP_ROOT_TESTS").is_some() {
        return None;
    }
    let made = thread::spawn(|| {
        // SAFETY: only the network namespace of this short-lived thread changes.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "needs root, or KARST_SKIP_ROOT_TESTS");
        Netns::current().expect("own namespace")
    });
    Some(made.join().expect("namespace made"))
}

#[test]
fn run_enters_and_returns_even_after_a_panic() {
    let Some(ns) = fresh() else { return };
    let home = Netns::current().unwrap().inode().unwrap();
    let inside = ns
        .run(|| Netns::current().unwrap().inode().unwrap())
        .unwrap();
    assert_eq!(inside, ns.inode().unwrap());
    assert_ne!(inside, home);

    let panicked = std::panic::catch_unwind(|| ns.run(|| panic!("inside")));
    assert!(panicked.is_err());
    assert_eq!(Netns::current().unwrap().inode().unwrap(), home);
}

#[test]
fn a_thread_that_remembers_its_home_returns_there_from_any_depth() {
    let (Some(outer), Some(inner)) = (fresh(), fresh()) else {
        return;
    };
    let here = || Netns::current().unwrap().inode().unwrap();
    thread::spawn(move || {
        let home = here();
        Netns::remember_home().unwrap();
        for _ in 0..2 {
            let within = outer.run(|| {
                assert_eq!(inner.run(here).unwrap(), inner.inode().unwrap());
                here()
            });
            assert_eq!(within.unwrap(), outer.inode().unwrap());
            assert_eq!(here(), home);
        }
        let panicked = std::panic::catch_unwind(|| outer.run(|| panic!("inside")));
        assert!(panicked.is_err());
        assert_eq!(here(), home);
    })
    .join()
    .unwrap();
}

#[test]
fn sockets_belong_to_the_namespace_they_were_asked_for() {
    let Some(ns) = fresh() else { return };
    let cookie = ns.cookie().unwrap();
    assert_ne!(cookie, Netns::current().unwrap().cookie().unwrap());
    let sockets: [std::os::fd::OwnedFd; 4] = [
        tcp_listener(&ns, 0).unwrap().into(),
        steered_listener(&ns).unwrap().into(),
        udp_socket(&ns, 0).unwrap().into(),
        connect_socket(&ns, Family::V6).unwrap().into(),
    ];
    for socket in &sockets {
        assert_eq!(netns_cookie(socket.as_fd()).unwrap(), cookie);
    }
    assert_ne!(
        socket_cookie(sockets[0].as_fd()).unwrap(),
        socket_cookie(sockets[1].as_fd()).unwrap()
    );
}

#[test]
fn clients_that_are_connected_to_a_port_are_ended_and_no_others() {
    let Some(ns) = fresh() else { return };
    let up = || {
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
    };
    assert!(ns.run(up).unwrap().unwrap().success());
    let (wanted, other) = (udp_socket(&ns, 0).unwrap(), udp_socket(&ns, 0).unwrap());
    let port = |of: &UdpSocket| of.local_addr().unwrap().port();
    let client = |host: &str, to: &UdpSocket| {
        let any = if host == "::1" { "[::]:0" } else { "0.0.0.0:0" };
        let socket = ns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        socket.connect((host, port(to))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let ends = [client("127.0.0.1", &wanted), client("::1", &wanted)];
    let stays = client("127.0.0.1", &other);
    assert_eq!(ns.end_udp_clients(port(&wanted)).unwrap(), 2);
    for client in ends {
        let error = client.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }
    stays.send(b"still there").unwrap();
    assert_eq!(ns.end_udp_clients(port(&wanted)).unwrap(), 0);
}

#[test]
fn thousands_of_datagrams_wait_and_what_does_not_fit_is_counted() {
    let Some(ns) = fresh() else { return };
    let up = || {
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
    };
    assert!(ns.run(up).unwrap().unwrap().success());
    let socket = udp_socket(&ns, 0).unwrap();
    let client = ns.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
    let to = ("127.0.0.1", socket.local_addr().unwrap().port());
    let send =
        |count: u32| (0..count).for_each(|_| assert_eq!(client.send_to(b"query", to).unwrap(), 5));
    let mut buffer = [0; 16];
    let mut waiting = || {
        (0_u32..)
            .find(|_| socket.recv(&mut buffer).is_err())
            .unwrap()
    };

    send(4_000);
    assert_eq!(waiting(), 4_000);
    assert_eq!(dropped_datagrams(socket.as_fd()).unwrap(), 0);
    send(10_000);
    let kept = waiting();
    assert_eq!(dropped_datagrams(socket.as_fd()).unwrap(), 10_000 - kept);
    assert!(kept < 10_000, "the buffer has a bound");
}

#[test]
fn nobody_dials_a_steered_listener() {
    let Some(ns) = fresh() else { return };
    let home = Netns::current().unwrap();
    let plain = tcp_listener(&home, 0).unwrap();
    let port = plain.local_addr().unwrap().port();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());

    let steered = steered_listener(&home).unwrap();
    let port = steered.local_addr().unwrap().port();
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop(ns);
}

#[test]
fn sockets_are_ready_for_the_data_path() {
    let Some(ns) = fresh() else { return };
    let home = Netns::current().unwrap();
    let listener = tcp_listener(&home, 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let accepted = loop {
        match listener.accept() {
            Ok((accepted, _)) => break accepted,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    };
    assert!(accepted.nodelay().unwrap(), "inherited from the listener");

    let abroad = connect_socket(&ns, Family::V4).unwrap();
    let at_home = local_connect_socket(&ns, Family::V4).unwrap();
    for socket in [&abroad, &at_home] {
        assert!(socket.tcp_nodelay().unwrap() && socket.nonblocking().unwrap());
    }
    assert!(abroad.keepalive().unwrap() && !at_home.keepalive().unwrap());
}

#[test]
fn a_file_that_is_no_namespace_is_named() {
    if fresh().is_none() {
        return;
    }
    let error = Netns::open("/etc/hostname").unwrap_err();
    assert!(error.to_string().contains("/etc/hostname"), "{error}");
}

#[test]
fn cgroup_ids_and_limits_are_read() {
    let root = cgroup2_root().unwrap();
    assert_eq!(
        cgroup_id(&root).unwrap(),
        cgroup_id(root.join(Path::new("."))).unwrap()
    );
    let own = own_cgroup_id().unwrap();
    assert!(cgroup_exists(&root, own) && !cgroup_exists(&root, u64::MAX));
    let (before, after) = raise_nofile_limit(1 << 16).unwrap();
    assert!(after >= before);
}
