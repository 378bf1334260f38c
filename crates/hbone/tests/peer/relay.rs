//! The relay between a real socket and a tunnel whose other end is the `h2` library.

use std::{io::ErrorKind, rc::Rc};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use karst_hbone::{End, Flow, RelayEnd, ServerConfig, copy_tcp, relay};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, spawn_local},
};

use crate::{
    raw::{self, Raw},
    rig::{Served, local, serve, served_tunnel},
};

struct Rig {
    app: TcpStream,
    send: SendStream<Bytes>,
    body: RecvStream,
    flow: Rc<Flow>,
    relay: JoinHandle<RelayEnd>,
    _served: Served,
    _client: h2::client::SendRequest<Bytes>,
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

async fn rig() -> Rig {
    let mut served = serve(ServerConfig::default());
    let client = served.client().await;
    let (tunnel, send, body) = served_tunnel(&mut served, &client).await;
    let (app, ours) = tcp_pair().await;
    let flow = Rc::new(Flow::default());
    let relay = spawn_local({
        let flow = Rc::clone(&flow);
        async move { relay(ours, tunnel, &flow).await }
    });
    Rig {
        app,
        send,
        body,
        flow,
        relay,
        _served: served,
        _client: client,
    }
}

async fn rest(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        all.extend(bytes);
    }
    Ok(all)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test]
async fn the_application_may_close_first() {
    local(async {
        let mut rig = rig().await;
        rig.app.write_all(b"question").await.unwrap();
        rig.app.shutdown().await.unwrap();
        assert_eq!(rest(&mut rig.body).await.unwrap(), b"question");
        rig.send
            .send_data(Bytes::from_static(b"answer"), true)
            .unwrap();
        let mut answer = Vec::new();
        rig.app.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let end = rig.relay.await.unwrap();
        assert!(matches!(end.end, End::Finished), "{end:?}");
        assert_eq!((end.sent, end.received), (8, 6));
    })
    .await;
}

#[tokio::test]
async fn the_peer_may_close_first() {
    local(async {
        let mut rig = rig().await;
        rig.send
            .send_data(Bytes::from_static(b"question"), true)
            .unwrap();
        let mut question = Vec::new();
        rig.app.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        rig.app.write_all(b"answer").await.unwrap();
        rig.app.shutdown().await.unwrap();
        assert_eq!(rest(&mut rig.body).await.unwrap(), b"answer");
        assert!(matches!(rig.relay.await.unwrap().end, End::Finished));
    })
    .await;
}

#[tokio::test]
async fn much_data_arrives_whole_both_ways_at_once() {
    local(async {
        const SIZE: usize = 24 << 20;
        let Rig {
            app,
            mut send,
            mut body,
            relay,
            ..
        } = rig().await;
        let (mut app_read, mut app_write) = app.into_split();
        let up = async {
            app_write.write_all(&pattern(SIZE)).await.unwrap();
            app_write.shutdown().await.unwrap();
        };
        let down = async {
            let mut data = Bytes::from(pattern(SIZE));
            while !data.is_empty() {
                send.reserve_capacity(data.len());
                let capacity = std::future::poll_fn(|cx| match send.capacity() {
                    0 => send.poll_capacity(cx),
                    capacity => std::task::Poll::Ready(Some(Ok(capacity))),
                });
                let part = capacity.await.unwrap().unwrap().min(data.len());
                send.send_data(data.split_to(part), false).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
        };
        let read = async {
            let mut all = Vec::new();
            app_read.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), (), arrived, uploaded) = tokio::join!(up, down, read, rest(&mut body));
        assert!(arrived == pattern(SIZE) && uploaded.unwrap() == pattern(SIZE));
        let end = relay.await.unwrap();
        assert_eq!((end.sent, end.received), (SIZE as u64, SIZE as u64));
    })
    .await;
}

#[tokio::test]
async fn cancel_after_data_is_an_end_that_loses_nothing() {
    local(async {
        for code in [8_u32, 0] {
            let mut served = serve(ServerConfig::default());
            let mut peer = Raw::settled_client(served.io()).await;
            peer.send(&raw::connect(1, "10.0.0.1:80")).await;
            let tunnel = served.accept().await;
            let (mut app, ours) = tcp_pair().await;
            let relay = spawn_local(async move { relay(ours, tunnel, &Flow::default()).await });
            let data = pattern(3 << 20);
            for part in data.chunks(1 << 20) {
                peer.send(&raw::frame(raw::DATA, 0, 1, part)).await;
            }
            peer.send(&raw::frame(raw::RST_STREAM, 0, 1, &code.to_be_bytes()))
                .await;
            app.write_all(b"nobody wants this").await.unwrap();
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            assert!(
                got == data,
                "code {code}: {} bytes of {}",
                got.len(),
                data.len()
            );
            app.shutdown().await.unwrap();
            assert!(matches!(relay.await.unwrap().end, End::Finished));
        }
    })
    .await;
}

/// Envoy ends a tunnel so when its server has closed before the client.
#[tokio::test]
async fn an_end_of_the_application_after_the_peers_reset_loses_nothing() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::settled_client(served.io()).await;
        peer.send(&raw::connect(1, "10.0.0.1:80")).await;
        let tunnel = served.accept().await;
        let (mut app, ours) = tcp_pair().await;
        // So that much is still to be delivered when the application's end is seen.
        socket2::SockRef::from(&ours)
            .set_send_buffer_size(128 << 10)
            .unwrap();
        socket2::SockRef::from(&app)
            .set_recv_buffer_size(128 << 10)
            .unwrap();
        let data = pattern(3 << 20);
        for (n, part) in data.chunks(1 << 20).enumerate() {
            let flags = if n == 2 { raw::END_STREAM } else { 0 };
            peer.send(&raw::frame(raw::DATA, flags, 1, part)).await;
        }
        peer.send(&raw::frame(raw::RST_STREAM, 0, 1, &0_u32.to_be_bytes()))
            .await;
        peer.send(&raw::frame(raw::PING, 0, 0, &[7; 8])).await;
        // The answer comes after the reset was read.
        while peer.find(&[raw::PING]).await.unwrap().payload != [7; 8] {}
        app.shutdown().await.unwrap();
        let relay = spawn_local(async move { relay(ours, tunnel, &Flow::default()).await });
        let mut got = Vec::new();
        app.read_to_end(&mut got).await.unwrap();
        assert!(got == data, "{} bytes of {}", got.len(), data.len());
        assert!(matches!(relay.await.unwrap().end, End::Finished));
    })
    .await;
}

#[tokio::test]
async fn a_reset_by_the_peer_reaches_the_application() {
    local(async {
        let mut rig = rig().await;
        rig.app.write_all(b"x").await.unwrap();
        assert_eq!(rig.body.data().await.unwrap().unwrap(), "x");
        rig.send.send_reset(Reason::CONNECT_ERROR);
        let error = rig.app.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(matches!(rig.relay.await.unwrap().end, End::Tunnel(_)));
    })
    .await;
}

#[tokio::test]
async fn a_reset_after_the_peers_end_reaches_the_application() {
    local(async {
        let mut rig = rig().await;
        rig.send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(rig.app.read(&mut [0; 8]).await.unwrap(), 0);
        rig.send.send_reset(Reason::INTERNAL_ERROR);
        assert!(matches!(rig.relay.await.unwrap().end, End::Tunnel(_)));
    })
    .await;
}

#[tokio::test]
async fn a_reset_by_the_application_reaches_the_peer() {
    local(async {
        let mut rig = rig().await;
        rig.app.set_zero_linger().unwrap();
        drop(rig.app);
        let error = rest(&mut rig.body).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
        assert!(matches!(rig.relay.await.unwrap().end, End::App(_)));
    })
    .await;
}

#[tokio::test]
async fn a_cut_flow_is_reset_on_both_sides() {
    local(async {
        let mut rig = rig().await;
        rig.flow.cut();
        assert!(matches!(rig.relay.await.unwrap().end, End::Cut));
        assert_eq!(
            rig.app.read(&mut [0; 8]).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert_eq!(
            rest(&mut rig.body).await.unwrap_err().reason(),
            Some(Reason::CONNECT_ERROR)
        );
    })
    .await;
}

#[tokio::test]
async fn two_sockets_half_close_and_reset() {
    local(async {
        let (mut a, near) = tcp_pair().await;
        let (far, mut b) = tcp_pair().await;
        let copy = spawn_local(async move { copy_tcp(near, far, &Flow::default()).await });
        let data = pattern(5 << 20);
        let mut got = Vec::new();
        let write = async {
            a.write_all(&data).await.unwrap();
            a.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(b.read_to_end(&mut got), write);
        assert_eq!((read.unwrap(), got == data), (data.len(), true));
        b.write_all(b"answer").await.unwrap();
        drop(b);
        let mut answer = String::new();
        a.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let end = copy.await.unwrap();
        assert!(matches!(end.end, End::Finished));
        assert_eq!((end.sent, end.received), (data.len() as u64, 6));

        let (mut a, near) = tcp_pair().await;
        let (far, b) = tcp_pair().await;
        let copy = spawn_local(async move { copy_tcp(near, far, &Flow::default()).await });
        b.set_zero_linger().unwrap();
        drop(b);
        assert_eq!(
            a.read(&mut [0; 8]).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert!(matches!(copy.await.unwrap().end, End::Upstream(_)));
    })
    .await;
}

/// The future of one relay is what an idle connection costs most.
#[tokio::test]
async fn an_idle_relay_is_small() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (tunnel, _send, _body) = served_tunnel(&mut served, &client).await;
        let (_app, ours) = tcp_pair().await;
        let flow = Flow::default();
        let size = size_of_val(&relay(ours, tunnel, &flow));
        assert!(size <= 640, "{size} bytes");
    })
    .await;
}
