//! Addresses between Rust's types and the words that the programs compare.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use karst_ebpf_abi::{Address, Dialled};

/// IPv6 words in network order; IPv4 becomes v4-mapped.
pub(crate) fn words(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// The address that [`words`] came from; v4-mapped becomes IPv4.
pub(crate) fn ip(words: Address) -> IpAddr {
    let mut octets = [0; 16];
    for (bytes, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_ne_bytes();
    }
    IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
}

pub(crate) fn dialled(addr: SocketAddr) -> Dialled {
    Dialled {
        addr: words(addr.ip()),
        port: addr.port(),
        reserved: 0,
        left_ms: 0,
    }
}

pub(crate) fn socket_addr(dialled: Dialled) -> SocketAddr {
    SocketAddr::new(ip(dialled.addr), dialled.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_the_same_address() {
        for text in ["10.0.0.1", "fd00::1", "255.255.255.255"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(ip(words(addr)), addr);
        }
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(words(mapped), words("10.0.0.1".parse().unwrap()));
    }
}
