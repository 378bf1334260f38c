//! Authorization of requests, in the form that a waypoint evaluates: an AuthorizationPolicy with `targetRefs`.
//!
//! The same shape as at L4 ([`crate::policy`]): a policy is an OR of rules, a rule an AND of clauses, a clause an OR of
//! matches, a match an AND of its fields. `from` and `to` of the API become a clause each, every entry of `when` another.
//! The evaluation, with every special case, is `karst-policy`.
//!
//! Source of the semantics: Istio's reference of AuthorizationPolicy and its list of condition keys.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    external::ExternalAuthorizer,
    name::{PolicyKey, ServiceKey},
    policy::{IpBlock, Match, StringMatch},
};

/// One policy and what it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaypointPolicy {
    pub key: PolicyKey,
    /// OR: the policy applies to requests for any of them.
    pub targets: Vec<PolicyTarget>,
    pub action: RequestAction,
    /// Who is asked, with action CUSTOM; `None` there: nobody can be, and what the rules match is denied.
    pub provider: Option<Arc<ExternalAuthorizer>>,
    /// Only logged and counted, never enforced.
    pub dry_run: bool,
    pub rules: Vec<RequestRule>,
}

/// Class of the Gateways that stand for waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyTarget {
    /// A Service or ServiceEntry: requests for it.
    Service(ServiceKey),
    /// A waypoint: all requests that pass it.
    Gateway { namespace: Arc<str>, name: Arc<str> },
    /// All waypoints of the class.
    GatewayClass(Arc<str>),
}

/// What happens to a request that the policy matches. Evaluated in the order custom, deny, allow; audit decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestAction {
    Allow,
    Deny,
    /// Recorded in the access log.
    Audit,
    /// The provider is asked about what matches.
    Custom,
}

/// AND of clauses. A rule without clauses matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRule {
    pub clauses: Vec<RequestClause>,
}

/// OR of matches. A clause without matches is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestClause {
    pub matches: Vec<RequestMatch>,
}

/// AND of its fields; of each pair the positive list is empty or has a hit, and the negative list has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestMatch {
    /// The connection's part: identities, addresses, ports. `destination_ports` are ports of the service.
    pub connection: Match,
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    pub paths: Vec<PathPattern>,
    pub not_paths: Vec<PathPattern>,
    /// Without case.
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    pub headers: Vec<HeaderValues>,
    /// The client's address as trusted proxies tell it (`x-forwarded-for`).
    pub remote_ips: Vec<IpBlock>,
    pub not_remote_ips: Vec<IpBlock>,
    /// Server name that the client asked for in TLS.
    pub sni: Vec<StringMatch>,
    pub not_sni: Vec<StringMatch>,
    /// `<issuer>/<subject>` of a verified token.
    pub request_principals: Vec<StringMatch>,
    pub not_request_principals: Vec<StringMatch>,
    /// `aud` of a verified token: any of them.
    pub audiences: Vec<StringMatch>,
    pub not_audiences: Vec<StringMatch>,
    /// `azp` of a verified token.
    pub presenters: Vec<StringMatch>,
    pub not_presenters: Vec<StringMatch>,
    pub claims: Vec<ClaimValues>,
}

/// The values of one claim of a verified token, `when` key `request.auth.claims[a][b]`. Of a list any element counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimValues {
    /// Names from the outermost to the innermost.
    pub path: Vec<Arc<str>>,
    pub values: Vec<StringMatch>,
    pub not_values: Vec<StringMatch>,
}

/// The values of one header, `when` key `request.headers[name]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeaderValues {
    /// In lower case.
    pub name: Arc<str>,
    pub values: Vec<StringMatch>,
    pub not_values: Vec<StringMatch>,
}

/// How a path is compared: with the normalised path, without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathPattern {
    Text(StringMatch),
    /// `/a/{*}/b/{**}`: a star takes one whole segment, two stars any number of segments at the end.
    Template(Arc<str>),
}
