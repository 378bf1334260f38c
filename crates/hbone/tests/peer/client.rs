//! Our pool against servers that behave, end, refuse, or fall silent.

use std::time::Duration;

use bytes::Bytes;
use h2::server::Builder;
use karst_hbone::{Flag, OpenError, PoolConfig, error::Retry, pool::state::Limits};

use crate::{
    raw::{self, Raw},
    rig::{client, h2_server, local},
};

#[tokio::test]
async fn first_requests_together_dial_once() {
    local(async {
        let mut client = client(PoolConfig::default());
        let opening: Vec<_> = (0..50).map(|_| client.open()).collect();
        let _server = h2_server(client.far_end().await, 200, Builder::new());
        let mut tunnels = Vec::new();
        for open in opening {
            tunnels.push(open.await.unwrap().unwrap());
        }
        assert_eq!((client.dials.get(), client.pool.connections()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn the_next_connection_comes_after_a_hundred_streams() {
    local(async {
        let mut client = client(PoolConfig::default());
        let opening: Vec<_> = (0..101).map(|_| client.open()).collect();
        let _first = h2_server(client.far_end().await, 200, Builder::new());
        let _second = h2_server(client.far_end().await, 200, Builder::new());
        let mut tunnels = Vec::new();
        for open in opening {
            tunnels.push(open.await.unwrap().unwrap());
        }
        assert_eq!(client.dials.get(), 2);
        drop(tunnels);
        client.open().await.unwrap().unwrap();
        assert_eq!(
            client.dials.get(),
            2,
            "closed streams gave their places back"
        );
    })
    .await;
}

#[tokio::test]
async fn only_200_opens_a_tunnel_and_a_refusal_gives_its_place_back() {
    local(async {
        let cfg = PoolConfig {
            limits: Limits {
                streams_per_connection: 1,
                ..PoolConfig::default().limits
            },
            ..PoolConfig::default()
        };
        for (status, flag) in [
            (401, Flag::Deny),
            (503, Flag::Connect),
            (204, Flag::Connect),
            (302, Flag::Connect),
        ] {
            let mut client = client(cfg.clone());
            let first = client.open();
            let _server = h2_server(client.far_end().await, status, Builder::new());
            let error = first.await.unwrap().err().unwrap();
            assert!(
                matches!(error, OpenError::Status(code) if code == status),
                "{error}"
            );
            assert_eq!(error.flag(), flag);
            for _again in 0..5 {
                assert!(client.open().await.unwrap().is_err());
            }
            assert_eq!(client.dials.get(), 1, "status {status}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_servers_stream_limit_is_respected() {
    local(async {
        let mut client = client(PoolConfig::default());
        let mut limited = Builder::new();
        limited.max_concurrent_streams(1);
        let first = client.open();
        let _first_server = h2_server(client.far_end().await, 200, limited);
        let first = first.await.unwrap().unwrap();
        let second = client.open();
        let _second_server = h2_server(client.far_end().await, 200, Builder::new());
        second.await.unwrap().unwrap();
        drop(first);
        assert_eq!(client.dials.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_half_dropped_tunnel_keeps_its_place() {
    local(async {
        let cfg = PoolConfig {
            limits: Limits {
                streams_per_connection: 1,
                ..PoolConfig::default().limits
            },
            ..PoolConfig::default()
        };
        let mut client = client(cfg);
        let open = client.open();
        let _first = h2_server(client.far_end().await, 200, Builder::new());
        let (reader, writer) = open.await.unwrap().unwrap().into_split();
        drop(writer);
        let open = client.open();
        let _second = h2_server(client.far_end().await, 200, Builder::new());
        let second = open.await.unwrap().unwrap();
        assert_eq!(
            client.dials.get(),
            2,
            "the reader still holds the first place"
        );
        drop((reader, second));
        client.open().await.unwrap().unwrap();
        assert_eq!(client.dials.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn after_goaway_streams_live_and_new_ones_go_elsewhere() {
    local(async {
        let mut client = client(PoolConfig::default());
        let open = client.open();
        let mut server = h2_server(client.far_end().await, 200, Builder::new());
        let (mut reader, mut writer) = open.await.unwrap().unwrap().into_split();
        let (mut far_send, mut far_body) = server.streams.recv().await.unwrap();
        server.goaway.send(()).unwrap();
        let mut second_server = None;
        while client.dials.get() == 1 {
            let open = client.open();
            tokio::select! {
                opened = open => drop(opened.unwrap().unwrap()),
                far = client.far_end() => second_server = Some(h2_server(far, 200, Builder::new())),
            }
        }
        client.open().await.unwrap().unwrap();
        writer.send(Bytes::from_static(b"ping")).await.unwrap();
        assert_eq!(far_body.data().await.unwrap().unwrap(), "ping");
        far_send
            .send_data(Bytes::from_static(b"pong"), true)
            .unwrap();
        assert_eq!(reader.data().await.unwrap().unwrap(), "pong");
        drop(second_server);
    })
    .await;
}

#[tokio::test]
async fn a_failed_dial_is_shared_and_not_repeated_by_those_who_waited() {
    local(async {
        let mut client = client(PoolConfig::default());
        client.far_ends.close();
        let opening: Vec<_> = (0..20).map(|_| client.open()).collect();
        for open in opening {
            let error = open.await.unwrap().err().unwrap();
            assert_eq!(
                (error.flag(), error.retry()),
                (Flag::Connect, Retry::OtherConnection)
            );
        }
        assert_eq!(client.pool.connections(), 0);
        assert!(client.dials.get() <= 20);
    })
    .await;
}

#[tokio::test]
async fn an_abandoned_dial_is_taken_over_by_a_waiter() {
    local(async {
        let mut client = client(PoolConfig::default());
        let pool = client.pool.clone();
        let mut first = Box::pin(pool.open(crate::rig::key(), crate::rig::request()));
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        let second = client.open();
        tokio::task::yield_now().await;
        drop(first);
        drop(client.far_end().await);
        let _server = h2_server(client.far_end().await, 200, Builder::new());
        second.await.unwrap().unwrap();
        assert_eq!(client.dials.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn garbage_and_early_ends_are_errors_not_hangs() {
    local(async {
        let garbage: [&[u8]; 5] = [
            b"",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            &[0; 64],
            &[0xff; 64],
        ];
        for bytes in garbage {
            let mut client = client(PoolConfig::default());
            let mut open = client.open();
            let error = loop {
                tokio::select! {
                    far = client.far_end() => Raw { io: far }.send(bytes).await,
                    opened = &mut open => break opened.unwrap().err().unwrap(),
                }
            };
            assert!(
                matches!(
                    error,
                    OpenError::Attempts(_) | OpenError::Request(_) | OpenError::Dial(_)
                ),
                "{bytes:?}: {error}"
            );
            assert!(matches!(
                error.flag(),
                Flag::Connect | Flag::H2HandshakeFailure
            ));
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_request_is_not_sent_again_unless_refused() {
    local(async {
        for (code, dials) in [(2_u32, 1), (7, 2)] {
            let mut client = client(PoolConfig::default());
            let open = client.open();
            let mut peer = Raw {
                io: client.far_end().await,
            };
            peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[])).await;
            let mut preface = [0; raw::PREFACE.len()];
            tokio::io::AsyncReadExt::read_exact(&mut peer.io, &mut preface)
                .await
                .unwrap();
            assert_eq!(preface, raw::PREFACE);
            let request = peer.find(&[raw::HEADERS]).await.unwrap();
            peer.send(&raw::frame(
                raw::RST_STREAM,
                0,
                request.stream,
                &code.to_be_bytes(),
            ))
            .await;
            let _server = if dials == 2 {
                Some(h2_server(client.far_end().await, 200, Builder::new()))
            } else {
                None
            };
            assert_eq!(open.await.unwrap().is_ok(), dials == 2);
            assert_eq!(client.dials.get(), dials);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_let_go_after_five_minutes() {
    local(async {
        let mut client = client(PoolConfig::default());
        let open = client.open();
        let server = h2_server(client.far_end().await, 200, Builder::new());
        let tunnel = open.await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(client.pool.connections(), 1, "a stream is open");
        drop(tunnel);
        let start = tokio::time::Instant::now();
        server.task.await.unwrap();
        assert!(
            (300..=310).contains(&start.elapsed().as_secs()),
            "{:?}",
            start.elapsed()
        );
        while client.pool.connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_dropped_by_pings_and_by_the_response_timeout() {
    local(async {
        let mut client = client(PoolConfig::default());
        let open = client.open();
        let peer = client.far_end().await;
        let start = tokio::time::Instant::now();
        let error = open.await.unwrap().err().unwrap();
        assert!(matches!(error, OpenError::ResponseTimeout(_)), "{error}");
        assert_eq!(start.elapsed().as_secs(), 20);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(client.pool.connections(), 0);
        drop(peer);
    })
    .await;
}

#[tokio::test]
async fn full_pools_refuse() {
    local(async {
        let limits = Limits {
            connections: 1,
            waiters: 0,
            streams_per_connection: 1,
            ..PoolConfig::default().limits
        };
        let mut client = client(PoolConfig {
            limits,
            ..PoolConfig::default()
        });
        let first = client.open();
        let waiter = client.open();
        assert!(matches!(waiter.await.unwrap(), Err(OpenError::Waiters(0))));
        let _server = h2_server(client.far_end().await, 200, Builder::new());
        let tunnel = first.await.unwrap().unwrap();
        assert!(matches!(
            client.open().await.unwrap(),
            Err(OpenError::Connections(1))
        ));
        assert_eq!(
            (
                client.pool.counters().refused_connections,
                client.pool.counters().refused_waiters
            ),
            (1, 1)
        );
        drop(tunnel);
        client.open().await.unwrap().unwrap();
    })
    .await;
}

mod first_bytes {
    //! Bytes that are known before the tunnel: with the request where the connection is alive, after the answer else,
    //! and never twice.

    use super::*;
    use crate::{raw::Frame, rig::Client};

    const FIRST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

    fn open(client: &Client) -> tokio::task::JoinHandle<Result<karst_hbone::Tunnel, OpenError>> {
        let pool = client.pool.clone();
        tokio::task::spawn_local(async move {
            let (key, request) = (crate::rig::key(), crate::rig::request());
            pool.open_with(key, request, &Bytes::from_static(FIRST))
                .await
        })
    }

    /// The far end of a connection, past its preface.
    async fn peer(client: &mut Client) -> Raw {
        let mut peer = Raw {
            io: client.far_end().await,
        };
        peer.send(&raw::frame(raw::SETTINGS, 0, 0, &[])).await;
        let mut preface = [0; raw::PREFACE.len()];
        tokio::io::AsyncReadExt::read_exact(&mut peer.io, &mut preface)
            .await
            .unwrap();
        peer
    }

    /// Answers 200 and leaves the stream open.
    async fn answer(peer: &mut Raw, request: &Frame) {
        peer.send(&raw::frame(
            raw::HEADERS,
            raw::END_HEADERS,
            request.stream,
            &[raw::STATUS_200],
        ))
        .await;
    }

    /// A connection that has just answered, so that bytes ride on it.
    async fn warm(client: &mut Client) -> Raw {
        let first = open(client);
        let mut peer = peer(client).await;
        let request = peer.find(&[raw::HEADERS]).await.unwrap();
        answer(&mut peer, &request).await;
        let data = peer.find(&[raw::DATA]).await.unwrap();
        assert_eq!(
            data.payload, FIRST,
            "after the answer on a fresh connection"
        );
        first.await.unwrap().unwrap();
        peer
    }

    #[tokio::test]
    async fn they_ride_with_the_request_once_the_connection_has_answered() {
        local(async {
            let mut client = client(PoolConfig::default());
            let mut peer = warm(&mut client).await;
            let second = open(&client);
            let request = peer.find(&[raw::HEADERS]).await.unwrap();
            let data = peer.find(&[raw::DATA]).await.unwrap();
            assert_eq!((data.stream, &data.payload[..]), (request.stream, FIRST));
            answer(&mut peer, &request).await;
            second.await.unwrap().unwrap();
            assert_eq!(client.dials.get(), 1);
        })
        .await;
    }

    #[tokio::test]
    async fn they_are_sent_again_only_where_the_peer_says_that_it_did_not_take_them() {
        let goaway_before_it = raw::frame(raw::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        for (last_words, dials) in [(Some(goaway_before_it), 2), (None, 1)] {
            local(async {
                let mut client = client(PoolConfig::default());
                let mut peer = warm(&mut client).await;
                let second = open(&client);
                peer.find(&[raw::HEADERS]).await.unwrap();
                peer.find(&[raw::DATA]).await.unwrap();
                if let Some(goaway) = last_words {
                    peer.send(&goaway).await;
                }
                drop(peer);
                if dials == 2 {
                    let mut server = h2_server(client.far_end().await, 200, Builder::new());
                    second.await.unwrap().unwrap();
                    let (_send, mut body) = server.streams.recv().await.unwrap();
                    assert_eq!(body.data().await.unwrap().unwrap(), FIRST);
                } else {
                    let error = second.await.unwrap().err().unwrap();
                    assert!(matches!(error, OpenError::Request(_)), "{error}");
                }
                assert_eq!(client.dials.get(), dials);
            })
            .await;
        }
    }
}
