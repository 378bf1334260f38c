//! `gateway.networking.k8s.io/v1 TLSRoute`. Source: Gateway API reference v1.6, `TLSRouteSpec`.

use serde::{Deserialize, Serialize};

use super::{route::ParentReference, tcp_route::TcpRouteRule};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRouteSpec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<String>,
    /// Names that clients ask for in their ClientHello.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<TlsRouteRule>,
}

/// A name and backends, as for TCP.
pub type TlsRouteRule = TcpRouteRule;
