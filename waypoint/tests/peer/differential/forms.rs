//! The forms. Each begins with a request for [`FIRST`]`<number>` and holds, where a sloppy reader would find a second
//! request, one for [`EVIL`].

use std::fmt;

/// Where the paths of the first requests begin; the number of the form follows.
pub(super) const FIRST: &str = "/first/";
/// A path that no client may have.
pub(super) const EVIL: &str = "/evil";
/// A header that no client may send.
pub(super) const SECRET_HEADER: &str = "x-admin";

/// One way to write a request.
pub(super) struct Form {
    pub(super) bytes: Vec<u8>,
    /// What is wrong comes after the head, which is on its way by then: the request is broken off, and nothing may
    /// follow it.
    pub(super) breaks_in_its_body: bool,
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.bytes.escape_ascii())
    }
}

const SMUGGLED: &str = "GET /evil HTTP/1.1\r\nHost: a\r\nX-Tail: 1\r\n\r\n";

/// Every form, numbered in order.
pub(super) fn all() -> Vec<Form> {
    let mut heads = Vec::new();
    lengths_and_codings(&mut heads);
    let before = heads.len();
    chunks(&mut heads);
    let bodies = before..heads.len();
    request_lines(&mut heads);
    header_names(&mut heads);
    let numbered = heads.into_iter().enumerate();
    numbered
        .map(|(number, text)| Form {
            bytes: text
                .replace("{n}", &format!("{FIRST}{number}"))
                .into_bytes(),
            breaks_in_its_body: bodies.contains(&number),
        })
        .collect()
}

/// Two ways to say where the body ends, each in many spellings.
fn lengths_and_codings(forms: &mut Vec<String>) {
    const NAMES: [&str; 10] = [
        "Transfer-Encoding",
        "transfer-encoding",
        "Transfer-Encoding ",
        " Transfer-Encoding",
        "Transfer_Encoding",
        "Transfer-Encoding\t",
        "Transfer-Encoding\x0b",
        "Transfer-Encoding\0",
        "X: y\r\n Transfer-Encoding",
        "X: y\rTransfer-Encoding",
    ];
    const SEPARATORS: [&str; 6] = [":", ": ", ":\t", ":\x0b", ":\r\n ", ":  \t "];
    const VALUES: [&str; 14] = [
        "chunked",
        "Chunked",
        "chunked ",
        "chunked,",
        ",chunked",
        "chunked, identity",
        "identity, chunked",
        "xchunked",
        "\"chunked\"",
        "chunked\x0b",
        "chunked;q=1",
        "chun ked",
        "gzip, chunked",
        "chunked\r\nTransfer-Encoding: identity",
    ];
    const LENGTHS: [&str; 7] = [
        "",
        "Content-Length: 4\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4\r\nContent-Length: 60\r\n",
        "Content_Length: 4\r\n",
        "Content-Length : 4\r\n",
    ];
    for name in NAMES {
        for separator in SEPARATORS {
            for value in VALUES {
                for length in LENGTHS {
                    forms.push(format!(
                        "POST {{n}} HTTP/1.1\r\nHost: a\r\n{length}{name}{separator}{value}\r\n\r\n0\r\n\r\n{SMUGGLED}"
                    ));
                }
            }
        }
    }
}

/// Chunked bodies that end in more than one place.
fn chunks(forms: &mut Vec<String>) {
    const SIZES: [&str; 18] = [
        "0",
        "00",
        "0000000000000000000",
        "0x0",
        "0 ",
        " 0",
        "\t0",
        "+0",
        "-0",
        "0;a",
        "0;a=b",
        "0;a=\"b\"",
        "0;a=\"\r\n\"",
        "0\x0b",
        "0,0",
        "0.0",
        "10000000000000000",
        "ffffffffffffffff",
    ];
    const ENDS: [&str; 5] = ["\r\n", "\n", "\r", "\n\r", "\r\r\n"];
    const TRAILERS: [&str; 6] = [
        "",
        "X: y\r\n",
        "Content-Length: 40\r\n",
        "Transfer-Encoding: identity\r\n",
        " folded\r\n",
        "X-Admin: 1\r\n",
    ];
    for size in SIZES {
        for end in ENDS {
            for trailer in TRAILERS {
                forms.push(format!(
                    "POST {{n}} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{size}{end}{trailer}\r\n{SMUGGLED}"
                ));
            }
        }
    }
}

/// First lines that end, or name a target, in more than one way.
fn request_lines(forms: &mut Vec<String>) {
    const GAPS: [&str; 6] = [" ", "  ", "\t", "\x0b", "\r", "\x0c"];
    const TARGETS: [&str; 12] = [
        "{n}",
        "http://a{n}",
        "http://b{n}",
        "//a{n}",
        "{n} /evil",
        "{n}\t/evil",
        "{n}#/../evil",
        "{n}/../../evil",
        "{n}%2f..%2f..%2fevil",
        "{n}\\..\\..\\evil",
        "{n}?/evil",
        "/evil/..{n}",
    ];
    const VERSIONS: [&str; 8] = [
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/1.2",
        "HTTP/1.1 ",
        "http/1.1",
        "HTTP/01.1",
        "HTTP/2.0",
        "",
    ];
    const ENDS: [&str; 3] = ["\r\n", "\n", "\r"];
    for gap in GAPS {
        for target in TARGETS {
            for version in VERSIONS {
                for end in ENDS {
                    forms.push(format!(
                        "GET{gap}{target}{gap}{version}{end}Host: a{end}Content-Length: 0{end}{end}{SMUGGLED}"
                    ));
                }
            }
        }
    }
}

/// A forbidden header under names that some reader takes for it.
fn header_names(forms: &mut Vec<String>) {
    const NAMES: [&str; 12] = [
        "X-Admin",
        "x-admin",
        "X-ADMIN",
        "X-Admin ",
        " X-Admin",
        "\tX-Admin",
        "X-Admin\t",
        "X-Admin\0",
        "X\0-Admin",
        "X-Admin\x0b",
        "Y: z\rX-Admin",
        "Y: z\nX-Admin",
    ];
    const SEPARATORS: [&str; 5] = [":", ": ", " : ", ":\r\n ", "\r\n :"];
    const PLACES: [(&str, &str); 3] = [
        ("Host: a\r\n", ""),
        ("", "\r\nHost: a"),
        ("Host: a\n", "\r\nY: z"),
    ];
    for name in NAMES {
        for separator in SEPARATORS {
            for (before, after) in PLACES {
                forms.push(format!(
                    "GET {{n}} HTTP/1.1\r\n{before}{name}{separator}1{after}\r\n\r\n"
                ));
            }
        }
    }
}
