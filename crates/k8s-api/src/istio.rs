//! Istio's resource definitions: complete in their fields, so that a misspelt one shows and an Istio user's manifests
//! apply unchanged. What Karst does with each field is in [`crate::honoured`]; their schemas are made in [`crate::crd`].

pub mod authorization_policy;
pub mod destination_rule;
pub mod duration;
pub mod mesh_config;
pub mod peer_authentication;
pub mod request_authentication;
pub mod selector;
pub mod service_entry;
pub mod status;
pub mod telemetry;
pub mod virtual_service;
pub mod workload_entry;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub use authorization_policy::AuthorizationPolicySpec;
pub use destination_rule::DestinationRuleSpec;
pub use mesh_config::MeshConfig;
pub use peer_authentication::PeerAuthenticationSpec;
pub use request_authentication::RequestAuthenticationSpec;
pub use selector::{PolicyTargetReference, WorkloadSelector};
pub use service_entry::{ServiceEntrySpec, ServiceEntryStatus};
pub use status::IstioStatus;
pub use telemetry::TelemetrySpec;
pub use virtual_service::VirtualServiceSpec;
pub use workload_entry::WorkloadEntrySpec;

/// The frame that all of Istio's resources share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource<Spec, Status> {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Option<Status>,
}

/// Status of kinds whose status Karst does not read.
pub type UnreadStatus = serde_json::Value;

pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec, UnreadStatus>;
pub type PeerAuthentication = Resource<PeerAuthenticationSpec, UnreadStatus>;
pub type RequestAuthentication = Resource<RequestAuthenticationSpec, UnreadStatus>;
pub type ServiceEntry = Resource<ServiceEntrySpec, ServiceEntryStatus>;
pub type WorkloadEntry = Resource<WorkloadEntrySpec, UnreadStatus>;
pub type DestinationRule = Resource<DestinationRuleSpec, UnreadStatus>;
pub type VirtualService = Resource<VirtualServiceSpec, UnreadStatus>;
pub type Telemetry = Resource<TelemetrySpec, UnreadStatus>;
