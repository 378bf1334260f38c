//! Pure index from Kubernetes objects to the model.
//!
//! ```text
//!   Event ──► facts (what objects say, compact) ──► dirty marks ──► compile ──► tables ──► Delta
//!             one file per kind of object           who depends     pure        last       only what
//!                                                   on the change   functions   output     differs
//! ```
//!
//! The index is one owned struct without sockets, clocks or tasks. An event changes facts and marks what depends on
//! them; only that is compiled again, and only what differs from the last output leaves. The output is a function of
//! the facts and of what agents reported, never of the order in which they came.

mod authorizers;
mod backend_policies;
mod capture;
mod conditions;
mod config;
mod credentials;
mod delta;
mod destination_rules;
mod event;
mod facts;
mod gateways;
mod index;
mod peer_authentication;
mod policies;
mod rate_limits;
mod references;
mod request_authentications;
mod request_policies;
mod routes;
mod seals;
mod selector;
mod service_entries;
mod services;
mod shared;
mod telemetries;
mod trust_domains;
mod vips;
mod virtual_services;
mod waypoints;
mod workloads;

pub use backend_policies::ROOTS_KEY;
pub use conditions::{Condition, ConditionType, ObjectConditions};
pub use config::IndexConfig;
pub use credentials::{Credential, ReadSecret, SecretName};
pub use delta::{Awaited, Changes, Delta, EntryAddresses, NodeChange, Transition};
pub use destination_rules::check_destination_rule;
pub use event::Event;
pub use gateways::{Address, GatewayStatus, ListenerStatus};
pub use index::{Index, Stats};
pub use request_authentications::{FetchedKeys, KeySource};
pub use routes::{ParentStatus, ROUTE_CONTROLLER, RouteStatus, check_route};
pub use virtual_services::check_virtual_service;
