//! What the index must be told about the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karst_model::{
    enrollment::Generation,
    identity::{DEFAULT_TRUST_DOMAIN, TrustDomain},
    traffic::Secret,
};

/// Names that hold for the whole mesh.
#[derive(Clone, Debug)]
pub struct IndexConfig {
    /// First part of workload UIDs, and `cluster_id` of workloads.
    pub cluster_id: Arc<str>,
    pub trust_domain: TrustDomain,
    /// Domain of service names: `<name>.<namespace>.svc.<cluster domain>`.
    pub cluster_domain: Arc<str>,
    /// Policies of this namespace hold for the whole mesh. The mesh's own pods live there.
    pub root_namespace: Arc<str>,
    /// Where Karst is installed: a label of this namespace lets every pod go ([`karst_k8s_api::labels::RELEASE`]).
    pub install_namespace: Arc<str>,
    /// Pods of these namespaces are never enrolled.
    pub excluded_namespaces: BTreeSet<Arc<str>>,
    /// Above every generation that an earlier controller of this mesh has used; the time of its start serves.
    pub first_generation: Generation,
    /// Variables of the controller's environment, for what the mesh configuration takes from there (`envName`).
    pub environment: BTreeMap<Arc<str>, Secret>,
}

impl Default for IndexConfig {
    /// Istio's names: cluster `Kubernetes`, domain `cluster.local`, root namespace `istio-system`, no `kube-system`.
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: TrustDomain(DEFAULT_TRUST_DOMAIN.into()),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            install_namespace: "karst-system".into(),
            excluded_namespaces: BTreeSet::from(["kube-system".into()]),
            first_generation: Generation(0),
            environment: BTreeMap::new(),
        }
    }
}
