//! The `Location` of a redirect: scheme, host, port and path, each from the filter or from the request.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use karst_model::route;

use super::{MatchedPath, Unusable, path::Change};
use crate::request::{Request, Scheme, Unwritable};

/// A redirect, checked.
#[derive(Clone, Debug)]
pub struct Redirect {
    scheme: Option<Scheme>,
    host: Option<Arc<str>>,
    port: Option<u16>,
    keep_port: bool,
    path: Option<Change>,
    status: StatusCode,
}

impl Redirect {
    pub(super) fn compile(redirect: &route::Redirect) -> Result<Self, Unusable> {
        let status = match redirect.status {
            301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(redirect.status)
                .map_err(|_invalid| Unusable::RedirectStatus(redirect.status))?,
            other => return Err(Unusable::RedirectStatus(other)),
        };
        let scheme = match redirect.scheme.as_deref() {
            None | Some("") => None,
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(other) => return Err(Unusable::Scheme(other.to_owned())),
        };
        redirect.host.as_deref().map_or(Ok(()), check_host)?;
        Ok(Self {
            scheme,
            host: redirect.host.clone(),
            port: redirect.port,
            keep_port: redirect.keep_port,
            path: redirect.path.as_ref().map(Change::compile).transpose()?,
            status,
        })
    }

    /// Whether a `Location` is where the request asked already, so that its client would come back for ever.
    pub fn leads_back(location: &HeaderValue, request: &Request) -> bool {
        let itself = Self {
            scheme: None,
            host: None,
            port: None,
            keep_port: false,
            path: None,
            status: StatusCode::FOUND,
        };
        let itself = itself.answer(request, MatchedPath::Whole);
        itself.is_ok_and(|(_, itself)| itself == *location)
    }

    /// Status and `Location` of the answer.
    pub fn answer(
        &self,
        request: &Request,
        matched: MatchedPath<'_>,
    ) -> Result<(StatusCode, HeaderValue), Unwritable> {
        let scheme = self.scheme.unwrap_or_else(|| request.scheme());
        let host = self.host.as_deref().unwrap_or_else(|| request.host());
        let port = self.port.unwrap_or_else(|| match self.scheme {
            Some(scheme) if !self.keep_port => scheme.well_known_port(),
            _ => request.port(),
        });
        let path = match &self.path {
            Some(change) => change.of(request.path(), matched),
            None => request.path().into(),
        };
        let mut location = match host {
            // HTTP/1.0 without a host: relative to whatever the client asked.
            "" => String::new(),
            host => format!("{}://{host}", scheme.as_str()),
        };
        if !location.is_empty() && port != scheme.well_known_port() {
            location.push_str(&format!(":{port}"));
        }
        location.push_str(&path);
        if let Some(query) = request.query() {
            location.push('?');
            location.push_str(query);
        }
        match HeaderValue::from_str(&location) {
            Ok(value) => Ok((self.status, value)),
            Err(_invalid) => Err(Unwritable(location, "location")),
        }
    }
}

/// Whether a text can be the host of a request, alone or with a port.
pub(super) fn check_host(host: &str) -> Result<(), Unusable> {
    crate::request::is_authority(host)
        .then_some(())
        .ok_or_else(|| Unusable::Host(host.to_owned()))
}
