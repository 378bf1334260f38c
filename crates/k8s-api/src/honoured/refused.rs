//! Kinds that Karst does not take.

use super::RefusedKind;

/// Kinds that are refused whole. Karst installs no definition of them; where Istio left one, admission refuses.
pub const REFUSED_KINDS: &[RefusedKind] = &[
    refused(
        "EnvoyFilter",
        "envoyfilters",
        "networking.istio.io",
        "there is no Envoy to configure: use the fields of AuthorizationPolicy and of the Gateway API",
    ),
    refused(
        "WasmPlugin",
        "wasmplugins",
        "extensions.istio.io",
        "there is no Envoy to extend",
    ),
    refused(
        "TrafficExtension",
        "trafficextensions",
        "extensions.istio.io",
        "there is no Envoy to extend",
    ),
    refused(
        "Sidecar",
        "sidecars",
        "networking.istio.io",
        "there is no sidecar to configure; what a pod can reach is decided by AuthorizationPolicy at the destination",
    ),
    refused(
        "ProxyConfig",
        "proxyconfigs",
        "networking.istio.io",
        "there is no sidecar to configure",
    ),
    refused(
        "Gateway",
        "gateways",
        "networking.istio.io",
        "use Gateway of gateway.networking.k8s.io",
    ),
    refused(
        "WorkloadGroup",
        "workloadgroups",
        "networking.istio.io",
        "Karst registers no machines by itself: list them as endpoints of a ServiceEntry",
    ),
];

const fn refused(
    kind: &'static str,
    plural: &'static str,
    group: &'static str,
    note: &'static str,
) -> RefusedKind {
    RefusedKind {
        kind,
        plural,
        group,
        note,
    }
}
