//! What can happen to the index.

use karst_k8s_api::{Object, ObjectKey};
use karst_model::{enrollment::PodCapture, name::PodUid};

use crate::delta::Transition;

/// One change: of an object, or of what a node's agent does.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object is there, in this version.
    Apply(Object),
    /// The object is gone. Unknown keys are fine.
    Delete(ObjectKey),
    /// A node's agent says how it holds a pod, `None` where it does not capture it. This is a level, not an edge: an
    /// agent repeats it after every (re)connect and says every change of it. It counts only under the generation that
    /// the pod is in.
    Captured {
        pod_uid: PodUid,
        capture: Option<PodCapture>,
    },
    /// An earlier controller had published this pod as captured, before anything else is known of it.
    Resumed {
        pod_uid: PodUid,
        capture: PodCapture,
    },
    /// Every peer has acknowledged what a transition published.
    Acknowledged(Transition),
    /// A transition has taken too long: nobody is waited for.
    Overdue(Transition),
}
