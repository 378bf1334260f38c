//! Type URLs of discovery resources: who subscribes and who serves name the same string.

/// Workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Workloads only; older clients ask for it.
pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
/// Authorization policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// Pods of the node that asks.
pub const NODE_WORKLOAD: &str = "type.googleapis.com/karst.v1.NodeWorkload";
/// Routes of the services that are bound to the waypoint that asks.
pub const ROUTE: &str = "type.googleapis.com/karst.v1.Route";
/// Request policies of those services and of the waypoint itself.
pub const WAYPOINT_POLICY: &str = "type.googleapis.com/karst.v1.WaypointPolicy";
/// What holds for the traffic of those services beyond their routes.
pub const SERVICE_TRAFFIC: &str = "type.googleapis.com/karst.v1.ServiceTraffic";
/// Which tokens requests for those services may carry.
pub const REQUEST_AUTHENTICATION: &str = "type.googleapis.com/karst.v1.RequestAuthentication";
/// Rate limits of those services and of the waypoint itself.
pub const RATE_LIMIT: &str = "type.googleapis.com/karst.v1.RateLimit";
/// What Karst adds to a workload, inside its extensions.
pub const WORKLOAD_EXTENSION: &str = "type.googleapis.com/karst.v1.WorkloadExtension";
/// What Karst adds to a service, inside its extensions.
pub const SERVICE_EXTENSION: &str = "type.googleapis.com/karst.v1.ServiceExtension";
/// All names of the mesh's trust domain.
pub const TRUST_DOMAINS: &str = "type.googleapis.com/karst.v1.TrustDomains";
/// What is recorded of connections and requests, and where it goes.
pub const TELEMETRY: &str = "type.googleapis.com/karst.v1.Telemetry";
