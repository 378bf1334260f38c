//! Draws as the data plane makes them: of endpoints by its own decision, of a waypoint's replicas any.

use std::{cell::RefCell, net::SocketAddr, sync::Arc};

use karst_model::{service::Service, workload::Workload};
use karst_path::outbound::{Choose, Replica};
use karst_routing::balance::{self, Choice, Mode, NoEndpoint};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Draws at random, the same for the same seed.
pub(crate) struct Draw(pub(crate) RefCell<StdRng>);

impl Draw {
    pub(crate) fn of(seed: u64) -> Self {
        Self(RefCell::new(StdRng::seed_from_u64(seed)))
    }
}

impl Choose for Draw {
    type Held = ();

    fn endpoint(
        &self,
        source: &Workload,
        service: &Service,
        dialled: SocketAddr,
        endpoints: &[Arc<Workload>],
    ) -> Result<Choice, NoEndpoint> {
        balance::choose(
            &wanted(source, service, dialled),
            endpoints,
            &mut *self.0.borrow_mut(),
        )
    }

    fn replica(&self, usable: &[Replica<'_>]) -> (usize, ()) {
        (self.0.borrow_mut().random_range(0..usable.len()), ())
    }
}

/// What the data plane asks of a service whose sessions do not stick.
pub(crate) fn wanted<'a>(
    source: &'a Workload,
    service: &'a Service,
    dialled: SocketAddr,
) -> balance::Request<'a> {
    balance::Request {
        service,
        port: dialled.port(),
        dialled,
        source,
        sticky: None,
        mode: Mode::Standard,
    }
}
