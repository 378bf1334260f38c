//! Telemetry objects and the mesh configuration: looked up, and handed out.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{
    Kind,
    istio::{
        Telemetry as Object,
        mesh_config::{CONFIG_MAP, KEY, MeshConfig, ProviderSpec},
    },
    k8s_openapi::api::core::v1::ConfigMap,
};
use karst_model::{
    name::{PolicyKey, ServiceKey},
    telemetry::{LogFormat, MESH, MeshTelemetry, Provider, ProviderKind, Scope, Telemetry},
    traffic::{TlsMode, UpstreamTls},
};

use super::{Index, key};
use crate::{
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    request_policies::TargetRef,
    telemetries::{TelemetryFacts, provider, refused},
};

/// Names of providers that are there without being configured, as in Istio.
const BUILT_IN: [&str; 2] = ["prometheus", "envoy"];

/// What is said of a collector whose rule asks for the mesh's own TLS.
const NO_TUNNEL: &str = "agents and waypoints send to collectors by themselves, not through the mesh: use mode SIMPLE instead of ISTIO_MUTUAL";

/// What is said of a collector whose rule names a Secret: every agent and waypoint would have to be given its key.
const NO_SECRET: &str = "credentialName has no effect towards collectors, to which every agent and waypoint sends: nothing is sent";

/// What is kept of it.
#[derive(Debug, Default)]
pub(super) struct Recording {
    pub(super) objects: HashMap<Name, TelemetryFacts>,
    /// The mesh configuration, for everyone who reads it.
    pub(super) mesh_config: MeshConfig,
    /// Providers whose collector does not take what is sent, and why.
    failing: BTreeMap<Arc<str>, Arc<str>>,
    /// What the mesh configuration says now cannot be read, and what it said last holds.
    unreadable: bool,
    /// Something of it has changed.
    dirty: bool,
    /// Objects that were handed out.
    told: HashSet<Name>,
    /// Services, entries and Gateways that were looked up last.
    looked_up: HashSet<Name>,
}

impl Index {
    /// The mesh configuration as it was read last.
    pub(crate) fn mesh_config(&self) -> &MeshConfig {
        &self.recording.mesh_config
    }

    pub(super) fn config_map(&mut self, name: &Name, after: Option<ConfigMap>) {
        if *name.name != *CONFIG_MAP || name.namespace != self.config.root_namespace {
            return;
        }
        let data = after.and_then(|map| map.data).unwrap_or_default();
        let text = data.get(KEY).map(String::as_str).unwrap_or_default();
        let config = MeshConfig::read(text);
        // Text that nobody can read asks for nothing, and takes nothing away.
        self.recording.unreadable = config.is_unreadable();
        self.recording.dirty |= self.recording.unreadable;
        if config != self.recording.mesh_config && !self.recording.unreadable {
            if config.registry_only != self.recording.mesh_config.registry_only {
                self.dirty.pods.extend(self.pods.keys().cloned());
            }
            if config.proxies != self.recording.mesh_config.proxies {
                self.dirty.gateways.extend(self.waypoints.names().cloned());
            }
            self.recording.mesh_config = config;
            self.collectors_differ();
            self.recording.dirty = true;
            self.providers_changed();
            self.trust_configured();
        }
    }

    pub(super) fn telemetry(&mut self, name: &Name, after: Option<&Object>) {
        let key = PolicyKey {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        };
        let keys = |facts: Option<&TelemetryFacts>| -> Vec<Arc<str>> {
            let keys = facts.into_iter().flat_map(TelemetryFacts::label_keys);
            keys.cloned().collect()
        };
        let before = keys(self.recording.objects.get(name));
        match after {
            Some(object) => {
                let facts = TelemetryFacts::new(key, object, &self.config.root_namespace);
                self.recording.objects.insert(name.clone(), facts);
            }
            None => drop(self.recording.objects.remove(name)),
        }
        let after = keys(self.recording.objects.get(name));
        self.refer_labels(&before, &after);
        self.recording.dirty = true;
    }

    pub(super) fn failing_collectors(&mut self, failing: BTreeMap<Arc<str>, Arc<str>>) {
        self.recording.dirty |= failing != self.recording.failing;
        self.recording.failing = failing;
    }

    /// Hands out what is different, if anything that matters has changed.
    pub(super) fn flush_recording(&mut self, changed: &[&HashSet<Name>], delta: &mut Delta) {
        let looked_up = &self.recording.looked_up;
        let touched = |names: &&HashSet<Name>| looked_up.iter().any(|name| names.contains(name));
        if !self.recording.dirty && !changed.iter().any(touched) {
            return;
        }
        self.recording.dirty = false;
        let mut looked_up = HashSet::new();
        let failed = self.flush_providers(&mut looked_up, delta);
        let names: Vec<Name> = self.recording.objects.keys().cloned().collect();
        for name in &names {
            self.flush_telemetry(name, &failed, &mut looked_up, delta);
        }
        let gone: Vec<Name> = self
            .recording
            .told
            .iter()
            .filter(|name| !self.recording.objects.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            let row = format!("{}/{}", name.namespace, name.name).into();
            self.out.telemetries.set(row, None, &mut delta.telemetries);
            self.set_conditions(key(Kind::Telemetry, &name), Vec::new(), delta);
        }
        self.recording.told = names.into_iter().collect();
        self.recording.looked_up = looked_up;
    }

    /// The providers; those that cannot be used, with the reason.
    fn flush_providers(
        &mut self,
        looked_up: &mut HashSet<Name>,
        delta: &mut Delta,
    ) -> HashMap<Arc<str>, String> {
        let config = &self.recording.mesh_config;
        let mut providers: Vec<Provider> = Vec::new();
        let mut failed = HashMap::new();
        for one in &config.extension_providers {
            let name: Arc<str> = one.name.as_str().into();
            let found = provider(&one.spec, &self.config.environment, |service, port| {
                self.collector(service, port, looked_up)
            });
            match found {
                Ok(Some(mut kind)) => {
                    if let ProviderKind::Opentelemetry(collector) = &mut kind {
                        collector.tls = self.collector_tls(&collector.service, collector.port);
                    }
                    providers.push(Provider { name, kind });
                }
                Ok(None) => drop(failed.insert(name, "is no provider of telemetry".to_owned())),
                Err(why) => drop(failed.insert(name, why)),
            }
        }
        for name in BUILT_IN {
            if config
                .extension_providers
                .iter()
                .all(|one| one.name != *name)
            {
                let kind = match name {
                    "prometheus" => ProviderKind::Prometheus,
                    _ => ProviderKind::AccessLogFile(LogFormat::Istio),
                };
                providers.push(Provider {
                    name: name.into(),
                    kind,
                });
            }
        }
        let defaults = &config.default_providers;
        let names = |list: &[String]| list.iter().map(|name| name.as_str().into()).collect();
        let asked = [
            &defaults.tracing,
            &defaults.metrics,
            &defaults.access_logging,
        ];
        let unknown: Vec<&str> = asked
            .into_iter()
            .flatten()
            .map(String::as_str)
            .filter(|name| providers.iter().all(|one| *one.name != **name))
            .filter(|name| !failed.contains_key(*name))
            .collect();
        let is_asked = |name: &str| {
            let mut names = asked.iter().copied().flatten();
            names.any(|one| one == name)
        };
        let mut conditions: Vec<Condition> = failed
            .iter()
            .filter(|(name, _)| is_asked(name))
            .map(|(name, why)| refused("CollectorNotFound", format!("provider {name}: {why}")))
            .collect();
        let failing = self.recording.failing.iter();
        conditions.extend(
            failing
                .filter(|(name, _)| is_asked(name) && !failed.contains_key(*name))
                .map(|(name, why)| silent(name, why)),
        );
        if !unknown.is_empty() {
            conditions.push(refused(
                "ProviderNotFound",
                format!("defaultProviders name {}, which extensionProviders do not have or which is not honoured", unknown.join(", ")),
            ));
        }
        if self.recording.unreadable {
            let message =
                "the mesh configuration is no YAML with fields: what it said before holds";
            conditions.push(refused("Invalid", message.to_owned()));
        }
        conditions.extend(self.trust_condition());
        conditions.sort_by(|a, b| a.message.cmp(&b.message));
        let mesh = MeshTelemetry {
            providers,
            default_tracing: names(&defaults.tracing),
            default_metrics: names(&defaults.metrics),
            default_access_logging: names(&defaults.access_logging),
            sampling: None,
        };
        let is_default = config.extension_providers.is_empty() && *defaults == Default::default();
        let row = (!is_default).then_some(Telemetry::Mesh(mesh));
        self.out
            .telemetries
            .set(MESH.into(), row, &mut delta.telemetries);
        let object = Name::new(&self.config.root_namespace, &CONFIG_MAP.into());
        self.set_conditions(key(Kind::ConfigMap, &object), conditions, delta);
        failed
    }

    /// How connections to a collector are secured: as rules of the root namespace say, else those of its own.
    fn collector_tls(&self, service: &ServiceKey, port: u16) -> Option<Box<UpstreamTls>> {
        let root = &self.config.root_namespace;
        let mut lookup = self.traffic.credentials.lookup(root).refusing(NO_SECRET);
        let (traffic, _rules) = self.compile_traffic(service, root, &mut lookup);
        let mut tls = traffic?.policy(port, None)?.tls.clone()?;
        match tls.mode {
            TlsMode::Disable => return None,
            TlsMode::Mesh => tls.broken = Some(NO_TUNNEL.into()),
            TlsMode::Simple | TlsMode::Mutual => {}
        }
        Some(Box::new(tls))
    }

    /// The providers whose collector is a service of this host.
    pub(super) fn collectors_of(&self, covers: impl Fn(&str) -> bool) -> Vec<&str> {
        let providers = self.recording.mesh_config.extension_providers.iter();
        let found = providers.filter(|one| match &one.spec {
            ProviderSpec::Opentelemetry(otlp) => {
                covers(otlp.service.rsplit('/').next().unwrap_or_default())
            }
            _ => false,
        });
        found.map(|one| one.name.as_str()).collect()
    }

    /// What secures connections may have changed.
    pub(super) fn collectors_changed(&mut self) {
        self.recording.dirty |= !self.collectors_of(|_any| true).is_empty();
    }

    /// The service that a provider names: `name.namespace.svc.domain`, or `namespace/hostname`.
    fn collector(
        &self,
        text: &str,
        port: u16,
        looked_up: &mut HashSet<Name>,
    ) -> Result<ServiceKey, String> {
        let (namespace, host) = match text.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, text),
        };
        // A service that is not there yet is looked for again when it comes.
        let mut labels = host.split('.');
        if let (Some(name), Some(space)) = (labels.next(), labels.next()) {
            looked_up.insert(Name::new(&space.into(), &name.into()));
        }
        let mut owners = self.hosts.get(host).into_iter().flatten();
        let claim =
            owners.find(|claim| namespace.is_none_or(|wanted| *claim.name.namespace == *wanted));
        let Some(claim) = claim else {
            return Err(format!("there is no service {text}: nothing is sent"));
        };
        looked_up.insert(claim.name.clone());
        let has_port = match claim.is_entry {
            true => self.entries.get(&claim.name).is_some_and(|entry| {
                let mut ports = entry.spec.ports.iter();
                ports.any(|one| one.number == port)
            }),
            false => self.services.get(&claim.name).is_some_and(|service| {
                let mut ports = service.ports.iter();
                ports.any(|one| one.number == port)
            }),
        };
        if !has_port {
            return Err(format!(
                "service {text} has no port {port}: nothing is sent"
            ));
        }
        Ok(ServiceKey {
            namespace: claim.name.namespace.clone(),
            hostname: host.into(),
        })
    }

    fn flush_telemetry(
        &mut self,
        name: &Name,
        failed: &HashMap<Arc<str>, String>,
        looked_up: &mut HashSet<Name>,
        delta: &mut Delta,
    ) {
        let Some(facts) = self.recording.objects.get(name) else {
            return;
        };
        let mut conditions = facts.complaints.clone();
        let mut scoped = facts.scoped.clone();
        if let Some(targets) = &facts.targets {
            let found = targets.iter().filter_map(|target| {
                match self.telemetry_target(target, looked_up) {
                    true => Some(self.policy_targets(target)),
                    false => {
                        conditions.push(refused(
                            "TargetNotFound",
                            format!("{target:?} is not there"),
                        ));
                        None
                    }
                }
            });
            scoped.scope = Scope::Targets(found.flatten().collect());
        }
        let known = &self.recording.mesh_config.extension_providers;
        for provider in &facts.providers {
            if let Some(why) = failed.get(provider) {
                conditions.push(refused(
                    "CollectorNotFound",
                    format!("provider {provider}: {why}"),
                ));
            } else if let Some(why) = self.recording.failing.get(provider) {
                conditions.push(silent(provider, why));
            } else if known.iter().all(|one| *one.name != **provider)
                && !BUILT_IN.contains(&&**provider)
            {
                conditions.push(refused(
                    "ProviderNotFound",
                    format!("provider {provider} is not in extensionProviders, or is of a kind that is not honoured: nothing is recorded for it"),
                ));
            }
        }
        conditions.dedup();
        if conditions.is_empty() {
            conditions.push(Condition::yes(
                ConditionType::Accepted,
                "Accepted",
                "agents and waypoints record as it says",
            ));
        }
        let row = Telemetry::Scoped(scoped);
        self.out
            .telemetries
            .set(row.name(), Some(row), &mut delta.telemetries);
        self.set_conditions(key(Kind::Telemetry, name), conditions, delta);
    }

    /// Whether what is targeted is there.
    fn telemetry_target(&self, target: &TargetRef, looked_up: &mut HashSet<Name>) -> bool {
        match target {
            TargetRef::Service(name) => {
                looked_up.insert(name.clone());
                self.services.contains_key(name)
            }
            TargetRef::Entry(name) => {
                looked_up.insert(name.clone());
                self.entries.contains_key(name)
            }
            TargetRef::Gateway(name) => {
                looked_up.insert(name.clone());
                self.waypoints.gateway(name).is_some()
            }
            TargetRef::GatewayClass(_) => true,
        }
    }
}

/// A collector that is configured rightly and does not take what is sent.
fn silent(provider: &str, why: &str) -> Condition {
    refused(
        "CollectorFailing",
        format!(
            "provider {provider}: {why}; what does not fit into the queues is dropped and counted"
        ),
    )
}
