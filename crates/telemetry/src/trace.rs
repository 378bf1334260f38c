//! W3C trace context: which trace a request belongs to, whether its span is sent, and what the next hop is told.
//!
//! A header that cannot be read counts as absent: the request starts a trace of its own. `tracestate` and `baggage` are
//! passed on as they came; nothing here reads them.
//!
//! Source: W3C Trace Context, level 1, sections 3.2 and 3.3.

use std::fmt::Write as _;

/// Sampling of every request, in hundredths of a percent.
pub const ALWAYS: u32 = 10_000;
/// Longest `traceparent` of a later version that is read, in bytes.
const PARENT_BYTES_MAX: usize = 256;

/// What the caller says of its own span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub sampled: bool,
}

impl Parent {
    /// Reads a `traceparent` header.
    pub fn read(header: &[u8]) -> Option<Self> {
        if header.len() < 55 || header.len() > PARENT_BYTES_MAX {
            return None;
        }
        let version = bytes::<1>(&header[..2])?[0];
        let dashes = [2, 35, 52].iter().all(|at| header[*at] == b'-');
        let length = match version {
            0xff => false,
            0 => header.len() == 55,
            _ => header.get(55).is_none_or(|next| *next == b'-'),
        };
        if !dashes || !length {
            return None;
        }
        let (trace, span) = (bytes(&header[3..35])?, bytes(&header[36..52])?);
        let flags = bytes::<1>(&header[53..55])?[0];
        (trace != [0; 16] && span != [0; 8]).then_some(Self {
            trace,
            span,
            sampled: flags & 1 == 1,
        })
    }
}

/// Lower-case hexadecimal digits, as the standard wants them.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// The span of one hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub parent: Option<[u8; 8]>,
    /// Whether the span is sent.
    pub sampled: bool,
}

impl Context {
    /// A span below `parent`, which decides whether it is sent; without one, `sampling` (hundredths of a percent) does.
    pub fn start(parent: Option<Parent>, sampling: u32, mut random: impl FnMut() -> u64) -> Self {
        let span = random().max(1).to_be_bytes();
        if let Some(parent) = parent {
            return Self {
                trace: parent.trace,
                span,
                parent: Some(parent.span),
                sampled: parent.sampled,
            };
        }
        let (high, low) = (random(), random().max(1));
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&high.to_be_bytes());
        trace[8..].copy_from_slice(&low.to_be_bytes());
        Self {
            trace,
            span,
            parent: None,
            sampled: random() % u64::from(ALWAYS) < u64::from(sampling),
        }
    }

    /// The `traceparent` of the next hop.
    pub fn header(&self) -> String {
        format!(
            "00-{}-{}-0{}",
            hex(&self.trace),
            hex(&self.span),
            u8::from(self.sampled)
        )
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn counting() -> impl FnMut() -> u64 {
        let mut last = 0;
        move || {
            last += 1;
            last
        }
    }

    #[test]
    fn a_parent_is_read_and_passed_on() {
        let parent = Parent::read(GOOD.as_bytes()).unwrap();
        assert!(parent.sampled);
        let context = Context::start(Some(parent), 0, counting());
        assert_eq!(context.parent, Some(parent.span));
        assert_eq!(
            context.header(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-01"
        );
    }

    #[test]
    fn what_the_standard_forbids_is_no_parent() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(Parent::read(wrong.as_bytes()), None, "{wrong}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert!(Parent::read(later.as_bytes()).is_some());
        assert_eq!(
            Parent::read(format!("{later}{}", "x".repeat(300)).as_bytes()),
            None
        );
    }

    #[test]
    fn without_a_parent_the_share_decides() {
        let mut state = 1u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut sampled = |share| {
            let starts = (0..10_000).map(|_| Context::start(None, share, &mut random));
            starts.filter(|context| context.sampled).count()
        };
        assert_eq!((sampled(0), sampled(ALWAYS)), (0, 10_000));
        let tenth = sampled(ALWAYS / 10);
        assert!((900..1100).contains(&tenth), "{tenth}");
    }

    /// Never a panic, and never a parent out of something else.
    #[test]
    fn any_bytes_are_read() {
        let mut seed = 3u32;
        for _ in 0..50_000 {
            let mut header = GOOD.as_bytes().to_vec();
            for _ in 0..3 {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                let at = (seed >> 8) as usize % header.len();
                header[at] = (seed >> 24) as u8;
            }
            if let Some(parent) = Parent::read(&header) {
                let again = format!("{}-{}", hex(&parent.trace), hex(&parent.span));
                assert_eq!(again.as_bytes(), &header[3..52]);
            }
        }
    }
}
