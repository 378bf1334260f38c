//! Who sends: what TLS proved, what the peer claims only to be shown, and how logs and metrics name it.

use std::{net::SocketAddr, sync::Arc};

use http::HeaderValue;
use karst_model::{addr::NetworkAddr, identity::SpiffeId};
use karst_routing::request::Sender;
use karst_telemetry::metrics::tcp::{Peer, Security};

use crate::{mesh::Mesh, upstream::ClientKey};

/// The client of one connection.
#[derive(Clone)]
pub(crate) struct Client {
    /// Proven by mutual TLS; `None` on plain connections.
    pub(crate) identity: Option<SpiffeId>,
    /// Its address. The port may be only claimed, and is only shown.
    pub(crate) addr: SocketAddr,
    pub(crate) labels: Arc<Peer>,
    pub(crate) key: ClientKey,
}

impl Client {
    /// The namespace of its identity: whose routes apply.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.identity.as_ref().map(|id| &*id.namespace)
    }

    /// Who it is to routes that ask. Labels are its workload's now; they only choose among routes, and protect nothing.
    pub(crate) fn sender(&self, mesh: &Mesh) -> Sender {
        let at = NetworkAddr::new(mesh.config.own_network(), self.addr.ip());
        let workload = mesh.state.workload_at(&at);
        let identity = self.identity.as_ref();
        Sender {
            namespace: match (identity, &workload) {
                (Some(identity), _) => Some(identity.namespace.clone()),
                (None, workload) => workload.as_ref().map(|one| one.namespace.clone()),
            },
            labels: workload.map(|one| one.labels.clone()).unwrap_or_default(),
            principal: identity.map(|identity| {
                let text = identity.to_string();
                text.strip_prefix("spiffe://").unwrap_or(&text).into()
            }),
        }
    }

    pub(crate) fn security(&self) -> Security {
        if self.identity.is_some() {
            Security::MutualTls
        } else {
            Security::Unknown
        }
    }

    /// `karst-client` for a connection that is this client's alone.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let id = self.identity.as_ref().map(ToString::to_string);
        HeaderValue::try_from(format!("{};{}", id.unwrap_or_default(), self.addr)).ok()
    }
}
