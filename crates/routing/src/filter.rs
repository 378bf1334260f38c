//! What a rule does to a request and its response, as pure functions: headers, redirects, rewrites, mirrors, CORS, faults.
//!
//! ```text
//!   model::HttpFilter ──compile──► Filter ──► changed Request | location | CORS headers | share of mirrored requests
//!                        └─► Unusable: the rule answers 500, a filter is never skipped
//! ```
//!
//! Names and values of headers are parsed once, when a route is compiled. The waypoint sends and answers.

pub mod cors;
pub mod fault;
pub mod headers;
pub mod path;
pub mod redirect;

use std::sync::Arc;

use http::StatusCode;
use karst_model::route::{self, Backend, DirectResponse, HttpFilter};

use self::path::Change;
pub use self::{
    cors::{Cors, CorsOutcome},
    fault::Fault,
    headers::HeaderChanges,
    path::MatchedPath,
    redirect::Redirect,
};
use crate::{
    pattern::PatternError,
    request::{Request, Unwritable},
};

/// One filter, ready to be applied.
#[derive(Clone, Debug)]
pub enum Filter {
    RequestHeaders(HeaderChanges),
    ResponseHeaders(HeaderChanges),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
    Direct(DirectResponse),
    Fault(Fault),
}

/// Why a filter cannot be applied as it is written. The fault is the route's author's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("{0:?} is not the name of a header")]
    HeaderName(String),
    #[error("{value:?} cannot be the value of header {name}")]
    HeaderValue { name: String, value: String },
    /// Changed by a filter it would make two readings out of one message.
    #[error("header {0} belongs to the connection and cannot be changed by a route")]
    HeaderOfConnection(String),
    #[error("{0:?} cannot be the host of a request")]
    Host(String),
    #[error("{0:?} cannot be the path of a request")]
    Path(String),
    #[error("{0} is not the status of a redirect: 301, 302, 303, 307 or 308")]
    RedirectStatus(u16),
    #[error("{0:?} is neither http nor https")]
    Scheme(String),
    #[error("{0} is not a status of a response")]
    Status(u16),
    #[error("{numerator} of {denominator} is not a share of requests")]
    Share { numerator: u32, denominator: u32 },
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(
        "{0:?} is no replacement: \\0 to \\9 stand for groups of the expression, \\\\ for a backslash"
    )]
    Substitution(String),
    #[error("{0} is not a status of gRPC: 0 to 16")]
    GrpcStatus(u8),
    #[error("a wait of {0:?} is longer than an hour")]
    Wait(std::time::Duration),
}

impl Filter {
    /// Prepares a filter of a route.
    pub fn compile(filter: &HttpFilter) -> Result<Self, Unusable> {
        Ok(match filter {
            HttpFilter::RequestHeaders(changes) => {
                Self::RequestHeaders(HeaderChanges::compile(changes)?)
            }
            HttpFilter::ResponseHeaders(changes) => {
                Self::ResponseHeaders(HeaderChanges::compile(changes)?)
            }
            HttpFilter::Redirect(redirect) => Self::Redirect(Redirect::compile(redirect)?),
            HttpFilter::Rewrite(rewrite) => Self::Rewrite(Rewrite::compile(rewrite)?),
            HttpFilter::Mirror(mirror) => Self::Mirror(Mirror::compile(mirror)?),
            HttpFilter::Cors(cors) => Self::Cors(Cors::compile(cors)?),
            HttpFilter::Direct(direct) => {
                StatusCode::from_u16(direct.status)
                    .map_err(|_invalid| Unusable::Status(direct.status))?;
                Self::Direct(direct.clone())
            }
            HttpFilter::Fault(fault) => Self::Fault(Fault::compile(fault)?),
        })
    }

    /// What stands in for a filter that cannot be applied.
    pub fn refusing(reason: &Unusable) -> Self {
        Self::Direct(DirectResponse {
            status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            body: "".into(),
            reason: reason.to_string().into(),
        })
    }
}

/// Another host or path on the way to the backend.
#[derive(Clone, Debug)]
pub struct Rewrite {
    host: Option<Arc<str>>,
    path: Option<Change>,
}

impl Rewrite {
    fn compile(rewrite: &route::Rewrite) -> Result<Self, Unusable> {
        if let Some(host) = &rewrite.host {
            redirect::check_host(host)?;
        }
        Ok(Self {
            host: rewrite.host.clone(),
            path: rewrite.path.as_ref().map(Change::compile).transpose()?,
        })
    }

    /// Changes the request as it goes to the backend. The error is a client's path that the new one cannot be made of.
    pub fn apply(&self, request: &mut Request, matched: MatchedPath<'_>) -> Result<(), Unwritable> {
        if let Some(host) = &self.host {
            request.set_authority(host)?;
        }
        let Some(change) = &self.path else {
            return Ok(());
        };
        let path = change.of(request.path(), matched).into_owned();
        request.set_path(&path)
    }
}

/// A copy of some of the requests for another backend.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub backend: Backend,
    numerator: u32,
    denominator: u32,
    /// The copy's host gets `-shadow` behind its name.
    pub shadow_host: bool,
}

impl Mirror {
    fn compile(mirror: &route::Mirror) -> Result<Self, Unusable> {
        let route::Mirror {
            backend,
            numerator,
            denominator,
            shadow_host,
        } = mirror;
        if *denominator == 0 || numerator > denominator {
            return Err(Unusable::Share {
                numerator: *numerator,
                denominator: *denominator,
            });
        }
        Ok(Self {
            backend: backend.clone(),
            numerator: *numerator,
            denominator: *denominator,
            shadow_host: *shadow_host,
        })
    }

    /// The host of a copy: Istio's mirrored requests are told from others by it.
    pub fn host_of_copy(&self, authority: &str) -> Option<String> {
        if !self.shadow_host || authority.is_empty() {
            return None;
        }
        Some(match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => format!("{host}-shadow:{port}"),
            _ => format!("{authority}-shadow"),
        })
    }

    /// Whether a request is copied; `random` is drawn evenly from all of `u64`.
    pub fn takes(&self, random: u64) -> bool {
        let point = (u128::from(random) * u128::from(self.denominator)) >> 64;
        point < u128::from(self.numerator)
    }
}

#[cfg(test)]
mod tests;
