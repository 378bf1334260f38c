//! The resolver against a server of our own: both families, cut answers over TCP, names that change, servers that fail.
#![expect(clippy::disallowed_methods, reason = "a test has no supervisor")]

use std::sync::atomic::AtomicUsize;

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the server says; the count tells which question it is.
type Say = fn(name: &str, record: RecordType, count: usize, answer: &mut Message);

fn add(answer: &mut Message, data: RData) {
    let owner = answer.queries[0].name().clone();
    answer.add_answer(Record::from_rdata(owner, 1, data));
}

fn answer_to(bytes: &[u8], say: Say, count: usize) -> Message {
    let query = Message::from_vec(bytes).unwrap();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_query(query.queries[0].clone());
    let name = query.queries[0].name().to_ascii();
    say(&name, query.queries[0].query_type(), count, &mut answer);
    answer
}

/// UDP cuts everything above 512 bytes; TCP says all.
async fn server(say: Say) -> SocketAddr {
    // TCP chooses: its clients of other tests hold ports as well, those of UDP next to none.
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(addr).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let of_udp = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            let count = of_udp.fetch_add(1, Ordering::Relaxed);
            let answer = answer_to(&buffer[..length], say, count);
            let mut bytes = answer.to_vec().unwrap();
            if bytes.len() > 512 {
                bytes = answer.truncate().to_vec().unwrap();
            }
            // Somebody else's answer comes first: it is not taken.
            let mut forged = bytes.clone();
            forged[0] ^= 0xff;
            udp.send_to(&forged, client).await.unwrap();
            udp.send_to(&bytes, client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await.unwrap();
            let bytes = answer_to(&query, say, 0).to_vec().unwrap();
            let framed = [
                &u16::try_from(bytes.len()).unwrap().to_be_bytes(),
                &bytes[..],
            ]
            .concat();
            stream.write_all(&framed).await.unwrap();
        }
    });
    addr
}

fn start(servers: Vec<SocketAddr>) -> Arc<Resolver> {
    let limits = Limits {
        ttl: (Duration::from_millis(20), Duration::from_secs(1)),
        retry: (Duration::from_millis(20), Duration::from_millis(100)),
        ..Limits::default()
    };
    let resolver = Arc::new(Resolver::new(servers, limits));
    let running = resolver.clone();
    tokio::spawn(async move { running.run().await });
    resolver
}

fn both(name: &str, record: RecordType, _count: usize, answer: &mut Message) {
    match (name, record) {
        ("api.example.com.", RecordType::A) => add(answer, RData::A(A::new(192, 0, 2, 1))),
        ("api.example.com.", RecordType::AAAA) => add(
            answer,
            RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        ),
        ("many.example.com.", RecordType::A) => {
            for n in 0..500_u16 {
                let [high, low] = n.to_be_bytes();
                add(answer, RData::A(A::new(10, 1, high, low)));
            }
        }
        ("none.example.com.", _) => {}
        ("api.example.com.", _) | ("many.example.com.", _) => {}
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
}

#[tokio::test]
async fn names_are_resolved_to_all_of_their_addresses() {
    let resolver = start(vec![server(both).await]);
    let found = resolver.resolve("api.example.com", PATIENCE).await.unwrap();
    let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(&found[..], expected);
    let many = resolver
        .resolve("many.example.com", PATIENCE)
        .await
        .unwrap();
    assert_eq!(many.len(), 500, "what UDP cut came over TCP");
    for none in ["none.example.com", "unknown.example.com"] {
        assert_eq!(
            resolver.resolve(none, PATIENCE).await.unwrap().len(),
            0,
            "{none}"
        );
    }
    let literal = resolver.resolve("192.0.2.9", PATIENCE).await.unwrap();
    assert_eq!(literal[0].to_string(), "192.0.2.9");
    assert_eq!(resolver.counts().failed, 0);
}

#[tokio::test]
async fn a_pinned_name_is_followed_and_keeps_its_addresses_while_the_server_fails() {
    let moves: Say = |_, record, count, answer| match (record, count) {
        (RecordType::A, 0..6) => add(answer, RData::A(A::new(192, 0, 2, 1))),
        (_, 6..30) => answer.metadata.response_code = ResponseCode::ServFail,
        (RecordType::A, _) => add(answer, RData::A(A::new(192, 0, 2, 2))),
        _ => {}
    };
    let resolver = start(vec![server(moves).await]);
    let mut changes = resolver.changes();
    resolver.pin(["a.example".into()].into());
    assert_eq!(&*changes.recv().await.unwrap(), "a.example");
    assert_eq!(
        resolver.look("a.example").unwrap()[0].to_string(),
        "192.0.2.1"
    );
    // The next change is the move: the failures between are none.
    assert_eq!(&*changes.recv().await.unwrap(), "a.example");
    assert_eq!(
        resolver.look("a.example").unwrap()[0].to_string(),
        "192.0.2.2"
    );
    assert!(resolver.counts().failed > 0);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_fails_and_none_is_an_answer_too() {
    let broken: Say = |_, _, _, answer| answer.metadata.response_code = ResponseCode::Refused;
    let resolver = start(vec![server(broken).await, server(both).await]);
    assert_eq!(
        resolver
            .resolve("api.example.com", PATIENCE)
            .await
            .unwrap()
            .len(),
        2
    );
    let nobody = start(Vec::new());
    assert_eq!(
        nobody
            .resolve("api.example.com", Duration::from_millis(50))
            .await,
        None
    );
    assert!(nobody.counts().failing > 0);
}
