//! Headers between hops: which address trusted proxies say the client has, and what ends at this hop.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Header in which proxies append the address that they saw.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What `Connection` may name in vain: a client must not take away what others rely on.
const KEPT: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::AUTHORIZATION,
    FORWARDED_FOR,
];

/// The client's address: with `trusted_proxies` = n the nth entry of `x-forwarded-for` from the right, which the
/// outermost of n trusted proxies wrote. The peer's own address if n is zero, or if there is no such entry that can be
/// read: then nobody trusted has said anything.
pub fn remote_ip(headers: &HeaderMap, peer: IpAddr, trusted_proxies: usize) -> IpAddr {
    let Some(from_right) = trusted_proxies.checked_sub(1) else {
        return peer.to_canonical();
    };
    let values = headers.get_all(FORWARDED_FOR);
    let lines: Option<Vec<&str>> = values.iter().map(|value| value.to_str().ok()).collect();
    let entry = lines.as_ref().and_then(|lines| {
        let mut entries = lines.iter().rev().flat_map(|line| line.rsplit(','));
        entries.nth(from_right)
    });
    entry
        .and_then(|entry| read_address(entry.trim()))
        .unwrap_or(peer)
        .to_canonical()
}

fn read_address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let ip = bare.parse().ok();
    ip.or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))
}

/// Whether a request to change protocols goes on to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// The caller carries the new protocol through.
    Keep,
    Drop,
}

/// Removes what concerns only the connection that it came on (RFC 9110 section 7.6.1), all that `Connection` names
/// included. A kept `Upgrade` stays with its `Connection`, and `TE: trailers` stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: Upgrade) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    let protocol = headers
        .get(header::UPGRADE)
        .cloned()
        .filter(|_| upgrade == Upgrade::Keep && named.contains(&header::UPGRADE));
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        })
    });
    for name in &named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}
