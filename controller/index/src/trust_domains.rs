//! Names of the mesh's trust domain: which hold now, and what policies that name one of them mean.
//!
//! A principal is the same by every name of the mesh, and `cluster.local` in a policy stands for the mesh itself, as in
//! Istio. So each principal of a policy is written out once for every name, and whoever enforces it compares texts.

use karst_k8s_api::istio::mesh_config::MeshConfig;
use karst_model::{
    identity::{DEFAULT_TRUST_DOMAIN, TrustDomain, TrustDomains},
    policy::{Match, StringMatch},
};

/// Most names of before that stay aliases; the oldest go first.
const FORMER_MAX: usize = 16;
/// Parts of a principal between slashes: domain, `ns`, namespace, `sa`, service account.
const PRINCIPAL_PARTS: usize = 5;

/// The names, and those that were.
#[derive(Debug)]
pub(crate) struct Names {
    now: TrustDomains,
    /// What certificates were issued in since start: they are not all replaced yet.
    former: Vec<TrustDomain>,
}

impl Names {
    /// A mesh without a configuration: `home` is what the controller was told.
    pub(crate) fn new(home: &TrustDomain) -> Self {
        Self {
            now: TrustDomains::only(home.clone()),
            former: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> &TrustDomains {
        &self.now
    }

    /// Takes what the mesh configuration says; whether anything is different.
    ///
    /// `home` stays an alias always: agents and waypoints begin with it, and workloads are known by it.
    pub(crate) fn configure(&mut self, home: &TrustDomain, config: &MeshConfig) -> bool {
        if config.is_unreadable() {
            return false;
        }
        let domain = |name: &String| TrustDomain(name.as_str().into());
        let own = match &config.trust_domain {
            Some(name) => domain(name),
            None if config.has_unreadable_trust_domain() => self.now.own.clone(),
            None => home.clone(),
        };
        if own != self.now.own {
            self.former.retain(|one| *one != self.now.own);
            self.former.push(self.now.own.clone());
            let surplus = self.former.len().saturating_sub(FORMER_MAX);
            self.former.drain(..surplus);
        }
        let written = config.trust_domain_aliases.iter().map(domain);
        let kept = std::iter::once(home).chain(&self.former).cloned();
        let mut aliases: Vec<TrustDomain> = Vec::new();
        for alias in written.chain(kept) {
            if alias != own && !aliases.contains(&alias) {
                aliases.push(alias);
            }
        }
        let now = TrustDomains { own, aliases };
        let differs = now != self.now;
        self.now = now;
        differs
    }
}

/// Writes the principals of a rule out for every name.
pub(crate) fn write_out(domains: &TrustDomains, part: &mut Match) {
    for list in [&mut part.principals, &mut part.not_principals] {
        *list = all_names(domains, list);
    }
}

fn all_names(domains: &TrustDomains, written: &[StringMatch]) -> Vec<StringMatch> {
    let mut all = Vec::new();
    for one in written {
        for name in names_of(domains, one) {
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    all
}

/// One value of a list by every name of the mesh, if it names one; else as it is.
fn names_of(domains: &TrustDomains, written: &StringMatch) -> Vec<StringMatch> {
    let as_is = || vec![written.clone()];
    match written {
        StringMatch::Exact(text) => match text.split_once('/') {
            Some((domain, rest)) if is_ours(domains, domain) => domains
                .iter()
                .map(|one| StringMatch::Exact(format!("{one}/{rest}").into()))
                .collect(),
            _ => as_is(),
        },
        StringMatch::Prefix(text) => match text.split_once('/') {
            Some((domain, rest)) if is_ours(domains, domain) => domains
                .iter()
                .map(|one| StringMatch::Prefix(format!("{one}/{rest}").into()))
                .collect(),
            Some(_) => as_is(),
            // The start of a domain: with one name of the mesh it means all.
            None => beside(
                domains,
                written,
                |name| name.starts_with(&**text),
                |one| StringMatch::Prefix(format!("{one}/").into()),
            ),
        },
        // `*local/ns/shop/sa/web`: the end of a domain and a whole identity below it.
        StringMatch::Suffix(text) if text.split('/').count() == PRINCIPAL_PARTS => {
            let (end, rest) = text.split_once('/').unwrap_or_default();
            beside(
                domains,
                written,
                |name| name.ends_with(end),
                |one| StringMatch::Exact(format!("{one}/{rest}").into()),
            )
        }
        StringMatch::Suffix(_) | StringMatch::Presence => as_is(),
    }
}

/// `written`, and beside it the names that it does not cover, if it covers any.
fn beside(
    domains: &TrustDomains,
    written: &StringMatch,
    covers: impl Fn(&str) -> bool,
    by_name: impl Fn(&TrustDomain) -> StringMatch,
) -> Vec<StringMatch> {
    let mut all = vec![written.clone()];
    if domains.iter().any(|one| covers(&one.0)) {
        let others = domains.iter().filter(|one| !covers(&one.0));
        all.extend(others.map(by_name));
    }
    all
}

fn is_ours(domains: &TrustDomains, domain: &str) -> bool {
    domain == DEFAULT_TRUST_DOMAIN || domains.iter().any(|one| *one.0 == *domain)
}

#[cfg(test)]
mod tests;
