//! What holds for a connection or a request: the Telemetry objects of the mesh, the namespace, and the workload or the
//! waypoint's target, merged; the nearest wins, field by field. Pure.
//!
//! ```text
//!   Telemetry resources ──Settings──► chain of objects that hold ──merge──► Plan (cached until something changes)
//! ```
//!
//! Of two objects for the same the older holds, and of those the one that is first by name. A waypoint is the server's
//! side of requests.

use std::sync::Arc;

use karst_model::{
    name::{GatewayKey, ServiceKey},
    telemetry::{
        AccessLog, Collector, LogFormat, MeshTelemetry, Metric, Mode, ProviderKind, Scope,
        ScopedTelemetry, TagChange, TagValue, Telemetry,
    },
    waypoint_policy::PolicyTarget,
};

use crate::{
    expression::Expression,
    metrics::plan::{Changes, MetricPlan},
    trace::ALWAYS,
};

/// Sampling where nobody says, as Istio has it: 1 %.
const SAMPLING: u32 = 100;
/// Every metric that can be named.
const METRICS: [Metric; 8] = [
    Metric::RequestCount,
    Metric::RequestDuration,
    Metric::RequestSize,
    Metric::ResponseSize,
    Metric::TcpOpenedConnections,
    Metric::TcpClosedConnections,
    Metric::TcpSentBytes,
    Metric::TcpReceivedBytes,
];

/// Which end of a connection records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    fn is_in(self, mode: Mode) -> bool {
        match mode {
            Mode::ClientAndServer => true,
            Mode::Client => self == Self::Client,
            Mode::Server => self == Self::Server,
        }
    }
}

/// All that is configured, in the order in which the older holds.
#[derive(Debug, Default)]
pub struct Settings {
    mesh: MeshTelemetry,
    objects: Vec<Arc<Telemetry>>,
}

/// The objects that hold together, from the widest to the nearest, as places in [`Settings`].
pub type Chain = Vec<usize>;

/// What is recorded of one kind of connection or request.
#[derive(Debug, PartialEq)]
pub struct Plan {
    pub tracing: Tracing,
    pub metrics: MetricPlan,
    pub logs: Vec<Log>,
}

/// Traces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    /// Names of collectors that get spans. None: the context is left as it came.
    pub collectors: Vec<Arc<str>>,
    /// Hundredths of a percent, of requests that come without a trace.
    pub sampling: u32,
    /// No span is sent.
    pub disabled: bool,
    /// The context is left as it came.
    pub propagation_disabled: bool,
    pub tags: Vec<(Arc<str>, TagValue)>,
}

/// One access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub to: LogTo,
    /// Only what it is true of.
    pub filter: Option<Arc<Expression>>,
    /// Hundredths of a percent of that.
    pub sampling: u32,
}

/// Where lines of an access log go.
#[derive(Clone, Debug, PartialEq)]
pub enum LogTo {
    Lines(LogFormat),
    /// The collector of this name.
    Collector(Arc<str>),
}

impl Settings {
    pub fn new(resources: impl IntoIterator<Item = Arc<Telemetry>>) -> Self {
        let mut settings = Self::default();
        for one in resources {
            match &*one {
                Telemetry::Mesh(mesh) => settings.mesh = mesh.clone(),
                Telemetry::Scoped(_) => settings.objects.push(one),
            }
        }
        settings.objects.sort_by(|a, b| {
            let order = |one: &Telemetry| match one {
                Telemetry::Scoped(scoped) => (scoped.created, Some(scoped.key.clone())),
                Telemetry::Mesh(_) => (0, None),
            };
            order(a).cmp(&order(b))
        });
        settings
    }

    fn scoped(&self) -> impl Iterator<Item = (usize, &ScopedTelemetry)> {
        self.objects
            .iter()
            .enumerate()
            .filter_map(|(index, one)| match &**one {
                Telemetry::Scoped(scoped) => Some((index, scoped)),
                Telemetry::Mesh(_) => None,
            })
    }

    fn first(&self, which: impl Fn(&ScopedTelemetry) -> bool) -> Option<usize> {
        let mut found = self.scoped().filter(|(_, scoped)| which(scoped));
        found.next().map(|(index, _)| index)
    }

    fn wide(&self, namespace: &str) -> Chain {
        let mesh = self.first(|one| one.scope == Scope::Mesh);
        let of_namespace =
            self.first(|one| one.scope == Scope::Namespace && *one.key.namespace == *namespace);
        mesh.into_iter().chain(of_namespace).collect()
    }

    /// What holds for a workload of a namespace with these labels.
    pub fn of_workload<'a>(
        &self,
        namespace: &str,
        label: impl Fn(&str) -> Option<&'a str>,
    ) -> Chain {
        let selects = |one: &ScopedTelemetry, wanted_everywhere: bool| match &one.scope {
            Scope::Workloads { labels, everywhere } => {
                *everywhere == wanted_everywhere
                    && (*everywhere || *one.key.namespace == *namespace)
                    && labels.iter().all(|(key, value)| label(key) == Some(value))
            }
            Scope::Mesh | Scope::Namespace | Scope::Targets(_) => false,
        };
        let mut chain = self.wide(namespace);
        chain.extend(self.first(|one| selects(one, true)));
        chain.extend(self.first(|one| selects(one, false)));
        chain
    }

    /// What holds for requests that a waypoint serves.
    pub fn of_requests(
        &self,
        waypoint: &GatewayKey,
        class: &str,
        service: Option<&ServiceKey>,
    ) -> Chain {
        let targets =
            |one: &ScopedTelemetry, wanted: &dyn Fn(&PolicyTarget) -> bool| match &one.scope {
                Scope::Targets(targets) => targets.iter().any(wanted),
                Scope::Mesh | Scope::Namespace | Scope::Workloads { .. } => false,
            };
        let of_class = |target: &PolicyTarget| matches!(target, PolicyTarget::GatewayClass(name) if **name == *class);
        let of_gateway = |target: &PolicyTarget| matches!(target, PolicyTarget::Gateway { namespace, name } if *namespace == waypoint.namespace && *name == waypoint.name);
        let of_service = |target: &PolicyTarget| matches!(target, PolicyTarget::Service(key) if Some(key) == service);
        let mut chain = self.wide(&waypoint.namespace);
        chain.extend(self.first(|one| targets(one, &of_class)));
        chain.extend(self.first(|one| targets(one, &of_gateway)));
        chain.extend(self.first(|one| targets(one, &of_service)));
        chain
    }

    /// The collectors, by name.
    pub fn collectors(&self) -> Vec<(Arc<str>, Collector)> {
        let providers = self.mesh.providers.iter();
        let collectors = providers.filter_map(|provider| match &provider.kind {
            ProviderKind::Opentelemetry(collector) => {
                Some((provider.name.clone(), collector.clone()))
            }
            ProviderKind::Prometheus | ProviderKind::AccessLogFile(_) => None,
        });
        collectors.collect()
    }

    /// Collectors that get this program's metrics, and how often in milliseconds.
    pub fn pushes(&self) -> (Vec<Arc<str>>, Option<u32>) {
        let mesh = self.first(|one| one.scope == Scope::Mesh);
        let mut names = self.mesh.default_metrics.clone();
        let mut interval = None;
        for rule in mesh.iter().flat_map(|index| self.object(*index)) {
            for metrics in &rule.metrics {
                if !metrics.providers.is_empty() {
                    names.clone_from(&metrics.providers);
                }
                interval = metrics.interval_ms.or(interval);
            }
        }
        names.retain(|name| self.is_collector(name));
        (names, interval)
    }

    fn is_collector(&self, name: &str) -> bool {
        self.collectors().iter().any(|(other, _)| **other == *name)
    }

    fn object(&self, index: usize) -> Option<&ScopedTelemetry> {
        match &**self.objects.get(index)? {
            Telemetry::Scoped(scoped) => Some(scoped),
            Telemetry::Mesh(_) => None,
        }
    }

    /// Merges the objects of a chain.
    pub fn plan(&self, chain: &[usize], side: Side) -> Plan {
        let objects: Vec<&ScopedTelemetry> = chain
            .iter()
            .filter_map(|index| self.object(*index))
            .collect();
        Plan {
            tracing: self.tracing(&objects, side),
            metrics: metrics(&objects, side),
            logs: self.logs(&objects, side),
        }
    }

    fn tracing(&self, objects: &[&ScopedTelemetry], side: Side) -> Tracing {
        let mut merged = Tracing {
            collectors: self.mesh.default_tracing.clone(),
            sampling: self.mesh.sampling.unwrap_or(SAMPLING),
            ..Tracing::default()
        };
        let rules = objects.iter().flat_map(|one| &one.tracing);
        for rule in rules.filter(|rule| side.is_in(rule.mode)) {
            if !rule.providers.is_empty() {
                merged.collectors.clone_from(&rule.providers);
            }
            if !rule.tags.is_empty() {
                merged.tags.clone_from(&rule.tags);
            }
            merged.sampling = rule.sampling.unwrap_or(merged.sampling);
            merged.disabled = rule.disabled.unwrap_or(merged.disabled);
            merged.propagation_disabled = rule
                .propagation_disabled
                .unwrap_or(merged.propagation_disabled);
        }
        merged.collectors.retain(|name| self.is_collector(name));
        merged
    }

    fn logs(&self, objects: &[&ScopedTelemetry], side: Side) -> Vec<Log> {
        let defaults = self.mesh.default_access_logging.iter();
        let mut logs: Vec<Wish> = defaults.map(|name| Wish::new(Some(name))).collect();
        if logs.is_empty() {
            logs.push(Wish::new(None));
        }
        for object in objects {
            let rules = object.access_logs.iter();
            let rules: Vec<&AccessLog> = rules.filter(|rule| side.is_in(rule.mode)).collect();
            let mut named: Vec<Wish> = Vec::new();
            for rule in rules {
                if rule.providers.is_empty() {
                    logs.iter_mut().for_each(|log| log.take(rule));
                }
                for name in &rule.providers {
                    let mut wish = match logs.iter().find(|log| log.provider.as_ref() == Some(name))
                    {
                        Some(known) => known.clone(),
                        None => Wish::new(Some(name)),
                    };
                    wish.take(rule);
                    named.retain(|other| other.provider != wish.provider);
                    named.push(wish);
                }
            }
            if !named.is_empty() {
                logs = named;
            }
        }
        logs.retain(|log| !log.disabled);
        logs.into_iter().filter_map(|log| self.log(log)).collect()
    }

    fn log(&self, wish: Wish) -> Option<Log> {
        let to = match &wish.provider {
            None => LogTo::Lines(LogFormat::Own),
            Some(name) => {
                let mut providers = self.mesh.providers.iter();
                match &providers.find(|one| one.name == *name)?.kind {
                    ProviderKind::AccessLogFile(format) => LogTo::Lines(format.clone()),
                    ProviderKind::Opentelemetry(_) => LogTo::Collector(name.clone()),
                    ProviderKind::Prometheus => return None,
                }
            }
        };
        let filter = wish.filter.as_deref().and_then(compiled);
        let sampling = wish.sampling.unwrap_or(ALWAYS).min(ALWAYS);
        Some(Log {
            to,
            filter,
            sampling,
        })
    }
}

/// An access log while it is put together.
#[derive(Clone)]
struct Wish {
    provider: Option<Arc<str>>,
    disabled: bool,
    filter: Option<Arc<str>>,
    sampling: Option<u32>,
}

impl Wish {
    fn new(provider: Option<&Arc<str>>) -> Self {
        Self {
            provider: provider.cloned(),
            disabled: false,
            filter: None,
            sampling: None,
        }
    }

    fn take(&mut self, rule: &AccessLog) {
        self.disabled = rule.disabled.unwrap_or(false);
        if rule.filter.is_some() {
            self.filter.clone_from(&rule.filter);
        }
        self.sampling = rule.sampling.or(self.sampling);
    }
}

/// The controller has compiled it before; one that this version cannot compile is left out, and told.
fn compiled(text: &str) -> Option<Arc<Expression>> {
    match Expression::compile(text) {
        Ok(expression) => Some(Arc::new(expression)),
        Err(error) => {
            tracing::warn!(%error, "an expression of a Telemetry object is left out");
            None
        }
    }
}

fn metrics(objects: &[&ScopedTelemetry], side: Side) -> MetricPlan {
    let rules = objects.iter().flat_map(|one| &one.metrics);
    let overrides: Vec<_> = rules
        .flat_map(|rule| &rule.overrides)
        .filter(|one| side.is_in(one.mode))
        .collect();
    let of = |metric: Metric| {
        let mut changes = Changes::default();
        let mine = overrides
            .iter()
            .filter(|one| one.metric.is_none_or(|named| named == metric));
        for one in mine {
            changes.disabled = one.disabled.unwrap_or(changes.disabled);
            for (name, to) in &one.tags {
                match to {
                    TagChange::Remove => changes.remove(name),
                    TagChange::Set(text) => {
                        let set = compiled(text).is_some_and(|value| changes.set(name, value));
                        if !set {
                            tracing::warn!(label = %name, "a label of a Telemetry object is left out");
                        }
                    }
                }
            }
        }
        (metric, changes)
    };
    MetricPlan::new(METRICS.map(of).into())
}

#[cfg(test)]
mod tests;
