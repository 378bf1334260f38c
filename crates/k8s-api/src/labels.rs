//! Every label and annotation that Karst honours, and the values with a meaning.
//!
//! Sources: Istio's `istio.io/api/{label,annotation}` pages and Kubernetes' "Well-Known Labels, Annotations and Taints".

// --- Enrolment (labels on Namespace and Pod)
/// Label that enrols a namespace or a pod.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// [`DATAPLANE_MODE`]: in the mesh.
pub const DATAPLANE_MODE_AMBIENT: &str = "ambient";
/// [`DATAPLANE_MODE`]: not in the mesh, whatever the namespace says.
pub const DATAPLANE_MODE_NONE: &str = "none";
/// Label, Karst's own, on the namespace that Karst is installed in: no pod is to be in the mesh, which is being taken away.
pub const RELEASE: &str = "karst.dev/release";
/// [`RELEASE`]: every pod, whatever other labels say.
pub const RELEASE_ALL: &str = "all";
/// Annotation that Istio's injector leaves on a pod with a sidecar; such a pod is never enrolled.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Annotation that a kubelet writes on the API server's picture of a static pod: the UID that the pod has on its node.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Label of a workload that speaks HBONE itself; a value that contains `http` means yes.
pub const TUNNEL: &str = "networking.istio.io/tunnel";

// --- Capture options (annotations on Pod)
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
pub const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// `true` or `false`, over the mesh-wide default.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Istio's annotations that ask for captures we do not offer: each gets a condition on the pod.
pub const UNSUPPORTED_CAPTURE: [&str; 5] = [
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "ambient.istio.io/bypass-inbound-capture",
    "istio.io/reroute-virtual-interfaces",
];

// --- Names for telemetry (labels on Pod)
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
pub const APP_NAME: &str = "app.kubernetes.io/name";
pub const APP_VERSION: &str = "app.kubernetes.io/version";
pub const APP: &str = "app";
pub const VERSION: &str = "version";
/// Label with the hash that a ReplicaSet's name ends with.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Label with the hash that an Argo Rollout's ReplicaSet ends with.
pub const ROLLOUT_TEMPLATE_HASH: &str = "rollouts-pod-template-hash";
/// Label that OpenShift sets on pods of a DeploymentConfig.
pub const DEPLOYMENT_CONFIG: &str = "deploymentconfig";
/// Label that marks the mesh's own pods, beside their namespace.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// [`PART_OF`]: ours.
pub const PART_OF_KARST: &str = "karst";

// --- Topology (labels on Node, Namespace, ServiceEntry endpoints)
pub const REGION: &str = "topology.kubernetes.io/region";
pub const ZONE: &str = "topology.kubernetes.io/zone";
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// Label on the root namespace (or an endpoint) that names its network.
pub const NETWORK: &str = "topology.istio.io/network";
/// Label of an endpoint: the cluster that it runs in.
pub const CLUSTER: &str = "topology.istio.io/cluster";
/// Label of a node and its pods: the node's name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";

// --- Services
/// Label of an EndpointSlice: the Service that it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation on Service or Namespace, where `spec.trafficDistribution` is unset.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Annotation on Service: comma-separated namespaces that may see it.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";
/// Label on ServiceEntry: `false` keeps it from getting addresses of its own.
pub const ENABLE_AUTOALLOCATE_IP: &str = "networking.istio.io/enable-autoallocate-ip";

// --- Waypoints (labels on Namespace, Service, ServiceEntry, Pod)
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// [`USE_WAYPOINT`]: no waypoint, whatever the namespace says.
pub const USE_WAYPOINT_NONE: &str = "none";
/// Namespace of the waypoint that [`USE_WAYPOINT`] names, where it is another than the object's.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// Label on Gateway, else on GatewayClass: `service`, `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Annotation on Gateway, else on GatewayClass: how its pods' agents hand over what came through HBONE: `NONE` or
/// `PROXY`, then optionally `/` and a port.
pub const WAYPOINT_INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// Label on everything that is made for a Gateway: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label on everything that is made for a Gateway: the name of its class.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Label on everything that is made for a Gateway: who made it. Such an object never has a waypoint of its own.
pub const GATEWAY_MANAGED: &str = "gateway.istio.io/managed";
/// [`GATEWAY_MANAGED`]: made for a waypoint.
pub const GATEWAY_MANAGED_WAYPOINT: &str = "istio.io-mesh-controller";
/// Annotation on Gateway, Karst's own: replicas of the waypoint.
pub const WAYPOINT_REPLICAS: &str = "karst.dev/replicas";
/// Annotation on Gateway: a ProxyConfig in YAML, of which the number of trusted proxies counts.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Annotation on Service and ServiceEntry, Karst's own: `true` asks for a seal, `false` waives it.
pub const SEAL: &str = "karst.dev/seal";
/// Annotation on Service and ServiceEntry, Karst's own: `when-ready` lets clients reach the service without its waypoint
/// while no replica of it is ready. It waives nothing where the service is sealed.
pub const WAYPOINT_REQUIRED: &str = "karst.dev/waypoint-required";
/// [`WAYPOINT_REQUIRED`]: only while it is ready.
pub const WAYPOINT_REQUIRED_WHEN_READY: &str = "when-ready";
/// Annotation on DestinationRule, Karst's own: `peak-ewma` chooses endpoints by their latency.
pub const LOAD_BALANCER: &str = "karst.dev/load-balancer";

// --- Policy (annotations)
/// `true`: the policy is only logged and counted.
pub const DRY_RUN: &str = "istio.io/dry-run";
/// Annotation of a Telemetry object: percent of what its access logs would take, 0 to 100.
pub const ACCESS_LOG_SAMPLING: &str = "karst.dev/access-log-sampling-percentage";
