//! What can happen to the index.

use karst_k8s_api::{Object, ObjectKey};
use karst_model::name::PodUid;

/// One change: of an object, or of what a node's agent does.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object is there, in this version.
    Apply(Object),
    /// The object is gone. Unknown keys are fine.
    Delete(ObjectKey),
    /// A node's agent says whether it captures a pod. This is a level, not an edge: an agent repeats it after every
    /// (re)connect and says every change of it. A captured pod that was let go is not enrolled again before its agent has
    /// said that it is captured no more.
    Captured { pod_uid: PodUid, captured: bool },
    /// Every peer has acknowledged that this pod takes no more HBONE (see [`Delta::withdrawing`]).
    ///
    /// [`Delta::withdrawing`]: crate::Delta::withdrawing
    Withdrawn { pod_uid: PodUid },
}
