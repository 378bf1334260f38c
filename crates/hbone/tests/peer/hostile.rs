//! Peers that mean harm: what they can make our server hold or do is bounded.

use bytes::Bytes;
use karst_hbone::{ServeError, ServerConfig};
use tokio::io::AsyncWriteExt as _;

use crate::{
    raw::{self, Raw},
    rig::{connect, local, serve},
};

#[tokio::test]
async fn what_is_no_http2_ends_in_the_handshake() {
    local(async {
        let openings: [&[u8]; 6] = [
            b"",
            b"PRI * HTTP/2.0\r\n",
            b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ];
        for bytes in openings {
            let mut served = serve(ServerConfig::default());
            let mut io = served.io();
            let _closed = io.write_all(bytes).await;
            drop(io);
            let outcome = served.task.await.unwrap();
            assert!(
                matches!(
                    outcome,
                    Err(ServeError::Handshake(_) | ServeError::Connection(_))
                ),
                "{bytes:?}: {outcome:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn broken_frames_end_the_connection_with_a_reason() {
    local(async {
        let long = [&[0x10, 0, 1, raw::DATA, 0][..], &1_u32.to_be_bytes()].concat();
        // The library calls a wrong size of these two a protocol error; either ends the connection.
        const SIZE: &[u32] = &[raw::FRAME_SIZE_ERROR, raw::PROTOCOL_ERROR];
        let cases: [(_, _, &[u32]); 10] = [
            (
                "longer than the agreed frame",
                long,
                &[raw::FRAME_SIZE_ERROR],
            ),
            (
                "PING of seven bytes",
                raw::frame(raw::PING, 0, 0, &[0; 7]),
                SIZE,
            ),
            (
                "SETTINGS of five bytes",
                raw::frame(raw::SETTINGS, 0, 0, &[0; 5]),
                SIZE,
            ),
            (
                "DATA on stream 0",
                raw::frame(raw::DATA, 0, 0, b"x"),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "DATA on an idle stream",
                raw::frame(raw::DATA, 0, 1, b"x"),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "a stream of even number",
                raw::connect(2, "10.0.0.1:80"),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "CONTINUATION of nothing",
                raw::frame(raw::CONTINUATION, 4, 1, &[]),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "PUSH_PROMISE by a client",
                raw::frame(raw::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "WINDOW_UPDATE of zero",
                raw::frame(raw::WINDOW_UPDATE, 0, 0, &[0; 4]),
                &[raw::PROTOCOL_ERROR],
            ),
            (
                "HPACK that leads nowhere",
                raw::frame(raw::HEADERS, 4, 1, &[0xff, 0xff, 0xff, 0x7f]),
                &[9, raw::PROTOCOL_ERROR],
            ),
        ];
        for (what, bytes, codes) in cases {
            let mut served = serve(ServerConfig::default());
            let mut peer = Raw::client(served.io()).await;
            peer.send(&bytes).await;
            let goaway = peer
                .find(&[raw::GOAWAY])
                .await
                .unwrap_or_else(|| panic!("{what}: no GOAWAY"));
            assert!(codes.contains(&goaway.code()), "{what}: {}", goaway.code());
            drop(peer);
            assert!(served.task.await.unwrap().is_err(), "{what}");
            assert!(served.incoming.try_recv().is_err(), "{what}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_frame_cut_short_is_the_end_of_its_connection() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        peer.send(&raw::connect(1, "10.0.0.1:80")).await;
        let tunnel = served.accept().await;
        peer.send(&raw::frame(raw::DATA, 0, 1, &[7; 1000])[..500])
            .await;
        drop(peer);
        let (mut reader, _writer) = tunnel.into_split();
        assert!(
            matches!(reader.data().await, Some(Err(_))),
            "a cut stream does not look finished"
        );
        let _either_way = served.task.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn rapid_reset_ends_with_enhance_your_calm() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let mut attack = Vec::new();
        for stream in (1..20_000).step_by(2) {
            attack.extend(raw::connect(stream, "10.0.0.1:80"));
            attack.extend(raw::frame(raw::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        peer.send(&attack).await;
        assert_eq!(
            peer.find(&[raw::GOAWAY]).await.unwrap().code(),
            raw::ENHANCE_YOUR_CALM
        );
        assert!(served.task.await.unwrap().is_err());
        assert!(
            served.incoming.len() <= 200,
            "{} requests reached the handler",
            served.incoming.len()
        );
    })
    .await;
}

#[tokio::test]
async fn slow_rapid_reset_ends_too() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let mut accepted = 0;
        for stream in (1..40_000).step_by(2) {
            peer.send(&raw::connect(stream, "10.0.0.1:80")).await;
            let Some(incoming) = served.incoming.recv().await else {
                break;
            };
            accepted += 1;
            peer.send(&raw::frame(
                raw::RST_STREAM,
                0,
                stream,
                &8_u32.to_be_bytes(),
            ))
            .await;
            let mut incoming = incoming;
            incoming.abandoned().await;
        }
        let outcome = served.task.await.unwrap();
        assert!(matches!(outcome, Err(ServeError::Abandoned)), "{outcome:?}");
        assert!(accepted < 5000, "{accepted} requests were taken");
        assert_eq!(
            peer.find(&[raw::GOAWAY]).await.unwrap().code(),
            raw::ENHANCE_YOUR_CALM
        );
    })
    .await;
}

#[tokio::test]
async fn huge_headers_are_refused() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let value = "x".repeat(15_000);
        let mut fields = vec![(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        fields.extend(std::iter::repeat_n(("baggage", value.as_str()), 6));
        peer.send(&raw::request(1, &fields)).await;
        let answer = peer
            .find(&[raw::HEADERS, raw::RST_STREAM, raw::GOAWAY])
            .await
            .unwrap();
        assert!(
            answer.kind != raw::HEADERS || answer.payload[0] != raw::STATUS_200,
            "{answer:?}"
        );
        assert!(served.incoming.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn endless_continuations_end_the_connection() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let mut attack = raw::frame(raw::HEADERS, 0, 1, &raw::block(&[(":method", "CONNECT")]));
        for _more in 0..10_000 {
            attack.extend(raw::frame(
                raw::CONTINUATION,
                0,
                1,
                &raw::block(&[("x", "y")]),
            ));
        }
        peer.send(&attack).await;
        let goaway = peer.find(&[raw::GOAWAY, raw::RST_STREAM]).await;
        assert!(goaway.is_some());
        assert!(served.task.await.unwrap().is_err());
        assert!(served.incoming.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_agreed_are_refused() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        for stream in (1..=401).step_by(2) {
            peer.send(&raw::connect(stream, "10.0.0.1:80")).await;
        }
        let reset = peer.find(&[raw::RST_STREAM]).await.unwrap();
        assert_eq!((reset.stream, reset.code()), (401, 7), "REFUSED_STREAM");
        assert_eq!(served.incoming.len(), 200);
    })
    .await;
}

/// A peer that opens every window as far as it goes and then reads nothing.
#[tokio::test]
async fn a_peer_that_does_not_read_costs_bounded_memory() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size((1 << 31) - 1)
            .initial_connection_window_size((1 << 31) - 1)
            .handshake::<_, Bytes>(served.io())
            .await
            .unwrap();
        let connection = tokio::task::spawn_local(async move {
            let _ended_by_the_test = connection.await;
        });
        let mut writers = Vec::new();
        let mut kept = Vec::new();
        for _stream in 0..100 {
            let (response, send) = connect(&client, "10.0.0.1:80").await;
            writers.push(served.accept().await.into_split());
            kept.push((response.await.unwrap(), send));
        }
        connection.abort();
        tokio::task::yield_now().await;
        let mut taken = 0;
        for (_reader, writer) in &mut writers {
            for _chunk in 0..10_000 {
                let mut chunk = Bytes::from(vec![0; writer.chunk_max()]);
                let size = chunk.len();
                let sent = futures_util::poll!(std::pin::pin!(std::future::poll_fn(
                    |cx| writer.poll_send(cx, &mut chunk)
                )));
                taken += size - chunk.len();
                if !matches!(sent, std::task::Poll::Ready(Ok(()))) {
                    break;
                }
            }
        }
        assert!(taken <= 64 << 20, "{taken} bytes were taken");
    })
    .await;
}

/// A peer whose application does not take what our peer sends: the window is the bound.
#[tokio::test]
async fn a_reader_that_does_not_read_holds_one_window() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (_response, mut send) = connect(&client, "10.0.0.1:80").await;
        let tunnel = served.accept().await;
        let mut sent = 0;
        loop {
            send.reserve_capacity(1 << 20);
            let capacity = tokio::time::timeout(
                std::time::Duration::from_millis(300),
                std::future::poll_fn(|cx| {
                    if send.capacity() > 0 {
                        std::task::Poll::Ready(Some(Ok(send.capacity())))
                    } else {
                        send.poll_capacity(cx)
                    }
                }),
            );
            let Ok(Some(Ok(capacity))) = capacity.await else {
                break;
            };
            send.send_data(vec![0; capacity].into(), false).unwrap();
            sent += capacity;
        }
        assert!((1 << 20..=(4 << 20)).contains(&sent), "{sent}");
        drop(tunnel);
    })
    .await;
}
