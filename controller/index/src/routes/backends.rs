//! Where rules send: references to backends, resolved or with the reason why not.

use karst_k8s_api::gateway::route::{BackendRef, DEFAULT_WEIGHT, GATEWAY_GROUP};
use karst_model::{
    name::ServiceKey,
    route::{Backend, HttpFilter, RouteKey, RouteKind, WeightedBackend},
};

use super::{Fault, World};
use crate::references::{NoTarget, Reference, Referrer, Target};

/// The largest weight of the API.
const WEIGHT_MAX: i64 = 1_000_000;

/// A reference that leads nowhere: a reason of `ResolvedRefs`, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefFault {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Resolves the references of one route and remembers those that lead nowhere.
pub(super) struct Resolver<'a> {
    route: &'a RouteKey,
    world: &'a World<'a>,
    /// Services of the route's parents. Who may route their traffic may let it go there: no grant is needed.
    own: &'a [ServiceKey],
    faults: Vec<RefFault>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(route: &'a RouteKey, world: &'a World<'a>, own: &'a [ServiceKey]) -> Self {
        Self {
            route,
            world,
            own,
            faults: Vec::new(),
        }
    }

    /// The faults so far, each once.
    pub(super) fn take_faults(&mut self) -> Vec<RefFault> {
        let mut faults: Vec<RefFault> = Vec::new();
        for fault in self.faults.drain(..) {
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        faults
    }

    /// Notes a reference that nobody can resolve, of something else than a backend.
    pub(super) fn note(&mut self, reason: &'static str, message: String) {
        self.faults.push(RefFault { reason, message });
    }

    /// The backends of a rule with their shares. The filters of each are lowered by `filters`.
    pub(super) fn weighted(
        &mut self,
        backends: &[BackendRef],
        mut filters: impl FnMut(&mut Self, &BackendRef) -> Result<Vec<HttpFilter>, Fault>,
    ) -> Result<Vec<WeightedBackend>, Fault> {
        let mut weighted = Vec::with_capacity(backends.len());
        for backend in backends {
            let asked = backend.weight.unwrap_or(DEFAULT_WEIGHT);
            let weight = u32::try_from(asked)
                .ok()
                .filter(|_| asked <= WEIGHT_MAX)
                .ok_or_else(|| {
                    Fault::unsupported(format!(
                        "weight {asked} of backend {:?} is not between 0 and {WEIGHT_MAX}",
                        backend.name
                    ))
                })?;
            weighted.push(WeightedBackend {
                filters: filters(self, backend)?,
                backend: self.backend(backend),
                weight,
            });
        }
        Ok(weighted)
    }

    /// Where a reference leads, or why nowhere.
    pub(super) fn backend(&mut self, backend: &BackendRef) -> Backend {
        self.resolve(backend).unwrap_or_else(|fault| {
            let shown = Backend::Invalid(fault.message.as_str().into());
            self.faults.push(fault);
            shown
        })
    }

    fn resolve(&self, backend: &BackendRef) -> Result<Backend, RefFault> {
        let namespace = backend.namespace.as_deref().filter(|one| !one.is_empty());
        let to = Reference {
            group: backend.group.as_deref().unwrap_or_default(),
            kind: backend.kind.as_deref().unwrap_or("Service"),
            namespace: namespace.unwrap_or(&self.route.namespace),
            name: &backend.name,
        };
        let fault = |reason, message| RefFault { reason, message };
        let found = (self.world.target)(&to);
        if matches!(found, Err(NoTarget::Kind)) {
            let message = format!(
                "backend {to} of group {:?} is neither a Service nor a ServiceEntry",
                to.group
            );
            return Err(fault("InvalidKind", message));
        }
        // Whether there is such an object is nobody's business who may not refer to it.
        if !self.may_refer(&to, found.as_ref().ok()) {
            let message = format!(
                "backend {to} is of another namespace, and no ReferenceGrant there lets a {} of namespace {} refer to it",
                self.route.kind.as_str(),
                self.route.namespace
            );
            return Err(fault("RefNotPermitted", message));
        }
        let target = found.map_err(|why| match why {
            NoTarget::ExternalName => fault(
                "InvalidKind",
                format!("backend {to} is only another name (ExternalName), which is not supported"),
            ),
            NoTarget::Kind | NoTarget::Missing => {
                fault("BackendNotFound", format!("there is no backend {to}"))
            }
        })?;
        self.port(backend, &to, target)
    }

    fn port(
        &self,
        backend: &BackendRef,
        to: &Reference<'_>,
        target: Target,
    ) -> Result<Backend, RefFault> {
        let fault = |reason, message| Err(RefFault { reason, message });
        let Some(asked) = backend.port else {
            return fault(
                "BackendNotFound",
                format!("backend {to} is named without a port"),
            );
        };
        let port = target
            .ports
            .iter()
            .find(|port| i64::from(port.number) == asked);
        let (Some(port), Some(service)) = (port, target.services.into_iter().next()) else {
            return fault(
                "BackendNotFound",
                format!("backend {to} has no port {asked}"),
            );
        };
        let reads_http = matches!(self.route.kind, RouteKind::HttpRoute | RouteKind::GrpcRoute);
        if port.is_tls && reads_http {
            let message = format!(
                "port {asked} of backend {to} speaks TLS, and requests would come to it in plain text"
            );
            return fault("UnsupportedProtocol", message);
        }
        Ok(Backend::Service {
            service: service.key,
            port: port.number,
            subset: None,
        })
    }

    fn may_refer(&self, to: &Reference<'_>, target: Option<&Target>) -> bool {
        let from = Referrer {
            group: GATEWAY_GROUP,
            kind: self.route.kind.as_str(),
            namespace: &self.route.namespace,
        };
        let is_own = target.is_some_and(|target| {
            let mut services = target.services.iter();
            services.all(|service| self.own.contains(&service.key))
        });
        *to.namespace == *self.route.namespace || is_own || (self.world.permits)(&from, to)
    }
}
