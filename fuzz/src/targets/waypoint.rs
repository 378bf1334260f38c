//! The first bytes of a client's connection, from which a waypoint tells what is spoken and where TLS goes.

use karst_waypoint::detect::{Guess, Hello, client_hello, guess, http_version};

use crate::Target;

/// First bytes of anything.
pub const FIRST_BYTES: Target = Target {
    name: "first_bytes",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    // Whoever asks for more gets an answer in the end: the question never goes in circles.
    for guess in [guess(bytes), http_version(bytes)] {
        if let Guess::More(wanted) = guess {
            assert!(wanted > bytes.len());
        }
    }
    match client_hello(bytes) {
        Hello::More(wanted) => assert!(wanted > bytes.len()),
        Hello::Name(Some(name)) => assert_eq!(name, name.to_ascii_lowercase()),
        Hello::Name(None) | Hello::Broken => {}
    }
    // What is known is not known otherwise when more has come.
    let known = guess(bytes);
    if matches!(known, Guess::Http2 | Guess::Tls) {
        assert_eq!(guess(&[bytes, b"more\n"].concat()), known);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut hello = vec![0x16, 3, 1, 0, 64, 1, 0, 0, 60, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, 17]);
    hello.extend([0, 0, 0, 13, 0, 11, 0, 0, 8]);
    hello.extend(b"shop.tst");
    vec![
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
        hello,
    ]
}
