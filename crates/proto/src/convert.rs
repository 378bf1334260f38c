//! Messages to the model and back.
//!
//! Decoding takes the bytes of one discovery resource and says in its error which field is wrong. Encoding cannot fail.
//! Empty fields of the wire mean Istio's defaults (trust domain, service account, cluster), and the defaults are left
//! out when encoding.

mod address;
mod error;
mod external;
mod intern;
mod node;
mod policy;
mod rate_limit;
mod route;
mod service;
mod telemetry;
mod token;
mod traffic;
mod trust_domains;
mod waypoint_policy;
mod workload;

#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod tests;

pub use address::{Address, address_aliases, decode_address};
pub use error::{ConvertError, Problem};
pub use intern::Interner;
pub use node::{decode_node_workload, encode_node_workload, node_workload_from, node_workload_to};
pub use policy::{authorization_to, decode_authorization};
pub use rate_limit::{decode_rate_limit, rate_limit_to};
pub use route::{decode_route, route_to};
pub use service::{service_aliases, service_to};
pub use telemetry::{decode_telemetry, telemetry_to};
pub use token::{decode_request_authentication, request_authentication_to};
pub use traffic::{decode_service_traffic, service_traffic_to};
pub use trust_domains::{
    TRUST_DOMAINS_NAME, decode_trust_domains, trust_domains_from, trust_domains_to,
};
pub use waypoint_policy::{decode_waypoint_policy, waypoint_policy_to};
pub use workload::{workload_aliases, workload_to};
