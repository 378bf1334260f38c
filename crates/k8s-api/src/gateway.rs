//! Kinds of the Gateway API (`gateway.networking.k8s.io`, v1.6), one file per kind. Their definitions are the project's
//! own and are installed apart; fields that Karst does not read are kept as they came.

pub mod gateway;
pub mod gateway_class;

pub use gateway::GatewaySpec;
pub use gateway_class::GatewayClassSpec;

use crate::istio::{Resource, UnreadStatus};

pub type Gateway = Resource<GatewaySpec, UnreadStatus>;
pub type GatewayClass = Resource<GatewayClassSpec, UnreadStatus>;
