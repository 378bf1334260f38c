//! Asks the cluster's resolver. The socket is opened in the pod's own namespace, so that the pod's routes, its source
//! address and network policies hold.

use std::{io, net::SocketAddr, time::Duration};

use karst_netns::{Family, Netns};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// How long it may take until the resolver has been asked and has answered, before the client gets SERVFAIL.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest DNS message (RFC 1035 section 4.2.2: two bytes of length).
const MAX_MESSAGE: usize = 65_535;

/// How the client asked; the resolver is asked the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Sends `query` to `resolver` from inside `netns` as soon as there is a slot, and returns the answer unaltered.
pub(crate) async fn ask(
    (netns, slots): (&Netns, &Semaphore),
    resolver: SocketAddr,
    query: &[u8],
    over: Transport,
) -> io::Result<Vec<u8>> {
    let asked = async {
        let _slot = slots.acquire().await.map_err(io::Error::other)?;
        match over {
            Transport::Udp => ask_udp(netns, resolver, query).await,
            Transport::Tcp => ask_tcp(netns, resolver, query).await,
        }
    };
    timeout(PATIENCE, asked).await.map_err(|_elapsed| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the resolver {resolver} did not answer in 5 s"),
        )
    })?
}

async fn ask_udp(netns: &Netns, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let unspecified = match resolver {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let socket = netns.run(|| -> io::Result<_> {
        let socket = std::net::UdpSocket::bind(unspecified)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })??;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Only an answer to this question: the identifier must be ours.
        if length >= 12 && query.get(..2) == buffer.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(netns: &Netns, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = karst_netns::connect_socket(netns, Family::of(&resolver))?;
    let mut stream: TcpStream = tokio::net::TcpSocket::from_std_stream(socket.into())
        .connect(resolver)
        .await?;
    write_framed(&mut stream, query).await?;
    read_framed(&mut stream).await
}

/// Writes a DNS message with its two bytes of length.
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_too_long| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "a DNS message is longer than 65,535 bytes",
        )
    })?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Reads a DNS message with its two bytes of length.
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
