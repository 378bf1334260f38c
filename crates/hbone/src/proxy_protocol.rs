//! PROXY protocol, version 2: who really called, written before the first byte of a connection.
//!
//! ```text
//!   signature (12) | version and command | family | length (2) | addresses (12 or 36) | TLVs: type, length (2), value
//! ```
//!
//! A workload with an application tunnel (a waypoint that leaves HBONE to its node's agent) gets it after the tunnel is
//! open: source is the TCP peer, destination the address that was asked for, and a TLV carries the peer's SPIFFE
//! identity, as Istio's node proxy writes it. Source: haproxy's `doc/proxy-protocol.txt`, section 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use karst_model::identity::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION: u8 = 2;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Of signature, command, family and length.
const FIXED: usize = 16;
/// The SPIFFE identity of the source.
const TLV_IDENTITY: u8 = 0xd0;
/// Longest header that is read, all of it, in bytes. A SPIFFE ID has at most 2048.
pub const HEADER_MAX: usize = 4096;

/// What a header says of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Whom the sender has verified the source to be.
    pub identity: Option<SpiffeId>,
}

/// A header that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The connection is forwarded for another one. `length` bytes were the header.
    Proxied { header: Header, length: usize },
    /// The sender speaks for itself (a health check).
    Local { length: usize },
    /// Not all of it is here yet.
    Incomplete,
}

/// Why bytes are no header that we take. The peer's fault: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the connection does not begin with the signature of PROXY protocol version 2")]
    Signature,
    #[error("version {0} of the PROXY protocol, only 2 is spoken")]
    Version(u8),
    #[error("unknown command {0} of the PROXY protocol")]
    Command(u8),
    #[error("address family and transport 0x{0:02x}, expected TCP over IPv4 or IPv6")]
    Family(u8),
    #[error("the header is {0} bytes long, at most {HEADER_MAX} are read")]
    TooLong(usize),
    #[error("the header ends within its addresses")]
    Addresses,
    #[error("a field of type 0x{0:02x} reaches beyond the header")]
    Field(u8),
    #[error("the header names two identities")]
    TwoIdentities,
    #[error("the identity in the header is no SPIFFE ID")]
    Identity,
}

impl Header {
    /// The bytes of the header. Where one address is IPv4 and the other IPv6, both are written as IPv6.
    pub fn encode(&self) -> Vec<u8> {
        let (source, destination) = (self.source, self.destination);
        let mut body = Vec::with_capacity(128);
        let family = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                body.extend(from.octets());
                body.extend(to.octets());
                TCP_V4
            }
            (from, to) => {
                body.extend(as_v6(from).octets());
                body.extend(as_v6(to).octets());
                TCP_V6
            }
        };
        body.extend(source.port().to_be_bytes());
        body.extend(destination.port().to_be_bytes());
        if let Some(identity) = &self.identity {
            put_field(&mut body, TLV_IDENTITY, identity.to_string().as_bytes());
        }
        let mut header = Vec::with_capacity(FIXED + body.len());
        header.extend(SIGNATURE);
        header.extend([VERSION << 4 | COMMAND_PROXY, family]);
        header.extend(length_of(&body).to_be_bytes());
        header.extend(body);
        header
    }
}

/// Reads the header at the beginning of `bytes`.
///
/// # Errors
/// See [`HeaderError`]; said as early as the bytes show it.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let shown = bytes.len().min(SIGNATURE.len());
    if bytes[..shown] != SIGNATURE[..shown] {
        return Err(HeaderError::Signature);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::Incomplete);
    };
    let [.., version_command, family, high, low] = *fixed;
    if version_command >> 4 != VERSION {
        return Err(HeaderError::Version(version_command >> 4));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > HEADER_MAX {
        return Err(HeaderError::TooLong(FIXED + length));
    }
    let Some(body) = rest.get(..length) else {
        return Ok(Parsed::Incomplete);
    };
    let length = FIXED + length;
    match version_command & 0x0f {
        // Whatever follows is to be skipped, says the protocol.
        COMMAND_LOCAL => Ok(Parsed::Local { length }),
        COMMAND_PROXY => proxied(family, body).map(|header| Parsed::Proxied { header, length }),
        other => Err(HeaderError::Command(other)),
    }
}

fn proxied(family: u8, body: &[u8]) -> Result<Header, HeaderError> {
    let (source, destination, fields) = match family {
        TCP_V4 => ends::<4>(body)?,
        TCP_V6 => ends::<16>(body)?,
        other => return Err(HeaderError::Family(other)),
    };
    Ok(Header {
        source,
        destination,
        identity: identity(fields)?,
    })
}

/// Source and destination from addresses of `N` bytes, and what follows them.
fn ends<const N: usize>(body: &[u8]) -> Result<(SocketAddr, SocketAddr, &[u8]), HeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let cut = || HeaderError::Addresses;
    let (source, body) = body.split_first_chunk::<N>().ok_or_else(cut)?;
    let (destination, body) = body.split_first_chunk::<N>().ok_or_else(cut)?;
    let (source_port, body) = body.split_first_chunk::<2>().ok_or_else(cut)?;
    let (destination_port, fields) = body.split_first_chunk::<2>().ok_or_else(cut)?;
    let end = |ip: &[u8; N], port: &[u8; 2]| {
        SocketAddr::new(IpAddr::from(*ip).to_canonical(), u16::from_be_bytes(*port))
    };
    Ok((
        end(source, source_port),
        end(destination, destination_port),
        fields,
    ))
}

/// The identity among the fields; others are skipped.
fn identity(mut fields: &[u8]) -> Result<Option<SpiffeId>, HeaderError> {
    let mut found = None;
    while let Some((kind, rest)) = fields.split_first() {
        let beyond = || HeaderError::Field(*kind);
        let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(beyond)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or_else(beyond)?;
        if *kind == TLV_IDENTITY {
            let text = std::str::from_utf8(value).map_err(|_not_text| HeaderError::Identity)?;
            let id = text.parse().map_err(|_malformed| HeaderError::Identity)?;
            if found.replace(id).is_some() {
                return Err(HeaderError::TwoIdentities);
            }
        }
        fields = rest;
    }
    Ok(found)
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    }
}

fn put_field(body: &mut Vec<u8>, kind: u8, value: &[u8]) {
    body.push(kind);
    body.extend(length_of(value).to_be_bytes());
    body.extend(value);
}

/// Everything that is written here is far shorter than a length can say.
fn length_of(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str, identity: Option<&str>) -> Header {
        Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: identity.map(|id| id.parse().unwrap()),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let written = header(
            "10.0.0.1:1000",
            "10.0.0.2:80",
            Some("spiffe://td/ns/n/sa/s"),
        )
        .encode();
        let mut wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x24".to_vec();
        wanted.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x03, 0xe8, 0, 80]);
        wanted.extend(b"\xd0\0\x15spiffe://td/ns/n/sa/s");
        assert_eq!(written, wanted);
    }

    #[test]
    fn what_is_written_is_read_and_no_byte_more() {
        let cases = [
            header("10.0.0.1:1000", "10.0.0.2:80", None),
            header(
                "[fd00::1]:1",
                "[fd00::2]:65535",
                Some("spiffe://td/ns/n/sa/s"),
            ),
            header("10.0.0.1:1000", "[fd00::2]:80", None),
        ];
        for wanted in cases {
            let bytes = wanted.encode();
            let length = bytes.len();
            let followed = [bytes.as_slice(), b"GET / HTTP/1.1"].concat();
            let parsed = Parsed::Proxied {
                header: wanted,
                length,
            };
            assert_eq!(parse(&followed), Ok(parsed));
            for end in 0..length {
                assert_eq!(parse(&followed[..end]), Ok(Parsed::Incomplete), "{end}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = header(
            "10.0.0.1:1000",
            "10.0.0.2:80",
            Some("spiffe://td/ns/n/sa/s"),
        )
        .encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            parse(&bytes).unwrap_err()
        };
        assert_eq!(parse(b"GET / HTTP"), Err(HeaderError::Signature));
        assert_eq!(with(12, 0x11), HeaderError::Version(1));
        assert_eq!(with(12, 0x22), HeaderError::Command(2));
        assert_eq!(with(13, 0x12), HeaderError::Family(0x12));
        assert_eq!(with(14, 0x40), HeaderError::TooLong(0x4024 + FIXED));
        assert_eq!(with(15, 11), HeaderError::Addresses);
        assert_eq!(with(30, 0xff), HeaderError::Field(TLV_IDENTITY));
        assert_eq!(with(31, b'x'), HeaderError::Identity);
        let mut twice = good.clone();
        let field = good[28..].to_vec();
        twice.extend(&field);
        twice[15] += u8::try_from(field.len()).unwrap();
        assert_eq!(parse(&twice), Err(HeaderError::TwoIdentities));
    }

    #[test]
    fn a_health_check_speaks_for_itself() {
        let bytes = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abcrest";
        assert_eq!(parse(bytes), Ok(Parsed::Local { length: FIXED + 3 }));
    }
}
