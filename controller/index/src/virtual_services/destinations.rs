//! Where rules send: hosts, ports and subsets, resolved or with the reason why not, and their shares.

use karst_k8s_api::istio::virtual_service::Destination;
use karst_model::route::Backend;

use super::{Findings, World, values};
use crate::{destination_rules::whole_host, facts::Name};

/// The largest sum of weights: Envoy's, too.
const TOTAL_MAX: u64 = u32::MAX as u64;

/// Where a destination leads. What leads nowhere is answered with an error, and said.
pub(super) fn backend(
    place: &str,
    source: &Destination,
    owner: &Name,
    world: &World<'_>,
    findings: &mut Findings,
) -> Backend {
    resolve(place, source, owner, world).unwrap_or_else(|message| {
        let shown = Backend::Invalid(message.as_str().into());
        findings.unresolved(message);
        shown
    })
}

fn resolve(
    place: &str,
    source: &Destination,
    owner: &Name,
    world: &World<'_>,
) -> Result<Backend, String> {
    if source.host.is_empty() {
        return Err(format!("{place}.destination names no host"));
    }
    let host = whole_host(&source.host, &owner.namespace, world.domain);
    let known = (world.destination)(&host, &owner.namespace)
        .ok_or_else(|| format!("{place}.destination: no service has the host {host}"))?;
    let number = source.port.as_ref().and_then(|port| port.number);
    let port = match (
        values::port(&format!("{place}.destination.port"), number)?,
        &known.ports[..],
    ) {
        (Some(port), ports) if ports.iter().any(|(number, _)| *number == port) => port,
        (Some(port), _) => return Err(format!("{place}.destination: {host} has no port {port}")),
        (None, [(only, _)]) => *only,
        // The one that the client dialled.
        (None, _) => 0,
    };
    let subset = source.subset.as_deref().filter(|subset| !subset.is_empty());
    if let Some(subset) = subset
        && !(world.has_subset)(&known.key, subset)
    {
        return Err(format!(
            "{place}.destination: no DestinationRule gives {host} a subset {subset:?}"
        ));
    }
    Ok(Backend::Service {
        service: known.key,
        port,
        subset: subset.map(Into::into),
    })
}

/// Shares of destinations. Of only one it gets everything, whatever its weight.
pub(super) fn weights(place: &str, sources: &[Option<i32>]) -> Result<Vec<u32>, String> {
    let mut weights = Vec::with_capacity(sources.len());
    for (index, weight) in sources.iter().enumerate() {
        let weight = weight.unwrap_or(0);
        weights.push(
            u32::try_from(weight)
                .map_err(|_negative| format!("{place}[{index}].weight: {weight} is below zero"))?,
        );
    }
    if weights.len() == 1 {
        return Ok(vec![1]);
    }
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    match total {
        0 => Err(format!("{place}: the weights add up to nothing")),
        total if total > TOTAL_MAX => Err(format!(
            "{place}: the weights add up to {total}, more than {TOTAL_MAX}"
        )),
        _ => Ok(weights),
    }
}
