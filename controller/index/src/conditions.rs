//! What the index says about an object to its author: nothing is accepted and ignored in silence.

use std::fmt;

use karst_k8s_api::ObjectKey;

/// All that is to be said about one object now. No conditions: nothing more to say (take old ones away).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectConditions {
    pub object: ObjectKey,
    pub conditions: Vec<Condition>,
}

/// One statement about an object, as Kubernetes conditions make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: ConditionType,
    /// `True` or `False` of the Kubernetes condition.
    pub status: bool,
    /// One word in CamelCase for programs.
    pub reason: &'static str,
    /// A sentence for people: what does not hold, and what happens instead.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// The object is used as written.
    Accepted,
    /// The L4 data plane enforces the policy. Istio's own type, so that its tools read it.
    ZtunnelAccepted,
    /// A waypoint enforces the policy. Istio's own type.
    WaypointAccepted,
    /// The object's label names a waypoint, and that waypoint is used. Istio's own type.
    WaypointBound,
    /// The service's ports accept its waypoint only.
    Sealed,
    /// A Gateway's proxy is in place. The Gateway API's own type, as the next ones.
    Programmed,
    /// Two listeners ask for the same.
    Conflicted,
    /// What the object refers to is there and permitted.
    ResolvedRefs,
    /// The keys that tokens are verified with are here.
    KeysFetched,
    /// Some rules of a route hold and some do not.
    PartiallyInvalid,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "Accepted",
            Self::ZtunnelAccepted => "ZtunnelAccepted",
            Self::WaypointAccepted => "WaypointAccepted",
            Self::WaypointBound => "istio.io/WaypointBound",
            Self::Sealed => "karst.dev/Sealed",
            Self::Programmed => "Programmed",
            Self::Conflicted => "Conflicted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::KeysFetched => "karst.dev/KeysFetched",
            Self::PartiallyInvalid => "PartiallyInvalid",
        })
    }
}

impl Condition {
    pub(crate) fn yes(
        kind: ConditionType,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: true,
            reason,
            message: message.into(),
        }
    }

    pub(crate) fn no(
        kind: ConditionType,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: false,
            reason,
            message: message.into(),
        }
    }
}
