//! A mesh of any size, made of the objects that a cluster would hold for it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use karst_k8s_api::k8s_openapi::api::core::v1::ObjectReference;
use karst_k8s_api::{
    Object,
    k8s_openapi::{
        api::{
            core::v1::{
                Namespace, Node, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service,
                ServicePort, ServiceSpec,
            },
            discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
        },
        apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
    },
};

/// How large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) services: usize,
    pub(crate) workloads: usize,
}

const NAMESPACES: usize = 100;
/// Endpoints that Kubernetes puts into one slice.
const SLICE: usize = 100;

impl Size {
    pub(crate) fn node(self, index: usize) -> String {
        format!("node-{}", index % self.nodes)
    }

    /// Every object, in the order in which a first list would bring them.
    pub(crate) fn objects(self) -> impl Iterator<Item = Object> {
        let namespaces = (0..NAMESPACES).map(|index| Object::Namespace(Box::new(namespace(index))));
        let nodes =
            (0..self.nodes).map(move |index| Object::Node(Box::new(self.node_object(index))));
        let services = (0..self.services).map(|index| Object::Service(Box::new(service(index))));
        let pods = (0..self.workloads).map(move |index| Object::Pod(Box::new(self.pod(index))));
        let slices = (0..self.services).flat_map(move |index| {
            self.slices(index)
                .map(|slice| Object::EndpointSlice(Box::new(slice)))
        });
        namespaces
            .chain(nodes)
            .chain(services)
            .chain(pods)
            .chain(slices)
    }

    fn node_object(self, index: usize) -> Node {
        Node {
            metadata: ObjectMeta {
                name: Some(self.node(index)),
                labels: Some(BTreeMap::from([(
                    "topology.kubernetes.io/zone".to_owned(),
                    format!("zone-{}", index % 3),
                )])),
                ..ObjectMeta::default()
            },
            ..Node::default()
        }
    }

    fn pod(self, index: usize) -> Pod {
        let service = index % self.services;
        let address = pod_address(index);
        Pod {
            metadata: ObjectMeta {
                name: Some(pod_name(index)),
                namespace: Some(namespace_name(service)),
                uid: Some(format!("00000000-0000-4000-8000-{index:012}")),
                labels: Some(app_label(service)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some(self.node(index)),
                service_account_name: Some(format!("account-{}", service % 50)),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some("Running".to_owned()),
                pod_ip: Some(address.clone()),
                pod_ips: Some(vec![PodIP { ip: address }]),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".to_owned(),
                    status: "True".to_owned(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
        }
    }

    fn slices(self, service: usize) -> impl Iterator<Item = EndpointSlice> {
        let mut pods = (service..self.workloads).step_by(self.services).peekable();
        let mut part = 0;
        std::iter::from_fn(move || {
            pods.peek()?;
            part += 1;
            let endpoints = pods
                .by_ref()
                .take(SLICE)
                .map(|pod| self.endpoint(service, pod))
                .collect();
            Some(slice(service, part, endpoints))
        })
    }

    fn endpoint(self, service: usize, pod: usize) -> Endpoint {
        Endpoint {
            addresses: vec![pod_address(pod)],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(self.node(pod)),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(pod_name(pod)),
                namespace: Some(namespace_name(service)),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }
    }
}

/// The object as the text of one document.
pub(crate) fn document(object: &Object) -> Result<String> {
    Ok(match object {
        Object::Namespace(object) => serde_json::to_string(object)?,
        Object::Node(object) => serde_json::to_string(object)?,
        Object::Service(object) => serde_json::to_string(object)?,
        Object::Pod(object) => serde_json::to_string(object)?,
        Object::EndpointSlice(object) => serde_json::to_string(object)?,
        other => bail!("no document is made of a {}", other.kind()),
    })
}

pub(crate) fn namespace_name(service: usize) -> String {
    format!("team-{}", service % NAMESPACES)
}

fn pod_name(index: usize) -> String {
    format!("pod-{index}")
}

fn pod_address(index: usize) -> String {
    format!(
        "10.{}.{}.{}",
        index >> 16 & 0xff,
        index >> 8 & 0xff,
        index & 0xff
    )
}

fn app_label(service: usize) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), format!("app-{service}"))])
}

fn namespace(index: usize) -> Namespace {
    Namespace {
        metadata: ObjectMeta {
            name: Some(namespace_name(index)),
            labels: Some(BTreeMap::from([(
                "istio.io/dataplane-mode".to_owned(),
                "ambient".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

fn service(index: usize) -> Service {
    let address = format!(
        "172.{}.{}.{}",
        16 + (index >> 16),
        index >> 8 & 0xff,
        index & 0xff
    );
    Service {
        metadata: ObjectMeta {
            name: Some(format!("service-{index}")),
            namespace: Some(namespace_name(index)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.clone()),
            cluster_ips: Some(vec![address]),
            selector: Some(app_label(index)),
            ports: Some(vec![ServicePort {
                port: 80,
                target_port: Some(IntOrString::Int(8080)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn slice(service: usize, part: usize, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("service-{service}-{part}")),
            namespace: Some(namespace_name(service)),
            labels: Some(BTreeMap::from([(
                "kubernetes.io/service-name".to_owned(),
                format!("service-{service}"),
            )])),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints,
        ports: Some(vec![EndpointPort {
            port: Some(8080),
            ..EndpointPort::default()
        }]),
    }
}
