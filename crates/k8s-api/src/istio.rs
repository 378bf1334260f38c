//! Istio's resource definitions, as far as Karst reads them: complete in their fields, so that a misspelt one shows.

pub mod authorization_policy;
pub mod peer_authentication;
pub mod selector;
pub mod service_entry;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub use authorization_policy::AuthorizationPolicySpec;
pub use peer_authentication::PeerAuthenticationSpec;
pub use selector::{PolicyTargetReference, WorkloadSelector};
pub use service_entry::{ServiceEntrySpec, ServiceEntryStatus};

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
pub type ServiceEntry = Resource<ServiceEntrySpec, ServiceEntryStatus>;
