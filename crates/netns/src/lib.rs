//! Enter a network namespace, open sockets there, socket options, cookies, cgroup ids.
