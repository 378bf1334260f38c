//! What a decision says: allowed or not, by which rule, and what policies in dry run would have done.

use karst_model::name::PolicyKey;
use serde::Serialize;

/// Outcome for one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub verdict: Verdict,
    /// To be logged and counted, never enforced.
    pub dry_run: DryRun,
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// Why the connection is refused, if it is.
    pub fn denied(&self) -> Option<&DenyReason> {
        match &self.verdict {
            Verdict::Allow => None,
            Verdict::Deny(reason) => Some(reason),
        }
    }
}

/// Whether the connection may go on. [`crate::Compiled::explain`] says which rule allowed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    Allow,
    Deny(DenyReason),
}

/// Why a connection is refused. The text goes into the access log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum DenyReason {
    /// A DENY rule matches. Where several match it is any of them; `explain` lists all policies.
    #[error("{0} denies it")]
    Policy(RuleRef),
    /// ALLOW policies apply to the destination, and none matches.
    #[error("ALLOW policies apply and none matches")]
    NotAllowed,
    /// The workload lists a policy that has not been received: refused until it is here.
    #[error("policy {0} applies and has not been received yet")]
    Missing(PolicyKey),
}

/// One rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RuleRef {
    pub policy: PolicyKey,
    /// Index in the policy's rules.
    pub rule: usize,
}

impl std::fmt::Display for RuleRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "policy {} rule {}", self.policy, self.rule)
    }
}

/// What the policies in dry run would have done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// A DENY policy in dry run that matches.
    pub deny: Option<RuleRef>,
    pub allow: DryRunAllow,
}

/// What ALLOW policies in dry run say. They are not asked about a connection that is denied explicitly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum DryRunAllow {
    #[default]
    Silent,
    Matches(RuleRef),
    /// The only ALLOW policies are in dry run and none matches: enforcing them would deny.
    WouldDeny,
}
