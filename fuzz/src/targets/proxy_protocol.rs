//! The header of the PROXY protocol.

use karst_hbone::proxy_protocol::{HEADER_MAX, Header, HeaderError, Parsed, parse};

use crate::Target;

/// The beginning of a connection.
pub const HEADER: Target = Target {
    name: "proxy_protocol",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let whole = parse(bytes);
    if let Ok(Parsed::Proxied { header, length }) = &whole {
        assert!((1..=HEADER_MAX).contains(length) && *length <= bytes.len());
        // What is written of it is read as the same again.
        let written = header.encode();
        let again = Parsed::Proxied {
            header: header.clone(),
            length: written.len(),
        };
        assert_eq!(parse(&written), Ok(again));
    }
    // More bytes change no verdict, and no prefix of a good header is called wrong.
    let half = parse(&bytes[..bytes.len() / 2]);
    match (&half, &whole) {
        (Ok(Parsed::Incomplete), _) => {}
        (early, late) => assert_eq!(early, late),
    }
    if let Err(HeaderError::TooLong(length)) = whole {
        assert!(length > HEADER_MAX);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let header = |source: &str, destination: &str, identity: Option<&str>| {
        let header = Header {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            identity: identity.map(|id| id.parse().expect("an identity")),
        };
        [header.encode().as_slice(), b"GET / HTTP/1.1\r\n"].concat()
    };
    vec![
        header("10.0.0.1:1000", "10.0.0.2:80", None),
        header(
            "[fd00::1]:1",
            "[fd00::2]:443",
            Some("spiffe://cluster.local/ns/shop/sa/front"),
        ),
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abcrest".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x0a\0\0\x01\x0a\0\0\x02\x03\xe8\0\x50\x04\0\x04xxxx"
            .to_vec(),
    ]
}
