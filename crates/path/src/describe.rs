//! `karst describe`: what touches an object, and what it touches, as agents and waypoints have it.

use std::{fmt, sync::Arc};

use karst_model::{
    enrollment::EnrollMode,
    name::GatewayKey,
    policy::{Action, PolicyScope},
    protocol::TunnelProtocol,
    route::{Backend, Clients, Route, RouteRules, WeightedBackend},
    service::Service,
    waypoint_policy::{PolicyTarget, RequestAction, WaypointPolicy},
    workload::{Health, Workload},
};
use serde::{Deserialize, Serialize};

use crate::{
    Facts, outbound,
    why::{AskError, Detail, Object, printable},
};

/// Lines of one heading that the text form shows before it says how many more there are.
const SHOWN: usize = 50;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    pub object: Object,
    pub parts: Vec<Part>,
}

/// One heading, and what stands below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub title: String,
    pub lines: Vec<Detail>,
}

impl Described {
    fn new(object: Object) -> Self {
        Self {
            object,
            parts: Vec::new(),
        }
    }

    fn part(&mut self, title: &str, lines: Vec<Detail>) {
        if !lines.is_empty() {
            self.parts.push(Part {
                title: title.to_owned(),
                lines,
            });
        }
    }

    fn line(&mut self, title: &str, text: impl Into<String>) {
        self.part(title, vec![Detail::new(text)]);
    }

    /// Takes away what is about objects of namespaces that the asker may not see, and counts it.
    pub fn hide(&mut self, may_see: impl Fn(&str) -> bool) {
        for part in &mut self.parts {
            let all = part.lines.len();
            part.lines.retain(|line| {
                line.about
                    .as_ref()
                    .is_none_or(|object| may_see(&object.namespace))
            });
            let hidden = all - part.lines.len();
            if hidden > 0 {
                let text = format!("and {hidden} in namespaces that you may not see");
                part.lines.push(Detail::new(text));
            }
        }
    }

    /// Namespaces of everything that it tells about.
    pub fn namespaces(&self) -> Vec<String> {
        let lines = self.parts.iter().flat_map(|part| &part.lines);
        let mut all: Vec<String> = lines
            .filter_map(|line| Some(line.about.as_ref()?.namespace.clone()))
            .chain([self.object.namespace.clone()])
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Finds `KIND/NAME` or `KIND/NAMESPACE/NAME`.
///
/// # Errors
/// That there is none, or that the name means more than one.
pub fn describe(
    facts: &Facts,
    object: &str,
    namespace: Option<&str>,
) -> Result<Described, AskError> {
    let parts: Vec<&str> = object.split('/').collect();
    let (kind, namespace, name) = match parts[..] {
        [kind, name] => (kind, namespace, name),
        [kind, namespace, name] => (kind, Some(namespace), name),
        _ => {
            return Err(AskError::Unknown {
                what: "object",
                name: object.to_owned(),
                hint: ": expected KIND/NAME or KIND/NAMESPACE/NAME".to_owned(),
            });
        }
    };
    let wanted = Wanted {
        facts,
        namespace,
        name,
    };
    match kind.to_ascii_lowercase().trim_end_matches('s') {
        "pod" | "po" | "workload" | "deployment" | "deploy" => wanted.workload(),
        "service" | "svc" | "serviceentry" | "serviceentrie" => wanted.service(),
        "gateway" | "gw" | "waypoint" => wanted.gateway(),
        "namespace" | "n" => Ok(wanted.namespace()),
        "authorizationpolicy" | "authorizationpolicie" | "policy" | "policie"
        | "peerauthentication" => wanted.policy(),
        "httproute" | "grpcroute" | "tcproute" | "tlsroute" | "route" | "virtualservice" => {
            wanted.route(kind)
        }
        _ => Err(AskError::Unknown {
            what: "kind",
            name: kind.to_owned(),
            hint: ": expected pod, service, gateway, namespace, authorizationpolicy, httproute, grpcroute, tcproute, tlsroute or virtualservice".to_owned(),
        }),
    }
}

/// What is looked for.
struct Wanted<'a> {
    facts: &'a Facts,
    namespace: Option<&'a str>,
    name: &'a str,
}

impl Wanted<'_> {
    fn fits(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.is_none_or(|wanted| wanted == namespace)
    }

    fn only<T>(
        &self,
        what: &'static str,
        found: Vec<T>,
        named: impl Fn(&T) -> String,
    ) -> Result<T, AskError> {
        let mut names: Vec<String> = found.iter().map(&named).collect();
        names.sort();
        names.dedup();
        if names.len() > 1 {
            return Err(AskError::Ambiguous {
                what,
                name: self.name.to_owned(),
                candidates: names,
            });
        }
        found.into_iter().next().ok_or_else(|| AskError::Unknown {
            what,
            name: self.name.to_owned(),
            hint: self
                .namespace
                .map(|namespace| format!(" in namespace {namespace}"))
                .unwrap_or_default(),
        })
    }

    fn workload(&self) -> Result<Described, AskError> {
        let all = self.facts.mesh.workloads();
        let mut found: Vec<Arc<Workload>> = all
            .iter()
            .filter(|one| self.fits(&one.namespace, &one.name))
            .cloned()
            .collect();
        if found.is_empty() {
            found = all
                .iter()
                .filter(|one| self.fits(&one.namespace, &one.workload_name))
                .cloned()
                .collect();
            found.sort_by(|a, b| a.uid.cmp(&b.uid));
            if found.iter().all(|one| one.namespace == found[0].namespace) {
                found.truncate(1);
            }
        }
        let one = self.only("pod or workload", found, |one| {
            format!("{}/{}", one.namespace, one.name)
        })?;
        Ok(of_workload(self.facts, &one))
    }

    fn service(&self) -> Result<Described, AskError> {
        let mut found = self.facts.mesh.services();
        found.retain(|one| {
            self.fits(&one.key.namespace, &one.name)
                || self.fits(&one.key.namespace, &one.key.hostname)
        });
        let one = self.only("service", found, |one| one.key.to_string())?;
        Ok(of_service(self.facts, &one))
    }

    fn gateway(&self) -> Result<Described, AskError> {
        let bound = self.facts.mesh.services().into_iter();
        let mut found: Vec<GatewayKey> = bound
            .filter_map(|service| self.facts.gateway(service.waypoint.as_ref()?))
            .chain(self.facts.waypoints().map(|(key, _)| key.clone()))
            .filter(|key| self.fits(&key.namespace, &key.name))
            .collect();
        found.sort();
        found.dedup();
        let key = self.only(
            "waypoint that anything is bound to",
            found,
            ToString::to_string,
        )?;
        Ok(of_gateway(self.facts, &key))
    }

    fn namespace(&self) -> Described {
        let mut described = Described::new(Object::new("Namespace", self.name, ""));
        let mut workloads = self.facts.mesh.workloads();
        workloads.retain(|one| *one.namespace == *self.name);
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let lines = workloads.iter().map(|one| workload_line(one)).collect();
        described.part("workloads", lines);
        let mut policies = self.facts.mesh.policies();
        policies.retain(|one| *one.key.namespace == *self.name);
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        let lines = policies
            .iter()
            .map(|one| {
                Detail::about(
                    Object::of_policy(&one.key),
                    format!("{} ({:?})", one.key, one.scope),
                )
            })
            .collect();
        described.part("L4 policies", lines);
        described
    }

    fn policy(&self) -> Result<Described, AskError> {
        let mut l4 = self.facts.mesh.policies();
        l4.retain(|one| {
            let object = Object::of_policy(&one.key);
            self.fits(&object.namespace, &object.name)
                || self.fits(&one.key.namespace, &one.key.name)
        });
        let l7: Vec<(GatewayKey, Arc<WaypointPolicy>)> = self
            .facts
            .waypoints()
            .flat_map(|(key, state)| {
                let policies = state.waypoint_policies().into_iter();
                policies
                    .map(|policy| (key.clone(), policy))
                    .collect::<Vec<_>>()
            })
            .filter(|(_, one)| self.fits(&one.key.namespace, &one.key.name))
            .collect();
        let keys = l4
            .iter()
            .map(|one| one.key.clone())
            .chain(l7.iter().map(|(_, one)| one.key.clone()))
            .collect();
        let key = self.only("policy in force", keys, ToString::to_string)?;
        let mut described = Described::new(Object::of_policy(&key));
        for policy in &l4 {
            let action = match policy.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
            };
            let dry_run = if policy.dry_run {
                ", in dry run: only counted"
            } else {
                ""
            };
            let text = format!("{action}, {} rules{dry_run}", policy.rules.len());
            described.line("for connections (L4), enforced by the agents", text);
            let mut workloads = self.facts.mesh.workloads();
            workloads.retain(|one| karst_policy::applies(policy, one));
            workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
            let scope = match policy.scope {
                PolicyScope::Global => "applies to every workload of the mesh",
                PolicyScope::Namespace => "applies to every workload of its namespace",
                PolicyScope::WorkloadSelector => "applies to the workloads that it selects",
            };
            if workloads.is_empty() {
                described.line(scope, "there is none");
            }
            let lines = workloads.iter().map(|one| workload_line(one)).collect();
            described.part(scope, lines);
        }
        for (gateway, policy) in &l7 {
            let action = match policy.action {
                RequestAction::Allow => "ALLOW",
                RequestAction::Deny => "DENY",
                RequestAction::Audit => "AUDIT",
                RequestAction::Custom => "CUSTOM",
            };
            let dry_run = if policy.dry_run {
                ", in dry run: only counted"
            } else {
                ""
            };
            let text = format!("{action}, {} rules{dry_run}", policy.rules.len());
            described.line(
                &format!("for requests (L7), enforced by waypoint {gateway}"),
                text,
            );
            let lines = policy.targets.iter().map(target_line).collect();
            described.part("targets", lines);
        }
        Ok(described)
    }

    fn route(&self, kind: &str) -> Result<Described, AskError> {
        let wanted = kind.to_ascii_lowercase();
        let is_kind = |route: &Route| {
            let of = route.key.kind.as_str().to_ascii_lowercase();
            wanted.starts_with("route")
                || of.split('.').next() == Some(wanted.trim_end_matches('s'))
        };
        let found: Vec<(GatewayKey, Arc<Route>)> = self
            .facts
            .waypoints()
            .flat_map(|(key, state)| {
                let routes = state.routes().into_iter();
                routes.map(|route| (key.clone(), route)).collect::<Vec<_>>()
            })
            .filter(|(_, one)| is_kind(one) && self.fits(&one.key.namespace, &one.key.name))
            .collect();
        let gateways: Vec<Detail> = found
            .iter()
            .map(|(key, _)| {
                Detail::about(
                    Object::new("Gateway", &key.namespace, &key.name),
                    format!("waypoint {key}"),
                )
            })
            .collect();
        let (_, route) = self.only("route that a waypoint applies", found, |(_, one)| {
            one.key.to_string()
        })?;
        let mut described = Described::new(Object::new(
            route.key.kind.as_str(),
            &route.key.namespace,
            &route.key.name,
        ));
        described.part("applied by", gateways);
        let attachments = route.attachments.iter().map(|one| {
            let port = one
                .port
                .map_or_else(|| "every port".to_owned(), |port| format!("port {port}"));
            let clients = match &one.clients {
                Clients::All => "all clients".to_owned(),
                Clients::Namespace(namespace) => format!("clients of namespace {namespace}"),
            };
            Detail::about(
                Object::of_service(&one.service),
                format!("{}, {port}, {clients}", one.service),
            )
        });
        described.part("takes the traffic of", attachments.collect());
        described.part("leads to", backends(&route));
        Ok(described)
    }
}

fn backends(route: &Route) -> Vec<Detail> {
    let of = |rule: usize, backends: &[WeightedBackend]| -> Vec<Detail> {
        backends
            .iter()
            .map(|one| match &one.backend {
                Backend::Service { service, port, .. } => Detail::about(
                    Object::of_service(service),
                    format!("rule {rule}: {service} port {port}, weight {}", one.weight),
                ),
                Backend::Invalid(why) => Detail::new(format!(
                    "rule {rule}: 500, since {why} (weight {})",
                    one.weight
                )),
            })
            .collect()
    };
    match &route.rules {
        RouteRules::Http(rules) => rules
            .iter()
            .enumerate()
            .flat_map(|(index, rule)| of(index, &rule.backends))
            .collect(),
        RouteRules::Tls(rules) => rules
            .iter()
            .enumerate()
            .flat_map(|(index, rule)| of(index, &rule.backends))
            .collect(),
        RouteRules::Tcp(rules) => rules
            .iter()
            .enumerate()
            .flat_map(|(index, rule)| of(index, &rule.backends))
            .collect(),
    }
}

fn target_line(target: &PolicyTarget) -> Detail {
    match target {
        PolicyTarget::Service(key) => {
            Detail::about(Object::of_service(key), format!("requests for {key}"))
        }
        PolicyTarget::Gateway { namespace, name } => Detail::about(
            Object::new("Gateway", namespace, name),
            format!("all requests that pass waypoint {namespace}/{name}"),
        ),
        PolicyTarget::GatewayClass(class) => Detail::new(format!(
            "all requests that pass a waypoint of class {class}"
        )),
    }
}

fn workload_line(one: &Workload) -> Detail {
    let state = match (one.tunnel, one.health) {
        (TunnelProtocol::Hbone, Health::Healthy) => "in the mesh",
        (TunnelProtocol::Hbone, Health::Unhealthy) => "in the mesh, not ready",
        (TunnelProtocol::None, Health::Healthy) => "not in the mesh",
        (TunnelProtocol::None, Health::Unhealthy) => "not in the mesh, not ready",
    };
    Detail::about(
        Object::new("Pod", &one.namespace, &one.name),
        format!("{}/{} ({state})", one.namespace, one.name),
    )
}

fn of_workload(facts: &Facts, one: &Workload) -> Described {
    let mut described = Described::new(Object::new("Pod", &one.namespace, &one.name));
    described.line("identity", one.identity().to_string());
    let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
    described.line(
        "addresses",
        format!("{} on node {}", addresses.join(", "), one.node),
    );
    let mode = facts.pod(one).map(|pod| pod.mode);
    let mesh = match (one.tunnel, mode) {
        (TunnelProtocol::Hbone, _) => "in the mesh",
        (TunnelProtocol::None, Some(EnrollMode::Ambient)) => {
            "should be in the mesh, and its node has not captured it (yet)"
        }
        (TunnelProtocol::None, _) => "not in the mesh",
    };
    described.line("mesh", mesh);
    if let Some(waypoint) = &one.waypoint {
        described.line("waypoint for its own addresses", outbound::shown(waypoint));
    }
    let sealed = one.sealed.iter().map(|sealed| {
        let only = match &sealed.waypoint {
            Some(waypoint) => format!("takes waypoint {} only", outbound::shown(waypoint)),
            None => "takes nobody: no waypoint is bound".to_owned(),
        };
        Detail::new(format!("port {} {only}", sealed.port))
    });
    described.part("sealed ports", sealed.collect());
    let services = one.services.iter().map(|(key, ports)| {
        let ports: Vec<String> = ports
            .iter()
            .map(|(port, target)| format!("{port}->{target}"))
            .collect();
        Detail::about(
            Object::of_service(key),
            format!("{key} {}", ports.join(", ")),
        )
    });
    described.part("endpoint of", services.collect());
    let applies = facts.mesh.policies_for(one);
    let policies = applies.policies.iter().map(|policy| {
        let dry_run = if policy.dry_run { ", dry run" } else { "" };
        Detail::about(
            Object::of_policy(&policy.key),
            format!("{} ({:?}{dry_run})", policy.key, policy.action),
        )
    });
    let missing = applies.missing.iter().map(|key| {
        Detail::about(
            Object::of_policy(key),
            format!("{key} has not been received: until then nothing is allowed"),
        )
    });
    described.part("L4 policies", policies.chain(missing).collect());
    described
}

fn of_service(facts: &Facts, one: &Service) -> Described {
    let mut described = Described::new(Object::of_service(&one.key));
    let addresses: Vec<String> = one.addresses.iter().map(|vip| vip.ip.to_string()).collect();
    described.line(
        "addresses",
        match addresses.is_empty() {
            true => "none (headless)".to_owned(),
            false => addresses.join(", "),
        },
    );
    let ports = one.ports.iter().map(|(port, declared)| {
        Detail::new(format!(
            "{port} -> {} {:?}",
            match declared.target_port {
                0 => "a named port".to_owned(),
                target => target.to_string(),
            },
            declared.app_protocol
        ))
    });
    described.part("ports", ports.collect());
    let endpoints = facts.mesh.endpoints(&one.key);
    described.part(
        "endpoints",
        endpoints.iter().map(|one| workload_line(one)).collect(),
    );
    let Some(waypoint) = &one.waypoint else {
        described.line("waypoint", "none: only L4 policies apply");
        return described;
    };
    let gateway = facts.gateway(waypoint);
    let shown = gateway
        .as_ref()
        .map_or_else(|| outbound::shown(waypoint), ToString::to_string);
    described.line("waypoint", shown);
    let Some(gateway) = gateway else {
        return described;
    };
    let state = facts.of_waypoint(&gateway);
    let routes = state.routes_of(&one.key);
    let routes = routes.iter().map(|route| {
        Detail::about(
            Object::new(
                route.key.kind.as_str(),
                &route.key.namespace,
                &route.key.name,
            ),
            route.key.to_string(),
        )
    });
    described.part("routes", routes.collect());
    let policies = state.waypoint_policies().into_iter().filter(|policy| {
        policy.targets.iter().any(|target| match target {
            PolicyTarget::Service(key) => *key == one.key,
            PolicyTarget::Gateway { .. } | PolicyTarget::GatewayClass(_) => true,
        })
    });
    let policies = policies.map(|policy| {
        let dry_run = if policy.dry_run { ", dry run" } else { "" };
        Detail::about(
            Object::of_policy(&policy.key),
            format!("{} ({:?}{dry_run})", policy.key, policy.action),
        )
    });
    described.part("request policies", policies.collect());
    described
}

fn of_gateway(facts: &Facts, key: &GatewayKey) -> Described {
    let mut described = Described::new(Object::new("Gateway", &key.namespace, &key.name));
    let mut services = facts.mesh.services();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    let own = services
        .iter()
        .find(|one| one.key.namespace == key.namespace && *one.name == *key.name);
    let replicas = own.map(|own| facts.mesh.endpoints(&own.key));
    let replicas = replicas.iter().flat_map(|all| all.iter());
    described.part("replicas", replicas.map(|one| workload_line(one)).collect());
    let is_bound = |waypoint: Option<&karst_model::workload::GatewayAddr>| {
        waypoint
            .and_then(|waypoint| facts.gateway(waypoint))
            .as_ref()
            == Some(key)
    };
    let bound = services
        .iter()
        .filter(|one| is_bound(one.waypoint.as_ref()))
        .map(|one| Detail::about(Object::of_service(&one.key), one.key.to_string()));
    described.part("services behind it", bound.collect());
    let mut workloads = facts.mesh.workloads();
    workloads.retain(|one| is_bound(one.waypoint.as_ref()));
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    described.part(
        "workloads behind it",
        workloads.iter().map(|one| workload_line(one)).collect(),
    );
    let state = facts.of_waypoint(key);
    let mut routes = state.routes();
    routes.sort_by(|a, b| a.key.cmp(&b.key));
    let routes = routes.iter().map(|route| {
        Detail::about(
            Object::new(
                route.key.kind.as_str(),
                &route.key.namespace,
                &route.key.name,
            ),
            route.key.to_string(),
        )
    });
    described.part("routes", routes.collect());
    let policies = state.waypoint_policies();
    let policies = policies
        .iter()
        .map(|policy| Detail::about(Object::of_policy(&policy.key), policy.key.to_string()));
    described.part("request policies", policies.collect());
    described
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", printable(&self.object.to_string()))?;
        for part in &self.parts {
            match &part.lines[..] {
                [only] => writeln!(f, "  {}: {}", printable(&part.title), printable(&only.text))?,
                lines => {
                    writeln!(f, "  {}:", printable(&part.title))?;
                    for line in lines.iter().take(SHOWN) {
                        writeln!(f, "    {}", printable(&line.text))?;
                    }
                    if lines.len() > SHOWN {
                        writeln!(f, "    and {} more", lines.len() - SHOWN)?;
                    }
                }
            }
        }
        Ok(())
    }
}
