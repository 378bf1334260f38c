//! A request prepared for comparing: every reading of its values, made once per decision.

use std::{borrow::Cow, cell::OnceCell, net::IpAddr, sync::Arc};

use karst_routing::{request::Request, token::Token};
use smallvec::SmallVec;

use super::{Asked, AskedConnection};
use crate::connection;

/// What the comparisons look at.
pub(super) struct View<'a> {
    pub(super) connection: connection::View<'a>,
    /// `None` for a connection that is no HTTP.
    request: Option<&'a Request>,
    /// With every escape decoded, as a backend reads it.
    decoded_path: Cow<'a, [u8]>,
    /// The same without the parameters of its segments, where it has any: as servlet containers route.
    bare_path: Option<Vec<u8>>,
    /// The host as it was sent, in lower case.
    pub(super) authority: SmallVec<[u8; 64]>,
    pub(super) remote_ip: IpAddr,
    pub(super) sni: OnceCell<Option<Vec<u8>>>,
    asked_sni: Option<&'a str>,
}

impl<'a> View<'a> {
    pub(super) fn new(asked: &Asked<'a>) -> Self {
        let connection = AskedConnection {
            connection: asked.connection,
            remote_ip: asked.remote_ip,
            sni: asked.sni,
        };
        Self {
            request: Some(asked.request),
            decoded_path: decoded(asked.request.path()),
            bare_path: without_parameters(asked.request.path()),
            authority: asked
                .request
                .authority()
                .bytes()
                .map(|byte| byte.to_ascii_lowercase())
                .collect(),
            ..Self::of_connection(&connection)
        }
    }

    pub(super) fn of_connection(asked: &AskedConnection<'a>) -> Self {
        Self {
            connection: connection::View::new(asked.connection),
            request: None,
            decoded_path: Cow::Borrowed(b""),
            bare_path: None,
            authority: SmallVec::new(),
            remote_ip: asked.remote_ip.to_canonical(),
            sni: OnceCell::new(),
            asked_sni: asked.sni,
        }
    }

    /// Whether there is a request, or only a connection.
    pub(super) fn is_request(&self) -> bool {
        self.request.is_some()
    }

    pub(super) fn method(&self) -> &'a [u8] {
        self.request
            .map_or(b"", |request| request.method().as_str().as_bytes())
    }

    /// As it goes to the backend.
    pub(super) fn path(&self) -> &'a [u8] {
        self.request
            .map_or(b"", |request| request.path().as_bytes())
    }

    /// In lower case, without port.
    pub(super) fn host(&self) -> &'a [u8] {
        self.request
            .map_or(b"", |request| request.host().as_bytes())
    }

    /// Every path that a backend may take this one for: with escapes decoded, and without parameters.
    pub(super) fn decoded_paths(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&*self.decoded_path).chain(self.bare_path.as_deref())
    }

    /// All values of a header as one.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        self.request?.header(name)
    }

    /// Every value that a header can be read as: of each line the whole and each part between commas.
    pub(super) fn header_readings(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.request.map(|request| request.headers().get_all(name));
        lines.into_iter().flatten().flat_map(|line| {
            let parts = line.as_bytes().split(|byte| *byte == b',');
            std::iter::once(line.as_bytes()).chain(parts.map(<[u8]>::trim_ascii))
        })
    }

    /// In lower case.
    pub(super) fn sni(&self) -> Option<&[u8]> {
        self.sni
            .get_or_init(|| {
                self.asked_sni
                    .map(|sni| sni.to_ascii_lowercase().into_bytes())
            })
            .as_deref()
    }

    /// What the request's user proved to be.
    pub(super) fn token(&self) -> Option<&'a Token> {
        self.request?.token().map(Arc::as_ref)
    }

    /// `<issuer>/<subject>`.
    pub(super) fn request_principal(&self) -> Option<&'a [u8]> {
        self.token()?.principal().map(str::as_bytes)
    }
}

/// The path with each segment cut at its first semicolon, then decoded; `None` if there is none.
fn without_parameters(path: &str) -> Option<Vec<u8>> {
    if !path.contains(';') {
        return None;
    }
    let mut bare = String::with_capacity(path.len());
    for segment in path.split('/').skip(1) {
        let name = segment.split(';').next().unwrap_or_default();
        // A segment that was nothing but parameters leaves no empty one behind.
        if !bare.ends_with('/') {
            bare.push('/');
        }
        bare.push_str(name);
    }
    Some(decoded(&bare).into_owned())
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
