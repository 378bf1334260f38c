//! What the index keeps of each object: only what the model needs, in compact form.

pub(crate) mod pod;
pub(crate) mod service;
pub(crate) mod slice;

use std::sync::Arc;

use karst_k8s_api::{
    ObjectKey,
    istio::{ServiceEntrySpec, service_entry::ServiceEntryAddress},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{seals::SealWish, selector::Labels};

/// Namespace and name of an object whose kind is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Name {
    pub(crate) fn new(namespace: &Arc<str>, name: &Arc<str>) -> Self {
        Self {
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<ObjectKey> for Name {
    fn from(key: ObjectKey) -> Self {
        Self {
            namespace: key.namespace,
            name: key.name,
        }
    }
}

/// When an object was created, in seconds of Unix time; 0 where nobody says. Older ones sort first and win conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Created(pub(crate) i64);

impl Created {
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self(
            meta.creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
        )
    }
}

/// A ServiceEntry.
#[derive(Debug, PartialEq)]
pub(crate) struct EntryFacts {
    pub(crate) created: Created,
    pub(crate) labels: Labels,
    pub(crate) spec: ServiceEntrySpec,
    /// Addresses that a controller has chosen before.
    pub(crate) assigned: Vec<ServiceEntryAddress>,
    pub(crate) seal: Option<SealWish>,
    /// Clients may do without its waypoint while no replica of that is ready.
    pub(crate) waypoint_optional: bool,
}

impl EntryFacts {
    /// Labels of the pods that are its endpoints.
    pub(crate) fn selector(&self) -> Option<&Labels> {
        self.spec
            .workload_selector
            .as_ref()
            .map(|selector| &selector.labels)
            .filter(|labels| !labels.is_empty())
    }
}
