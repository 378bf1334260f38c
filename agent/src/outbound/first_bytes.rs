//! What an application has already sent when its connection is accepted: it travels with the request for the tunnel.

use std::{cell::RefCell, io::Read as _};

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Most bytes that are taken, in bytes: they are not under the peer's flow control until it has answered.
const ROOM: usize = 16 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into_boxed_slice());
}

/// Takes what is there without waiting; empty where nothing is, the application has closed, or its socket has failed,
/// which the relay finds out again.
///
/// The socket is asked directly: tokio does not know yet whether a fresh one is readable.
pub(super) fn take(stream: &TcpStream) -> Bytes {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut socket = &*SockRef::from(stream);
        let read = socket.read(scratch).unwrap_or(0);
        Bytes::copy_from_slice(&scratch[..read])
    })
}
