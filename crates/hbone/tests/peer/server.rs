//! Our server against a well-behaved client: statuses, drain, pings.

use std::time::Duration;

use bytes::Bytes;
use karst_hbone::{Authority, ServeError, ServerConfig, error::Flag};
use karst_runtime::drain::Outcome;

use crate::{
    raw::{self, Raw},
    rig::{connect, local, serve, served_tunnel},
};

#[tokio::test]
async fn a_connect_reaches_the_handler_and_is_answered() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (response, _send) = connect(&client, "orders.shop.svc.cluster.local:8080").await;
        let incoming = served.incoming.recv().await.unwrap();
        assert_eq!(
            incoming.request.authority,
            Authority::Host("orders.shop.svc.cluster.local".into(), 8080)
        );
        incoming.reject(http::StatusCode::UNAUTHORIZED);
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(response.body().is_end_stream(), "an error ends the stream");

        let (response, _send) = connect(&client, "[fd00::1]:80").await;
        let incoming = served.incoming.recv().await.unwrap();
        assert_eq!(
            incoming.request.authority,
            Authority::Addr("[fd00::1]:80".parse().unwrap())
        );
        let tunnel = incoming
            .accept(Some("service.name=orders".parse().unwrap()))
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers()["baggage"].to_str().unwrap()
            ),
            (200, "service.name=orders")
        );
        assert!(!response.body().is_end_stream());
        drop(tunnel);
    })
    .await;
}

#[tokio::test]
async fn bad_requests_get_400_and_the_connection_lives() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let bad: [&[(&str, &str)]; 5] = [
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "10.0.0.1:80"),
            ],
            &[(":method", "CONNECT"), (":authority", "10.0.0.1:65536")],
            &[(":method", "CONNECT"), (":authority", "10.0.0.1:0")],
            &[(":method", "CONNECT"), (":authority", "10.0.0.1")],
            &[(":method", "CONNECT"), (":authority", "a..b:80")],
        ];
        let mut stream = 1;
        for fields in bad {
            peer.send(&raw::request(stream, fields)).await;
            let answer = peer.find(&[raw::HEADERS]).await.unwrap();
            assert_eq!(
                (answer.stream, answer.payload[0]),
                (stream, raw::STATUS_400),
                "{fields:?}"
            );
            assert_ne!(answer.flags & raw::END_STREAM, 0);
            stream += 2;
        }
        assert!(
            served.incoming.try_recv().is_err(),
            "no bad request reached the handler"
        );
        peer.send(&raw::connect(stream, "10.0.0.1:80")).await;
        let _tunnel = served.accept().await;
        assert_eq!(
            peer.find(&[raw::HEADERS]).await.unwrap().payload[0],
            raw::STATUS_200
        );
    })
    .await;
}

#[tokio::test]
async fn requests_that_http_forbids_are_refused_on_their_stream() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let bad: [&[(&str, &str)]; 3] = [
            &[(":method", "CONNECT")],
            &[
                (":method", "CONNECT"),
                (":protocol", "connect-udp"),
                (":scheme", "https"),
                (":path", "/"),
                (":authority", "a:80"),
            ],
            &[(":method", "CONNECT"), (":authority", "a b:80")],
        ];
        let mut stream = 1;
        for fields in bad {
            peer.send(&raw::request(stream, fields)).await;
            let answer = loop {
                // An answered stream is reset as well, since its body is not wanted.
                let frame = peer.find(&[raw::HEADERS, raw::RST_STREAM]).await.unwrap();
                if frame.stream == stream {
                    break frame;
                }
            };
            assert!(
                answer.kind == raw::RST_STREAM || answer.payload[0] == raw::STATUS_400,
                "{fields:?}: {answer:?}"
            );
            stream += 2;
        }
        assert!(served.incoming.try_recv().is_err());
        peer.send(&raw::connect(stream, "10.0.0.1:80")).await;
        let _tunnel = served.accept().await;
    })
    .await;
}

#[tokio::test]
async fn settings_are_what_the_mesh_agreed_on() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        let settings = peer.find(&[raw::SETTINGS]).await.unwrap().payload;
        let value = |id: u16| {
            let entry = settings
                .chunks(6)
                .find(|entry| entry[..2] == id.to_be_bytes());
            entry.map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
        };
        assert_eq!(value(3), Some(200), "max concurrent streams");
        assert_eq!(value(4), Some(4 << 20), "initial window");
        assert_eq!(value(5), Some(1 << 20), "max frame");
        assert_eq!(value(6), Some(64 << 10), "max header list");
        assert_ne!(value(8), Some(1), "extended CONNECT");
        let update = peer.find(&[raw::WINDOW_UPDATE]).await.unwrap();
        assert_eq!(
            u32::from_be_bytes(update.payload.try_into().unwrap()) + 65535,
            16 << 20,
            "connection window"
        );
    })
    .await;
}

#[tokio::test]
async fn a_ping_is_answered() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        peer.send(&raw::frame(raw::PING, 0, 0, b"12345678")).await;
        let pong = peer.find(&[raw::PING]).await.unwrap();
        assert_eq!(
            (pong.flags, pong.payload.as_slice()),
            (raw::ACK, b"12345678".as_slice())
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_pings_is_dropped() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let start = tokio::time::Instant::now();
        let mut peer = Raw::client(served.io()).await;
        assert_eq!(peer.find(&[raw::PING]).await.unwrap().flags, 0);
        assert_eq!(start.elapsed().as_secs(), 10);
        assert!(peer.find(&[raw::GOAWAY]).await.is_some());
        assert!(matches!(
            served.task.await.unwrap(),
            Err(ServeError::PingTimeout(_))
        ));
        assert_eq!(start.elapsed().as_secs(), 30);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_stays() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let mut peer = Raw::client(served.io()).await;
        for _ping in 0..100 {
            let ping = peer.find(&[raw::PING]).await.unwrap();
            peer.send(&raw::frame(raw::PING, raw::ACK, 0, &ping.payload))
                .await;
        }
        drop(peer);
        assert!(served.task.await.unwrap().is_ok());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_the_handshake_timeout() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let _silent = served.io();
        let error = served.task.await.unwrap().unwrap_err();
        assert!(matches!(error, ServeError::HandshakeTimeout(_)), "{error}");
        assert_eq!(error.flag(), Flag::H2HandshakeFailure);
    })
    .await;
}

#[tokio::test]
async fn drain_lets_streams_finish_and_takes_no_new_ones() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (tunnel, mut send, mut body) = served_tunnel(&mut served, &client).await;
        let drained = tokio::task::spawn_local(served.drain.drain(Duration::from_secs(5)));
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        let (mut reader, mut writer) = tunnel.into_split();
        send.send_data(Bytes::from_static(b"still here"), true)
            .unwrap();
        assert_eq!(reader.data().await.unwrap().unwrap(), "still here");
        assert!(reader.data().await.is_none());
        writer.send(Bytes::from_static(b"so am I")).await.unwrap();
        writer.finish().unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), "so am I");
        while let Some(end) = body.data().await {
            assert!(end.unwrap().is_empty());
        }
        drop((reader, writer, send, body));
        assert!(served.task.await.unwrap().is_ok());
        assert_eq!(drained.await.unwrap(), Outcome::Idle);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn drain_cuts_what_is_left_at_the_deadline() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (_tunnel, _send, mut body) = served_tunnel(&mut served, &client).await;
        let start = tokio::time::Instant::now();
        let _drained = tokio::task::spawn_local(served.drain.drain(Duration::from_secs(60)));
        assert!(matches!(
            served.task.await.unwrap(),
            Err(ServeError::DrainDeadline)
        ));
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(!matches!(body.data().await, Some(Ok(_))));
    })
    .await;
}

#[tokio::test]
async fn an_unanswered_request_is_reset() {
    local(async {
        let mut served = serve(ServerConfig::default());
        let client = served.client().await;
        let (response, _send) = connect(&client, "10.0.0.1:80").await;
        drop(served.incoming.recv().await.unwrap());
        assert!(response.await.unwrap_err().is_reset());

        let (response, send) = connect(&client, "10.0.0.1:80").await;
        let mut incoming = served.incoming.recv().await.unwrap();
        drop((response, send));
        incoming.abandoned().await;
    })
    .await;
}
