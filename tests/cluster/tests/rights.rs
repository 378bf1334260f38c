//! The controller may do what it does and nothing else: every rule of its roles was used, by the API server's own log of
//! who asked for what, and nothing that it asked for was forbidden. On the way: what a user's ConfigMap lays over the
//! objects of a waypoint.

use std::collections::BTreeSet;

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually, until};
use serde_json::Value;

/// One object of every kind that gets a status, and a Gateway for which all is made that can be.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {selector: {app: orders}, ports: [{name: http, port: 80}, {name: grpc, port: 81}, {name: tls, port: 82}, {name: tcp, port: 83}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everybody}
spec: {rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: permissive}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  jwtRules: [{issuer: \"https://issuer.example\", jwks: '{\"keys\": []}'}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: elsewhere}
spec:
  hosts: [elsewhere.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.9.9.9}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine}
spec: {address: 10.9.9.8, labels: {app: machine}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec: {host: orders, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec: {hosts: [orders], http: [{route: [{destination: {host: orders}}]}]}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs}
spec: {accessLogging: [{disabled: false}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: http}
spec: {parentRefs: [{group: \"\", kind: Service, name: orders, port: 80}], rules: [{backendRefs: [{name: orders, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: grpc}
spec: {parentRefs: [{group: \"\", kind: Service, name: orders, port: 81}], rules: [{backendRefs: [{name: orders, port: 81}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: tls}
spec: {parentRefs: [{group: \"\", kind: Service, name: orders, port: 82}], hostnames: [orders.example], rules: [{backendRefs: [{name: orders, port: 82}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: tcp}
spec: {parentRefs: [{group: \"\", kind: Service, name: orders, port: 83}], rules: [{backendRefs: [{name: orders, port: 83}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: tls}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders, sectionName: tls}]
  validation: {wellKnownCACertificates: System, hostname: orders.example}
---
apiVersion: policy.karst.io/v1alpha1
kind: RateLimit
metadata: {name: limit}
spec: {targetRefs: [{group: \"\", kind: Service, name: orders}], rules: [{requests: 10, per: 1s}]}
---
apiVersion: policy.karst.io/v1alpha1
kind: HealthCheck
metadata: {name: check}
spec: {targetRefs: [{group: \"\", kind: Service, name: orders}], tcp: {}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: overlay}
data:
  deployment: |
    spec:
      template:
        metadata: {annotations: {team: shop}}
        spec:
          containers: [{name: waypoint, resources: {limits: {memory: 512Mi}}}]
  service: |
    metadata: {annotations: {team: shop}}
  serviceAccount: |
    metadata: {annotations: {team: shop}}
  horizontalPodAutoscaler: |
    spec: {minReplicas: 1, maxReplicas: 3}
  podDisruptionBudget: |
    spec: {minAvailable: 1}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: istio-waypoint
  infrastructure:
    parametersRef: {group: \"\", kind: ConfigMap, name: overlay}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// Two of them on a node change what is noted of it twice.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  terminationGracePeriodSeconds: 1
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

/// What a rule allows, one verb of one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// None for the whole cluster.
    namespace: Option<String>,
    group: String,
    resource: String,
    /// None for all.
    name: Option<String>,
    verb: String,
}

/// What was asked for once.
#[derive(Clone, Debug)]
struct Asked {
    namespace: String,
    group: String,
    resource: String,
    name: String,
    verb: String,
    /// A patch may create, which takes both rights.
    created: bool,
    forbidden: Option<String>,
}

#[test]
fn every_right_of_the_controller_is_used_and_none_is_missing() {
    let cluster = Cluster::get();
    // What was refused before, while another test took Karst away, is not asked about; controllers that start anew ask
    // for everything again.
    let before = cluster.audit_log().lines().count();
    restart_controllers(cluster);
    let namespace = Namespace::new("rights");
    namespace.apply(OBJECTS);
    overlay_is_there(cluster);
    namespace.label();
    for name in ["first", "second"] {
        namespace.apply(&POD.replace("NAME", name));
        is_captured(cluster, name);
    }
    run(cluster.karst().args(["status"]));
    // A new root: its first step is the one change of that Secret.
    let rotate = [
        "annotate",
        "secret",
        "karst-ca",
        "karst.dev/rotate-root=now",
        "--overwrite",
    ];
    run(cluster.kubectl().args(["-n", "karst-system"]).args(rotate));

    let rights = rights(cluster);
    assert!(rights.len() > 60, "{rights:#?}");
    let mut unused = String::new();
    until("every right is used", || {
        let asked = asked(cluster, 0);
        let left: Vec<_> = rights
            .iter()
            .filter(|one| !is_used(one, &rights, &asked))
            .collect();
        let said = format!("{left:#?}");
        if said != unused {
            println!("not used yet: {said}");
            unused = said;
        }
        left.is_empty().then_some(())
    });
    let forbidden: BTreeSet<_> = asked(cluster, before)
        .into_iter()
        .filter_map(|one| one.forbidden)
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

fn restart_controllers(cluster: &Cluster) {
    for verb in ["restart", "status"] {
        let words = ["rollout", verb, "deployment/karst-controller"];
        run(cluster.kubectl().args(["-n", "karst-system"]).args(words));
    }
}

fn is_captured(cluster: &Cluster, name: &str) {
    eventually(&format!("{name} is in the mesh"), || {
        let workloads = cluster.workloads("rights").unwrap_or_default();
        let captured = |one: &Value| one["name"] == name && one["protocol"] == "HBONE";
        workloads.iter().any(captured)
    });
}

fn overlay_is_there(cluster: &Cluster) {
    eventually("what the overlay says is there", || {
        let get = |words: &[&str]| {
            let mut get = cluster.kubectl();
            let said = get
                .args(["-n", "rights", "get", "-o", "json"])
                .args(words)
                .output();
            let said = said.map(|said| said.stdout).unwrap_or_default();
            serde_json::from_slice::<Value>(&said).unwrap_or_default()
        };
        let deployment = get(&["deployment", "waypoint"]);
        let template = &deployment["spec"]["template"];
        let container = &template["spec"]["containers"][0];
        template["metadata"]["annotations"]["team"] == "shop"
            && container["resources"]["limits"]["memory"] == "512Mi"
            && container["image"].is_string()
            && get(&["service", "waypoint"])["metadata"]["annotations"]["team"] == "shop"
            && get(&["serviceaccount", "waypoint"])["metadata"]["annotations"]["team"] == "shop"
            && get(&["hpa", "waypoint"])["spec"]["maxReplicas"] == 3
            && get(&["pdb", "waypoint"])["spec"]["minAvailable"] == 1
    });
}

/// All rights of the controller's roles, one by one.
fn rights(cluster: &Cluster) -> Vec<Right> {
    let mut rights = Vec::new();
    for kind in ["clusterrole", "role"] {
        let roles = cluster.object(&[kind, "-A", "-l", "app.kubernetes.io/part-of=karst"]);
        let roles = roles["items"].as_array().into_iter().flatten();
        for role in
            roles.filter(|role| text(&role["metadata"]["name"]).starts_with("karst-controller"))
        {
            let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
            for rule in role["rules"].as_array().into_iter().flatten() {
                add_rule(&mut rights, &namespace, rule);
            }
        }
    }
    rights
}

fn add_rule(rights: &mut Vec<Right>, namespace: &Option<String>, rule: &Value) {
    let texts = |key: &str| -> Vec<String> {
        let all = rule[key].as_array().into_iter().flatten();
        all.map(text).collect()
    };
    let names = match texts("resourceNames") {
        names if names.is_empty() => vec![None],
        names => names.into_iter().map(Some).collect(),
    };
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            for verb in texts("verbs") {
                rights.extend(names.iter().map(|name| Right {
                    namespace: namespace.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    name: name.clone(),
                    verb: verb.clone(),
                }));
            }
        }
    }
}

/// What the API server has noted of our service accounts. A line that is being written is left for the next look.
/// What the audit log has behind its first `after` lines.
fn asked(cluster: &Cluster, after: usize) -> Vec<Asked> {
    let log = cluster.audit_log();
    let events = log
        .lines()
        .skip(after)
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_the_controller =
        events.filter(|event| text(&event["user"]["username"]).ends_with(":karst-controller"));
    of_the_controller
        .map(|event| {
            let object = &event["objectRef"];
            let resource = match text(&object["subresource"]) {
                sub if sub.is_empty() => text(&object["resource"]),
                sub => format!("{}/{sub}", text(&object["resource"])),
            };
            let message = text(&event["responseStatus"]["message"]);
            let forbidden = event["annotations"]["authorization.k8s.io/decision"] == "forbid"
                || (event["responseStatus"]["code"] == 403 && message.contains(" cannot "));
            Asked {
                namespace: text(&object["namespace"]),
                group: text(&object["apiGroup"]),
                resource,
                name: text(&object["name"]),
                verb: text(&event["verb"]),
                created: event["responseStatus"]["code"] == 201,
                forbidden: forbidden
                    .then(|| format!("{} {}: {message}", event["verb"], event["requestURI"])),
            }
        })
        .collect()
}

fn is_used(right: &Right, all: &[Right], asked: &[Asked]) -> bool {
    asked.iter().any(|one| {
        // What a role of the namespace allows does not take the whole cluster's.
        let narrower = right.namespace.is_none()
            && all
                .iter()
                .any(|other| other.namespace.is_some() && allows(other, one));
        allows(right, one) && !narrower
    })
}

fn allows(right: &Right, asked: &Asked) -> bool {
    let verb = asked.verb == right.verb
        || (right.verb == "create" && asked.verb == "patch" && asked.created);
    verb && asked.group == right.group
        && asked.resource == right.resource
        && right.name.as_ref().is_none_or(|name| *name == asked.name)
        && right
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == asked.namespace)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
