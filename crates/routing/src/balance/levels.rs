//! The endpoints that requests for one port of a service may go to, nearest first. Each level is drawn from as long as
//! enough of it are healthy; see [`crate::priority`].

use std::{collections::BTreeMap, sync::Arc};

use karst_model::{
    service::LoadBalancingMode,
    traffic::{LocalityBalance, Subset},
    workload::Workload,
};

use super::{
    Candidate, Candidates, Found, NoEndpoint, Request, Useless, evaluate, locality,
    refuse_unchoosable,
};

/// Levels of endpoints, each with at least one that has a weight.
#[derive(Clone, Debug)]
pub struct Levels(Vec<Candidates>);

/// Which endpoints, beyond what the service itself says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    pub subset: Option<&'a Subset>,
    /// `None`: nearness is as the service's routing preference says.
    pub locality: Option<&'a LocalityBalance>,
}

impl Levels {
    /// Surveys all endpoints of the service. There is at least one level, or an error that says why not.
    pub fn new(
        request: &Request<'_>,
        endpoints: &[Arc<Workload>],
        wanted: Wanted<'_>,
    ) -> Result<Self, NoEndpoint> {
        refuse_unchoosable(request)?;
        let distribution = wanted
            .locality
            .and_then(|balance| locality::shares(balance, request.source));
        let mut found = Found::default();
        let mut levels: BTreeMap<u32, Vec<Candidate<'_>>> = BTreeMap::new();
        for endpoint in endpoints {
            let judged = match wanted.subset {
                Some(subset) if !subset.has(&endpoint.labels) => Err(Useless::NotInSubset),
                _ => evaluate(request, endpoint),
            };
            match judged {
                Ok((rank, candidate)) => {
                    let distance = match wanted.locality {
                        Some(_) if distribution.is_some() => 0,
                        Some(balance) => locality::distance(balance, request.source, endpoint),
                        None => farness(request, rank),
                    };
                    levels.entry(distance).or_default().push(candidate);
                }
                Err(useless) => found.count(useless),
            }
        }
        let mut made = Vec::new();
        for candidates in levels.into_values() {
            let weights: Vec<u32> = match distribution {
                Some(distribution) => {
                    let endpoints: Vec<_> = candidates.iter().map(|c| &**c.endpoint).collect();
                    locality::spread(distribution, &endpoints)
                }
                None => candidates.iter().map(|c| c.endpoint.capacity).collect(),
            };
            let weighted = candidates.into_iter().zip(weights);
            let (kept, weights): (Vec<_>, Vec<_>) =
                weighted.filter(|(_, weight)| *weight > 0).unzip();
            found.elsewhere += usize::from(kept.is_empty());
            if !kept.is_empty() {
                let choices = kept.into_iter().map(|c| c.into_choice(request)).collect();
                made.push(Candidates::of(choices, weights));
            }
        }
        if made.is_empty() {
            return Err(NoEndpoint::NoneUsable {
                service: request.service.key.clone(),
                port: request.port,
                found,
            });
        }
        Ok(Self(made))
    }

    pub fn levels(&self) -> &[Candidates] {
        &self.0
    }
}

/// The rank of [`super::choose`] turned round.
fn farness(request: &Request<'_>, rank: usize) -> u32 {
    let balancing = &request.service.load_balancing;
    match balancing.mode {
        LoadBalancingMode::Failover => u32::MAX - rank as u32,
        _ => 0,
    }
}
