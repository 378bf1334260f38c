//! TLS that the waypoint makes to endpoints which want it: servers outside of the mesh, and applications with TLS of their
//! own, inside the tunnel. Configurations are made once for a set of endpoints and kept while its settings stay.

use std::{cell::RefCell, sync::Arc, time::Duration};

use hashbrown::HashMap;
use karst_identity::tls::{Inside, Origination, OriginationError};
use karst_model::traffic::{TlsMode, UpstreamTls};

use super::TLS_TIMEOUT;
use crate::{
    error::{ConnectError, TlsFault},
    services::{Cluster, Endpoint},
    stream::{HttpIo, Originated, Stream},
};

/// Sets of endpoints whose configurations one thread keeps; beyond, all are made anew.
const KEPT_MAX: usize = 1024;

/// The set's number, the host that is asked for, and what is spoken inside.
type Key = (u64, Arc<str>, Inside);

/// What is kept, with the settings that it was made of.
#[derive(Default)]
pub(super) struct Originations(RefCell<HashMap<Key, (UpstreamTls, Origination)>>);

/// Whether connections to this set are TLS of the waypoint's own. Settings that are broken fail here, and never go out
/// plain.
pub(super) fn is_wanted(cluster: &Cluster) -> bool {
    cluster.policy.tls.as_ref().is_some_and(|tls| {
        tls.broken.is_some() || matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual)
    })
}

/// Whether the set may be reached through the mesh only (`ISTIO_MUTUAL`): an endpoint outside of it is refused rather than
/// spoken to in clear.
pub(super) fn is_mesh_only(cluster: &Cluster) -> bool {
    let tls = cluster.policy.tls.as_ref();
    tls.is_some_and(|tls| tls.mode == TlsMode::Mesh)
}

impl Originations {
    /// Shakes hands on an open connection to an endpoint of the set.
    pub(super) async fn make(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        stream: Stream,
        inside: Inside,
    ) -> Result<Stream, ConnectError> {
        let failed = |fault: TlsFault| ConnectError::Tls {
            addr: endpoint.addr,
            source: Box::new(fault),
        };
        let origination = self
            .of(cluster, host(cluster, endpoint), inside)
            .map_err(|error| failed(error.into()))?;
        let patience = cluster.policy.connections.connect_timeout;
        let patience: Duration = patience.unwrap_or(TLS_TIMEOUT);
        let io = origination
            .connect(HttpIo::from(stream), patience)
            .await
            .map_err(|error| failed(error.into()))?;
        Ok(Stream::Tls(Box::new(Originated(io))))
    }

    fn of(
        &self,
        cluster: &Cluster,
        host: &Arc<str>,
        inside: Inside,
    ) -> Result<Origination, OriginationError> {
        let Some(tls) = &cluster.policy.tls else {
            return Err(OriginationError::Mode(TlsMode::Disable));
        };
        let key = (cluster.live.id, host.clone(), inside);
        if let Some((of, made)) = self.0.borrow().get(&key)
            && of == tls
        {
            return Ok(made.clone());
        }
        let made = Origination::new(tls, host, inside)?;
        let mut kept = self.0.borrow_mut();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(key, (tls.clone(), made.clone()));
        Ok(made)
    }
}

/// Who is asked for: the service, or of a service that stands for many hosts the one that the endpoint is of.
fn host<'a>(cluster: &'a Cluster, endpoint: &'a Endpoint) -> &'a Arc<str> {
    let service = &cluster.live.key.service.hostname;
    let own = endpoint.workload.hostname.as_ref();
    own.filter(|_| service.starts_with('*')).unwrap_or(service)
}
