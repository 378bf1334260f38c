//! Rules of a TCPRoute.

use karst_k8s_api::gateway::{TcpRouteSpec, tcp_route::TcpRouteRule};
use karst_model::route::{RouteRules, TcpRule, WeightedBackend};

use super::{Fault, Rules, backends::Resolver, each_rule, text};

pub(super) fn rules(spec: &TcpRouteSpec, resolver: &mut Resolver<'_>) -> Rules {
    let mut first = true;
    let (rules, faults) = each_rule(&spec.rules, |source| {
        Ok(TcpRule {
            name: text(source.name.as_ref()),
            backends: backends(source, std::mem::replace(&mut first, false), resolver)?,
            ..TcpRule::default()
        })
    });
    Rules {
        rules: RouteRules::Tcp(rules),
        faults,
        references: resolver.take_faults(),
        idle: None,
    }
}

/// The backends of a rule that has nothing else to tell connections by, so that only one rule can be the first.
pub(super) fn backends(
    source: &TcpRouteRule,
    is_first: bool,
    resolver: &mut Resolver<'_>,
) -> Result<Vec<WeightedBackend>, Fault> {
    if !is_first {
        return Err(Fault::unsupported(
            "a second rule would take nothing: the first takes every connection",
        ));
    }
    if source.backend_refs.is_empty() {
        return Err(Fault::unsupported("a rule has no backendRefs"));
    }
    resolver.weighted(&source.backend_refs, |_resolver, backend| {
        match backend.filters.is_empty() {
            true => Ok(Vec::new()),
            false => Err(Fault::unsupported("a connection has no filters")),
        }
    })
}
