//! What can happen to the index.

use std::{collections::BTreeMap, sync::Arc};

use karst_k8s_api::{Object, ObjectKey};
use karst_model::{enrollment::PodCapture, name::PodUid};

use crate::{
    credentials::{ReadSecret, SecretName},
    delta::Transition,
    request_authentications::{FetchedKeys, KeySource},
};

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
    /// Another controller serves this node's agent: the node's pods stand as that one has published them, and no report
    /// is waited for.
    NodeElsewhere {
        node: Arc<str>,
        /// The pods that are reached by HBONE.
        published: Vec<(PodUid, PodCapture)>,
    },
    /// We serve this node's agent, which is about to report. What another controller had published is gone on from.
    NodeHere { node: Arc<str> },
    /// What fetching an issuer's keys has come to. This is a level: it replaces what was said before.
    Keys {
        source: KeySource,
        fetched: FetchedKeys,
    },
    /// What reading a Secret has come to. This is a level: it replaces what was said before.
    Secret {
        secret: SecretName,
        read: ReadSecret,
    },
    /// Collectors that do not take what agents and waypoints send, by provider, and why. This is a level: it replaces what
    /// was said before.
    FailingCollectors(BTreeMap<Arc<str>, Arc<str>>),
    /// Every peer has acknowledged what a transition published.
    Acknowledged(Transition),
    /// A transition has taken too long: nobody is waited for.
    Overdue(Transition),
}
