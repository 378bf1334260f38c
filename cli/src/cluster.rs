//! The cluster that the user's kubeconfig names: applying objects, looking at them, deleting them.
//!
//! Objects are untyped here: they come from the chart as text, and go to the API server by server-side apply under one
//! field manager, so that an upgrade changes what we set and leaves what others set.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::{
    Client, Config,
    api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind, TypeMeta},
};
use serde_json::Value;

/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);
/// Who we are to server-side apply.
const FIELD_MANAGER: &str = "karst";

/// Which cluster is meant; the same flags as kubectl's.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Context of the kubeconfig; the current one where left out
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Path of the kubeconfig; KUBECONFIG or ~/.kube/config where left out
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// Namespace that Karst is installed in
    #[arg(
        long,
        short = 'n',
        global = true,
        default_value = "karst-system",
        value_name = "NAMESPACE"
    )]
    pub(crate) namespace: String,
}

/// A connection to the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Namespace of the installation.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Connects, and asks the server for its version so that a wrong address is told now.
    pub(crate) async fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &args.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None if options.context.is_none() => match Config::infer().await {
                Ok(config) => return Self::from_config(config, args).await,
                Err(error) => {
                    return Err(error)
                        .context("no cluster: set KUBECONFIG, or name one by --kubeconfig");
                }
            },
            None => Config::from_kubeconfig(&options).await,
        };
        Self::from_config(config.context("the kubeconfig cannot be used")?, args).await
    }

    async fn from_config(config: Config, args: &ClusterArgs) -> anyhow::Result<Self> {
        let server = config.cluster_url.clone();
        let client = Client::try_from(config)
            .with_context(|| format!("cannot talk to the API server {server}"))?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("API server {server} does not answer"))?;
        Ok(Self {
            client,
            namespace: args.namespace.clone(),
        })
    }

    /// Objects of a kind, in `namespace` or everywhere.
    pub(crate) fn objects(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = kind.resource();
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// All objects of a kind; none where the cluster does not know the kind.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        params: &ListParams,
    ) -> anyhow::Result<Vec<DynamicObject>> {
        match self.objects(kind, namespace).list(params).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(told(error)).with_context(|| format!("cannot list {}", kind.kind)),
        }
    }

    /// One object; None where it or its kind is not there.
    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> anyhow::Result<Option<DynamicObject>> {
        self.objects(kind, namespace)
            .get_opt(name)
            .await
            .map_err(told)
            .with_context(|| format!("cannot read {} {name}", kind.kind))
    }

    /// Makes or changes an object so that it says what `object` says.
    pub(crate) async fn apply(&self, object: &Value, mode: Apply) -> anyhow::Result<()> {
        let reference = Reference::of(object)?;
        let params = PatchParams {
            dry_run: mode == Apply::DryRun,
            ..PatchParams::apply(FIELD_MANAGER).force()
        };
        reference
            .api(self)
            .patch(&reference.name, &params, &Patch::Apply(object))
            .await
            .map_err(told)
            .with_context(|| format!("cannot apply {reference}"))?;
        Ok(())
    }

    /// Deletes an object with what depends on it. Whether it was there.
    pub(crate) async fn delete(&self, reference: &Reference) -> anyhow::Result<Deleted> {
        let deleted = reference
            .api(self)
            .delete(&reference.name, &DeleteParams::foreground())
            .await;
        match deleted {
            Ok(_) => Ok(Deleted::Yes),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Deleted::WasNotThere),
            Err(error) => Err(told(error)).with_context(|| format!("cannot delete {reference}")),
        }
    }
}

impl Cluster {
    /// Waits until a deleted object is no longer there.
    pub(crate) async fn wait_gone(
        &self,
        reference: &Reference,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        while reference
            .api(self)
            .get_opt(&reference.name)
            .await?
            .is_some()
        {
            if Instant::now() > deadline {
                bail!(
                    "{reference} is being deleted and does not go; what holds it stands in its status and finalizers"
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Longest answer of the API server that is shown; some name every field of a large schema.
const ANSWER_MAX: usize = 600;

/// What the API server answered, without the same words a second time as a structure.
pub(crate) fn told(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => {
            let mut message = status.message;
            if let Some((end, _)) = message.char_indices().nth(ANSWER_MAX) {
                message.truncate(end);
                message.push_str(" ...");
            }
            anyhow::anyhow!("{message}")
        }
        other => other.into(),
    }
}

/// What a delete found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deleted {
    Yes,
    WasNotThere,
}

/// Whether an apply is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apply {
    Really,
    DryRun,
}

/// Label on what the controller makes while it runs.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub(crate) const CONTROLLER: &str = "karst-controller";

/// A kind of object by group, version and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
}

impl Kind {
    pub(crate) const NAMESPACE: Self = Self::new("", "v1", "Namespace");
    pub(crate) const NODE: Self = Self::new("", "v1", "Node");
    pub(crate) const POD: Self = Self::new("", "v1", "Pod");
    pub(crate) const CONFIG_MAP: Self = Self::new("", "v1", "ConfigMap");
    pub(crate) const SECRET: Self = Self::new("", "v1", "Secret");
    pub(crate) const EVENT: Self = Self::new("", "v1", "Event");
    pub(crate) const DEPLOYMENT: Self = Self::new("apps", "v1", "Deployment");
    pub(crate) const DAEMON_SET: Self = Self::new("apps", "v1", "DaemonSet");
    pub(crate) const SERVICE_ACCOUNT: Self = Self::new("", "v1", "ServiceAccount");
    pub(crate) const LEASE: Self = Self::new("coordination.k8s.io", "v1", "Lease");
    pub(crate) const WEBHOOK: Self = Self::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
    );
    pub(crate) const MUTATING_WEBHOOK: Self = Self::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
    );
    pub(crate) const SERVICE: Self = Self::new("", "v1", "Service");
    pub(crate) const GATEWAY: Self = Self::new("gateway.networking.k8s.io", "v1", "Gateway");
    pub(crate) const HTTP_ROUTE: Self = Self::new("gateway.networking.k8s.io", "v1", "HTTPRoute");
    pub(crate) const GATEWAY_CLASS: Self =
        Self::new("gateway.networking.k8s.io", "v1", "GatewayClass");
    pub(crate) const XMESH: Self = Self::new("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    pub(crate) const CRD: Self =
        Self::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    pub(crate) const ACCESS_REVIEW: Self =
        Self::new("authorization.k8s.io", "v1", "SelfSubjectAccessReview");

    const fn new(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Self {
            group,
            version,
            kind,
        }
    }

    pub(crate) fn resource(self) -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk(self.group, self.version, self.kind))
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) types: TypeMeta,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Reference {
    /// Of an object as the chart renders it.
    pub(crate) fn of(object: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (Some(api_version), Some(kind), Some(name)) = (
            text(&object["apiVersion"]),
            text(&object["kind"]),
            text(&object["metadata"]["name"]),
        ) else {
            bail!("an object without apiVersion, kind or metadata.name: {object}");
        };
        Ok(Self {
            types: TypeMeta { api_version, kind },
            namespace: text(&object["metadata"]["namespace"]),
            name,
        })
    }

    /// Of an object of a known kind.
    pub(crate) fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let resource = kind.resource();
        Self {
            types: TypeMeta {
                api_version: resource.api_version,
                kind: resource.kind,
            },
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    pub(crate) fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        let (group, version) = self
            .types
            .api_version
            .split_once('/')
            .unwrap_or(("", &self.types.api_version));
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.types.kind));
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
            None => Api::all_with(cluster.client.clone(), &resource),
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.types.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}
