//! The TLS handshake with peers that do not speak it, and bytes through it.

use std::{error::Error, sync::Arc, time::Duration};

use karst_hbone::{
    Blame, Connect, ConnectError, Flag, Pool, PoolConfig, PoolKey, Retry,
    tls::{TlsIo, peer_certificates, tls_accept, tls_connect},
};
use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::spawn_local,
};

use crate::{
    certs,
    rig::{key, local, request},
};

const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn both_sides_see_certificates_and_bytes_in_any_sizes() {
    let (client, server) = certs::configs();
    let (near, far) = duplex(300_000);
    let (client, server) = tokio::join!(
        tls_connect(near, client, TIMEOUT),
        tls_accept(far, server, TIMEOUT)
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(
        (
            peer_certificates(&client).len(),
            peer_certificates(&server).len()
        ),
        (1, 1)
    );
    for size in [1, 100, 20_000, 3_000_000, 17, 9_000_000, 1, 1] {
        let data: Vec<u8> = (0..size).map(|i| (i * 7 + i / 255) as u8).collect();
        let mut got = vec![0; size];
        let write = async {
            client.write_all(&data).await.unwrap();
            client.flush().await.unwrap();
        };
        let (read, ()) = tokio::join!(server.read_exact(&mut got), write);
        read.unwrap();
        assert!(got == data, "{size} bytes");
    }
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn peers_without_tls_are_refused() {
    let (_, server) = certs::configs();
    for bytes in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 100],
        &[0xff; 100],
        b"\x16\x03\x01\xff\xff",
    ] {
        let (mut near, far) = duplex(4096);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let error = tls_accept(far, server.clone(), TIMEOUT).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(_)), "{bytes:?}: {error}");
        assert_eq!(error.flag(), Flag::TlsFailure);
    }
}

#[tokio::test]
async fn a_peer_of_another_root_is_refused() {
    let ((client, _), (_, server)) = (certs::configs(), certs::configs());
    let (near, far) = duplex(1 << 16);
    let (client, server) = tokio::join!(
        tls_connect(near, client, TIMEOUT),
        tls_accept(far, server, TIMEOUT)
    );
    assert!(matches!(client.unwrap_err(), ConnectError::Tls(_)));
    assert!(matches!(server.unwrap_err(), ConnectError::Tls(_)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_the_timeout() {
    let (client, server) = certs::configs();
    let (_silent, io) = duplex(64);
    assert!(matches!(
        tls_accept(io, server, TIMEOUT).await.unwrap_err(),
        ConnectError::TlsTimeout(_)
    ));
    let (_silent, io) = duplex(1 << 16);
    assert!(matches!(
        tls_connect(io, client, TIMEOUT).await.unwrap_err(),
        ConnectError::TlsTimeout(_)
    ));
}

/// Dials a server that takes nobody.
struct Refused {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Connect for Refused {
    type Io = TlsIo<DuplexStream>;

    async fn connect(&self, _key: &PoolKey) -> Result<Self::Io, ConnectError> {
        let (near, far) = duplex(1 << 16);
        let server = self.server.clone();
        spawn_local(async move {
            assert!(tls_accept(far, server, TIMEOUT).await.is_err());
        });
        tls_connect(near, self.client.clone(), TIMEOUT).await
    }
}

#[tokio::test]
async fn a_peer_that_refuses_our_certificate_is_named() {
    local(async {
        let ((issuer, root), (another, _)) = (certs::authority(), certs::authority());
        let (client, server) = certs::between(&another, &issuer, &root);
        let pool = Pool::new(PoolConfig::default(), Refused { client, server });
        for _ in 0..2 {
            let opened = Box::pin(pool.open(key(), request())).await;
            let error = opened.err().unwrap();
            assert_eq!(error.flag(), Flag::TlsFailure);
            assert_eq!((error.blame(), error.retry()), (Blame::Peer, Retry::No));
            let mut cause: &dyn Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            let text = cause.to_string();
            assert!(
                text.starts_with("the peer refused our certificate: "),
                "{text}"
            );
        }
    })
    .await;
}
