//! SPIFFE identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Source: SPIFFE-ID specification section 2, and Istio's layout of the path.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Trust domain used where none is configured.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The authority of a SPIFFE ID: all identities under one set of roots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrustDomain(pub Arc<str>);

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All names of this mesh's trust domain, under the same roots. An identity is the same in each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrustDomains {
    /// The one in which certificates are issued.
    pub own: TrustDomain,
    /// Its other names: those that it had before, and those that it will have.
    pub aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// One without aliases.
    pub fn only(own: TrustDomain) -> Self {
        Self {
            own,
            aliases: Vec::new(),
        }
    }

    /// Whether `trust_domain` is this mesh's.
    pub fn covers(&self, trust_domain: &TrustDomain) -> bool {
        self.iter().any(|one| one == trust_domain)
    }

    /// All names, the one of certificates first.
    pub fn iter(&self) -> impl Iterator<Item = &TrustDomain> {
        std::iter::once(&self.own).chain(&self.aliases)
    }

    /// Whether two identities are the same, by whatever name of this mesh.
    pub fn same(&self, a: &SpiffeId, b: &SpiffeId) -> bool {
        a == b || a.same_account(b) && self.covers(&a.trust_domain) && self.covers(&b.trust_domain)
    }
}

/// Who a workload is: the service account that it runs as, in a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    pub trust_domain: TrustDomain,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// A URI that is no workload identity; says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("{0:?} does not start with spiffe://")]
    Scheme(String),
    #[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    #[error("{0:?} has a character that SPIFFE does not allow")]
    Character(String),
}

impl SpiffeId {
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The same service account in another trust domain.
    #[must_use]
    pub fn in_trust_domain(&self, trust_domain: &TrustDomain) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Whether both are the same service account, each in a trust domain that was checked elsewhere.
    pub fn same_account(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.service_account == other.service_account
    }

    /// The identity without its scheme, the form that policies compare: `cluster.local/ns/shop/sa/orders`.
    pub fn principal(&self) -> Principal<'_> {
        Principal(self)
    }
}

/// Displays a [`SpiffeId`] without `spiffe://`.
pub struct Principal<'a>(&'a SpiffeId);

impl fmt::Display for Principal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/ns/{}/sa/{}",
            self.0.trust_domain, self.0.namespace, self.0.service_account
        )
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.principal())
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        let rest = uri
            .strip_prefix("spiffe://")
            .ok_or_else(|| SpiffeIdError::Scheme(uri.to_owned()))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(SpiffeIdError::Shape(uri.to_owned()));
        };
        if [trust_domain, namespace, service_account]
            .iter()
            .any(|part| part.is_empty())
        {
            return Err(SpiffeIdError::Shape(uri.to_owned()));
        }
        if !rest
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b))
        {
            return Err(SpiffeIdError::Character(uri.to_owned()));
        }
        Ok(Self::new(
            &TrustDomain(trust_domain.into()),
            namespace,
            service_account,
        ))
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_round_trips() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        assert_eq!(id, SpiffeId::new(&TrustDomain::default(), "shop", "orders"));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(
            id.principal().to_string(),
            "cluster.local/ns/shop/sa/orders"
        );
    }

    #[test]
    fn an_identity_is_the_same_by_every_name_of_its_mesh_and_by_no_other() {
        let domain = |name: &str| TrustDomain(name.into());
        let mesh = TrustDomains {
            own: domain("new.example"),
            aliases: vec![domain("cluster.local")],
        };
        let orders = SpiffeId::new(&mesh.own, "shop", "orders");
        assert!(mesh.same(&orders, &orders.in_trust_domain(&TrustDomain::default())));
        assert!(!mesh.same(&orders, &orders.in_trust_domain(&domain("foreign"))));
        assert!(!mesh.same(&orders, &SpiffeId::new(&mesh.own, "shop", "carts")));
        let foreign = orders.in_trust_domain(&domain("foreign"));
        assert!(mesh.same(&foreign, &foreign));
    }

    #[test]
    fn other_uris_are_refused() {
        for bad in [
            "",
            "https://a/ns/b/sa/c",
            "spiffe://td/ns/b/sa",
            "spiffe://td/ns/b/sa/c/d",
            "spiffe://td/NS/b/sa/c",
            "spiffe:///ns/b/sa/c",
            "spiffe://td/ns//sa/c",
            "spiffe://td/ns/b/sa/c%20d",
            "spiffe://td/ns/b/sa/ü",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
