//! The client's half of delta xDS as a state machine: what to ask for, what a response means, what to answer. Pure.
//!
//! ```text
//!   stream begins ──start()──► one request per kind, with the versions of all that is held
//!   response ──handle()──► updates to apply, then the answer: ack, or nack naming each bad resource
//!   stream ends ──► the versions stay; the next start() asks only for what differs
//! ```
//!
//! A resource that cannot be used harms only itself: the others of its message are applied, its version is not
//! recorded (the server sends it again on the next stream) and its last good form stays.

use std::{collections::HashMap, sync::Arc};

use karst_model::name::{PolicyKey, ServiceKey};
use karst_proto::{
    convert::{self, Address, ConvertError, Interner},
    core, dialect,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    rpc,
};

use crate::update::{Kind, Update};

/// `INVALID_ARGUMENT`, the code of a rejected response.
const INVALID_ARGUMENT: i32 = 3;
/// Rejected resources named in one nack; the rest is counted.
const NACK_DETAILS: usize = 20;

/// What the client holds, across streams.
pub struct Session {
    node: core::Node,
    kinds: Vec<Held>,
    interner: Interner,
}

/// One kind of resource.
struct Held {
    kind: Kind,
    versions: HashMap<Arc<str>, Version>,
    /// Whether a response of this kind was processed since start.
    answered: bool,
}

/// A resource's version as the server gave it. Most are the hex of a 64-bit hash.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Hash(u64),
    Text(Box<str>),
}

/// What a response came to.
#[derive(Debug)]
pub struct Handled {
    /// To be applied before the reply is sent.
    pub updates: Vec<Update>,
    pub reply: DeltaDiscoveryRequest,
    /// Resources that could not be used.
    pub rejected: Vec<Rejected>,
}

/// A resource that could not be used.
#[derive(Debug)]
pub struct Rejected {
    pub name: String,
    pub reason: RejectReason,
}

/// Why a resource could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RejectReason {
    #[error("no content")]
    Empty,
    #[error("content of type {0:?} in a response of another type")]
    WrongType(String),
    #[error("named so, but its content is {0:?}")]
    WrongName(String),
    #[error(transparent)]
    Content(#[from] ConvertError),
    #[error("type {0:?} was not asked for")]
    UnknownType(String),
}

impl Session {
    /// A session for `kinds`, identifying itself as `node`.
    pub fn new(node: core::Node, kinds: &[Kind]) -> Self {
        let held = |kind: &Kind| Held {
            kind: *kind,
            versions: HashMap::new(),
            answered: false,
        };
        Self {
            node,
            kinds: kinds.iter().map(held).collect(),
            interner: Interner::default(),
        }
    }

    /// Takes over names of which the content is known and the version is not (restored from disk). The server will
    /// send each again, or say that it is gone.
    pub fn hold(&mut self, kind: Kind, names: impl IntoIterator<Item = Arc<str>>) {
        if let Some(held) = self.kinds.iter_mut().find(|held| held.kind == kind) {
            held.versions
                .extend(names.into_iter().map(|name| (name, Version::of(""))));
        }
    }

    /// The requests that open a stream: wildcard for each kind, with what is held.
    pub fn start(&self) -> Vec<DeltaDiscoveryRequest> {
        let request = |(n, held): (usize, &Held)| DeltaDiscoveryRequest {
            node: (n == 0).then(|| self.node.clone()),
            type_url: held.kind.type_url().to_owned(),
            initial_resource_versions: held.initial_versions(),
            ..DeltaDiscoveryRequest::default()
        };
        self.kinds.iter().enumerate().map(request).collect()
    }

    /// Whether every kind has been answered since this session began.
    pub fn is_synced(&self) -> bool {
        self.kinds.iter().all(|held| held.answered)
    }

    /// Reads a response. Never fails: what cannot be used is in the reply as a nack.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        let kind = Kind::of(&response.type_url);
        let Some(held) = self.kinds.iter_mut().find(|held| Some(held.kind) == kind) else {
            let reason = RejectReason::UnknownType(response.type_url.clone());
            let rejected = vec![Rejected {
                name: String::new(),
                reason,
            }];
            let reply = reply(response.type_url, response.nonce, &rejected);
            return Handled {
                updates: Vec::new(),
                reply,
                rejected,
            };
        };
        let mut updates =
            Vec::with_capacity(response.resources.len() + response.removed_resources.len());
        let mut rejected = Vec::new();
        for resource in response.resources {
            let version = Version::of(&resource.version);
            match read(held.kind, &resource, &mut self.interner) {
                Ok((name, update)) => {
                    held.versions.insert(name, version);
                    updates.push(update);
                }
                Err(reason) => rejected.push(Rejected {
                    name: resource.name,
                    reason,
                }),
            }
        }
        for name in response.removed_resources {
            let name: Arc<str> = name.into();
            held.versions.remove(&name);
            updates.push(Update::Removed(held.kind, name));
        }
        held.answered |= response.system_version_info != dialect::MORE_FOLLOWS;
        Handled {
            updates,
            reply: reply(response.type_url, response.nonce, &rejected),
            rejected,
        }
    }
}

impl Held {
    fn initial_versions(&self) -> HashMap<String, String> {
        self.versions
            .iter()
            .map(|(name, version)| (name.to_string(), version.text()))
            .collect()
    }
}

impl Version {
    fn of(text: &str) -> Self {
        match u64::from_str_radix(text, 16) {
            Ok(hash) if format!("{hash:016x}") == text => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Hash(hash) => format!("{hash:016x}"),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// Decodes a resource and checks that it is what its name says: removals go by name.
fn read(
    kind: Kind,
    resource: &Resource,
    interner: &mut Interner,
) -> Result<(Arc<str>, Update), RejectReason> {
    let content = resource.resource.as_ref().ok_or(RejectReason::Empty)?;
    if content.type_url != kind.type_url() {
        return Err(RejectReason::WrongType(content.type_url.clone()));
    }
    let bytes = &content.value;
    let (name, update): (Arc<str>, Update) = match kind {
        Kind::Address => match convert::decode_address(bytes, interner)? {
            Address::Workload(workload) => {
                (workload.uid.0.clone(), Update::Workload(workload.into()))
            }
            Address::Service(service) => {
                (service_name(&service.key), Update::Service(service.into()))
            }
        },
        Kind::Authorization => {
            let policy = convert::decode_authorization(bytes, interner)?;
            (policy_name(&policy.key), Update::Policy(policy.into()))
        }
        Kind::NodeWorkload => {
            let pod = convert::decode_node_workload(bytes, interner)?;
            (pod.pod_uid.0.clone(), Update::NodeWorkload(pod.into()))
        }
        Kind::WaypointPolicy => {
            let policy = convert::decode_waypoint_policy(bytes, interner)?;
            (
                policy_name(&policy.key),
                Update::WaypointPolicy(policy.into()),
            )
        }
        Kind::Telemetry => {
            let one = convert::decode_telemetry(bytes, interner)?;
            (one.name(), Update::Telemetry(one.into()))
        }
        Kind::TrustDomains => {
            let domains = convert::decode_trust_domains(bytes)?;
            (
                convert::TRUST_DOMAINS_NAME.into(),
                Update::TrustDomains(domains.into()),
            )
        }
        Kind::RateLimit => {
            let limit = convert::decode_rate_limit(bytes, interner)?;
            (policy_name(&limit.key), Update::RateLimit(limit.into()))
        }
        Kind::RequestAuthentication => {
            let one = convert::decode_request_authentication(bytes, interner)?;
            (
                policy_name(&one.key),
                Update::RequestAuthentication(one.into()),
            )
        }
        Kind::ServiceTraffic => {
            let traffic = convert::decode_service_traffic(bytes, interner)?;
            (
                service_name(&traffic.service),
                Update::ServiceTraffic(traffic.into()),
            )
        }
        Kind::Route => {
            let route = convert::decode_route(bytes, interner)?;
            (route.key.to_string().into(), Update::Route(route.into()))
        }
    };
    if *name != *resource.name {
        return Err(RejectReason::WrongName(name.to_string()));
    }
    Ok((name, update))
}

fn service_name(key: &ServiceKey) -> Arc<str> {
    key.to_string().into()
}

fn policy_name(key: &PolicyKey) -> Arc<str> {
    key.to_string().into()
}

/// The answer to a response: its nonce, and an error if anything was rejected.
fn reply(type_url: String, nonce: String, rejected: &[Rejected]) -> DeltaDiscoveryRequest {
    let error_detail = (!rejected.is_empty()).then(|| rpc::Status {
        code: INVALID_ARGUMENT,
        message: describe(rejected),
        details: Vec::new(),
    });
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail,
        ..DeltaDiscoveryRequest::default()
    }
}

/// `name: reason; name: reason; and 3 more`.
fn describe(rejected: &[Rejected]) -> String {
    let named = rejected
        .iter()
        .take(NACK_DETAILS)
        .map(|r| format!("{}: {}", r.name, r.reason));
    let more = rejected.len().saturating_sub(NACK_DETAILS);
    named
        .chain((more > 0).then(|| format!("and {more} more")))
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests;
