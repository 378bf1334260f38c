//! Who may have which certificate: pure, over a view of the pods that run on a node.
//!
//! An agent gets the identities of pods on its own node. A listed service account (a waypoint's) gets its own. Everyone
//! else gets nothing, also with a good token: a pod's own token must not become a mesh certificate outside the agent.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashSet;
use karst_model::identity::{SpiffeId, SpiffeIdError, TrustDomain, TrustDomains};

use crate::{authenticate::Caller, token::AgentAccount};

/// What is known about pods; the controller's index has it.
pub trait NodeView {
    /// Whether a pod of this service account is bound to the node and has not ended.
    fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool;

    /// Where the pod with this UID runs and as whom; None when there is no such pod.
    fn pod(&self, uid: &str) -> Option<PodFacts>;
}

/// One pod, as authorization needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub node: String,
    pub namespace: String,
    pub service_account: String,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    pub namespace: String,
    pub service_account: String,
}

/// The names of the mesh's trust domain, as they are now: the mesh configuration may say others. Clones share them.
#[derive(Clone, Debug)]
pub struct MeshTrust(Arc<RwLock<TrustDomains>>);

impl MeshTrust {
    /// A mesh with one name.
    pub fn only(own: TrustDomain) -> Self {
        Self(Arc::new(RwLock::new(TrustDomains::only(own))))
    }

    pub fn set(&self, domains: TrustDomains) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = domains;
    }

    pub fn get(&self) -> TrustDomains {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        domains.clone()
    }

    pub fn covers(&self, trust_domain: &TrustDomain) -> bool {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        domains.covers(trust_domain)
    }
}

/// The rules of this mesh.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The trust domain that the controller was told: callers that name no identity know the mesh by it.
    pub trust_domain: TrustDomain,
    /// In which identities are given out.
    pub trust: MeshTrust,
    /// Accounts that may ask for the identities of their node's pods.
    pub agents: HashSet<Account>,
    /// Accounts that may ask for their own identity: those of waypoints.
    pub own: OwnAccounts,
}

/// Accounts that may ask for their own identity, as they are now: waypoints come and go. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct OwnAccounts(Arc<RwLock<HashSet<Account>>>);

impl OwnAccounts {
    pub fn contains(&self, account: &Account) -> bool {
        let accounts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        accounts.contains(account)
    }

    pub fn insert(&self, account: Account) {
        let mut accounts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        accounts.insert(account);
    }

    pub fn remove(&self, account: &Account) {
        let mut accounts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        accounts.remove(account);
    }
}

impl Rules {
    /// Agents of the given account, and nobody else.
    pub fn new(trust_domain: TrustDomain, agent: &AgentAccount) -> Self {
        let agent = Account {
            namespace: agent.namespace.clone(),
            service_account: agent.service_account.clone(),
        };
        Self {
            trust: MeshTrust::only(trust_domain.clone()),
            trust_domain,
            agents: HashSet::from([agent]),
            own: OwnAccounts::default(),
        }
    }
}

/// Why a certificate is refused. The text is for our log, beside the caller and the identity that it asked for; the
/// caller hears [`Refusal::public`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the wanted identity is none")]
    Malformed(#[source] SpiffeIdError),
    #[error("{id} is not of our trust domain {own}")]
    TrustDomain { id: SpiffeId, own: TrustDomain },
    #[error("the caller is listed neither as an agent nor for its own identity")]
    NotListed,
    #[error("the caller may have only its own identity, not {0}")]
    NotItsOwn(SpiffeId),
    #[error("no pod of {id} runs on node {node}")]
    NotOnNode { id: SpiffeId, node: String },
    #[error(
        "the caller's token is bound to pod {0}, which we do not know (if it has just started it will ask again)"
    )]
    UnknownPod(String),
    #[error("the caller's token is bound to pod {uid}, which runs as {}/{} on node {}", pod.namespace, pod.service_account, pod.node)]
    OtherPod { uid: String, pod: PodFacts },
}

impl Refusal {
    /// The same for every reason: a caller learns nothing about pods that are not its own.
    pub fn public(&self) -> &'static str {
        "not authorized for this identity"
    }

    /// A short, bounded name for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TrustDomain { .. } => "trust_domain",
            Self::NotListed => "not_listed",
            Self::NotItsOwn(_) => "not_its_own",
            Self::NotOnNode { .. } => "not_on_node",
            Self::UnknownPod(_) => "unknown_pod",
            Self::OtherPod { .. } => "other_pod",
        }
    }
}

/// Which identity a request is for: the impersonated one, or the caller's own where none is named.
pub fn wanted(
    rules: &Rules,
    caller: &Caller,
    impersonated: Option<&str>,
) -> Result<SpiffeId, Refusal> {
    match impersonated {
        Some(uri) => uri.parse().map_err(Refusal::Malformed),
        None => Ok(SpiffeId::new(
            &rules.trust_domain,
            &caller.namespace,
            &caller.service_account,
        )),
    }
}

/// Whether `caller` may have a certificate for `id`.
pub fn may_issue(
    rules: &Rules,
    caller: &Caller,
    id: &SpiffeId,
    pods: &dyn NodeView,
) -> Result<(), Refusal> {
    if !rules.trust.covers(&id.trust_domain) {
        return Err(Refusal::TrustDomain {
            id: id.clone(),
            own: rules.trust.get().own,
        });
    }
    check_pod(caller, pods)?;
    let account = Account {
        namespace: caller.namespace.clone(),
        service_account: caller.service_account.clone(),
    };
    if rules.agents.contains(&account) {
        return match pods.runs(&caller.node, &id.namespace, &id.service_account) {
            true => Ok(()),
            false => Err(Refusal::NotOnNode {
                id: id.clone(),
                node: caller.node.clone(),
            }),
        };
    }
    let is_own =
        *id.namespace == *caller.namespace && *id.service_account == *caller.service_account;
    match (rules.own.contains(&account), is_own) {
        (true, true) => Ok(()),
        (true, false) => Err(Refusal::NotItsOwn(id.clone())),
        (false, _) => Err(Refusal::NotListed),
    }
}

/// A token bound to a pod counts only while that pod runs where and as what the token says.
fn check_pod(caller: &Caller, pods: &dyn NodeView) -> Result<(), Refusal> {
    let Some(uid) = &caller.pod_uid else {
        return Ok(());
    };
    let pod = pods
        .pod(uid)
        .ok_or_else(|| Refusal::UnknownPod(uid.clone()))?;
    let same = pod.node == caller.node
        && pod.namespace == caller.namespace
        && pod.service_account == caller.service_account;
    if same {
        Ok(())
    } else {
        Err(Refusal::OtherPod {
            uid: uid.clone(),
            pod,
        })
    }
}

#[cfg(test)]
mod tests;
