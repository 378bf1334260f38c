//! The TLS layer of a tunnel connection: handshake with a deadline, on a socket that reads in bulk.
//!
//! Which certificate is shown and which peers are accepted is in the `rustls` configurations, which `karst-identity`
//! makes. Used by the agent's dialler and listener.

use std::{net::IpAddr, net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer, pki_types::ServerName},
};

use crate::{MAX_FRAME, bulk_io::BulkIo, error::ConnectError};

/// Plaintext that `rustls` takes in one go, in bytes: one largest frame with its header becomes one batch of records
/// and one system call.
const WRITE_BATCH: usize = MAX_FRAME as usize + (64 << 10);

/// TLS over a bulk-reading socket.
pub type TlsIo<T> = tokio_rustls::TlsStream<BulkIo<T>>;

/// Shakes hands as the client. No server name is sent: the peer is known by its SPIFFE identity.
///
/// # Errors
/// [`ConnectError::Tls`] where the peer, its certificate or its protocol is not acceptable, [`ConnectError::TlsTimeout`].
pub async fn tls_connect<T>(
    tcp: T,
    cfg: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<TlsIo<T>, ConnectError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // A name is demanded by the API; `enable_sni` is off in the configuration and the verifier does not look at it.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let handshake = TlsConnector::from(cfg).connect(name, BulkIo::new(tcp));
    let mut tls = tokio::time::timeout(timeout, handshake)
        .await
        .map_err(|_elapsed| ConnectError::TlsTimeout(timeout))?
        .map_err(ConnectError::Tls)?;
    tls.get_mut().1.set_buffer_limit(Some(WRITE_BATCH));
    Ok(tls.into())
}

/// Shakes hands as the server.
///
/// # Errors
/// As [`tls_connect`].
pub async fn tls_accept<T>(
    tcp: T,
    cfg: Arc<ServerConfig>,
    timeout: Duration,
) -> Result<TlsIo<T>, ConnectError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(cfg).accept(BulkIo::new(tcp));
    let mut tls = tokio::time::timeout(timeout, handshake)
        .await
        .map_err(|_elapsed| ConnectError::TlsTimeout(timeout))?
        .map_err(ConnectError::Tls)?;
    tls.get_mut().1.set_buffer_limit(Some(WRITE_BATCH));
    Ok(tls.into())
}

/// The certificates that the peer showed, leaf first; empty without a client certificate.
pub fn peer_certificates<T>(tls: &TlsIo<T>) -> &[CertificateDer<'static>] {
    tls.get_ref().1.peer_certificates().unwrap_or_default()
}
