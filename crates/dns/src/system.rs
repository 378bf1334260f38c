//! The resolvers that the system names.

use std::{fs, net::SocketAddr};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as the C library asks.
const SERVERS_MAX: usize = 3;

/// The name servers of `/etc/resolv.conf`, in order; none where it cannot be read.
pub fn servers() -> Vec<SocketAddr> {
    parse(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::split_whitespace);
    let named = lines.filter_map(|mut words| match words.next() {
        Some("nameserver") => words.next()?.parse().ok(),
        _ => None,
    });
    let all = named.map(|ip| SocketAddr::new(ip, 53));
    all.take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_the_rest_is_not() {
        let text = "# nameserver 9.9.9.9\nsearch a.b\nnameserver 10.96.0.10\nnameserver fd00::1\nnameserver x\noptions ndots:5\n";
        let expected: Vec<SocketAddr> = vec![
            "10.96.0.10:53".parse().unwrap(),
            "[fd00::1]:53".parse().unwrap(),
        ];
        assert_eq!(parse(text), expected);
    }
}
