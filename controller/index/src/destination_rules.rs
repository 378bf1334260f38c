//! From DestinationRules to what holds for the traffic of a service.
//!
//! ```text
//!   rules ──choose: namespace of the waypoint, of the service, root; there the exact host, then the longest wildcard──►
//!   rules of one host in one namespace ──merge: oldest first──► Merged ──one scope per port and subset──► ServiceTraffic
//! ```
//!
//! The first namespace that has a rule for the host decides, whatever others say: a rule for `*` in the root namespace is
//! the mesh's default, and nothing is inherited from it. Source: Istio, "Destination Rule" and "Configuration scoping".

mod balance;
mod policy;
mod tls;
mod values;

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{
    Kind, Object,
    istio::destination_rule::{DestinationRuleSpec, Subset as SubsetSpec},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    labels,
};
use karst_model::{
    name::ServiceKey,
    traffic::{BalanceAlgorithm, Scope, ServiceTraffic, Subset},
};

use self::policy::Partial;
pub(crate) use self::values::RuleFault;
use crate::{
    credentials::Lookup,
    facts::{Created, Name},
    selector::remove_from,
};

/// Value of [`labels::LOAD_BALANCER`].
const PEAK_EWMA: &str = "peak-ewma";

/// What the index keeps of a DestinationRule.
#[derive(Debug, PartialEq)]
pub(crate) struct RuleFacts {
    pub(crate) created: Created,
    /// As a whole name, or with a `*` at its start.
    pub(crate) host: Arc<str>,
    export: Export,
    policy: Option<Partial>,
    subsets: Vec<SubsetFacts>,
    /// Faults of its own; what they are about is left out.
    pub(crate) faults: Vec<RuleFault>,
    /// It is for some proxies only, and so for no waypoint.
    pub(crate) selects: bool,
}

#[derive(Debug, PartialEq)]
struct SubsetFacts {
    subset: Subset,
    policy: Option<Partial>,
}

/// Whose waypoints a rule holds at.
#[derive(Debug, PartialEq)]
enum Export {
    All,
    /// Names of namespaces.
    Some(BTreeSet<String>),
}

impl RuleFacts {
    pub(crate) fn new(meta: &ObjectMeta, spec: &DestinationRuleSpec, cluster_domain: &str) -> Self {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let mut faults = Vec::new();
        let mut place = values::Place {
            path: "trafficPolicy".to_owned(),
            faults: &mut faults,
        };
        let mut policy = spec
            .traffic_policy
            .as_ref()
            .map(|policy| Partial::new(policy, &mut place));
        let annotations = meta.annotations.as_ref();
        if let Some(wish) = annotations.and_then(|all| all.get(labels::LOAD_BALANCER)) {
            choose_balancer(wish, &mut policy, &mut faults);
        }
        let subsets = subsets(&spec.subsets, &mut faults);
        if spec.host.is_empty() {
            faults.push(fault("host", "a host is needed: the rule holds for nobody"));
        }
        Self {
            created: Created::of(meta),
            host: whole_host(&spec.host, namespace, cluster_domain),
            export: Export::new(&spec.export_to, namespace),
            policy,
            subsets,
            faults,
            selects: spec.workload_selector.is_some(),
        }
    }

    /// Labels of endpoints that it refers to, each once.
    pub(crate) fn label_keys(&self) -> Vec<Arc<str>> {
        let of_subsets = self.subsets.iter().flat_map(|one| &one.subset.labels);
        let mut keys: BTreeSet<Arc<str>> = of_subsets.map(|(key, _)| key.clone()).collect();
        let of_subsets = self.subsets.iter().filter_map(|one| one.policy.as_ref());
        for partial in of_subsets.chain(&self.policy) {
            partial.priorities(&mut |label| {
                keys.insert(label.clone());
            });
        }
        keys.into_iter().collect()
    }

    /// Secrets that it names, each once.
    pub(crate) fn secrets(&self) -> BTreeSet<&Arc<str>> {
        let of_subsets = self.subsets.iter().filter_map(|one| one.policy.as_ref());
        let all = of_subsets.chain(&self.policy);
        all.flat_map(Partial::secrets).collect()
    }

    /// Whether it holds at waypoints of a namespace. Those of its `own` follow it whatever it exports.
    fn is_for(&self, client: &str, own: &str) -> bool {
        !self.selects
            && match &self.export {
                Export::All => true,
                Export::Some(names) => client == own || names.contains(client),
            }
    }
}

impl Export {
    /// Istio's words: `.` the rule's own namespace, `*` all, and names.
    fn new(export_to: &[String], own: &str) -> Self {
        if export_to.is_empty() || export_to.iter().any(|one| one == "*") {
            return Self::All;
        }
        let name = |one: &String| match one.as_str() {
            "." => own.to_owned(),
            other => other.to_owned(),
        };
        Self::Some(
            export_to
                .iter()
                .filter(|one| *one != "~")
                .map(name)
                .collect(),
        )
    }
}

/// The annotation chooses where the rule says nothing of its own.
fn choose_balancer(wish: &str, policy: &mut Option<Partial>, faults: &mut Vec<RuleFault>) {
    if wish != PEAK_EWMA {
        let message = format!("{wish:?} is not known: expected {PEAK_EWMA}");
        return faults.push(fault(labels::LOAD_BALANCER, message));
    }
    let balance = policy
        .get_or_insert_default()
        .parts
        .balance
        .get_or_insert_default();
    if balance.algorithm == BalanceAlgorithm::default() {
        balance.algorithm = BalanceAlgorithm::PeakEwma;
    } else {
        let message = "loadBalancer chooses something else: the annotation has no effect";
        faults.push(fault(labels::LOAD_BALANCER, message));
    }
}

fn subsets(specs: &[SubsetSpec], faults: &mut Vec<RuleFault>) -> Vec<SubsetFacts> {
    let mut found: Vec<SubsetFacts> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = format!("subsets[{index}]");
        if spec.name.is_empty() || found.iter().any(|other| *other.subset.name == *spec.name) {
            let message = match spec.name.is_empty() {
                true => "a subset needs a name: left out".to_owned(),
                false => format!("there is a subset {:?} already: left out", spec.name),
            };
            faults.push(fault(format!("{field}.name"), message));
            continue;
        }
        let mut place = values::Place {
            path: format!("{field}.trafficPolicy"),
            faults,
        };
        let policy = spec.traffic_policy.as_ref();
        found.push(SubsetFacts {
            policy: policy.map(|policy| Partial::new(policy, &mut place)),
            subset: Subset {
                name: spec.name.as_str().into(),
                labels: spec
                    .labels
                    .iter()
                    .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                    .collect(),
            },
        });
    }
    found
}

fn fault(field: impl Into<String>, message: impl Into<String>) -> RuleFault {
    RuleFault {
        field: field.into(),
        message: message.into(),
    }
}

/// A short name is that of a Service of the rule's namespace.
pub(crate) fn whole_host(host: &str, namespace: &str, cluster_domain: &str) -> Arc<str> {
    if host.is_empty() || host == "*" || host.contains(['.', ':']) {
        return host.to_ascii_lowercase().into();
    }
    format!("{host}.{namespace}.svc.{cluster_domain}").into()
}

/// Whether a rule's host stands for a hostname; that of a ServiceEntry may be a wildcard itself.
pub(crate) fn covers(host: &str, hostname: &str) -> bool {
    match host.strip_prefix('*') {
        Some(suffix) => hostname
            .strip_prefix('*')
            .unwrap_or(hostname)
            .ends_with(suffix),
        None => host == hostname,
    }
}

type OldestFirst = BTreeSet<(Created, Name)>;

/// All DestinationRules.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    facts: HashMap<Name, RuleFacts>,
    /// Rules of each namespace by their host, oldest first.
    by_host: HashMap<Arc<str>, HashMap<Arc<str>, OldestFirst>>,
    /// The same for people: rules of whatever namespace by their host, wildcards apart.
    exact: HashMap<Arc<str>, HashSet<Name>>,
    wild: HashMap<Arc<str>, HashSet<Name>>,
}

impl Rules {
    pub(crate) fn get(&self, name: &Name) -> Option<&RuleFacts> {
        self.facts.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.facts.keys()
    }

    /// Puts or takes a rule; returns the one before.
    pub(crate) fn set(&mut self, name: &Name, after: Option<RuleFacts>) -> Option<RuleFacts> {
        let before = self.facts.remove(name);
        if let Some(before) = &before
            && let Some(hosts) = self.by_host.get_mut(&name.namespace)
        {
            if let Some(rules) = hosts.get_mut(&before.host) {
                rules.remove(&(before.created, name.clone()));
            }
            hosts.retain(|_, rules| !rules.is_empty());
            if hosts.is_empty() {
                self.by_host.remove(&name.namespace);
            }
            remove_from(self.drawer(&before.host), before.host.clone(), name);
        }
        if let Some(after) = after {
            let hosts = self.by_host.entry(name.namespace.clone()).or_default();
            let rules = hosts.entry(after.host.clone()).or_default();
            rules.insert((after.created, name.clone()));
            let drawer = self.drawer(&after.host);
            drawer
                .entry(after.host.clone())
                .or_default()
                .insert(name.clone());
            self.facts.insert(name.clone(), after);
        }
        before
    }

    fn drawer(&mut self, host: &str) -> &mut HashMap<Arc<str>, HashSet<Name>> {
        match host.starts_with('*') {
            true => &mut self.wild,
            false => &mut self.exact,
        }
    }

    /// Every rule whose host stands for a hostname.
    pub(crate) fn covering(&self, hostname: &str) -> impl Iterator<Item = &Name> {
        let wild = self
            .wild
            .iter()
            .filter(move |(host, _)| covers(host, hostname));
        let exact = self.exact.get(hostname).into_iter();
        exact.chain(wild.map(|(_, names)| names)).flatten()
    }

    /// The rules that decide about a service at waypoints of `client`, oldest first.
    pub(crate) fn choose(
        &self,
        service: &ServiceKey,
        client: &str,
        root: &str,
    ) -> Vec<(&Name, &RuleFacts)> {
        let namespaces = [client, &*service.namespace, root];
        let found = namespaces
            .into_iter()
            .map(|namespace| self.of_namespace(namespace, &service.hostname, client));
        found
            .into_iter()
            .find(|rules| !rules.is_empty())
            .unwrap_or_default()
    }

    /// The exact host comes first, then the longest wildcard.
    fn of_namespace(
        &self,
        namespace: &str,
        hostname: &str,
        client: &str,
    ) -> Vec<(&Name, &RuleFacts)> {
        let Some(hosts) = self.by_host.get(namespace) else {
            return Vec::new();
        };
        let visible = |host: &str| -> Vec<(&Name, &RuleFacts)> {
            let rules = hosts.get(host).into_iter().flatten();
            let rules = rules.filter_map(|(_, name)| Some((name, self.facts.get(name)?)));
            rules
                .filter(|(_, facts)| facts.is_for(client, namespace))
                .collect()
        };
        let exact = visible(hostname);
        if !exact.is_empty() {
            return exact;
        }
        let mut wild: Vec<&Arc<str>> = hosts
            .keys()
            .filter(|host| host.starts_with('*') && covers(host, hostname))
            .collect();
        wild.sort_by_key(|host| std::cmp::Reverse(host.len()));
        let mut found = wild.into_iter().map(|host| visible(host));
        found.find(|rules| !rules.is_empty()).unwrap_or_default()
    }
}

/// The rules of one host as one.
pub(crate) struct Merged<'a> {
    policy: Option<&'a Partial>,
    subsets: Vec<&'a SubsetFacts>,
    sources: Vec<Arc<str>>,
    /// Parts of rules that older ones have already.
    pub(crate) left_out: Vec<(&'a Name, RuleFault)>,
}

/// Oldest first: the first policy counts, and of each subset the first.
pub(crate) fn merge<'a>(rules: &[(&'a Name, &'a RuleFacts)]) -> Merged<'a> {
    let mut merged = Merged {
        policy: None,
        subsets: Vec::new(),
        sources: Vec::new(),
        left_out: Vec::new(),
    };
    let mut owner: Option<&Name> = None;
    for (name, facts) in rules {
        match (&facts.policy, owner) {
            (Some(policy), None) => (merged.policy, owner) = (Some(policy), Some(*name)),
            (Some(_), Some(older)) => {
                let message = format!(
                    "DestinationRule {older} is older and has the same host: this part is left out"
                );
                merged
                    .left_out
                    .push((name, fault("trafficPolicy", message)));
            }
            (None, _) => {}
        }
        for subset in &facts.subsets {
            if merged
                .subsets
                .iter()
                .any(|other| other.subset.name == subset.subset.name)
            {
                let message = format!(
                    "subset {:?} is in an older DestinationRule of the same host: left out",
                    subset.subset.name
                );
                merged.left_out.push((name, fault("subsets", message)));
            } else {
                merged.subsets.push(subset);
            }
        }
        merged
            .sources
            .push(format!("{}/{name}", Kind::DestinationRule).into());
    }
    merged
}

impl Merged<'_> {
    pub(crate) fn has_subset(&self, name: &str) -> bool {
        self.subsets
            .iter()
            .any(|subset| *subset.subset.name == *name)
    }

    /// `sans`: whom the service's ServiceEntry names. `lookup`: where the Secrets are that its TLS names.
    pub(crate) fn lower(
        &self,
        service: &ServiceKey,
        sans: &[Arc<str>],
        lookup: &mut Lookup<'_>,
    ) -> ServiceTraffic {
        let ports = |partial: Option<&Partial>| -> BTreeSet<u16> {
            partial
                .into_iter()
                .flat_map(|one| one.ports.keys().copied())
                .collect()
        };
        let of_base = ports(self.policy);
        let mut scopes = Vec::new();
        let mut add = |port, subset: Option<&SubsetFacts>| {
            let partial = subset.and_then(|subset| subset.policy.as_ref());
            scopes.push(Scope {
                port,
                subset: subset.map(|subset| subset.subset.name.clone()),
                policy: policy::merged(self.policy, partial, port, sans, lookup),
            });
        };
        if self.policy.is_some() {
            add(None, None);
            of_base.iter().for_each(|port| add(Some(*port), None));
        }
        for subset in self.subsets.iter().filter(|subset| subset.policy.is_some()) {
            add(None, Some(subset));
            let own = ports(subset.policy.as_ref());
            of_base
                .union(&own)
                .for_each(|port| add(Some(*port), Some(subset)));
        }
        ServiceTraffic {
            service: service.clone(),
            scopes,
            subsets: self
                .subsets
                .iter()
                .map(|subset| subset.subset.clone())
                .collect(),
            sources: self.sources.clone(),
        }
    }
}

/// What is wrong with a DestinationRule by itself, for its author at admission: the field, and why.
pub fn check_destination_rule(object: &Object) -> Vec<String> {
    let Object::DestinationRule(rule) = object else {
        return Vec::new();
    };
    let mut faults = RuleFacts::new(&rule.metadata, &rule.spec, "cluster.local").faults;
    let policy = rule.spec.traffic_policy.as_ref();
    let outlier = policy.and_then(|policy| policy.outlier_detection.as_ref());
    if outlier.and_then(|outlier| outlier.max_ejection_percent) == Some(100) {
        faults.push(fault(
            "trafficPolicy.outlierDetection.maxEjectionPercent",
            "with 100 every endpoint but one may be ejected at once",
        ));
    }
    let shown = faults.iter();
    shown
        .map(|fault| format!("{}: {}", fault.field, fault.message))
        .collect()
}
