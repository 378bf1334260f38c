//! Reads what tcpdump captured, as far as the proofs need it: TCP segments, and what their bytes look like.
//!
//! A capture file is the classic pcap format in the machine's own byte order, with Ethernet or Linux "cooked" frames.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// Microsecond and nanosecond captures, written by a machine of our byte order.
const MAGIC: [u32; 2] = [0xa1b2_c3d4, 0xa1b2_3c4d];
const FILE_HEAD: usize = 24;
const RECORD_HEAD: usize = 16;

/// One TCP segment with payload.
pub(crate) struct Segment {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    sequence: u32,
    payload: Vec<u8>,
}

/// Everything that was captured.
pub(crate) struct Capture {
    pub(crate) segments: Vec<Segment>,
}

/// The bytes of one direction of one connection, by sequence number.
type Stream = BTreeMap<u32, Vec<u8>>;

impl Capture {
    /// Reads a capture file.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&bytes).with_context(|| format!("reading {}", file.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let magic = word(bytes, 0).context("the capture is empty")?;
        if !MAGIC.contains(&magic) {
            bail!("not a capture of this machine's byte order");
        }
        let link = word(bytes, 20).context("the capture's head is cut off")?;
        let mut segments = Vec::new();
        let mut rest = bytes.get(FILE_HEAD..).unwrap_or_default();
        while let Some(length) = word(rest, 8) {
            let end = RECORD_HEAD + length as usize;
            let Some(frame) = rest.get(RECORD_HEAD..end) else {
                break;
            };
            segments.extend(segment(frame, link));
            rest = &rest[end..];
        }
        Ok(Self { segments })
    }

    /// Whether `marker` travelled in any direction of any connection, also when it was split between segments.
    pub(crate) fn contains(&self, marker: &[u8]) -> bool {
        self.streams().values().any(|stream| {
            let bytes: Vec<u8> = stream.values().flatten().copied().collect();
            bytes.windows(marker.len()).any(|window| window == marker)
        })
    }

    /// Payload bytes, and how many of them travelled on `port`.
    pub(crate) fn bytes_on(&self, port: u16) -> (usize, usize) {
        let size = |segments: &mut dyn Iterator<Item = &Segment>| {
            segments.map(|segment| segment.payload.len()).sum()
        };
        let on = |segment: &&Segment| segment.from.port() == port || segment.to.port() == port;
        (
            size(&mut self.segments.iter()),
            size(&mut self.segments.iter().filter(on)),
        )
    }

    /// Checks that every direction of every connection on `port` consists of TLS records, and counts the server hellos
    /// that chose TLS 1.3. A connection that was open before the capture began is checked from its first record on.
    pub(crate) fn tls13_handshakes(&self, port: u16) -> Result<usize> {
        let mut handshakes = 0;
        for ((from, to), stream) in self.streams() {
            if from.port() != port && to.port() != port {
                continue;
            }
            let first = stream
                .values()
                .next()
                .map(Vec::as_slice)
                .unwrap_or_default();
            if from.port() == port && is_server_hello(first) {
                if !chose_tls13(first) {
                    bail!("{from} chose a version older than TLS 1.3");
                }
                handshakes += 1;
            } else if is_client_hello(first) || is_record(first) {
                continue;
            } else {
                bail!("{from} -> {to} sent bytes that are no TLS record");
            }
        }
        Ok(handshakes)
    }

    fn streams(&self) -> BTreeMap<(SocketAddr, SocketAddr), Stream> {
        let mut streams: BTreeMap<_, Stream> = BTreeMap::new();
        for segment in &self.segments {
            let stream = streams.entry((segment.from, segment.to)).or_default();
            stream.insert(segment.sequence, segment.payload.clone());
        }
        streams
    }
}

/// Content type handshake, any record version, handshake type 1.
fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [22, 3, _, _, _, 1, ..])
}

fn is_server_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [22, 3, _, _, _, 2, ..])
}

/// Change cipher spec, alert, handshake or application data.
fn is_record(bytes: &[u8]) -> bool {
    matches!(bytes, [20..=23, 3, 1..=4, ..])
}

/// The extension supported_versions (43) of two bytes that name 0x0304.
fn chose_tls13(hello: &[u8]) -> bool {
    hello.windows(6).any(|window| window == [0, 43, 0, 2, 3, 4])
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let short = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(short.try_into().ok()?))
}

/// The TCP segment in a frame, if it holds one with payload.
fn segment(frame: &[u8], link: u32) -> Option<Segment> {
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
    if payload.is_empty() {
        return None;
    }
    let (from, to) = (
        SocketAddr::new(from, short(tcp, 0)?),
        SocketAddr::new(to, short(tcp, 2)?),
    );
    Some(Segment {
        from,
        to,
        sequence,
        payload,
    })
}

const TCP: u8 = 6;

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

    /// An Ethernet capture with one IPv4 segment for each given (source port, destination port, sequence, payload).
    fn capture(segments: &[(u16, u16, u32, &[u8])]) -> Capture {
        let mut file = Vec::new();
        for word in [MAGIC[0], 0, 0, 0, 0, 1] {
            file.extend(word.to_ne_bytes());
        }
        for (from, to, sequence, payload) in segments {
            let length = 40 + payload.len();
            let mut frame = vec![0; 14];
            frame.extend([0x45, 0]);
            frame.extend((length as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend(from.to_be_bytes());
            frame.extend(to.to_be_bytes());
            frame.extend(sequence.to_be_bytes());
            frame.extend([0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
            frame.extend(*payload);
            for word in [0, 0, frame.len() as u32, frame.len() as u32] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(frame);
        }
        Capture::parse(&file).unwrap()
    }

    #[test]
    fn a_marker_split_between_segments_is_found() {
        let capture = capture(&[(1000, 80, 5, b"KER-1"), (1000, 80, 1, b"aMAR")]);
        assert!(capture.contains(b"MARKER"));
        assert!(!capture.contains(b"KERMAR"));
    }

    #[test]
    fn bytes_are_counted_by_port() {
        let capture = capture(&[
            (1000, 15008, 1, b"12345"),
            (15008, 1000, 1, b"123"),
            (1000, 80, 1, b"1"),
        ]);
        assert_eq!(capture.bytes_on(15008), (9, 8));
    }

    #[test]
    fn plaintext_on_the_tunnel_port_is_an_error() {
        let hello = [&[22, 3, 3, 0, 60, 2][..], &[0, 43, 0, 2, 3, 4]].concat();
        let good = capture(&[
            (1000, 15008, 1, &[22, 3, 1, 0, 1, 1]),
            (15008, 1000, 1, &hello),
        ]);
        assert_eq!(good.tls13_handshakes(15008).unwrap(), 1);
        let old = capture(&[(15008, 1000, 1, &[22, 3, 3, 0, 60, 2])]);
        assert!(old.tls13_handshakes(15008).is_err());
        assert!(
            capture(&[(1000, 15008, 1, b"GET / HTTP/1.1")])
                .tls13_handshakes(15008)
                .is_err()
        );
    }
}
