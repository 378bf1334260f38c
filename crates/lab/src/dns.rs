//! Cluster DNS for pods outside the mesh, and for agents to forward to: one small server per node, UDP and TCP, at the
//! cluster DNS address. Names outside the cluster are refused at once with NXDOMAIN, as nothing leaves the lab.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

use crate::{LabError, addressing::CLUSTER_DNS, network, services::Zone};

/// Seconds that answers may be kept; short, as the lab changes.
const TTL: u32 = 5;
/// TCP connections at once per node; further ones are closed.
const MOST_CONNECTIONS: usize = 64;
/// What a client may be silent for on TCP.
const IDLE: Duration = Duration::from_secs(5);

/// The zone as all servers share it; replaced as a whole.
pub(crate) type SharedZone = Arc<RwLock<Arc<Zone>>>;

/// Starts the servers of a node. They run until the process ends.
pub(crate) fn serve(node_netns: &str, zone: &SharedZone) -> Result<(), LabError> {
    for address in [IpAddr::from(CLUSTER_DNS.0), IpAddr::from(CLUSTER_DNS.1)] {
        let bind = || -> io::Result<(UdpSocket, TcpListener)> {
            let addr = SocketAddr::new(address, 53);
            Ok((UdpSocket::bind(addr)?, TcpListener::bind(addr)?))
        };
        let sockets = network::inside(node_netns, bind)?;
        let (udp, tcp) = sockets.map_err(LabError::io(format!(
            "cluster DNS on {address} in {node_netns}"
        )))?;
        let (for_udp, for_tcp) = (Arc::clone(zone), Arc::clone(zone));
        std::thread::spawn(move || serve_udp(&udp, &for_udp));
        std::thread::spawn(move || serve_tcp(&tcp, &for_tcp));
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, zone: &SharedZone) {
    let mut buffer = [0; 4096];
    loop {
        // Errors here are those of earlier answers (nobody listens there any more): the next query is unharmed.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(answer) = answer(&current(zone), &buffer[..length], Transport::Udp) {
            let _client_gone = socket.send_to(&answer, client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, zone: &SharedZone) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if open.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (zone, open) = (Arc::clone(zone), Arc::clone(&open));
        std::thread::spawn(move || {
            let _client_gone = serve_stream(stream, &zone);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn serve_stream(mut stream: TcpStream, zone: &SharedZone) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query)?;
        let Some(answer) = answer(&current(zone), &query, Transport::Tcp) else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
    }
}

fn current(zone: &SharedZone) -> Arc<Zone> {
    Arc::clone(&zone.read().unwrap_or_else(PoisonError::into_inner))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// The answer to one query; `None` for what is no query. Pure.
fn answer(zone: &Zone, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    response.add_query(question.clone());
    if query.metadata.op_code == OpCode::Query {
        let (code, records) = lookup(zone, question.name(), question.query_type());
        response.metadata.response_code = code;
        response.add_answers(records);
    } else {
        response.metadata.response_code = ResponseCode::NotImp;
    }
    let bytes = response.to_vec().ok()?;
    let limit = usize::from(
        query
            .edns
            .as_ref()
            .map_or(512, |edns| edns.max_payload().max(512)),
    );
    if transport == Transport::Udp && bytes.len() > limit {
        return response.truncate().to_vec().ok();
    }
    Some(bytes)
}

fn lookup(zone: &Zone, name: &Name, kind: RecordType) -> (ResponseCode, Vec<Record>) {
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if let Some(target) = zone.aliases.get(&text) {
        let Ok(target) = Name::from_ascii(format!("{target}.")) else {
            return (ResponseCode::ServFail, Vec::new());
        };
        // Clients do not follow an alias themselves: what is known of its target comes along.
        let mut records = addresses_of(zone, &target, kind).unwrap_or_default();
        let alias = RData::CNAME(CNAME(target));
        records.insert(0, Record::from_rdata(name.clone(), TTL, alias));
        return (ResponseCode::NoError, records);
    }
    match addresses_of(zone, name, kind) {
        Some(records) => (ResponseCode::NoError, records),
        None => (ResponseCode::NXDomain, Vec::new()),
    }
}

/// The records of a name that has addresses; `None` for a name that is not known.
fn addresses_of(zone: &Zone, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let addresses = zone.addresses.get(&text)?;
    let data = addresses
        .iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
            (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
            _ => None,
        });
    Some(
        data.map(|data| Record::from_rdata(name.clone(), TTL, data))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn ask(name: &str, kind: RecordType, hosts: u8) -> Message {
        let addresses = (0..hosts)
            .map(|host| IpAddr::from([10, 96, 1, host]))
            .collect();
        let zone = Zone {
            addresses: [("web.a.svc.cluster.local".to_owned(), addresses)].into(),
            ..Zone::default()
        };
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        Message::from_vec(&answer(&zone, &query.to_vec().unwrap(), Transport::Udp).unwrap())
            .unwrap()
    }

    #[test]
    fn known_names_answer_and_others_do_not_exist() {
        assert_eq!(
            ask("WEB.a.svc.cluster.local.", RecordType::A, 1)
                .answers
                .len(),
            1
        );
        let other_type = ask("web.a.svc.cluster.local.", RecordType::AAAA, 1);
        assert_eq!(
            (other_type.metadata.response_code, other_type.answers.len()),
            (ResponseCode::NoError, 0)
        );
        assert_eq!(
            ask("example.com.", RecordType::A, 1).metadata.response_code,
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn too_long_for_udp_is_said_to_be_so() {
        assert!(
            ask("web.a.svc.cluster.local.", RecordType::A, 200)
                .metadata
                .truncation
        );
    }

    #[test]
    fn garbage_gets_no_answer() {
        assert!(answer(&Zone::default(), b"garbage", Transport::Udp).is_none());
        assert!(answer(&Zone::default(), &[], Transport::Tcp).is_none());
    }
}
