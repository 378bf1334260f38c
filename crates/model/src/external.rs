//! External authorizers: who is asked about the requests that a policy with action CUSTOM matches.
//!
//! What `envoyExtAuthzGrpc` and `envoyExtAuthzHttp` of the mesh configuration's `extensionProviders` say. The question and
//! the answer are Envoy's `envoy.service.auth.v3.Authorization/Check`, or an HTTP request and its status.
//!
//! Source of the semantics: Istio's reference of MeshConfig.ExtensionProvider.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{name::ServiceKey, policy::StringMatch};

/// Time for an answer where the provider names none.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// Status of a refusal where the authorizer cannot be asked and the provider names none.
pub const STATUS_ON_ERROR: u16 = 403;

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalAuthorizer {
    /// The name that policies call it by.
    pub name: Arc<str>,
    pub service: ServiceKey,
    /// The service's own port.
    pub port: u16,
    pub timeout: Duration,
    /// Whether a request goes on when the authorizer cannot be asked.
    pub fail_open: bool,
    /// What a request is answered with when it cannot be asked and does not go on.
    pub status_on_error: u16,
    /// Whether the route is chosen again after an answer that allows: it may have changed headers.
    pub clear_route_cache: bool,
    pub body: Option<CheckedBody>,
    pub protocol: AuthorizerProtocol,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorizerProtocol {
    Grpc,
    Http(HttpAuthorizer),
}

/// How an authorizer is asked over HTTP: the request's method and path, and its answer's status says yes (200) or no.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpAuthorizer {
    /// Stands before the request's path; empty, or with a leading slash.
    pub path_prefix: Arc<str>,
    /// Headers of the request that the question has too, beside host, method, path, authorization and content-length.
    pub include_headers: Vec<StringMatch>,
    /// Headers that the question has besides; names in lower case.
    pub additional_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Headers of an answer that allows which the backend gets, in place of those of the request.
    pub upstream_on_allow: Vec<StringMatch>,
    /// Headers of an answer that allows which the client gets.
    pub downstream_on_allow: Vec<StringMatch>,
    /// Headers of an answer that denies which the client gets; none: all but the host.
    pub downstream_on_deny: Vec<StringMatch>,
}

/// The part of a request's body that an authorizer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CheckedBody {
    /// Bytes that are waited for.
    pub max_bytes: u32,
    /// Whether a longer body is sent in part; else it is answered with 413.
    pub allow_partial: bool,
    /// For gRPC: as bytes rather than as UTF-8 text.
    pub pack_as_bytes: bool,
}
