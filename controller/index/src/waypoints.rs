//! Which waypoint a service or a pod has: from Gateways, their classes, and labels on the object or its namespace.
//!
//! A waypoint is a Gateway of a class of ours. An object names it by `istio.io/use-waypoint`, its namespace otherwise; a
//! name on the object itself is final. The waypoint is bound once it has been in place ([`GatewayFacts::has_addresses`])
//! and lets the object attach; before that nothing of the object changes, and its condition says why. Once bound it is
//! the only way. Source: Istio's "Configure waypoint proxies", `ambient-facts.md` 2.8.

use std::sync::Arc;

use hashbrown::HashMap;
use karst_k8s_api::{
    gateway::{
        Gateway, GatewayClass,
        gateway::{FromNamespaces, Listener},
        gateway_class::{WAYPOINT_CLASS, WAYPOINT_CONTROLLER},
    },
    istio::mesh_config::ProxyConfig,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
    labels,
};
use karst_model::{
    name::ServiceKey,
    protocol::HBONE_PORT,
    workload::{ApplicationTunnel, GatewayAddr, GatewayDestination},
};

use crate::{
    conditions::{Condition, ConditionType},
    config::IndexConfig,
    facts::Name,
    selector::Labels,
    services,
};

/// Protocol of a waypoint's listener.
pub(crate) const HBONE: &str = "HBONE";
/// Protocol that Istio gives to the listener of a waypoint behind another proxy.
const PROXY: &str = "istio.io/PROXY";

/// What the index keeps of a Gateway.
#[derive(Debug, PartialEq)]
pub(crate) struct GatewayFacts {
    pub(crate) class: Arc<str>,
    pub(crate) generation: Option<i64>,
    /// Its own label; an unknown value is in `bad_traffic`.
    traffic: Option<Traffic>,
    bad_traffic: Option<String>,
    pub(crate) listeners: Vec<ListenerFacts>,
    /// Name that it is reached by where somebody else runs it.
    hostname: Option<Arc<str>>,
    /// Its status has addresses: it was in place once.
    pub(crate) has_addresses: bool,
    inbound: Inbound,
    /// Proxies in front of it whose entries in `x-forwarded-for` are believed; `None`: as the mesh has it. What cannot be
    /// read is an error.
    pub(crate) trusted_proxies: Result<Option<u16>, String>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct ListenerFacts {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    from: FromNamespaces,
    selector: Option<LabelSelector>,
}

/// What the index keeps of a GatewayClass.
#[derive(Debug, PartialEq)]
pub(crate) struct ClassFacts {
    controller: String,
    traffic: Option<Traffic>,
    inbound: Inbound,
}

/// What an annotation says of how pods of a Gateway get what came through HBONE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Inbound {
    #[default]
    Unsaid,
    Said(Option<ApplicationTunnel>),
    /// It cannot be read, and counts as unsaid.
    Unreadable(String),
}

/// What a waypoint is for: the value of `istio.io/waypoint-for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Service,
    Workload,
    All,
    None,
}

/// What may have a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Traffic to the addresses of a service.
    Service,
    /// Traffic to a pod's own addresses.
    Workload,
}

/// The waypoint that labels ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) gateway: Name,
    /// By a label of the object itself rather than of its namespace.
    pub(crate) own: bool,
}

/// What comes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// None is asked for, or it is for other traffic by way of the namespace.
    Unasked,
    Bound {
        gateway: Name,
        addr: GatewayAddr,
    },
    /// One is asked for and is not used: `reason` and `message` of the condition.
    Refused {
        gateway: Name,
        reason: &'static str,
        message: String,
    },
}

/// All Gateways and classes.
#[derive(Debug, Default)]
pub(crate) struct Waypoints {
    gateways: HashMap<Name, GatewayFacts>,
    classes: HashMap<Arc<str>, ClassFacts>,
}

impl GatewayFacts {
    pub(crate) fn new(gateway: &Gateway) -> Self {
        let meta = &gateway.metadata;
        let label = meta
            .labels
            .as_ref()
            .and_then(|all| all.get(labels::WAYPOINT_FOR));
        let traffic = label.and_then(|text| Traffic::of(text));
        let hostname = gateway
            .spec
            .addresses
            .iter()
            .find(|address| address.kind.as_deref() == Some("Hostname"));
        let annotations = meta.annotations.as_ref();
        let proxy_config = annotations.and_then(|all| all.get(labels::PROXY_CONFIG));
        let addresses = gateway
            .status
            .as_ref()
            .and_then(|status| status["addresses"].as_array());
        Self {
            class: gateway.spec.gateway_class_name.as_str().into(),
            generation: meta.generation,
            bad_traffic: label.filter(|_| traffic.is_none()).cloned(),
            traffic,
            listeners: gateway.spec.listeners.iter().map(listener).collect(),
            hostname: hostname.map(|address| address.value.as_str().into()),
            has_addresses: addresses.is_some_and(|all| !all.is_empty()),
            inbound: Inbound::of(meta.annotations.as_ref()),
            trusted_proxies: match proxy_config {
                Some(yaml) => ProxyConfig::read(yaml).map(|config| config.trusted_proxies),
                None => Ok(None),
            },
        }
    }

    /// Whether what may attach, and where to, is the same.
    fn binds_as(&self, other: &Self) -> bool {
        self.class == other.class
            && self.traffic == other.traffic
            && self.listeners == other.listeners
            && self.hostname == other.hostname
            && self.has_addresses == other.has_addresses
            && self.inbound == other.inbound
    }

    pub(crate) fn bad_traffic(&self) -> Option<&str> {
        self.bad_traffic.as_deref()
    }

    /// An inbound binding that cannot be read.
    pub(crate) fn bad_inbound(&self) -> Option<&str> {
        match &self.inbound {
            Inbound::Unreadable(text) => Some(text),
            Inbound::Unsaid | Inbound::Said(_) => None,
        }
    }

    /// Somebody else runs it.
    pub(crate) fn is_manual(&self) -> bool {
        self.hostname.is_some()
    }
}

fn listener(listener: &Listener) -> ListenerFacts {
    let namespaces = listener
        .allowed_routes
        .as_ref()
        .and_then(|allowed| allowed.namespaces.clone())
        .unwrap_or_default();
    ListenerFacts {
        name: listener.name.as_str().into(),
        port: listener.port,
        protocol: listener.protocol.clone(),
        from: namespaces.from,
        selector: namespaces.selector,
    }
}

impl ListenerFacts {
    /// Whether it is one that agents dial.
    pub(crate) fn is_hbone(&self) -> bool {
        self.protocol == HBONE || self.protocol == PROXY
    }

    fn admits(&self, own: &str, namespace: &str, labels: Option<&Labels>) -> bool {
        match self.from {
            FromNamespaces::All => true,
            FromNamespaces::Same => own == namespace,
            FromNamespaces::None => false,
            FromNamespaces::Selector => {
                let none = Labels::new();
                self.selector
                    .as_ref()
                    .is_some_and(|selector| selects(selector, labels.unwrap_or(&none)))
            }
        }
    }
}

/// Whether a selector of Kubernetes picks these labels. An expression that cannot be read picks nothing.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let holds = |wanted: &LabelSelectorRequirement| {
        let value = labels.get(&wanted.key);
        let listed = || {
            let values = wanted.values.iter().flatten();
            value.is_some_and(|value| values.clone().any(|one| one == value))
        };
        match wanted.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    let pairs = selector.match_labels.iter().flatten();
    pairs
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(holds)
}

impl ClassFacts {
    pub(crate) fn new(class: &GatewayClass) -> Self {
        let labels = class.metadata.labels.as_ref();
        Self {
            controller: class.spec.controller_name.clone(),
            traffic: labels
                .and_then(|all| all.get(labels::WAYPOINT_FOR))
                .and_then(|text| Traffic::of(text)),
            inbound: Inbound::of(class.metadata.annotations.as_ref()),
        }
    }
}

impl Inbound {
    fn of(annotations: Option<&Labels>) -> Self {
        let said = annotations.and_then(|all| all.get(labels::WAYPOINT_INBOUND_BINDING));
        let Some(text) = said else {
            return Self::Unsaid;
        };
        let (protocol, port) = match text.split_once('/') {
            Some((protocol, port)) => match port.parse() {
                Ok(0) | Err(_) => return Self::Unreadable(text.clone()),
                Ok(port) => (protocol, Some(port)),
            },
            None => (text.as_str(), None),
        };
        match protocol {
            "NONE" => Self::Said(None),
            "PROXY" => Self::Said(Some(ApplicationTunnel::Proxy { port })),
            _ => Self::Unreadable(text.clone()),
        }
    }
}

impl Traffic {
    fn of(text: &str) -> Option<Self> {
        match text {
            "service" => Some(Self::Service),
            "workload" => Some(Self::Workload),
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    fn includes(self, subject: Subject) -> bool {
        match subject {
            Subject::Service => matches!(self, Self::Service | Self::All),
            Subject::Workload => matches!(self, Self::Workload | Self::All),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// The waypoint that an object of `namespace` asks for.
pub(crate) fn wish(
    own: &Labels,
    of_namespace: Option<&Labels>,
    namespace: &Arc<str>,
) -> Option<Wish> {
    // What is made for a waypoint would be sent through itself.
    if own.contains_key(labels::GATEWAY_MANAGED) || own.contains_key(labels::GATEWAY_NAME) {
        return None;
    }
    let asked = |labels: &Labels| {
        let name = labels.get(labels::USE_WAYPOINT)?.as_str();
        let space = labels.get(labels::USE_WAYPOINT_NAMESPACE);
        Some((
            name.to_owned(),
            space.map_or_else(|| namespace.clone(), |space| space.as_str().into()),
        ))
    };
    let (of_object, is_own) = (asked(own), own.contains_key(labels::USE_WAYPOINT));
    let (name, space) = of_object.or_else(|| of_namespace.and_then(asked))?;
    let named = name != labels::USE_WAYPOINT_NONE && !name.is_empty();
    named.then(|| Wish {
        gateway: Name {
            namespace: space,
            name: name.as_str().into(),
        },
        own: is_own,
    })
}

impl Waypoints {
    /// Puts or removes a Gateway; whether what is bound to it may have changed.
    pub(crate) fn set_gateway(&mut self, name: &Name, after: Option<GatewayFacts>) -> bool {
        let before = match after {
            Some(after) => self.gateways.insert(name.clone(), after),
            None => self.gateways.remove(name),
        };
        match (&before, self.gateways.get(name)) {
            (Some(before), Some(after)) => !before.binds_as(after),
            (before, after) => before.is_some() || after.is_some(),
        }
    }

    /// Puts or removes a class; the Gateways that it changes.
    pub(crate) fn set_class(&mut self, name: &Arc<str>, after: Option<ClassFacts>) -> Vec<Name> {
        if self.classes.get(name) == after.as_ref() {
            return Vec::new();
        }
        match after {
            Some(after) => drop(self.classes.insert(name.clone(), after)),
            None => drop(self.classes.remove(name)),
        }
        let of_class = self.gateways.iter().filter(|(_, one)| one.class == *name);
        of_class.map(|(gateway, _)| gateway.clone()).collect()
    }

    pub(crate) fn gateway(&self, name: &Name) -> Option<&GatewayFacts> {
        self.gateways.get(name)
    }

    /// All Gateways that are known.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.gateways.keys()
    }

    /// How the pods of a Gateway get what came through HBONE: as the Gateway says, else as its class does.
    pub(crate) fn application_tunnel(&self, gateway: &Name) -> Option<ApplicationTunnel> {
        let facts = self.gateways.get(gateway)?;
        let class = self.classes.get(&facts.class).map(|class| &class.inbound);
        [Some(&facts.inbound), class]
            .into_iter()
            .flatten()
            .find_map(|inbound| match inbound {
                Inbound::Said(tunnel) => Some(*tunnel),
                Inbound::Unsaid | Inbound::Unreadable(_) => None,
            })?
    }

    /// The Gateways that are waypoints.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Name, &GatewayFacts)> {
        self.gateways
            .iter()
            .filter(|(_, facts)| self.is_waypoint(facts))
    }

    /// Whether a Gateway is ours to run as a waypoint. The class needs no object: files rarely have one.
    pub(crate) fn is_waypoint(&self, facts: &GatewayFacts) -> bool {
        match self.classes.get(&facts.class) {
            Some(class) => class.controller == WAYPOINT_CONTROLLER,
            None => *facts.class == *WAYPOINT_CLASS,
        }
    }

    /// Whether labels of namespaces decide what attaches anywhere.
    pub(crate) fn select_namespaces(&self) -> bool {
        let listeners = self.gateways.values().flat_map(|facts| &facts.listeners);
        listeners
            .into_iter()
            .any(|listener| listener.from == FromNamespaces::Selector)
    }

    pub(crate) fn traffic(&self, facts: &GatewayFacts) -> Traffic {
        let of_class = || self.classes.get(&facts.class)?.traffic;
        facts.traffic.or_else(of_class).unwrap_or(Traffic::Service)
    }

    /// What comes of a wish of an object of `namespace`, which has these labels.
    pub(crate) fn bind(
        &self,
        config: &IndexConfig,
        wish: Option<Wish>,
        subject: Subject,
        namespace: &str,
        namespace_labels: Option<&Labels>,
    ) -> Binding {
        let Some(Wish { gateway, own }) = wish else {
            return Binding::Unasked;
        };
        // What a namespace's label comes to is said of the namespace and of services; pods are many.
        let silent = !own && subject == Subject::Workload;
        let refused = |reason, message: String| match silent {
            true => Binding::Unasked,
            false => Binding::Refused {
                gateway: gateway.clone(),
                reason,
                message,
            },
        };
        let shown = format!("{}/{}", gateway.namespace, gateway.name);
        let facts = self
            .gateways
            .get(&gateway)
            .filter(|facts| self.is_waypoint(facts));
        let Some(facts) = facts else {
            let message = format!("no waypoint {shown} is known: traffic goes as without it");
            return refused("WaypointIsMissing", message);
        };
        let traffic = self.traffic(facts);
        if !traffic.includes(subject) {
            // A namespace's label speaks for all that is in it, and each waypoint takes of it what it is for.
            if !own {
                return Binding::Unasked;
            }
            let message = format!(
                "waypoint {shown} is for traffic of kind {:?}, by its label {}: traffic goes as without it",
                traffic.as_str(),
                labels::WAYPOINT_FOR
            );
            return refused("UnsupportedTrafficType", message);
        }
        let mut hbone = facts.listeners.iter().filter(|one| one.is_hbone());
        if !hbone.any(|one| one.admits(&gateway.namespace, namespace, namespace_labels)) {
            let message = format!(
                "no listener of waypoint {shown} lets namespace {namespace} attach (allowedRoutes): traffic goes as without it"
            );
            return refused("AttachmentDenied", message);
        }
        if !facts.has_addresses {
            let message = format!(
                "waypoint {shown} has not been ready yet: traffic goes as without it until it is"
            );
            return refused("WaypointIsNotReady", message);
        }
        Binding::Bound {
            addr: address(config, &gateway, facts),
            gateway,
        }
    }
}

/// How agents find a waypoint: by its service.
fn address(config: &IndexConfig, gateway: &Name, facts: &GatewayFacts) -> GatewayAddr {
    let own = || services::hostname(config, gateway);
    let hostname = facts.hostname.clone().unwrap_or_else(own);
    // `<service>.<namespace>.svc.<domain>` says its namespace.
    let mut parts = hostname.split('.').skip(1);
    let namespace = match (parts.next(), parts.next()) {
        (Some(namespace), Some("svc")) => namespace.into(),
        _ => gateway.namespace.clone(),
    };
    GatewayAddr {
        destination: GatewayDestination::Service(ServiceKey {
            namespace,
            hostname,
        }),
        hbone_port: HBONE_PORT,
    }
}

impl Binding {
    pub(crate) fn addr(&self) -> Option<&GatewayAddr> {
        match self {
            Self::Bound { addr, .. } => Some(addr),
            Self::Unasked | Self::Refused { .. } => None,
        }
    }

    pub(crate) fn gateway(&self) -> Option<&Name> {
        match self {
            Self::Bound { gateway, .. } => Some(gateway),
            Self::Unasked | Self::Refused { .. } => None,
        }
    }

    /// What the object's author is told.
    pub(crate) fn condition(&self) -> Option<Condition> {
        match self {
            Self::Unasked => None,
            Self::Bound { gateway, .. } => Some(Condition::yes(
                ConditionType::WaypointBound,
                "WaypointAccepted",
                format!("bound to waypoint {}/{}", gateway.namespace, gateway.name),
            )),
            Self::Refused {
                reason, message, ..
            } => Some(Condition::no(
                ConditionType::WaypointBound,
                reason,
                message.as_str(),
            )),
        }
    }
}
