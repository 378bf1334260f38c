//! What objects of the Gateway API refer to, and which references across namespaces are permitted.
//!
//! A reference into another namespace needs a ReferenceGrant there: a route that sends a waypoint's requests to somebody
//! else's service would lend it the waypoint's identity. Source: Gateway API v1.6, `ReferenceGrantSpec`, GEP-709.

use hashbrown::HashMap;
use karst_k8s_api::gateway::ReferenceGrantSpec;
use karst_model::name::{GatewayKey, ServiceKey};

use crate::facts::Name;

/// Group of ServiceEntries, and of hostnames as Istio writes them.
pub(crate) const ISTIO_NETWORKING: &str = "networking.istio.io";

/// One object as another one names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    /// Empty for Kubernetes' own.
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl std::fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Whether a reference names a kind that services are of.
pub(crate) fn is_service_like(to: &Reference<'_>) -> bool {
    matches!(
        (to.group, to.kind),
        ("", "Service") | (ISTIO_NETWORKING, "ServiceEntry")
    )
}

/// Who refers to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Referrer<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
}

/// What a reference to a Service or a ServiceEntry leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Several for an entry of several hosts.
    pub(crate) services: Vec<TargetService>,
    /// Numbers and names.
    pub(crate) ports: Vec<TargetPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetService {
    pub(crate) key: ServiceKey,
    /// Whether it has an address of its own.
    pub(crate) has_address: bool,
    /// The waypoint that it is bound to.
    pub(crate) waypoint: Option<GatewayKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetPort {
    pub(crate) number: u16,
    pub(crate) name: Box<str>,
    /// The port speaks TLS.
    pub(crate) is_tls: bool,
}

/// Why a reference leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTarget {
    /// Neither a Service nor a ServiceEntry.
    Kind,
    Missing,
    /// A Service that is only another name.
    ExternalName,
}

/// All ReferenceGrants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    by_namespace: HashMap<std::sync::Arc<str>, HashMap<Name, ReferenceGrantSpec>>,
}

impl Grants {
    /// Puts or removes a grant; whether that changes anything.
    pub(crate) fn set(&mut self, name: &Name, after: Option<ReferenceGrantSpec>) -> bool {
        let grants = self.by_namespace.entry(name.namespace.clone()).or_default();
        let same = grants.get(name) == after.as_ref();
        match after {
            Some(after) => drop(grants.insert(name.clone(), after)),
            None => drop(grants.remove(name)),
        }
        if grants.is_empty() {
            self.by_namespace.remove(&name.namespace);
        }
        !same
    }

    /// Whether somebody may refer to an object of another namespace.
    pub(crate) fn permit(&self, from: &Referrer<'_>, to: &Reference<'_>) -> bool {
        let grants = self.by_namespace.get(to.namespace);
        grants.into_iter().flatten().any(|(_, grant)| {
            let by = grant.from.iter().any(|by| {
                by.group == from.group && by.kind == from.kind && by.namespace == from.namespace
            });
            let of = grant.to.iter().any(|of| {
                let named = of.name.as_deref().filter(|name| !name.is_empty());
                of.group == to.group
                    && of.kind == to.kind
                    && named.is_none_or(|name| name == to.name)
            });
            by && of
        })
    }
}
