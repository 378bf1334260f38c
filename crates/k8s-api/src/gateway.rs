//! Kinds of the Gateway API (`gateway.networking.k8s.io`, v1.6), one file per kind. Their definitions are the project's
//! own and are installed apart; fields that Karst does not read are kept as they came.

pub mod backend_tls_policy;
#[expect(
    clippy::module_inception,
    reason = "one file per kind, and this kind is called so"
)]
pub mod gateway;
pub mod gateway_class;
pub mod grpc_route;
pub mod http_route;
pub mod reference_grant;
pub mod route;
pub mod tcp_route;
pub mod tls_route;

pub use backend_tls_policy::{BackendTlsPolicySpec, PolicyStatus};
pub use gateway::GatewaySpec;
pub use gateway_class::GatewayClassSpec;
pub use grpc_route::GrpcRouteSpec;
pub use http_route::HttpRouteSpec;
pub use reference_grant::ReferenceGrantSpec;
pub use route::RouteStatus;
pub use tcp_route::TcpRouteSpec;
pub use tls_route::TlsRouteSpec;

use crate::istio::{Resource, UnreadStatus};

pub type Gateway = Resource<GatewaySpec, UnreadStatus>;
pub type GatewayClass = Resource<GatewayClassSpec, UnreadStatus>;
pub type HttpRoute = Resource<HttpRouteSpec, RouteStatus>;
pub type GrpcRoute = Resource<GrpcRouteSpec, RouteStatus>;
pub type TlsRoute = Resource<TlsRouteSpec, RouteStatus>;
pub type TcpRoute = Resource<TcpRouteSpec, RouteStatus>;
pub type BackendTlsPolicy = Resource<BackendTlsPolicySpec, PolicyStatus>;
pub type ReferenceGrant = Resource<ReferenceGrantSpec, UnreadStatus>;
