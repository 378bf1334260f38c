//! Names of things. Each is its own type, so that one cannot be passed for another.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Key of a workload, unique in the mesh and stable for its life, for example
/// `Kubernetes//Pod/shop/orders-0` (cluster, API group, kind, namespace, name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(pub Arc<str>);

/// The UID that the container runtime and the kubelet know a pod by (`metadata.uid`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub Arc<str>);

/// Key of a service: `<namespace>/<hostname>` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    /// Fully qualified: `orders.shop.svc.cluster.local`, or a ServiceEntry host.
    pub hostname: Arc<str>,
}

/// Key of an authorization policy: `<namespace>/<name>` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Key of a Gateway, and so of a waypoint: `<namespace>/<name>` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// A `<namespace>/<rest>` name without its slash.
#[derive(Debug, thiserror::Error)]
#[error("name {0:?} is not of the form <namespace>/<name>")]
pub struct NameError(pub String);

fn split(text: &str) -> Result<(Arc<str>, Arc<str>), NameError> {
    match text.split_once('/') {
        Some((a, b)) if !b.is_empty() && !b.contains('/') => Ok((a.into(), b.into())),
        _ => Err(NameError(text.to_owned())),
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        split(text).map(|(namespace, hostname)| Self {
            namespace,
            hostname,
        })
    }
}

impl FromStr for PolicyKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        split(text).map(|(namespace, name)| Self { namespace, name })
    }
}

impl FromStr for GatewayKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        split(text).map(|(namespace, name)| Self { namespace, name })
    }
}

impl fmt::Display for GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl Serialize for PolicyKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for WorkloadUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_refuse_other_shapes() {
        let key: ServiceKey = "shop/orders.shop.svc.cluster.local".parse().unwrap();
        assert_eq!(key.to_string(), "shop/orders.shop.svc.cluster.local");
        for bad in ["", "shop", "shop/", "a/b/c"] {
            assert!(bad.parse::<PolicyKey>().is_err(), "{bad}");
        }
        assert!(
            "/global".parse::<PolicyKey>().is_ok(),
            "an empty namespace is the caller's business"
        );
    }
}
