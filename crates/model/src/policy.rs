//! Authorization in the form that the data plane evaluates: Istio's `istio.security.Authorization`.
//!
//! A policy is an OR of rules, a rule an AND of clauses, a clause an OR of matches, a match an AND of its field groups.
//! The evaluation, with every special case, is `karst-policy`; here are only the words.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::name::PolicyKey;

/// One compiled-down authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    pub key: PolicyKey,
    pub scope: PolicyScope,
    pub action: Action,
    /// Only logged and counted, never enforced.
    pub dry_run: bool,
    pub rules: Vec<Rule>,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyScope {
    /// All workloads (root namespace, no selector).
    Global,
    /// Workloads of the policy's namespace.
    Namespace,
    /// Workloads that list the policy's key.
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    Allow,
    Deny,
}

/// AND of clauses. A rule without clauses matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// OR of matches. A clause without matches is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// AND over six groups; in each the positive list is empty or has a hit, and the negative list has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpBlock>,
    pub not_source_ips: Vec<IpBlock>,
    pub destination_ips: Vec<IpBlock>,
    pub not_destination_ips: Vec<IpBlock>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Set by the decoder when the message holds a field that this version does not know or cannot read.
    /// Such a match fails closed: it never lets an ALLOW rule match and always lets a DENY rule match.
    pub unreadable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any value that is not empty.
    Presence,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IpBlock {
    pub ip: IpAddr,
    pub prefix_len: u8,
}

/// Matches namespace and service account of the identity, whatever its trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}
