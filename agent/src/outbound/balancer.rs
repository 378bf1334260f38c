//! Chooses endpoints for this node's pods: the decision is `karst-routing`, the memory of sticky clients lives here.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use karst_model::{service::Service, workload::Workload};
use karst_routing::{
    affinity::{AffinityTable, Session},
    balance::{Choice, Mode, NoEndpoint, Request, choose},
};

/// Sticky clients of this node that are remembered; the one idle longest is forgotten first.
const MAX_SESSIONS: usize = 65_536;

/// Endpoint choice with `sessionAffinity: ClientIP`.
pub(crate) struct Balancer {
    sticky: Mutex<AffinityTable>,
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            sticky: Mutex::new(AffinityTable::new(MAX_SESSIONS)),
        }
    }
}

impl Balancer {
    /// The endpoint for one connection of `source` to `service`.
    pub(crate) fn choose(
        &self,
        source: &Workload,
        service: &Service,
        dialled: SocketAddr,
        endpoints: &[Arc<Workload>],
    ) -> Result<Choice, NoEndpoint> {
        let port = dialled.port();
        let mut request = Request {
            service,
            port,
            dialled,
            source,
            sticky: None,
            mode: Mode::Standard,
        };
        let (Some(affinity), Some(client)) = (
            service.load_balancing.session_affinity,
            source.addresses.first(),
        ) else {
            return choose(&request, endpoints, &mut rand::rng());
        };
        let now = Instant::now();
        let session = Session::new(&service.key, port, *client);
        let mut table = self.sticky.lock().unwrap_or_else(PoisonError::into_inner);
        let last = table.endpoint(&session, affinity, now).cloned();
        request.sticky = last.as_ref();
        let choice = choose(&request, endpoints, &mut rand::rng())?;
        table.record(session, choice.workload.uid.clone(), now);
        Ok(choice)
    }
}
