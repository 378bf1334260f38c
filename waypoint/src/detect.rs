//! What a client speaks, from its first bytes. Pure; whoever reads the bytes asks again when there are more.

/// Longest first line of an HTTP/1 request that is waited for before it is taken for something else, in bytes.
pub const LOOK_MAX: usize = 2048;

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    Http1,
    Http2,
    /// A TLS ClientHello.
    Tls,
    Other,
    /// Ask again with at least this many bytes.
    More(usize),
}

/// Looks at the first bytes of a connection of which nothing is known.
pub fn guess(bytes: &[u8]) -> Guess {
    match bytes.first() {
        None => Guess::More(1),
        Some(0x16) => tls(bytes),
        Some(first) if is_token(*first) => http(bytes),
        Some(_) => Guess::Other,
    }
}

/// Tells HTTP/2 from HTTP/1 where it is known to be one of them.
pub fn http_version(bytes: &[u8]) -> Guess {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] != PREFACE[..common] {
        Guess::Http1
    } else if common == PREFACE.len() {
        Guess::Http2
    } else {
        Guess::More(common + 1)
    }
}

/// Record type 22, version 3.x, then a handshake message of type 1.
fn tls(bytes: &[u8]) -> Guess {
    match bytes {
        [0x16, 0x03, _, _, _, 0x01, ..] => Guess::Tls,
        [0x16, 0x03, ..] | [0x16] if bytes.len() < 6 => Guess::More(6),
        _ => Guess::Other,
    }
}

/// A method, then a target and a version that starts with `HTTP/1.`.
fn http(bytes: &[u8]) -> Guess {
    match http_version(bytes) {
        Guess::Http1 => {}
        known => return known,
    }
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => &bytes[..end],
        None if bytes.len() >= LOOK_MAX => return Guess::Other,
        None if !could_be_request(bytes) => return Guess::Other,
        None => return Guess::More(bytes.len() + 1),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    if could_be_request(line) && version.starts_with(b"HTTP/1.") {
        Guess::Http1
    } else {
        Guess::Other
    }
}

/// A token, and a space after it where there is more.
fn could_be_request(line: &[u8]) -> bool {
    match line.iter().position(|byte| !is_token(*byte)) {
        Some(end) => line[end] == b' ',
        None => line.len() <= 32,
    }
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The server name of a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// In lower case; `None`: it names none.
    Name(Option<String>),
    /// Ask again with at least this many bytes.
    More(usize),
    /// Not a ClientHello.
    Broken,
}

/// Longest ClientHello that is read, in bytes, records included.
const HELLO_MAX: usize = 17 << 10;

/// Reads the server name. The handshake message may be spread over records.
pub fn client_hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut at = 0;
    let wanted = loop {
        let Some(head) = bytes.get(at..at + 5) else {
            return more(at + 5);
        };
        let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[0] != 0x16 || head[1] != 3 || len == 0 {
            return Hello::Broken;
        }
        let Some(record) = bytes.get(at + 5..at + 5 + len) else {
            return more(at + 5 + len);
        };
        message.extend_from_slice(record);
        at += 5 + len;
        if let [kind, a, b, c, ..] = message[..] {
            let body = u32::from_be_bytes([0, a, b, c]) as usize;
            if kind != 1 || body > HELLO_MAX {
                return Hello::Broken;
            }
            if message.len() >= 4 + body {
                break 4 + body;
            }
        }
    };
    server_name(&message[4..wanted]).unwrap_or(Hello::Broken)
}

fn more(wanted: usize) -> Hello {
    if wanted > HELLO_MAX {
        Hello::Broken
    } else {
        Hello::More(wanted)
    }
}

/// A cursor over length-prefixed fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|field| field[0].into())
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2)
            .map(|field| u16::from_be_bytes([field[0], field[1]]).into())
    }
}

fn server_name(hello: &[u8]) -> Option<Hello> {
    let mut fields = Fields(hello);
    // Version and random, session id, cipher suites, compression methods.
    fields.take(34)?;
    let len = fields.u8()?;
    fields.take(len)?;
    let len = fields.u16()?;
    fields.take(len)?;
    let len = fields.u8()?;
    fields.take(len)?;
    if fields.0.is_empty() {
        return Some(Hello::Name(None));
    }
    let len = fields.u16()?;
    let mut extensions = Fields(fields.take(len)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let len = extensions.u16()?;
        let body = extensions.take(len)?;
        if kind == 0 {
            let mut list = Fields(body);
            list.u16()?;
            if list.u8()? != 0 {
                return None;
            }
            let len = list.u16()?;
            let name = std::str::from_utf8(list.take(len)?).ok()?;
            return Some(Hello::Name(Some(
                name.trim_end_matches('.').to_ascii_lowercase(),
            )));
        }
    }
    Some(Hello::Name(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Guess::Http1),
            (b"BREW coffee://pot HTTP/1.0\n", Guess::Http1),
            (b"GET /", Guess::More(6)),
            (b"PRI * HT", Guess::More(9)),
            (PREFACE, Guess::Http2),
            (b"\x16\x03\x01\x02\x00\x01", Guess::Tls),
            (b"\x16\x03", Guess::More(6)),
            (b"get some-key\r\n", Guess::Other),
            (b"*1\r\n$4\r\nPING\r\n", Guess::Other),
            (b"PING\r\n", Guess::Other),
            (b"\x00\x00\x00\x00", Guess::Other),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Guess::Other),
            (b"", Guess::More(1)),
        ] {
            assert_eq!(guess(bytes), expected, "{bytes:?}");
        }
        assert_eq!(
            guess(&[b"GET /".to_vec(), vec![b'a'; LOOK_MAX]].concat()),
            Guess::Other
        );
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|part| {
                let mut record = vec![0x16, 3, 1];
                record.extend((part.len() as u16).to_be_bytes());
                record.extend(part);
                record
            })
            .collect()
    }

    #[test]
    fn the_server_name_is_read_whole_or_in_pieces() {
        let mut sni = vec![0, 0, 0, 14, 0, 12, 0, 0, 9];
        sni.extend(b"Shop.Test");
        let message = hello(&[vec![0, 43, 0, 1, 0], sni].concat());
        let named = Hello::Name(Some("shop.test".to_owned()));
        assert_eq!(client_hello(&records(&message, 1000)), named);
        assert_eq!(client_hello(&records(&message, 10)), named);
        let whole = records(&message, 10);
        for end in 0..whole.len() {
            assert!(
                matches!(client_hello(&whole[..end]), Hello::More(wanted) if wanted > end),
                "{end}"
            );
        }
    }

    #[test]
    fn a_hello_without_a_name_and_a_broken_one_are_told_apart() {
        assert_eq!(client_hello(&records(&hello(&[]), 1000)), Hello::Name(None));
        assert_eq!(
            client_hello(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"),
            Hello::Broken
        );
        assert_eq!(
            client_hello(&records(&hello(&[0, 0, 0, 9, 0]), 1000)),
            Hello::Broken
        );
    }
}
