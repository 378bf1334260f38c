//! One object of any kind that Karst reads, and the key it is known by.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Deserializer};

use crate::{
    gateway::{
        BackendTlsPolicy, Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute,
        TlsRoute,
    },
    istio::{
        AuthorizationPolicy, DestinationRule, PeerAuthentication, RequestAuthentication,
        ServiceEntry, Telemetry, VirtualService, WorkloadEntry,
    },
    karst::{HealthCheck, RateLimit},
    kind::Kind,
};

/// Namespace of namespaced objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Who writes the statuses of objects, as the API server notes it in their `managedFields`.
pub const FIELD_MANAGER: &str = "karst";

/// Whether the addresses in the status of a ServiceEntry are our own. They follow from the entries that there are; those
/// that somebody else has written are kept as they are.
pub fn wrote_addresses(meta: &ObjectMeta) -> bool {
    let fields = meta.managed_fields.iter().flatten();
    fields
        .filter(|one| one.manager.as_deref() == Some(FIELD_MANAGER))
        .filter_map(|one| one.fields_v1.as_ref())
        .any(|fields| fields.0.pointer("/f:status/f:addresses").is_some())
}

/// An object of one of the kinds of [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    ServiceAccount(Box<ServiceAccount>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    ConfigMap(Box<ConfigMap>),
    Deployment(Box<Deployment>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    RequestAuthentication(Box<RequestAuthentication>),
    ServiceEntry(Box<ServiceEntry>),
    WorkloadEntry(Box<WorkloadEntry>),
    DestinationRule(Box<DestinationRule>),
    VirtualService(Box<VirtualService>),
    Telemetry(Box<Telemetry>),
    GatewayClass(Box<GatewayClass>),
    Gateway(Box<Gateway>),
    HttpRoute(Box<HttpRoute>),
    GrpcRoute(Box<GrpcRoute>),
    TlsRoute(Box<TlsRoute>),
    TcpRoute(Box<TcpRoute>),
    ReferenceGrant(Box<ReferenceGrant>),
    BackendTlsPolicy(Box<BackendTlsPolicy>),
    RateLimit(Box<RateLimit>),
    HealthCheck(Box<HealthCheck>),
}

/// What names an object in a cluster. The namespace is empty for kinds of cluster scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key as objects of this kind have it: no namespace for cluster scope, `default` where a namespaced object
    /// gives none.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if kind.is_cluster_scoped() => "",
            "" => DEFAULT_NAMESPACE,
            given => given,
        };
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    /// `Kind namespace/name`, or `Kind name` for cluster scope.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Writes one `match` over all variants of [`Object`].
macro_rules! each_kind {
    ($object:expr, $inner:ident => $body:expr) => {
        match $object {
            Object::Namespace($inner) => $body,
            Object::Node($inner) => $body,
            Object::ServiceAccount($inner) => $body,
            Object::Pod($inner) => $body,
            Object::Service($inner) => $body,
            Object::EndpointSlice($inner) => $body,
            Object::ConfigMap($inner) => $body,
            Object::Deployment($inner) => $body,
            Object::AuthorizationPolicy($inner) => $body,
            Object::PeerAuthentication($inner) => $body,
            Object::RequestAuthentication($inner) => $body,
            Object::ServiceEntry($inner) => $body,
            Object::WorkloadEntry($inner) => $body,
            Object::DestinationRule($inner) => $body,
            Object::VirtualService($inner) => $body,
            Object::Telemetry($inner) => $body,
            Object::GatewayClass($inner) => $body,
            Object::Gateway($inner) => $body,
            Object::HttpRoute($inner) => $body,
            Object::GrpcRoute($inner) => $body,
            Object::TlsRoute($inner) => $body,
            Object::TcpRoute($inner) => $body,
            Object::ReferenceGrant($inner) => $body,
            Object::BackendTlsPolicy($inner) => $body,
            Object::RateLimit($inner) => $body,
            Object::HealthCheck($inner) => $body,
        }
    };
}

impl Object {
    /// Reads an object that is known to be of `kind`.
    ///
    /// # Errors
    /// The deserializer's, naming what it expected; wrap it in `serde_path_to_error` for the field.
    pub fn deserialize<'de, D: Deserializer<'de>>(kind: Kind, input: D) -> Result<Self, D::Error> {
        Ok(match kind {
            Kind::Namespace => Self::Namespace(Box::deserialize(input)?),
            Kind::Node => Self::Node(Box::deserialize(input)?),
            Kind::ServiceAccount => Self::ServiceAccount(Box::deserialize(input)?),
            Kind::Pod => Self::Pod(Box::deserialize(input)?),
            Kind::Service => Self::Service(Box::deserialize(input)?),
            Kind::EndpointSlice => Self::EndpointSlice(Box::deserialize(input)?),
            Kind::ConfigMap => Self::ConfigMap(Box::deserialize(input)?),
            Kind::Deployment => Self::Deployment(Box::deserialize(input)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(Box::deserialize(input)?),
            Kind::PeerAuthentication => Self::PeerAuthentication(Box::deserialize(input)?),
            Kind::RequestAuthentication => Self::RequestAuthentication(Box::deserialize(input)?),
            Kind::ServiceEntry => Self::ServiceEntry(Box::deserialize(input)?),
            Kind::WorkloadEntry => Self::WorkloadEntry(Box::deserialize(input)?),
            Kind::DestinationRule => Self::DestinationRule(Box::deserialize(input)?),
            Kind::VirtualService => Self::VirtualService(Box::deserialize(input)?),
            Kind::Telemetry => Self::Telemetry(Box::deserialize(input)?),
            Kind::GatewayClass => Self::GatewayClass(Box::deserialize(input)?),
            Kind::Gateway => Self::Gateway(Box::deserialize(input)?),
            Kind::HttpRoute => Self::HttpRoute(Box::deserialize(input)?),
            Kind::GrpcRoute => Self::GrpcRoute(Box::deserialize(input)?),
            Kind::TlsRoute => Self::TlsRoute(Box::deserialize(input)?),
            Kind::TcpRoute => Self::TcpRoute(Box::deserialize(input)?),
            Kind::ReferenceGrant => Self::ReferenceGrant(Box::deserialize(input)?),
            Kind::BackendTlsPolicy => Self::BackendTlsPolicy(Box::deserialize(input)?),
            Kind::RateLimit => Self::RateLimit(Box::deserialize(input)?),
            Kind::HealthCheck => Self::HealthCheck(Box::deserialize(input)?),
        })
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Deployment(_) => Kind::Deployment,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::Telemetry(_) => Kind::Telemetry,
            Self::GatewayClass(_) => Kind::GatewayClass,
            Self::Gateway(_) => Kind::Gateway,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Self::RateLimit(_) => Kind::RateLimit,
            Self::HealthCheck(_) => Kind::HealthCheck,
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        each_kind!(self, object => &object.metadata)
    }

    /// Kind, namespace and name. An object without a name has the empty one.
    pub fn key(&self) -> ObjectKey {
        let meta = self.metadata();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        ObjectKey::new(self.kind(), &text(&meta.namespace), &text(&meta.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, json: serde_json::Value) -> Object {
        Object::deserialize(kind, json).unwrap()
    }

    #[test]
    fn keys_follow_the_scope_of_the_kind() {
        let pod = read(Kind::Pod, serde_json::json!({"metadata": {"name": "a"}}));
        assert_eq!(pod.key().to_string(), "Pod default/a");
        let node = read(
            Kind::Node,
            serde_json::json!({"metadata": {"name": "n", "namespace": "ignored"}}),
        );
        assert_eq!(node.key().to_string(), "Node n");
    }

    #[test]
    fn istio_objects_read_in_camel_case() {
        let policy = read(
            Kind::AuthorizationPolicy,
            serde_json::json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop"},
                "spec": {
                    "selector": {"matchLabels": {"app": "orders"}}, "action": "DENY",
                    "rules": [{"from": [{"source": {"notPrincipals": ["a"], "ipBlocks": ["10.0.0.0/8"]}}],
                               "to": [{"operation": {"notPorts": ["80"]}}],
                               "when": [{"key": "source.ip", "notValues": ["10.1.0.0/16"]}]}],
                },
            }),
        );
        let Object::AuthorizationPolicy(policy) = policy else {
            panic!("{policy:?}")
        };
        let rule = &policy.spec.rules[0];
        assert_eq!(rule.from[0].source.not_principals, ["a"]);
        assert_eq!(rule.from[0].source.ip_blocks, ["10.0.0.0/8"]);
        assert_eq!(rule.to[0].operation.not_ports, ["80"]);
        assert_eq!(rule.when[0].not_values, ["10.1.0.0/16"]);
    }
}
