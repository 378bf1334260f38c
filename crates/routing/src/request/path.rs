//! The normal form of a path: one spelling for whatever backends read as one.
//!
//! In this order (RFC 3986 section 6.2.2, and Envoy's order where the RFC says nothing):
//! 1. what has two readings is refused: an encoded `/` or `\`, a `\`, control characters, overlong UTF-8, bytes above 127
//!    as they are, `..;`, a `%` without two digits;
//! 2. escapes of unreserved characters are decoded, once; the digits of all others are written in capitals; characters
//!    that a path may not have (`"<>[]^{|}` and the backtick) are encoded;
//! 3. dot segments are removed as RFC 3986 section 5.2.4 says, then empty segments are merged.

use std::borrow::Cow;

use super::Refusal;

/// The normal form of a path that begins with a slash. Applying it twice is as applying it once.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Refusal> {
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path.as_bytes())?;
    let normal = join(&segments(&decoded)?);
    Ok(if normal == path {
        Cow::Borrowed(path)
    } else {
        Cow::Owned(normal)
    })
}

/// The spelling that a pattern must have to be comparable with normalised paths. A pattern may be part of a path and
/// may end within an escape, so nothing is refused: what no request can have stays as it is and matches none.
pub fn normalise_pattern(pattern: &str) -> String {
    let bytes = pattern.as_bytes();
    let (mut normal, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, escape_at(bytes, at)) {
            (b'%', Some(value)) => {
                push_escape(&mut normal, value);
                at += 3;
                continue;
            }
            (b'/', _) if normal.last() == Some(&b'/') => {}
            (byte, _) if must_be_encoded(*byte) || *byte >= 0x80 => encode(&mut normal, *byte),
            (byte, _) => normal.push(*byte),
        }
        at += 1;
    }
    // Only ASCII was changed, and what was not ASCII is encoded.
    String::from_utf8(normal).unwrap_or_else(|_| pattern.to_owned())
}

/// A quick look that says yes only if nothing has to be done.
fn is_normal(path: &[u8]) -> bool {
    let plain = path.iter().all(|byte| PLAIN[usize::from(*byte)]);
    // Dot and empty segments begin with `/.` and `//`.
    plain
        && path
            .windows(2)
            .all(|pair| pair[0] != b'/' || !matches!(pair[1], b'.' | b'/'))
}

/// Characters of a path that stay as they are; no escapes.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        plain[byte] =
            !must_be_encoded(byte as u8) && !matches!(byte as u8, b'%' | b'\\' | b'?' | b'#');
        byte += 1;
    }
    plain
};

/// What no path may have unencoded, though it has but one reading.
const fn must_be_encoded(byte: u8) -> bool {
    matches!(
        byte,
        b' ' | b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}'
    )
}

fn decode(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (mut decoded, mut at) = (Vec::with_capacity(path.len()), 0);
    while let Some(byte) = path.get(at) {
        match byte {
            b'%' => {
                let value = escape_at(path, at).ok_or(Refusal::PathEscape)?;
                match value {
                    b'/' | b'\\' => return Err(Refusal::PathEncodedSeparator),
                    0..=0x1f | 0x7f => return Err(Refusal::PathControl),
                    _ if is_overlong(value, escape_at(path, at + 3)) => {
                        return Err(Refusal::PathOverlong);
                    }
                    _ => push_escape(&mut decoded, value),
                }
                at += 3;
                continue;
            }
            b'\\' => return Err(Refusal::PathBackslash),
            0..=0x1f | 0x7f => return Err(Refusal::PathControl),
            0x80.. => return Err(Refusal::PathNotAscii),
            b'?' | b'#' => return Err(Refusal::Target(String::from_utf8_lossy(path).into_owned())),
            byte if must_be_encoded(*byte) => encode(&mut decoded, *byte),
            byte => decoded.push(*byte),
        }
        at += 1;
    }
    Ok(decoded)
}

/// Whether two encoded bytes begin a sequence that spells a character in more bytes than it needs.
fn is_overlong(lead: u8, next: Option<u8>) -> bool {
    matches!(
        (lead, next),
        (0xc0 | 0xc1, Some(0x80..=0xbf)) | (0xe0, Some(0x80..=0x9f)) | (0xf0, Some(0x80..=0x8f))
    )
}

/// The value of `%XX` at this place.
fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low] = bytes.get(at..at + 3)? else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

/// An escape in its normal form: decoded if the character is unreserved.
fn push_escape(out: &mut Vec<u8>, value: u8) {
    if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
        out.push(value);
    } else {
        encode(out, value);
    }
}

fn encode(out: &mut Vec<u8>, value: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let (high, low) = (usize::from(value >> 4), usize::from(value & 15));
    out.extend_from_slice(&[b'%', DIGITS[high], DIGITS[low]]);
}

/// The segments that are left when dot segments are removed. A last one that is empty stands for a slash at the end.
fn segments(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut sent = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = sent.next() {
        let last = sent.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                segments.pop();
            }
            _ if segment.starts_with(b".;") || segment.starts_with(b"..;") => {
                return Err(Refusal::PathDotParameter);
            }
            _ => {
                segments.push(segment);
                continue;
            }
        }
        if last {
            segments.push(b"");
        }
    }
    Ok(segments)
}

/// Segments as a path, empty ones merged.
fn join(segments: &[&[u8]]) -> String {
    let mut path = Vec::new();
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if path.is_empty() || segments.last().is_some_and(|last| last.is_empty()) {
        path.push(b'/');
    }
    // Only ASCII was let through.
    String::from_utf8(path).unwrap_or_else(|_| "/".to_owned())
}
