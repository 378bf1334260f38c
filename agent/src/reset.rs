//! Ends a TCP connection with a reset, so that the peer sees an error and not an orderly end of data.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Closes with RST (RFC 9293 section 3.10.4; `SO_LINGER` of zero).
pub(crate) fn close(stream: TcpStream) {
    // When the option cannot be set the socket is gone already.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
