//! Which endpoints are near, and the shares of places, where somebody has written it down.
//!
//! Source: Istio, `LocalityLoadBalancerSetting` (distribute, failover, failoverPriority).

use karst_model::{
    traffic::{Distribution, LabelPriority, LocalityBalance},
    workload::Workload,
};

/// How far an endpoint is, smaller is nearer: by labels first, then by place.
pub(super) fn distance(balance: &LocalityBalance, source: &Workload, endpoint: &Workload) -> u32 {
    let by_label = labels_apart(&balance.priority, source, endpoint);
    if balance.priority.is_empty() || !balance.failover.is_empty() {
        return by_label * (FARTHEST + 1) + places_apart(balance, source, endpoint);
    }
    by_label
}

/// What [`places_apart`] says at most.
const FARTHEST: u32 = 4;

/// Labels that are left from the first one in which they differ.
fn labels_apart(priority: &[LabelPriority], source: &Workload, endpoint: &Workload) -> u32 {
    let agrees = |priority: &&LabelPriority| {
        let wanted = priority
            .value
            .as_ref()
            .or_else(|| source.label(&priority.label));
        wanted == endpoint.label(&priority.label)
    };
    (priority.len() - priority.iter().take_while(agrees).count()) as u32
}

fn places_apart(balance: &LocalityBalance, source: &Workload, endpoint: &Workload) -> u32 {
    let (from, to) = (&source.locality, &endpoint.locality);
    if from.region != to.region {
        let named = balance
            .failover
            .iter()
            .any(|failover| failover.from == from.region && failover.to == to.region);
        return if named { FARTHEST - 1 } else { FARTHEST };
    }
    if from.zone != to.zone {
        2
    } else {
        u32::from(from.subzone != to.subzone)
    }
}

/// The shares for requests of this place; `None`: nobody has said.
pub(super) fn shares<'a>(
    balance: &'a LocalityBalance,
    source: &Workload,
) -> Option<&'a Distribution> {
    let all = balance.distribute.iter();
    let mut of_source = all.filter(|distribution| distribution.from.takes(&source.locality));
    of_source.next()
}

/// The weights of endpoints so that every place gets its share, whatever its endpoints weigh. Those of places without a
/// share get 0.
pub(super) fn spread(distribution: &Distribution, endpoints: &[&Workload]) -> Vec<u32> {
    /// Endpoints' weights add up to about this, times the sum of the shares.
    const FINE: u64 = 1 << 16;
    let place_of = |endpoint: &&Workload| {
        let mut to = distribution.to.iter();
        to.position(|to| to.place.takes(&endpoint.locality))
    };
    let places: Vec<_> = endpoints.iter().map(place_of).collect();
    let mut sums = vec![0_u64; distribution.to.len()];
    for (place, endpoint) in places.iter().zip(endpoints) {
        if let Some(sum) = place.and_then(|place| sums.get_mut(place)) {
            *sum += u64::from(endpoint.capacity);
        }
    }
    let weight = |(place, endpoint): (&Option<usize>, &&Workload)| {
        let place = (*place)?;
        let (share, sum) = (distribution.to.get(place)?.weight, *sums.get(place)?);
        let exact = u128::from(share) * u128::from(FINE) * u128::from(endpoint.capacity);
        let weight = exact / u128::from(sum.max(1));
        let least = u32::from(share > 0);
        Some(u32::try_from(weight).unwrap_or(u32::MAX).max(least))
    };
    let pairs = places.iter().zip(endpoints);
    pairs.map(|pair| weight(pair).unwrap_or(0)).collect()
}
