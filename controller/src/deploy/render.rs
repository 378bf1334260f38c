//! The objects of one waypoint. Pure. Names and labels are Istio's (`ambient-facts.md` 7.1), so that its tools find them.

use karst_k8s_api::{
    gateway::{Gateway, gateway_class::WAYPOINT_CLASS},
    labels,
};
use serde_json::{Map, Value, json};

use super::overlay::merge;

/// User and group that waypoints run as, Istio's.
const USER: u32 = 1337;
/// Seconds that a waypoint gets to drain, and after which it is killed.
const DRAIN_SECONDS: u32 = 25;
const GRACE_SECONDS: u32 = 30;

/// What is the same for all waypoints.
#[derive(Clone, Debug)]
pub struct Settings {
    pub image: String,
    pub image_pull_policy: String,
    /// `https://HOST:PORT`.
    pub controller: String,
    /// Variables of the container.
    pub env: Vec<(String, String)>,
}

/// The waypoint's variable for the proxies in front of it.
const TRUSTED_PROXIES: &str = "KARST_TRUSTED_PROXIES";

/// Keys of the user's ConfigMap, with what each is laid over.
pub(super) const SERVICE_ACCOUNT: &str = "serviceAccount";
pub(super) const SERVICE: &str = "service";
pub(super) const DEPLOYMENT: &str = "deployment";
pub(super) const AUTOSCALER: &str = "horizontalPodAutoscaler";
pub(super) const DISRUPTION_BUDGET: &str = "podDisruptionBudget";
/// All of them.
pub(super) const KEYS: [&str; 5] = [
    SERVICE_ACCOUNT,
    SERVICE,
    DEPLOYMENT,
    AUTOSCALER,
    DISRUPTION_BUDGET,
];

/// Everything that is made for a Gateway, in the order in which it is made. `overlay` is by key of the ConfigMap.
pub(super) fn objects(
    gateway: &Gateway,
    settings: &Settings,
    trusted_proxies: u16,
    overlay: &Map<String, Value>,
) -> Vec<Value> {
    let mut deployment = deployment(gateway, settings, trusted_proxies);
    if overlay.contains_key(AUTOSCALER)
        && let Some(spec) = deployment["spec"].as_object_mut()
    {
        // Two masters of one number would fight.
        spec.remove("replicas");
    }
    let optional = [
        (AUTOSCALER, autoscaler as fn(&Gateway) -> Value),
        (DISRUPTION_BUDGET, disruption_budget),
    ];
    let optional = optional
        .into_iter()
        .filter(|(key, _)| overlay.contains_key(*key))
        .map(|(key, make)| (key, make(gateway)));
    let always = [
        (SERVICE_ACCOUNT, service_account(gateway)),
        (SERVICE, service(gateway)),
        (DEPLOYMENT, deployment),
    ];
    let all = always.into_iter().chain(optional).map(|(key, mut object)| {
        if let Some(over) = overlay.get(key) {
            merge(&mut object, over);
        }
        // Whose it is, and what it is called, is not the user's to change.
        object["metadata"]["name"] = json!(name(gateway));
        object["metadata"]["namespace"] = json!(namespace(gateway));
        object["metadata"]["ownerReferences"] = owner(gateway);
        object
    });
    all.collect()
}

fn name(gateway: &Gateway) -> &str {
    gateway.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(gateway: &Gateway) -> &str {
    gateway.metadata.namespace.as_deref().unwrap_or_default()
}

fn owner(gateway: &Gateway) -> Value {
    json!([{
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "name": name(gateway),
        "uid": gateway.metadata.uid,
    }])
}

/// Labels of every object of a Gateway: its own wishes, then ours.
fn labels_of(gateway: &Gateway) -> Value {
    let mut labels = Map::new();
    if let Some(more) = &gateway.spec.infrastructure {
        let wished = more.labels.iter();
        labels.extend(wished.map(|(key, value)| (key.clone(), json!(value))));
    }
    for (key, value) in [
        (labels::GATEWAY_NAME, name(gateway)),
        (labels::GATEWAY_CLASS_NAME, WAYPOINT_CLASS),
        (labels::GATEWAY_MANAGED, labels::GATEWAY_MANAGED_WAYPOINT),
        (super::MANAGED_BY, super::CONTROLLER),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    Value::Object(labels)
}

fn metadata(gateway: &Gateway) -> Value {
    let mut metadata = json!({"labels": labels_of(gateway)});
    let wished = gateway
        .spec
        .infrastructure
        .as_ref()
        .map(|more| &more.annotations)
        .filter(|annotations| !annotations.is_empty());
    if let Some(annotations) = wished {
        metadata["annotations"] = json!(annotations);
    }
    metadata
}

fn service_account(gateway: &Gateway) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(gateway)})
}

fn service(gateway: &Gateway) -> Value {
    let mut metadata = metadata(gateway);
    metadata["annotations"][labels::TRAFFIC_DISTRIBUTION] = json!("PreferClose");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {labels::GATEWAY_NAME: name(gateway)},
            "ports": [
                {"name": "status-port", "port": 15021, "protocol": "TCP", "targetPort": 15021},
                {"name": "mesh", "port": 15008, "protocol": "TCP", "targetPort": 15008, "appProtocol": "hbone"},
            ],
        },
    })
}

/// As many as the annotation says, else one.
fn replicas(gateway: &Gateway) -> u32 {
    let annotations = gateway.metadata.annotations.as_ref();
    let wished = annotations.and_then(|all| all.get(labels::WAYPOINT_REPLICAS));
    wished.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn deployment(gateway: &Gateway, settings: &Settings, trusted_proxies: u16) -> Value {
    let mut pod = metadata(gateway);
    for (key, value) in [
        (labels::DATAPLANE_MODE, labels::DATAPLANE_MODE_NONE),
        ("sidecar.istio.io/inject", "false"),
        (labels::CANONICAL_NAME, name(gateway)),
        (labels::CANONICAL_REVISION, "latest"),
    ] {
        pod["labels"][key] = json!(value);
    }
    for (key, value) in [
        ("prometheus.io/scrape", "true"),
        ("prometheus.io/port", "15020"),
        ("prometheus.io/path", "/stats/prometheus"),
    ] {
        pod["annotations"][key] = json!(value);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(gateway),
        "spec": {
            "replicas": replicas(gateway),
            "selector": {"matchLabels": {labels::GATEWAY_NAME: name(gateway)}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": pod, "spec": pod_spec(gateway, settings, trusted_proxies)},
        },
    })
}

fn pod_spec(gateway: &Gateway, settings: &Settings, trusted_proxies: u16) -> Value {
    json!({
        "serviceAccountName": name(gateway),
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(gateway, settings, trusted_proxies)],
        "volumes": [
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                "path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200,
            }}]}},
            {"name": "root-cert", "configMap": {"name": "istio-ca-root-cert", "optional": true}},
        ],
    })
}

fn container(gateway: &Gateway, settings: &Settings, trusted_proxies: u16) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ];
    let settled = settings.env.iter();
    env.extend(settled.map(|(name, value)| json!({"name": name, "value": value})));
    if trusted_proxies > 0 {
        env.push(json!({"name": TRUSTED_PROXIES, "value": trusted_proxies.to_string()}));
    }
    json!({
        "name": "waypoint",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [
            format!("--gateway-name={}", name(gateway)),
            format!("--controller={}", settings.controller),
            "--token-file=/var/run/secrets/tokens/istio-token",
            "--root-cert-file=/var/run/secrets/istio/root-cert.pem",
            // One of its own making: a volume belongs to root.
            "--run-dir=/run/karst-waypoint/own",
            format!("--drain-seconds={DRAIN_SECONDS}"),
        ],
        "env": env,
        "ports": [
            {"name": "mesh", "containerPort": 15008, "protocol": "TCP"},
            {"name": "http-metrics", "containerPort": 15020, "protocol": "TCP"},
            {"name": "status-port", "containerPort": 15021, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": 15021},
            "periodSeconds": 2,
            "failureThreshold": 3,
        },
        "resources": {
            "requests": {"cpu": "50m", "memory": "32Mi"},
            "limits": {"memory": "1Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/karst-waypoint"},
            {"name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": "root-cert", "mountPath": "/var/run/secrets/istio", "readOnly": true},
        ],
    })
}

fn autoscaler(gateway: &Gateway) -> Value {
    json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(gateway),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name(gateway)},
            "minReplicas": 1,
            "maxReplicas": 5,
        },
    })
}

fn disruption_budget(gateway: &Gateway) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(gateway),
        "spec": {"selector": {"matchLabels": {labels::GATEWAY_NAME: name(gateway)}}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            image: "hub/waypoint:1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            controller: "https://karst-controller.karst-system.svc:15012".to_owned(),
            env: vec![("TRUST_DOMAIN".to_owned(), "cluster.local".to_owned())],
        }
    }

    fn gateway() -> Gateway {
        serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "shop", "uid": "u1", "annotations": {"karst.dev/replicas": "3"}},
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
                "infrastructure": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_waypoint_has_no_rights_and_is_owned_by_its_gateway() {
        let all = objects(&gateway(), &settings(), 0, &Map::new());
        let kinds: Vec<_> = all
            .iter()
            .map(|one| one["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["ServiceAccount", "Service", "Deployment"]);
        for object in &all {
            assert_eq!(object["metadata"]["name"], "w");
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u1");
            assert_eq!(object["metadata"]["labels"]["team"], "a");
            assert_eq!(object["metadata"]["annotations"]["note"], "b");
        }
        let spec = &all[2]["spec"];
        assert_eq!(spec["replicas"], 3);
        let pod = &spec["template"]["spec"];
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(context["runAsUser"], 1337);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(
            spec["template"]["metadata"]["labels"]["istio.io/dataplane-mode"],
            "none"
        );
    }

    #[test]
    fn a_waypoint_is_told_of_the_proxies_in_front_of_it() {
        let told = |trusted| {
            let all = objects(&gateway(), &settings(), trusted, &Map::new());
            let variables = &all[2]["spec"]["template"]["spec"]["containers"][0]["env"];
            let mut variables = variables.as_array().unwrap().iter();
            let found = variables.find(|one| one["name"] == "KARST_TRUSTED_PROXIES");
            found.map(|one| one["value"].as_str().unwrap().to_owned())
        };
        assert_eq!(told(2).as_deref(), Some("2"));
        assert_eq!(told(0), None, "nothing changes where nothing is said");
    }

    #[test]
    fn a_config_map_changes_what_is_made_and_not_whose_it_is() {
        let overlay = json!({
            "deployment": {"metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": [
                {"name": "waypoint", "resources": {"limits": {"memory": "2Gi"}}}]}}}},
            "horizontalPodAutoscaler": {"spec": {"maxReplicas": 9}},
        });
        let all = objects(&gateway(), &settings(), 0, overlay.as_object().unwrap());
        assert_eq!(all.len(), 4);
        let deployment = &all[2];
        assert_eq!(deployment["metadata"]["name"], "w");
        assert_eq!(deployment["spec"].get("replicas"), None);
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["memory"], "2Gi");
        assert_eq!(container["image"], "hub/waypoint:1");
        assert_eq!(all[3]["spec"]["maxReplicas"], 9);
    }
}
