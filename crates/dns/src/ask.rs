//! One question to one server: UDP, then TCP where the answer was cut.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::book::Answer;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Size of UDP answers that we announce: what passes a common link without fragments.
const UDP_PAYLOAD: u16 = 1232;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The configuration's fault.
    #[error("{0:?} is no name that can be asked for")]
    Name(String),
    #[error("the resolver {0} did not answer in 2 s")]
    Timeout(SocketAddr),
    #[error("the resolver {0} cannot be asked: {1}")]
    Io(SocketAddr, #[source] io::Error),
    #[error("the resolver {0} answered with {1}")]
    Refused(SocketAddr, ResponseCode),
    #[error("no resolver is known: /etc/resolv.conf names none")]
    NoServer,
}

/// Asks for addresses of both families. What one family says counts where the other fails.
pub(crate) async fn addresses(server: SocketAddr, host: &str) -> Result<Answer, AskError> {
    let name = Name::from_ascii(format!("{}.", host.trim_end_matches('.')))
        .map_err(|_malformed| AskError::Name(host.to_owned()))?;
    let (v4, v6) = tokio::join!(
        ask(server, &name, RecordType::A),
        ask(server, &name, RecordType::AAAA)
    );
    match (v4, v6) {
        (Ok(a), Ok(b)) => Ok(joined(a, b)),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) if one != Answer::Empty => Ok(one),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn joined(a: Answer, b: Answer) -> Answer {
    match (a, b) {
        (
            Answer::Found { mut addresses, ttl },
            Answer::Found {
                addresses: more,
                ttl: other,
            },
        ) => {
            addresses.extend(more);
            Answer::Found {
                addresses,
                ttl: ttl.min(other),
            }
        }
        (found @ Answer::Found { .. }, _) | (_, found @ Answer::Found { .. }) => found,
        _ => Answer::Empty,
    }
}

async fn ask(server: SocketAddr, name: &Name, record: RecordType) -> Result<Answer, AskError> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), record));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    query.set_edns(edns);
    let io = |error| AskError::Io(server, error);
    let bytes = query
        .to_vec()
        .map_err(|_too_long| AskError::Name(name.to_ascii()))?;
    let exchange = async {
        let answer = over_udp(server, &query, &bytes).await?;
        match answer.metadata.truncation {
            true => over_tcp(server, &query, &bytes).await,
            false => Ok(answer),
        }
    };
    let answer = timeout(PATIENCE, exchange).await;
    let answer = answer
        .map_err(|_elapsed| AskError::Timeout(server))?
        .map_err(io)?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(read(&answer, record)),
        ResponseCode::NXDomain => Ok(Answer::Empty),
        other => Err(AskError::Refused(server, other)),
    }
}

/// Every address of the asked type, whatever alias it stands under: the resolver has followed them.
fn read(answer: &Message, record: RecordType) -> Answer {
    let mut ttl = u32::MAX;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for one in &answer.answers {
        ttl = ttl.min(one.ttl);
        match (&one.data, record) {
            (RData::A(ip), RecordType::A) => addresses.push(IpAddr::V4(ip.0)),
            (RData::AAAA(ip), RecordType::AAAA) => addresses.push(IpAddr::V6(ip.0)),
            _ => {}
        }
    }
    match addresses.is_empty() {
        true => Answer::Empty,
        false => Answer::Found {
            addresses,
            ttl: Duration::from_secs(ttl.into()),
        },
    }
}

/// Whether a message answers this question: anybody may send to a UDP port.
fn answers(query: &Message, answer: &Message) -> bool {
    answer.metadata.id == query.metadata.id && answer.queries == query.queries
}

async fn over_udp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let unspecified = match server {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let socket = UdpSocket::bind(unspecified).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4_096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let message = buffer.get(..length).map(Message::from_vec);
        if let Some(Ok(message)) = message
            && answers(query, &message)
        {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut stream = TcpStream::connect(server).await?;
    let length =
        u16::try_from(bytes.len()).map_err(|_too_long| invalid("the question is too long"))?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let message = Message::from_vec(&buffer).map_err(|_malformed| invalid("no message of DNS"))?;
    match answers(query, &message) {
        true => Ok(message),
        false => Err(invalid("an answer to another question")),
    }
}
