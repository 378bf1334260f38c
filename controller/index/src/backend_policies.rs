//! What holds for the endpoints of a service by policies attached to it: active checks (our HealthCheck) and TLS to
//! backends (the Gateway API's BackendTLSPolicy). Both end in the service's [`ServiceTraffic`], over what DestinationRules
//! say.
//!
//! A BackendTLSPolicy whose roots cannot be had still demands TLS: connections fail until they can, and never go out plain.

use std::{sync::Arc, time::Duration};

use karst_k8s_api::{
    gateway::backend_tls_policy::{BackendTlsPolicySpec, CertificateReference, SectionTarget},
    istio::duration,
    karst::{HealthCheckSpec, TargetReference},
};
use karst_model::traffic::{
    Expected, HealthCheck, HealthProbe, San, Scope, ServiceTraffic, TlsMode, TrafficPolicy,
    TrustAnchors, UpstreamTls,
};

use crate::{
    conditions::Condition, facts::Name, rate_limits::refused, references::ISTIO_NETWORKING,
};

/// Shortest and longest pause between two checks of an endpoint.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const UNHEALTHY_AFTER: u32 = 3;
const HEALTHY_AFTER: u32 = 1;

/// The key under which a ConfigMap has roots.
pub const ROOTS_KEY: &str = "ca.crt";

/// A Service or a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendTarget {
    pub(crate) name: Name,
    pub(crate) is_entry: bool,
    /// Name of one of its ports; `None`: all.
    pub(crate) port: Option<Arc<str>>,
}

/// A HealthCheck, before its targets are looked up.
#[derive(Debug, PartialEq)]
pub(crate) struct CheckFacts {
    pub(crate) targets: Vec<BackendTarget>,
    /// `None`: it cannot be used.
    pub(crate) check: Option<HealthCheck>,
    pub(crate) complaints: Vec<Condition>,
}

/// A BackendTLSPolicy, before its targets and roots are looked up.
#[derive(Debug, PartialEq)]
pub(crate) struct BackendTlsFacts {
    pub(crate) targets: Vec<BackendTarget>,
    pub(crate) created: i64,
    pub(crate) host: Arc<str>,
    pub(crate) sans: Vec<San>,
    pub(crate) roots: RootsOf,
    /// `metadata.generation` of the object that was read.
    pub(crate) generation: Option<i64>,
    /// Why references are left out that name something else than ConfigMaps.
    pub(crate) invalid_kind: Option<String>,
    /// What cannot be honoured as written: connections fail with it.
    pub(crate) broken: Option<String>,
    pub(crate) complaints: Vec<Condition>,
}

/// Where the roots of a BackendTLSPolicy are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootsOf {
    System,
    ConfigMaps(Vec<Name>),
}

impl CheckFacts {
    pub(crate) fn new(namespace: &Arc<str>, spec: &HealthCheckSpec) -> Self {
        let mut complaints = Vec::new();
        let targets = spec.target_refs.iter();
        let targets = targets.filter_map(|reference| {
            let TargetReference { group, kind, name } = reference;
            target(namespace, group, kind, name, None)
                .map_err(|message| complaints.push(refused("Invalid", message)))
                .ok()
        });
        let targets = targets.collect();
        let mut wrong = Vec::new();
        let check = check(spec, &mut wrong);
        if !wrong.is_empty() {
            let message = format!("{}; nothing is checked", wrong.join("; "));
            complaints.push(refused("Invalid", message));
        }
        Self {
            targets,
            check: check.filter(|_| wrong.is_empty()),
            complaints,
        }
    }
}

fn check(spec: &HealthCheckSpec, wrong: &mut Vec<String>) -> Option<HealthCheck> {
    let probe = match (&spec.http, &spec.tcp, &spec.grpc) {
        (Some(http), None, None) => HealthProbe::Http {
            path: http.path.as_deref().unwrap_or("/").into(),
            host: http.host.as_deref().map(Into::into),
            expected: http
                .statuses
                .iter()
                .filter_map(|text| {
                    let read = statuses(text);
                    if read.is_none() {
                        wrong.push(format!("http.statuses: {text:?} is neither a status nor a range such as 200-299"));
                    }
                    read
                })
                .collect(),
        },
        (None, Some(_), None) => HealthProbe::Tcp,
        (None, None, Some(grpc)) => HealthProbe::Grpc {
            service: grpc.service.as_deref().unwrap_or_default().into(),
        },
        _ => {
            wrong.push("one of http, tcp and grpc is needed".to_owned());
            return None;
        }
    };
    if let HealthProbe::Http { path, .. } = &probe
        && !(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        wrong.push(format!("http.path: {path:?} is no path"));
    }
    let mut time = |field: &str, text: Option<&duration::Duration>, default| match text {
        None => default,
        Some(text) => text.read().unwrap_or_else(|| {
            wrong.push(format!("{field}: {:?} is no duration", text.0));
            default
        }),
    };
    let interval = time("interval", spec.interval.as_ref(), DEFAULT_INTERVAL);
    let timeout = time(
        "timeout",
        spec.timeout.as_ref(),
        DEFAULT_TIMEOUT.min(interval),
    );
    if !(INTERVAL.0..=INTERVAL.1).contains(&interval) {
        wrong.push("interval: expected 100ms to 1h".to_owned());
    }
    if timeout > interval || timeout.is_zero() {
        wrong.push("timeout: expected more than zero, and at most the interval".to_owned());
    }
    Some(HealthCheck {
        probe,
        interval,
        timeout,
        unhealthy_threshold: spec.unhealthy_threshold.unwrap_or(UNHEALTHY_AFTER).max(1),
        healthy_threshold: spec.healthy_threshold.unwrap_or(HEALTHY_AFTER).max(1),
        port: spec.port,
    })
}

fn statuses(text: &str) -> Option<Expected> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let read = Expected {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
    };
    let fine = (100..=599).contains(&read.first) && (read.first..=599).contains(&read.last);
    fine.then_some(read)
}

fn target(
    namespace: &Arc<str>,
    group: &str,
    kind: &str,
    name: &str,
    port: Option<&str>,
) -> Result<BackendTarget, String> {
    let is_entry = match (group, kind) {
        ("" | "core", "Service") => false,
        (ISTIO_NETWORKING, "ServiceEntry") => true,
        _ => {
            return Err(format!(
                "targetRef {kind} {name} of group {group:?} is neither Service nor ServiceEntry: the policy has no effect there"
            ));
        }
    };
    Ok(BackendTarget {
        name: Name {
            namespace: namespace.clone(),
            name: name.into(),
        },
        is_entry,
        port: port.map(Into::into),
    })
}

impl BackendTlsFacts {
    /// `of`: when the object was made, and its generation.
    pub(crate) fn new(
        namespace: &Arc<str>,
        spec: &BackendTlsPolicySpec,
        of: (i64, Option<i64>),
    ) -> Self {
        let mut complaints = Vec::new();
        let targets = spec.target_refs.iter().filter_map(|reference| {
            let SectionTarget {
                group,
                kind,
                name,
                section_name,
            } = reference;
            target(namespace, group, kind, name, section_name.as_deref())
                .map_err(|message| complaints.push(refused("Invalid", message)))
                .ok()
        });
        let targets = targets.collect();
        let validation = &spec.validation;
        let (mut broken, mut invalid_kind) = (None, None);
        let mut breaks = |why: &str| broken = Some(format!("{why}: connections fail"));
        let well_known = validation.well_known_ca_certificates.as_deref();
        let references = &validation.ca_certificate_refs;
        let roots = match (well_known, references.is_empty()) {
            (Some("System"), true) => RootsOf::System,
            (None, false) => {
                let is_map = |one: &&CertificateReference| {
                    one.kind == "ConfigMap" && matches!(&*one.group, "" | "core")
                };
                if let Some(other) = references.iter().find(|one| !is_map(one)) {
                    let why = "caCertificateRefs can name ConfigMaps only, and one names";
                    invalid_kind = Some(format!("{why} {} {}", other.kind, other.name));
                }
                let names = references.iter().filter(is_map).map(|one| Name {
                    namespace: namespace.clone(),
                    name: one.name.as_str().into(),
                });
                RootsOf::ConfigMaps(names.collect())
            }
            _ => {
                breaks("one of caCertificateRefs and wellKnownCACertificates: System is needed");
                RootsOf::ConfigMaps(Vec::new())
            }
        };
        if validation.hostname.is_empty() {
            breaks("validation.hostname is needed");
        }
        let sans = validation.subject_alt_names.iter();
        let sans = sans.filter_map(
            |name| match (name.kind.as_str(), &name.hostname, &name.uri) {
                ("Hostname", Some(host), None) => Some(San::Dns(host.as_str().into())),
                ("URI", None, Some(uri)) => Some(San::Uri(uri.as_str().into())),
                _ => {
                    breaks("a subjectAltName is neither a Hostname nor a URI");
                    None
                }
            },
        );
        let sans = sans.collect();
        complaints.extend(broken.as_deref().map(|why| refused("Invalid", why)));
        let kind = |why: &String| refused("InvalidKind", why.clone());
        complaints.extend(invalid_kind.as_ref().map(kind));
        Self {
            targets,
            created: of.0,
            generation: of.1,
            invalid_kind,
            host: validation.hostname.as_str().into(),
            sans,
            roots,
            broken,
            complaints,
        }
    }

    /// What makes the policy unusable whatever else is there.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// How connections are made, with the roots that were found.
    pub(crate) fn tls(&self, roots: Result<TrustAnchors, String>) -> UpstreamTls {
        let mut tls = UpstreamTls::new(TlsMode::Simple);
        tls.sni = Some(self.host.clone());
        tls.sans = self.sans.clone();
        match roots {
            Ok(anchors) => tls.anchors = anchors,
            Err(why) => tls.broken = Some(why.into()),
        }
        if let Some(why) = &self.broken {
            tls.broken = Some(why.as_str().into());
        }
        tls
    }
}

/// The policies of one service.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BackendPolicies {
    /// For one of its ports, or for all.
    pub(crate) checks: Vec<(Option<u16>, HealthCheck)>,
    pub(crate) tls: Vec<(Option<u16>, UpstreamTls)>,
    /// Kind and name of each, for people.
    pub(crate) sources: Vec<Arc<str>>,
}

impl BackendPolicies {
    pub(crate) fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.tls.is_empty()
    }

    /// Puts them over what else holds: a scope for each port that one of them names, made from what held for it before.
    pub(crate) fn apply(self, traffic: &mut ServiceTraffic) {
        let ports = self.checks.iter().map(|(port, _)| *port);
        let ports: Vec<u16> = ports
            .chain(self.tls.iter().map(|(port, _)| *port))
            .flatten()
            .collect();
        if traffic.scopes.iter().all(|scope| !is(scope, None, None)) {
            traffic.scopes.push(Scope::default());
        }
        let subsets = traffic.scopes.iter().map(|scope| scope.subset.clone());
        let mut subsets: Vec<Option<Arc<str>>> = subsets.collect();
        subsets.sort();
        subsets.dedup();
        for port in ports {
            for subset in &subsets {
                if traffic
                    .scopes
                    .iter()
                    .all(|scope| !is(scope, Some(port), subset.as_ref()))
                {
                    let policy = traffic.policy(port, subset.as_deref()).cloned();
                    traffic.scopes.push(Scope {
                        port: Some(port),
                        subset: subset.clone(),
                        policy: policy.unwrap_or_default(),
                    });
                }
            }
        }
        for scope in &mut traffic.scopes {
            self.put(scope.port, &mut scope.policy);
        }
        traffic.sources.extend(self.sources);
    }

    fn put(&self, port: Option<u16>, policy: &mut TrafficPolicy) {
        // Of two, the one for the port wins.
        let fits = |of: Option<u16>| of.is_none() || of == port;
        let checks = self.checks.iter().filter(|(of, _)| fits(*of));
        if let Some((_, check)) = checks.max_by_key(|(of, _)| of.is_some()) {
            policy.health_check = Some(check.clone());
        }
        let tls = self.tls.iter().filter(|(of, _)| fits(*of));
        // The first of those that are alike: the oldest.
        let mut best: Option<&(Option<u16>, UpstreamTls)> = None;
        for one in tls {
            if best.is_none_or(|best| one.0.is_some() && best.0.is_none()) {
                best = Some(one);
            }
        }
        if let Some((_, tls)) = best {
            policy.tls = Some(tls.clone());
        }
    }
}

fn is(scope: &Scope, port: Option<u16>, subset: Option<&Arc<str>>) -> bool {
    scope.port == port && scope.subset.as_ref() == subset
}
