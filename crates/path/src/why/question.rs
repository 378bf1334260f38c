//! What is asked, and who is meant by it. A name that means nothing, or more than one thing, is an error that says what
//! there is instead.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use karst_model::{
    service::Service,
    workload::{Health, Workload},
};
use serde::{Deserialize, Serialize};

use crate::facts::Facts;

/// Alternatives that an error names.
const SHOWN: usize = 8;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Question {
    /// `[NAMESPACE/]NAME` of a pod or of what owns it, or an address.
    pub source: String,
    /// The same of a service or a pod, or a host name, with `:PORT` behind it or not.
    pub destination: String,
    /// Namespace of names without one.
    pub namespace: Option<String>,
    pub request: Option<AskedRequest>,
    /// Proxies in front of the waypoint whose entries in `x-forwarded-for` are believed; `None`: as the mesh and the
    /// Gateway say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted_proxies: Option<u16>,
}

/// A request that is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AskedRequest {
    pub method: String,
    /// With its query, if it has one.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// Why a question has no answer. The fault is the asker's, or what is asked about is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
pub enum AskError {
    #[error("there is no {what} {name}{hint}")]
    Unknown {
        what: &'static str,
        name: String,
        hint: String,
    },
    #[error("{name} means more than one {what}: {}", list(.candidates))]
    Ambiguous {
        what: &'static str,
        name: String,
        candidates: Vec<String>,
    },
    #[error("{0} is a service: name the pod that calls, or what owns it")]
    ServiceCalls(String),
    #[error("{name} has no port of its own to take: write {name}:PORT{hint}")]
    PortMissing { name: String, hint: String },
    #[error("{0:?} is no port: expected a number from 1 to 65535")]
    Port(String),
    #[error("the request cannot be asked about: {0}")]
    Request(String),
}

impl AskError {
    /// What is asked about does not exist or is not clear; other errors are about how it is asked.
    pub fn is_about_objects(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Ambiguous { .. })
    }
}

/// Who connects.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Workload(Arc<Workload>),
    /// Nobody that the mesh knows.
    Outside(IpAddr),
}

/// What is dialled.
#[derive(Clone, Debug)]
pub(super) enum Dialled {
    Service {
        service: Arc<Service>,
        by: By,
    },
    Workload {
        workload: Arc<Workload>,
        by: By,
    },
    /// An address or a name that the mesh does not know.
    Unknown(Unknown),
}

/// How it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    Name(String),
    Addr(IpAddr),
}

#[derive(Clone, Debug)]
pub(super) enum Unknown {
    Addr(IpAddr),
    Host(String),
}

impl Client {
    pub(super) fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Workload(workload) => Some(workload),
            Self::Outside(_) => None,
        }
    }

    pub(super) fn namespace(&self) -> &str {
        self.workload().map_or("", |workload| &workload.namespace)
    }

    /// Its address of a family, where it has one.
    pub(super) fn ip(&self, like: IpAddr) -> IpAddr {
        match self {
            Self::Outside(ip) => *ip,
            Self::Workload(workload) => {
                let same = workload
                    .addresses
                    .iter()
                    .find(|ip| ip.is_ipv4() == like.is_ipv4());
                same.or_else(|| workload.addresses.first())
                    .copied()
                    .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            }
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "{}", shown(workload)),
            Self::Outside(ip) => write!(f, "{ip}"),
        }
    }
}

/// A workload as people name it.
pub(super) fn shown(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// Splits `:PORT` off. An IPv6 address with a port stands in brackets.
pub(super) fn split_port(text: &str) -> Result<(&str, Option<u16>), AskError> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let Some(port) = port else {
        return Ok((host, None));
    };
    match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok((host, Some(number))),
        _ => Err(AskError::Port(port.to_owned())),
    }
}

/// A name with what stands in front of it.
struct Named<'a> {
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> Named<'a> {
    /// `[pod/|service/|svc/][NAMESPACE/]NAME`.
    fn of(text: &'a str) -> Self {
        let parts: Vec<&str> = text.split('/').collect();
        let is_kind = |kind: &str| {
            matches!(
                kind,
                "pod" | "service" | "svc" | "deploy" | "deployment" | "workload"
            )
        };
        match parts[..] {
            [kind, namespace, name] if is_kind(kind) => Self {
                kind: Some(kind),
                namespace: Some(namespace),
                name,
            },
            [kind, name] if is_kind(kind) => Self {
                kind: Some(kind),
                namespace: None,
                name,
            },
            [namespace, name] => Self {
                kind: None,
                namespace: Some(namespace),
                name,
            },
            _ => Self {
                kind: None,
                namespace: None,
                name: text,
            },
        }
    }
}

/// Finds who connects.
pub(super) fn client(facts: &Facts, question: &Question) -> Result<Client, AskError> {
    let text = question.source.as_str();
    if let Ok(ip) = text.parse::<IpAddr>() {
        let found = facts.mesh.workload_at(&facts.addr(ip));
        return Ok(found.map_or(Client::Outside(ip), Client::Workload));
    }
    let named = Named::of(text);
    let namespace = named.namespace.or(question.namespace.as_deref());
    let (name, namespace) = match (namespace, named.name.split_once('.')) {
        (None, Some((name, namespace))) if !namespace.contains('.') => (name, Some(namespace)),
        _ => (named.name, namespace),
    };
    match workload(facts, name, namespace)? {
        Some(workload) => Ok(Client::Workload(workload)),
        None if is_service(facts, name, namespace) => Err(AskError::ServiceCalls(text.to_owned())),
        None => Err(unknown(facts, "pod or workload", name, namespace)),
    }
}

/// Finds what is dialled.
pub(super) fn dialled(
    facts: &Facts,
    question: &Question,
    host: &str,
    client: &Client,
) -> Result<Dialled, AskError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        let at = facts.addr(ip);
        if let Some(service) = facts.mesh.service_at(&at, client.namespace()) {
            let by = By::Addr(ip);
            return Ok(Dialled::Service { service, by });
        }
        return Ok(match facts.mesh.workload_at(&at) {
            Some(workload) => Dialled::Workload {
                workload,
                by: By::Addr(ip),
            },
            None => Dialled::Unknown(Unknown::Addr(ip)),
        });
    }
    let named = Named::of(host);
    let own = Some(client.namespace()).filter(|namespace| !namespace.is_empty());
    let near = question.namespace.as_deref().or(own);
    let wants_pod = named
        .kind
        .is_some_and(|kind| !matches!(kind, "service" | "svc"));
    if !wants_pod && let Some(service) = service(facts, &named, near, client)? {
        let by = By::Name(host.to_owned());
        return Ok(Dialled::Service { service, by });
    }
    let wants_service = named.kind.is_some() && !wants_pod;
    if !wants_service && let Some(workload) = workload(facts, named.name, named.namespace.or(near))?
    {
        return Ok(Dialled::Workload {
            workload,
            by: By::Name(host.to_owned()),
        });
    }
    if named.kind.is_none() && named.namespace.is_none() && host.contains('.') {
        return Ok(Dialled::Unknown(Unknown::Host(host.to_owned())));
    }
    let namespace = named.namespace.or(near);
    Err(unknown(facts, "service or pod", named.name, namespace))
}

/// The service of a name: as its client's resolver would find it, or by its namespace.
fn service(
    facts: &Facts,
    named: &Named<'_>,
    near: Option<&str>,
    client: &Client,
) -> Result<Option<Arc<Service>>, AskError> {
    let domain = &facts.cluster_domain;
    let name = named.name.trim_end_matches('.');
    let hosts: Vec<String> = match named.namespace {
        Some(namespace) => vec![format!("{name}.{namespace}.svc.{domain}"), name.to_owned()],
        None => {
            let near = near.map(|near| format!("{name}.{near}.svc.{domain}"));
            let rest = [
                format!("{name}.svc.{domain}"),
                format!("{name}.{domain}"),
                name.to_owned(),
            ];
            near.into_iter().chain(rest).collect()
        }
    };
    let own = named.namespace.unwrap_or_else(|| client.namespace());
    for host in &hosts {
        let found = facts
            .mesh
            .service_by_host(host, client.namespace())
            .or_else(|| wildcard(facts, host, client.namespace()));
        let fits = |service: &Arc<Service>| {
            named
                .namespace
                .is_none_or(|namespace| *service.key.namespace == *namespace)
        };
        if let Some(found) = found.filter(fits) {
            return Ok(Some(found));
        }
    }
    // By the name of the object (a ServiceEntry has another host), where there is one such.
    let mut same: Vec<Arc<Service>> = facts.mesh.services();
    same.retain(|service| {
        *service.name == *name && (own.is_empty() || *service.key.namespace == *own)
    });
    same.sort_by(|a, b| a.key.cmp(&b.key));
    match &same[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, rest @ ..]
            if rest.iter().all(|one| {
                one.key.namespace == first.key.namespace && named.namespace.is_some()
            }) =>
        {
            Ok(Some(first.clone()))
        }
        many => Err(AskError::Ambiguous {
            what: "service",
            name: name.to_owned(),
            candidates: many.iter().map(|one| one.key.to_string()).collect(),
        }),
    }
}

fn wildcard(facts: &Facts, host: &str, client_namespace: &str) -> Option<Arc<Service>> {
    let mut rest = host;
    while let Some((_, parent)) = rest.split_once('.') {
        let found = facts
            .mesh
            .service_by_host(&format!("*.{parent}"), client_namespace);
        if found.is_some() {
            return found;
        }
        rest = parent;
    }
    None
}

/// The workload of a name: a pod's own, or that of what owns pods that are all alike.
fn workload(
    facts: &Facts,
    name: &str,
    namespace: Option<&str>,
) -> Result<Option<Arc<Workload>>, AskError> {
    let mut all = facts.mesh.workloads();
    all.retain(|one| namespace.is_none_or(|namespace| *one.namespace == *namespace));
    let mut found: Vec<Arc<Workload>> = all
        .iter()
        .filter(|one| *one.name == *name)
        .cloned()
        .collect();
    if found.is_empty() {
        found = all;
        found.retain(|one| *one.workload_name == *name);
    }
    // Those that serve and were enrolled first, so that the outcome does not depend on an order.
    found.sort_by(|a, b| {
        let ready = |one: &Workload| one.health != Health::Healthy;
        (ready(a), &a.uid).cmp(&(ready(b), &b.uid))
    });
    let Some(first) = found.first() else {
        return Ok(None);
    };
    let alike =
        |one: &Arc<Workload>| one.identity() == first.identity() && one.tunnel == first.tunnel;
    if found.iter().all(alike) {
        return Ok(Some(first.clone()));
    }
    Err(AskError::Ambiguous {
        what: "workload",
        name: name.to_owned(),
        candidates: found.iter().map(|one| shown(one)).collect(),
    })
}

fn is_service(facts: &Facts, name: &str, namespace: Option<&str>) -> bool {
    facts.mesh.services().iter().any(|one| {
        *one.name == *name && namespace.is_none_or(|namespace| *one.key.namespace == *namespace)
    })
}

/// Says where something of the same name is, or what is near.
fn unknown(facts: &Facts, what: &'static str, name: &str, namespace: Option<&str>) -> AskError {
    let mut elsewhere: Vec<String> = facts
        .mesh
        .workloads()
        .iter()
        .filter(|one| *one.name == *name || *one.workload_name == *name)
        .map(|one| one.namespace.to_string())
        .chain(
            facts
                .mesh
                .services()
                .iter()
                .filter(|one| *one.name == *name)
                .map(|one| one.key.namespace.to_string()),
        )
        .collect();
    elsewhere.sort();
    elsewhere.dedup();
    let place = namespace.map_or_else(String::new, |namespace| {
        format!(" in namespace {namespace}")
    });
    let hint = match elsewhere.is_empty() {
        true => place,
        false => format!("{place}; there is one in {}", list(&elsewhere)),
    };
    AskError::Unknown {
        what,
        name: name.to_owned(),
        hint,
    }
}

fn list(candidates: &[String]) -> String {
    let shown = candidates.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    match candidates.len() > SHOWN {
        true => format!("{} and {} more", shown.join(", "), candidates.len() - SHOWN),
        false => shown.join(", "),
    }
}
