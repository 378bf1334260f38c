//! Reads what tcpdump captured, as far as the proofs need it: TCP segments, and what their bytes look like.
//!
//! A capture file is the classic pcap format in the machine's own byte order, with Ethernet or Linux "cooked" frames.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

/// A capture in microseconds, written by a machine of our byte order.
const MAGIC: u32 = 0xa1b2_c3d4;
const FILE_HEAD: usize = 24;
const RECORD_HEAD: usize = 16;

/// One TCP segment that opens a direction of a connection or carries payload.
#[derive(Clone)]
struct Segment {
    at: SystemTime,
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    opens: bool,
    payload: Vec<u8>,
}

/// What was captured.
pub(crate) struct Capture {
    segments: Vec<Segment>,
}

/// What [`Capture::tls13`] found on a port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) connections: usize,
    pub(crate) records: usize,
}

/// One direction of one connection.
struct Stream {
    from: SocketAddr,
    to: SocketAddr,
    /// Sequence number of the first byte.
    start: u32,
    /// Whether its first byte was captured.
    whole: bool,
    /// Segments by the offset of their first byte.
    parts: BTreeMap<u32, Vec<u8>>,
}

impl Capture {
    /// Reads a capture file; one that is still being written gives what is there.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&bytes).with_context(|| format!("reading {}", file.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let magic = word(bytes, 0).context("the capture is empty")?;
        ensure!(
            magic == MAGIC,
            "not a capture in microseconds of this machine's byte order"
        );
        let link = word(bytes, 20).context("the capture's head is cut off")?;
        let mut segments = Vec::new();
        let mut rest = bytes.get(FILE_HEAD..).unwrap_or_default();
        while let (Some(at), Some(length)) = (time(rest), word(rest, 8)) {
            let end = RECORD_HEAD + length as usize;
            let Some(frame) = rest.get(RECORD_HEAD..end) else {
                break;
            };
            segments.extend(segment(frame, link, at));
            rest = &rest[end..];
        }
        Ok(Self { segments })
    }

    /// The part of it that travelled between two of these addresses.
    pub(crate) fn among(&self, addresses: &[IpAddr]) -> Self {
        let known = |end: SocketAddr| addresses.contains(&end.ip());
        self.only(|segment| known(segment.from) && known(segment.to))
    }

    /// The part of it that travelled between two times; `from` is included.
    pub(crate) fn within(&self, from: SystemTime, to: SystemTime) -> Self {
        self.only(|segment| from <= segment.at && segment.at < to)
    }

    fn only(&self, wanted: impl Fn(&Segment) -> bool) -> Self {
        let segments = self.segments.iter().filter(|one| wanted(one));
        Self {
            segments: segments.cloned().collect(),
        }
    }

    /// Whether `marker` travelled in any direction of any connection, also when it was split between segments.
    pub(crate) fn contains(&self, marker: &[u8]) -> bool {
        self.streams().iter().any(|stream| {
            let bytes: Vec<u8> = stream.parts.values().flatten().copied().collect();
            bytes.windows(marker.len()).any(|window| window == marker)
        })
    }

    /// Bytes of payload.
    pub(crate) fn bytes(&self) -> usize {
        self.segments.iter().map(|one| one.payload.len()).sum()
    }

    /// The part of it from or to a port.
    pub(crate) fn on_port(&self, port: u16) -> Self {
        self.only(|segment| segment.from.port() == port || segment.to.port() == port)
    }

    /// Checks that every byte belongs to a record of TLS 1.3 whose server listens on `port`: after the hellos nothing
    /// but encrypted records (which 1.3 sends as application data) and the empty change of cipher for old middle boxes.
    pub(crate) fn tls13(&self, port: u16) -> Result<Tls> {
        let mut found = Tls {
            connections: 0,
            records: 0,
        };
        for stream in self.streams() {
            let server = stream.from.port() == port;
            let records = tls13_records(&stream, server)
                .with_context(|| format!("{} -> {}", stream.from, stream.to))?;
            found.records += records;
            found.connections += usize::from(server);
        }
        Ok(found)
    }

    fn streams(&self) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        let mut current: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
        for segment in &self.segments {
            let key = (segment.from, segment.to);
            let known = current.get(&key).copied();
            let again = |at: &usize| {
                streams[*at].start == segment.sequence.wrapping_add(1) || !segment.opens
            };
            let at = known.filter(again).unwrap_or_else(|| {
                streams.push(Stream::opened_by(segment));
                current.insert(key, streams.len() - 1);
                streams.len() - 1
            });
            streams[at].take(segment);
        }
        streams.retain(|stream| !stream.parts.is_empty());
        streams
    }
}

impl Stream {
    fn opened_by(segment: &Segment) -> Self {
        Self {
            from: segment.from,
            to: segment.to,
            // The SYN itself counts as one.
            start: segment.sequence.wrapping_add(u32::from(segment.opens)),
            whole: segment.opens,
            parts: BTreeMap::new(),
        }
    }

    fn take(&mut self, segment: &Segment) {
        if segment.payload.is_empty() {
            return;
        }
        let sequence = segment.sequence.wrapping_add(u32::from(segment.opens));
        let offset = sequence.wrapping_sub(self.start);
        let part = self.parts.entry(offset).or_default();
        // Sent again, perhaps together with what follows.
        if part.len() < segment.payload.len() {
            part.clone_from(&segment.payload);
        }
    }

    /// Every byte in order; a hole is an error.
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (offset, part) in &self.parts {
            let offset = *offset as usize;
            ensure!(
                offset <= bytes.len(),
                "the capture lacks bytes {} to {offset}",
                bytes.len()
            );
            let known = bytes.len() - offset;
            bytes.extend(part.get(known..).unwrap_or_default());
        }
        Ok(bytes)
    }
}

/// Content types of TLS records.
const CHANGE_CIPHER: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// A record's head: type, version, length.
const TLS_HEAD: usize = 5;
/// The most that a record may hold: 2^14 bytes and the cipher's expansion.
const TLS_RECORD_MAX: usize = 16384 + 256;

/// Counts the records of one direction; anything that TLS 1.3 would not send is an error.
fn tls13_records(stream: &Stream, server: bool) -> Result<usize> {
    ensure!(stream.whole, "its beginning was not captured");
    let bytes = stream.bytes()?;
    let mut rest = bytes.as_slice();
    let mut records = 0;
    while !rest.is_empty() {
        let head: [u8; TLS_HEAD] = rest
            .get(..TLS_HEAD)
            .and_then(|head| head.try_into().ok())
            .context("bytes that are no TLS record")?;
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        ensure!(
            head[1] == 3 && length <= TLS_RECORD_MAX,
            "bytes that are no TLS record: {head:?}"
        );
        // The last one may still be under way.
        let body = &rest[TLS_HEAD..rest.len().min(TLS_HEAD + length)];
        match head[0] {
            APPLICATION_DATA if records > 0 => {}
            CHANGE_CIPHER if body == [1] => {}
            HANDSHAKE if server && is_server_hello_13(body) => {}
            HANDSHAKE if !server && is_client_hello(body) => {}
            other => bail!("record {records} is of type {other}, in clear"),
        }
        records += 1;
        rest = &rest[TLS_HEAD + body.len()..];
    }
    Ok(records)
}

fn is_client_hello(body: &[u8]) -> bool {
    body.first() == Some(&1)
}

/// A server hello that names 0x0304 in the extension supported_versions (43), of two bytes.
fn is_server_hello_13(body: &[u8]) -> bool {
    body.first() == Some(&2) && body.windows(6).any(|window| window == [0, 43, 0, 2, 3, 4])
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let short = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(short.try_into().ok()?))
}

/// When a record was captured.
fn time(record: &[u8]) -> Option<SystemTime> {
    let seconds = Duration::from_secs(word(record, 0)?.into());
    let micros = Duration::from_micros(word(record, 4)?.into());
    Some(SystemTime::UNIX_EPOCH + seconds + micros)
}

/// The TCP segment in a frame, if it holds one that says something.
fn segment(frame: &[u8], link: u32, at: SystemTime) -> Option<Segment> {
    let head = match link {
        1 => 14,
        113 => 16,
        276 => 20,
        _ => return None,
    };
    let packet = frame.get(head..)?;
    let (from, to, tcp) = match packet.first()? >> 4 {
        4 => ipv4(packet)?,
        6 => ipv6(packet)?,
        _ => return None,
    };
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec();
    let opens = tcp.get(13)? & SYN != 0;
    if payload.is_empty() && !opens {
        return None;
    }
    Some(Segment {
        at,
        from: SocketAddr::new(from, short(tcp, 0)?),
        to: SocketAddr::new(to, short(tcp, 2)?),
        sequence,
        opens,
        payload,
    })
}

const TCP: u8 = 6;
/// The flag of TCP's first segment.
const SYN: u8 = 2;

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    if *packet.get(9)? != TCP {
        return None;
    }
    let address = |at: usize| {
        Some(IpAddr::from(
            <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
        ))
    };
    let head = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(short(packet, 2)?);
    // Ethernet pads short frames; offloaded segments may say 0.
    let end = if total == 0 {
        packet.len()
    } else {
        total.min(packet.len())
    };
    Some((address(12)?, address(16)?, packet.get(head..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    if *packet.get(6)? != TCP {
        return None;
    }
    let address = |at: usize| {
        Some(IpAddr::from(
            <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
        ))
    };
    let length = usize::from(short(packet, 4)?);
    let end = if length == 0 {
        packet.len()
    } else {
        (40 + length).min(packet.len())
    };
    Some((address(8)?, address(24)?, packet.get(40..end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet capture with one IPv4 segment for each given (source port, destination port, sequence, payload);
    /// one without payload is a SYN. The n-th is captured n seconds after the epoch.
    fn capture(segments: &[(u16, u16, u32, &[u8])]) -> Capture {
        let mut file = Vec::new();
        for word in [MAGIC, 0, 0, 0, 0, 1] {
            file.extend(word.to_ne_bytes());
        }
        for (second, (from, to, sequence, payload)) in (0_u32..).zip(segments) {
            let length = 40 + payload.len();
            let mut frame = vec![0; 14];
            frame.extend([0x45, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend(from.to_be_bytes());
            frame.extend(to.to_be_bytes());
            frame.extend(sequence.to_be_bytes());
            let flags = if payload.is_empty() { SYN } else { 0x18 };
            frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
            frame.extend(*payload);
            for word in [second, 0, frame.len() as u32, frame.len() as u32] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(frame);
        }
        Capture::parse(&file).unwrap()
    }

    const CLIENT_HELLO: &[u8] = &[22, 3, 1, 0, 2, 1, 0];
    const SERVER_HELLO: &[u8] = &[22, 3, 3, 0, 7, 2, 0, 43, 0, 2, 3, 4];
    const DATA: &[u8] = &[23, 3, 3, 0, 2, 8, 8];

    #[test]
    fn a_marker_split_between_segments_is_found() {
        let capture = capture(&[
            (1000, 80, 0, b""),
            (1000, 80, 5, b"KER-1"),
            (1000, 80, 1, b"aMAR"),
        ]);
        assert!(capture.contains(b"MARKER"));
        assert!(!capture.contains(b"KERMAR"));
    }

    #[test]
    fn parts_are_chosen_by_port_address_and_time() {
        let capture = capture(&[
            (1000, 15008, 1, b"12345"),
            (15008, 1000, 1, b"123"),
            (1000, 80, 1, b"1"),
        ]);
        assert_eq!(capture.bytes(), 9);
        assert_eq!(capture.on_port(15008).bytes(), 8);
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert_eq!(capture.among(&[one, other]).bytes(), 9);
        assert_eq!(capture.among(&[one]).bytes(), 0);
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        assert_eq!(capture.within(second(1), second(2)).bytes(), 3);
    }

    #[test]
    fn tls_1_3_is_known_record_by_record() {
        let first = [DATA, &DATA[..3]].concat();
        let good = capture(&[
            (1000, 15008, 0, b""),
            (15008, 1000, u32::MAX, b""),
            (1000, 15008, 1, CLIENT_HELLO),
            (15008, 1000, 0, SERVER_HELLO),
            (1000, 15008, 8, &first),
            (1000, 15008, 8, DATA),
            (1000, 15008, 18, &DATA[3..]),
        ]);
        let tls = good.tls13(15008).unwrap();
        assert_eq!((tls.connections, tls.records), (1, 4));
    }

    #[test]
    fn what_is_not_tls_1_3_is_an_error() {
        let sent = |bytes: &[&[u8]]| {
            let bytes = bytes.concat();
            capture(&[(1000, 15008, 0, b""), (1000, 15008, 1, &bytes)]).tls13(15008)
        };
        assert!(sent(&[CLIENT_HELLO, DATA]).is_ok());
        assert!(sent(&[b"GET / HTTP/1.1\r\n"]).is_err());
        assert!(sent(&[CLIENT_HELLO, DATA, b"plain text"]).is_err());
        assert!(sent(&[DATA]).is_err());
        let old: &[u8] = &[22, 3, 3, 0, 2, 2, 0];
        assert!(
            capture(&[(15008, 1, 0, b""), (15008, 1, 1, old)])
                .tls13(15008)
                .is_err()
        );
        let no_start = capture(&[(1000, 15008, 1, CLIENT_HELLO)]);
        assert!(no_start.tls13(15008).is_err());
        let hole = capture(&[
            (1000, 15008, 0, b""),
            (1000, 15008, 1, CLIENT_HELLO),
            (1000, 15008, 20, DATA),
        ]);
        assert!(hole.tls13(15008).is_err());
    }
}
