//! A request prepared for comparing: every reading of its values, made once per decision.

use std::{borrow::Cow, cell::OnceCell, net::IpAddr};

use smallvec::SmallVec;

use super::Asked;
use crate::connection;

/// What the comparisons look at.
pub(super) struct View<'a> {
    pub(super) connection: connection::View<'a>,
    pub(super) method: &'a [u8],
    /// As it goes to the backend.
    pub(super) path: &'a [u8],
    /// With every escape decoded, as a backend reads it.
    decoded_path: Cow<'a, [u8]>,
    /// In lower case, without port.
    pub(super) host: &'a [u8],
    /// The host as it was sent, in lower case.
    pub(super) authority: SmallVec<[u8; 64]>,
    pub(super) remote_ip: IpAddr,
    pub(super) sni: OnceCell<Option<Vec<u8>>>,
    asked: &'a Asked<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(asked: &'a Asked<'a>) -> Self {
        let request = asked.request;
        Self {
            connection: connection::View::new(asked.connection),
            method: request.method().as_str().as_bytes(),
            path: request.path().as_bytes(),
            decoded_path: decoded(request.path()),
            host: request.host().as_bytes(),
            authority: request
                .authority()
                .bytes()
                .map(|byte| byte.to_ascii_lowercase())
                .collect(),
            remote_ip: asked.remote_ip.to_canonical(),
            sni: OnceCell::new(),
            asked,
        }
    }

    pub(super) fn decoded_path(&self) -> &[u8] {
        &self.decoded_path
    }

    /// All values of a header as one.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        self.asked.request.header(name)
    }

    /// Every value that a header can be read as: of each line the whole and each part between commas.
    pub(super) fn header_readings(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.asked.request.headers().get_all(name).into_iter();
        lines.flat_map(|line| {
            let parts = line.as_bytes().split(|byte| *byte == b',');
            std::iter::once(line.as_bytes()).chain(parts.map(<[u8]>::trim_ascii))
        })
    }

    /// In lower case.
    pub(super) fn sni(&self) -> Option<&[u8]> {
        self.sni
            .get_or_init(|| {
                self.asked
                    .sni
                    .map(|sni| sni.to_ascii_lowercase().into_bytes())
            })
            .as_deref()
    }

    pub(super) fn request_principal(&self) -> Option<&'a [u8]> {
        self.asked.request_principal.map(str::as_bytes)
    }
}

/// Every escape as the byte that it stands for.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten();
        let value = digits.and_then(|digits| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            Some((digit(digits[0])? << 4 | digit(digits[1])?) as u8)
        });
        decoded.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    Cow::Owned(decoded)
}
