//! The validating webhook: what an author is told at `kubectl apply`, before the object is stored.
//!
//! ```text
//!   API server ──HTTPS :15017 /validate──► server ──► review (pure) ──► verdict (pure): denied, warnings
//!                                                                          ▲ the checks of `karst_files`, as for files
//!   configuration: which objects are asked about; the leader keeps its caBundle
//! ```
//!
//! Security kinds are refused while nobody can check them (`failurePolicy: Fail`); everything else goes on without us.

pub mod bundle;
pub mod configuration;
mod review;
pub mod server;
mod verdict;

pub use review::{BadReview, review};
pub use verdict::{Asked, Operation, Verdict, verdict};

/// Where the webhook is asked.
pub const PATH: &str = "/validate";
/// Name of the ValidatingWebhookConfiguration.
pub const CONFIGURATION: &str = "karst";

/// What a verdict depends on beside the object.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub root_namespace: std::sync::Arc<str>,
    /// Service accounts of the waypoints that there are.
    pub waypoints: karst_ca::authorize::OwnAccounts,
}
