//! What a policy is asked about: one TCP connection, as its destination sees it.
//!
//! [`Connection`] is what the agent knows; `View` is the same prepared for comparing, made once per decision.

use std::net::{IpAddr, SocketAddr};

use karst_model::{addr, identity::SpiffeId};
use serde::Serialize;
use smallvec::SmallVec;

/// Bytes of a principal that a decision holds without allocating; names of Kubernetes stay well below.
const PRINCIPAL_INLINE: usize = 512;

/// One connection at its destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Connection {
    /// Identity that the peer proved in its TLS handshake; `None` for plain text.
    pub source: Option<SpiffeId>,
    /// Address of the TCP peer.
    pub source_ip: IpAddr,
    /// The real target: the pod's own address and the resolved target port, neither 15008 nor a virtual address.
    pub destination: SocketAddr,
}

/// A connection prepared for comparing: principal spelled out, addresses canonical.
pub(crate) struct View<'a> {
    id: Option<&'a SpiffeId>,
    principal: SmallVec<[u8; PRINCIPAL_INLINE]>,
    account: SmallVec<[u8; PRINCIPAL_INLINE]>,
    pub(crate) source_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) port: u16,
}

impl<'a> View<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        let id = connection.source.as_ref();
        Self {
            id,
            principal: id.map(spell).unwrap_or_default(),
            account: id
                .map(|id| join(&[&id.namespace, "\0", &id.service_account]))
                .unwrap_or_default(),
            source_ip: addr::canonical_ip(connection.source_ip),
            destination_ip: addr::canonical_ip(connection.destination.ip()),
            port: connection.destination.port(),
        }
    }

    /// `<trust domain>/ns/<namespace>/sa/<service account>`, if there is an identity.
    pub(crate) fn principal(&self) -> Option<&[u8]> {
        self.id.map(|_| self.principal.as_slice())
    }

    /// Namespace and service account as [`account_key`] has them, if there is an identity.
    pub(crate) fn account(&self) -> Option<&[u8]> {
        self.id.map(|_| self.account.as_slice())
    }

    /// The identity's namespace; empty without an identity.
    pub(crate) fn namespace(&self) -> &'a str {
        self.id.map_or("", |id| &id.namespace)
    }

    pub(crate) fn identity(&self) -> Option<&'a SpiffeId> {
        self.id
    }
}

fn spell(id: &SpiffeId) -> SmallVec<[u8; PRINCIPAL_INLINE]> {
    join(&[
        &id.trust_domain.0,
        "/ns/",
        &id.namespace,
        "/sa/",
        &id.service_account,
    ])
}

fn join(parts: &[&str]) -> SmallVec<[u8; PRINCIPAL_INLINE]> {
    let mut text = SmallVec::new();
    parts
        .iter()
        .for_each(|part| text.extend_from_slice(part.as_bytes()));
    text
}

/// Bytes under which a service account is looked up. Neither half of an identity can hold the byte between them.
pub(crate) fn account_key(namespace: &str, service_account: &str) -> Box<[u8]> {
    join(&[namespace, "\0", service_account]).to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_spells_the_principal_as_the_model_does() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        let connection = Connection {
            source: Some(id.clone()),
            source_ip: "::ffff:10.0.0.1".parse().unwrap(),
            destination: "[::ffff:10.0.0.2]:80".parse().unwrap(),
        };
        let view = View::new(&connection);
        assert_eq!(
            view.principal(),
            Some(id.principal().to_string().as_bytes())
        );
        assert_eq!(view.source_ip, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(view.destination_ip, "10.0.0.2".parse::<IpAddr>().unwrap());
    }
}
