//! Waypoints and seals of services and pods, and who must be compiled again when a Gateway, a label or a policy changes.

use std::{collections::BTreeSet, sync::Arc};

use karst_k8s_api::{
    Kind, ObjectKey,
    gateway::{Gateway, GatewayClass},
    labels,
};
use karst_model::{
    name::{PolicyKey, ServiceKey},
    service::{PortMap, Visibility},
    waypoint_policy::PolicyTarget,
    workload::{ApplicationTunnel, GatewayAddr, SealedPort},
};

use super::{Claim, Index, key};
use crate::{
    conditions::Condition,
    delta::Delta,
    facts::{EntryFacts, Name, pod::PodFacts, service::Target},
    gateways,
    seals::{self, Seal, SealWish, Standing},
    selector::{Labels, matches},
    services,
    waypoints::{Binding, ClassFacts, GatewayFacts, Subject, wish},
};

/// How one service is reached.
pub(super) struct Attachment {
    pub(super) binding: Binding,
    pub(super) seal: Option<Seal>,
}

/// What waypoints and seals make of a pod.
#[derive(Default)]
pub(super) struct Behind {
    pub(super) waypoint: Option<GatewayAddr>,
    pub(super) sealed: Vec<SealedPort>,
    pub(super) policies: Vec<PolicyKey>,
    pub(super) condition: Option<Condition>,
}

impl Index {
    pub(super) fn gateway(&mut self, name: &Name, after: Option<&Gateway>) {
        let after = after.map(GatewayFacts::new);
        if self.waypoints.set_gateway(name, after) {
            self.mark_users(name);
        }
        self.dirty.gateways.insert(name.clone());
    }

    pub(super) fn gateway_class(&mut self, name: &Arc<str>, after: Option<&GatewayClass>) {
        for gateway in self.waypoints.set_class(name, after.map(ClassFacts::new)) {
            self.mark_users(&gateway);
            self.dirty.gateways.insert(gateway);
        }
    }

    /// Everything that asks for a waypoint. All are looked at: Gateways change rarely.
    fn mark_users(&mut self, gateway: &Name) {
        let asks = |own: &Labels, space: Option<&Labels>, namespace: &Arc<str>| {
            wish(own, space, namespace).is_some_and(|wish| wish.gateway == *gateway)
        };
        let labels_of = |namespace: &str| self.spaces.get(namespace)?.labels.as_ref();
        let services = self.services.iter().filter(|(name, facts)| {
            asks(&facts.labels, labels_of(&name.namespace), &name.namespace)
        });
        let services: Vec<Name> = services.map(|(name, _)| name.clone()).collect();
        let entries = self.entries.iter().filter(|(name, facts)| {
            asks(&facts.labels, labels_of(&name.namespace), &name.namespace)
        });
        let entries: Vec<Name> = entries.map(|(name, _)| name.clone()).collect();
        let pods = self.pods.iter().filter(|(name, facts)| {
            asks(&facts.labels, labels_of(&name.namespace), &name.namespace)
        });
        let mut pods: Vec<Name> = pods.map(|(name, _)| name.clone()).collect();
        pods.extend(self.pods_of_gateway(gateway));
        let spaces = self.spaces.iter().filter(|(name, space)| {
            let none = Labels::new();
            asks(&none, space.labels.as_ref(), name)
        });
        let spaces: Vec<Arc<str>> = spaces.map(|(name, _)| name.clone()).collect();
        self.dirty.pods.extend(pods);
        self.dirty.namespaces.extend(spaces);
        services.iter().for_each(|name| self.mark_service(name));
        entries.iter().for_each(|name| self.mark_entry(name));
    }

    /// Everything of a namespace, when its labels may attach it elsewhere.
    pub(super) fn mark_space(&mut self, namespace: &Arc<str>) {
        let Some(space) = self.spaces.get(namespace) else {
            return;
        };
        let named = |member: &Arc<str>| Name::new(namespace, member);
        let services: Vec<Name> = space.service_names.iter().map(named).collect();
        let pods: Vec<Name> = space.pods.all().map(named).collect();
        let entries: Vec<Name> = self
            .entries
            .keys()
            .filter(|name| name.namespace == *namespace)
            .cloned()
            .collect();
        self.dirty.pods.extend(pods);
        services.iter().for_each(|name| self.mark_service(name));
        entries.iter().for_each(|name| self.mark_entry(name));
    }

    /// A service with its seal and its pods.
    pub(super) fn mark_service(&mut self, name: &Name) {
        self.dirty.services.insert(name.clone());
        self.dirty.seals.insert((name.clone(), false));
        if let Some(selector) = self
            .services
            .get(name)
            .map(|facts| facts.selector.clone())
            .filter(|selector| !selector.is_empty())
        {
            self.mark_selected(&name.namespace, &selector);
        }
        self.mark_slices_of(name);
    }

    /// An entry with its seals and its pods.
    pub(super) fn mark_entry(&mut self, name: &Name) {
        self.dirty.entries.insert(name.clone());
        self.dirty.seals.insert((name.clone(), true));
        let selector = self.entries.get(name).and_then(EntryFacts::selector);
        if let Some(selector) = selector.cloned() {
            self.mark_selected(&name.namespace, &selector);
        }
    }

    /// Request policies that are attached to services or waypoints: they seal what they decide about. No targets: the
    /// policy is gone, or decides nothing.
    pub(super) fn target_policy(
        &mut self,
        policy: &PolicyKey,
        standing: Standing,
        targets: &[PolicyTarget],
    ) {
        for target in self.sealers.set(policy, standing, targets) {
            match target {
                PolicyTarget::Service(key) => {
                    // A Service that nobody sees has no claim, and yet a status.
                    if let Some(name) = self.service_called(&key) {
                        self.mark_service(&name);
                    }
                    let claims = self.hosts.get(&key.hostname).into_iter().flatten();
                    let owners: Vec<Claim> = claims
                        .filter(|claim| claim.name.namespace == key.namespace)
                        .cloned()
                        .collect();
                    for owner in owners {
                        match owner.is_entry {
                            true => self.mark_entry(&owner.name),
                            false => self.mark_service(&owner.name),
                        }
                    }
                }
                PolicyTarget::Gateway { namespace, name } => {
                    self.mark_users(&Name { namespace, name });
                }
                PolicyTarget::GatewayClass(class) => {
                    let of_class = self.waypoints.all().filter(|(_, one)| one.class == class);
                    let gateways: Vec<Name> = of_class.map(|(name, _)| name.clone()).collect();
                    gateways.iter().for_each(|name| self.mark_users(name));
                }
            }
        }
    }

    /// The Service that a key would be of.
    fn service_called(&self, key: &ServiceKey) -> Option<Name> {
        let suffix = format!(".{}.svc.{}", key.namespace, self.config.cluster_domain);
        let name = Name {
            namespace: key.namespace.clone(),
            name: key.hostname.strip_suffix(&suffix)?.into(),
        };
        self.services.contains_key(&name).then_some(name)
    }

    fn bind(&self, own: &Labels, namespace: &Arc<str>, subject: Subject) -> Binding {
        let of_namespace = self
            .space(namespace)
            .and_then(|space| space.labels.as_ref());
        let wish = wish(own, of_namespace, namespace);
        self.waypoints
            .bind(&self.config, wish, subject, namespace, of_namespace)
    }

    /// The waypoint of a Service.
    pub(super) fn service_binding(&self, name: &Name) -> Binding {
        match self.services.get(name) {
            Some(facts) => self.bind(&facts.labels, &name.namespace, Subject::Service),
            None => Binding::Unasked,
        }
    }

    /// The waypoint of a ServiceEntry.
    pub(super) fn entry_binding(&self, name: &Name) -> Binding {
        let Some(facts) = self.entries.get(name) else {
            return Binding::Unasked;
        };
        let binding = self.bind(&facts.labels, &name.namespace, Subject::Service);
        let hidden = services::visibility(&facts.spec.export_to) == Some(Visibility::Namespace);
        match binding {
            Binding::Bound { gateway, .. } if hidden && gateway.namespace != name.namespace => {
                let message = format!(
                    "only namespace {} sees the entry, so waypoint {}/{} cannot serve it: traffic goes as without it",
                    name.namespace, gateway.namespace, gateway.name
                );
                Binding::Refused {
                    gateway,
                    reason: "CrossNamespaceWaypointForbidden",
                    message,
                }
            }
            binding => binding,
        }
    }

    /// What a namespace's label comes to: for its services first, as most are for these.
    pub(super) fn namespace_condition(&self, namespace: &Arc<str>) -> Option<Condition> {
        let none = Labels::new();
        let of_services = self.bind(&none, namespace, Subject::Service);
        match of_services {
            Binding::Unasked => self.bind(&none, namespace, Subject::Workload).condition(),
            binding => binding.condition(),
        }
    }

    /// Whether gateways are asked to take this service through its waypoint.
    pub(super) fn ingress_uses_waypoint(&self, own: &Labels, namespace: &str) -> bool {
        let of_namespace = self
            .space(namespace)
            .and_then(|space| space.label(labels::INGRESS_USE_WAYPOINT));
        let own = own.get(labels::INGRESS_USE_WAYPOINT).map(String::as_str);
        own.or(of_namespace) == Some("true")
    }

    /// How a service is reached.
    pub(super) fn attachment(&self, name: &Name, is_entry: bool) -> Attachment {
        let binding = match is_entry {
            true => self.entry_binding(name),
            false => self.service_binding(name),
        };
        let seal = match self.seal_wish(name, is_entry) {
            Some(SealWish::Asked) => Some(Seal::Asked),
            Some(SealWish::Waived) => None,
            None => self
                .deciding_policy(name, is_entry, &binding, Standing::InForce)
                .map(Seal::Policy),
        };
        Attachment { binding, seal }
    }

    /// Whether clients may do without the service's waypoint while no replica of it is ready: as its annotation says, and
    /// never where it is sealed, since its pods would refuse them.
    pub(super) fn does_without_waypoint(&self, name: &Name, is_entry: bool) -> bool {
        self.wants_to_do_without(name, is_entry) && self.attachment(name, is_entry).seal.is_none()
    }

    fn wants_to_do_without(&self, name: &Name, is_entry: bool) -> bool {
        match is_entry {
            true => self
                .entries
                .get(name)
                .is_some_and(|one| one.waypoint_optional),
            false => self
                .services
                .get(name)
                .is_some_and(|one| one.waypoint_optional),
        }
    }

    fn seal_wish(&self, name: &Name, is_entry: bool) -> Option<SealWish> {
        match is_entry {
            true => self.entries.get(name)?.seal,
            false => self.services.get(name)?.seal,
        }
    }

    /// The first request policy that applies to a service: attached to itself, to its waypoint, or to the class of that.
    fn deciding_policy(
        &self,
        name: &Name,
        is_entry: bool,
        binding: &Binding,
        standing: Standing,
    ) -> Option<PolicyKey> {
        let hosts = match is_entry {
            true => super::apply::hosts_of(self.entries.get(name)?),
            false => vec![services::hostname(&self.config, name)],
        };
        let services = hosts.into_iter().map(|hostname| {
            PolicyTarget::Service(ServiceKey {
                namespace: name.namespace.clone(),
                hostname,
            })
        });
        let gateway = binding.gateway();
        let of_gateway = gateway.map(|gateway| PolicyTarget::Gateway {
            namespace: gateway.namespace.clone(),
            name: gateway.name.clone(),
        });
        let class = gateway.and_then(|gateway| Some(&self.waypoints.gateway(gateway)?.class));
        let of_class = class.map(|class| PolicyTarget::GatewayClass(class.clone()));
        let targets = services.chain(of_gateway).chain(of_class);
        targets
            .into_iter()
            .filter_map(|target| self.sealers.first(standing, &target))
            .min()
            .cloned()
    }

    /// What a service's status says about its waypoint and its seal.
    pub(super) fn attachment_conditions(&self, name: &Name, is_entry: bool) -> Vec<Condition> {
        let Attachment { binding, seal } = self.attachment(name, is_entry);
        let policy = |standing| self.deciding_policy(name, is_entry, &binding, standing);
        let mut sealed = seals::condition(&seals::Known {
            seal: seal.as_ref(),
            wish: self.seal_wish(name, is_entry),
            in_force: policy(Standing::InForce).as_ref(),
            on_trial: policy(Standing::OnTrial).as_ref(),
            waypoint: binding.gateway(),
        });
        if let (Some(sealed), Some(_)) = (&mut sealed, &seal)
            && self.wants_to_do_without(name, is_entry)
        {
            sealed.message.push_str(
                ", also while it is not ready: annotation karst.dev/waypoint-required waives nothing of a seal",
            );
        }
        binding.condition().into_iter().chain(sealed).collect()
    }

    /// What waypoints and seals make of a pod that serves `services`. `others` are the policies that it has otherwise.
    pub(super) fn behind(
        &self,
        name: &Name,
        pod: &PodFacts,
        services: &std::collections::BTreeMap<ServiceKey, PortMap>,
        others: &[PolicyKey],
    ) -> Behind {
        let own = self.bind(&pod.labels, &name.namespace, Subject::Workload);
        let mut gateways: BTreeSet<Name> = own.gateway().cloned().into_iter().collect();
        let (mut sealed, mut policies) = (BTreeSet::new(), Vec::new());
        for (service, ports) in services {
            let Some(owner) = self.owner_of(service) else {
                continue;
            };
            let Attachment { binding, seal } = self.attachment(&owner.name, owner.is_entry);
            gateways.extend(binding.gateway().cloned());
            if seal.is_some() && !ports.is_empty() {
                policies.push(seals::seal_key(&owner.name, owner.is_entry));
                sealed.extend(ports.values().map(|port| SealedPort {
                    port: *port,
                    waypoint: binding.addr().cloned(),
                }));
            }
        }
        if !gateways.is_empty() && self.lists_peers(&name.namespace, others) {
            policies.extend(gateways.iter().map(seals::allow_key));
        }
        policies.sort();
        policies.dedup();
        Behind {
            waypoint: own.addr().cloned(),
            sealed: sealed.into_iter().collect(),
            policies,
            condition: own.condition(),
        }
    }

    /// Who stands for a service.
    fn owner_of(&self, service: &ServiceKey) -> Option<&Claim> {
        let claims = self.hosts.get(&service.hostname)?;
        claims
            .iter()
            .find(|claim| claim.name.namespace == service.namespace)
    }

    /// Whether an ALLOW policy holds for pods of a namespace, or is one of these: then whoever is not listed is refused.
    fn lists_peers(&self, namespace: &Arc<str>, keys: &[PolicyKey]) -> bool {
        let allows = |key: &PolicyKey| {
            let name = Name::new(&key.namespace, &key.name);
            self.policies.get(&name).is_some_and(|facts| facts.allows())
        };
        let everywhere = self
            .policy_namespaces(namespace)
            .filter_map(|space| self.spaces.get(space))
            .any(|space| space.allows_for_all > 0);
        everywhere || keys.iter().any(allows)
    }

    /// Counts a namespace's ALLOW policies without a selector; the first and the last change what its pods need.
    pub(super) fn count_allow(&mut self, namespace: &Arc<str>, before: bool, after: bool) {
        if before == after {
            return;
        }
        let space = self.space_mut(namespace);
        let had = space.allows_for_all;
        space.allows_for_all = if after {
            had + 1
        } else {
            had.saturating_sub(1)
        };
        let has = space.allows_for_all;
        if (had == 0) != (has == 0) && self.waypoints.all().next().is_some() {
            self.mark_governed(namespace, &Labels::new());
        }
    }

    /// The policies that seal a service, after the service and before its pods.
    pub(super) fn flush_seal(&mut self, (name, is_entry): &(Name, bool), delta: &mut Delta) {
        let Attachment { binding, seal } = self.attachment(name, *is_entry);
        let ports = match seal {
            Some(_) => self.sealed_ports(name, *is_entry),
            None => BTreeSet::new(),
        };
        let key = seals::seal_key(name, *is_entry);
        let policy = (!ports.is_empty()).then(|| {
            seals::seal_policy(
                key.clone(),
                &ports,
                binding.gateway(),
                &self.config.trust_domain,
            )
        });
        let policy = policy.map(|policy| self.by_every_name(policy));
        self.out.policies.set(key, policy, &mut delta.policies);
    }

    /// Every port that a pod of the service may serve it at.
    fn sealed_ports(&self, name: &Name, is_entry: bool) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        let mut names = BTreeSet::new();
        let selector = if is_entry {
            let Some(facts) = self.entries.get(name) else {
                return ports;
            };
            for port in &facts.spec.ports {
                ports.insert(port.target_port.unwrap_or(port.number));
                names.insert(port.name.as_str());
            }
            facts.selector().cloned()
        } else {
            let Some(facts) = self.services.get(name) else {
                return ports;
            };
            for port in &facts.ports {
                match &port.target {
                    Target::Number(number) => drop(ports.insert(*number)),
                    Target::Name(named) => drop(names.insert(named)),
                }
            }
            let slices = self.slices_by_service.get(name).into_iter().flatten();
            let at_slices = slices
                .filter_map(|slice| self.slices.get(slice))
                .flat_map(|slice| services::ports_at_slice(facts, &slice.ports).into_values());
            ports.extend(at_slices);
            Some(facts.selector.clone()).filter(|selector| !selector.is_empty())
        };
        if let (Some(selector), false) = (selector, names.is_empty())
            && let Some(space) = self.space(&name.namespace)
        {
            let pods = space.pods.candidates(&selector);
            let pods = pods.filter_map(|pod| self.pods.get(&Name::new(&name.namespace, pod)));
            for pod in pods.filter(|pod| matches(&selector, &pod.labels)) {
                ports.extend(names.iter().filter_map(|name| pod.named_port(name)));
            }
        }
        ports
    }

    /// A pod with a named port came, went or changed: the policy of a sealed service lists its number.
    pub(super) fn mark_seals_of_pod(&mut self, namespace: &Arc<str>, pod: &PodFacts) {
        let Some(space) = self.spaces.get(namespace) else {
            return;
        };
        let by_name = |facts: &crate::facts::service::ServiceFacts| {
            facts
                .ports
                .iter()
                .any(|port| matches!(port.target, Target::Name(_)))
        };
        let named = |service: &Arc<str>| Name::new(namespace, service);
        let services: Vec<Name> = space
            .services
            .candidates(&pod.labels)
            .map(named)
            .filter(|name| {
                self.services.get(name).is_some_and(|facts| {
                    by_name(facts)
                        && matches(&facts.selector, &pod.labels)
                        && self.attachment(name, false).seal.is_some()
                })
            })
            .collect();
        let entries: Vec<Name> = space
            .entries
            .candidates(&pod.labels)
            .map(named)
            .filter(|name| {
                self.entries.get(name).is_some_and(|facts| {
                    facts
                        .selector()
                        .is_some_and(|selector| matches(selector, &pod.labels))
                        && self.attachment(name, true).seal.is_some()
                })
            })
            .collect();
        self.dirty
            .seals
            .extend(services.into_iter().map(|name| (name, false)));
        self.dirty
            .seals
            .extend(entries.into_iter().map(|name| (name, true)));
    }

    /// A pod of a waypoint came, went or changed: whether the waypoint is ready is in its Gateway's status.
    pub(super) fn mark_waypoint_of(&mut self, name: &Name, pod: &PodFacts) {
        if let Some(gateway) = pod.label(labels::GATEWAY_NAME) {
            let gateway = gateway.into();
            let namespace = name.namespace.clone();
            self.dirty.gateways.insert(Name {
                namespace,
                name: gateway,
            });
        }
    }

    /// A Gateway's own status, and the policy that lets it in.
    pub(super) fn flush_gateway(&mut self, name: &Name, delta: &mut Delta) {
        let facts = self
            .waypoints
            .gateway(name)
            .filter(|facts| self.waypoints.is_waypoint(facts));
        let allow = facts.map(|_| seals::allow_policy(name, &self.config.trust_domain));
        let allow = allow.map(|policy| self.by_every_name(policy));
        let status = facts.map(|facts| self.gateway_status(name, facts));
        let object = key(Kind::Gateway, name);
        let complaints = status.as_ref().map(gateways::complaints);
        self.out
            .policies
            .set(seals::allow_key(name), allow, &mut delta.policies);
        self.set_gateway_status(object.clone(), status, delta);
        self.set_conditions(object, complaints.unwrap_or_default(), delta);
    }

    /// What a Gateway asks for its pods.
    pub(super) fn application_tunnel(
        &self,
        name: &Name,
        pod: &PodFacts,
    ) -> Option<ApplicationTunnel> {
        let gateway = pod.label(labels::GATEWAY_NAME)?.into();
        let gateway = Name::new(&name.namespace, &gateway);
        self.waypoints.application_tunnel(&gateway)
    }

    /// The pods among which those of a Gateway are.
    fn pods_of_gateway(&self, gateway: &Name) -> impl Iterator<Item = Name> {
        let wanted = Labels::from([(labels::GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
        let space = self.space(&gateway.namespace);
        let pods: Vec<_> = space
            .into_iter()
            .flat_map(|space| space.pods.candidates(&wanted))
            .map(|pod| Name::new(&gateway.namespace, pod))
            .collect();
        pods.into_iter()
    }

    fn gateway_status(&self, name: &Name, facts: &GatewayFacts) -> gateways::GatewayStatus {
        let service = self.services.get(name);
        let serves = |pod: &&PodFacts| {
            pod.label(labels::GATEWAY_NAME) == Some(&*name.name)
                && pod.ready
                && !pod.terminating
                && !pod.finished
        };
        let pods = self.pods_of_gateway(name);
        let ready = pods.filter_map(|pod| self.pods.get(&pod)).filter(serves);
        let ready = ready.count();
        gateways::status(gateways::Surroundings {
            facts,
            hostname: services::hostname(&self.config, name),
            vips: service.map(|service| service.vips.as_slice()),
            ready,
            trusted_proxies: self.mesh_config().proxies.trusted_proxies.unwrap_or(0),
        })
    }

    fn set_gateway_status(
        &mut self,
        object: ObjectKey,
        status: Option<gateways::GatewayStatus>,
        delta: &mut Delta,
    ) {
        if self.out.gateways.get(&object) == status.as_ref() {
            return;
        }
        match &status {
            Some(status) => drop(self.out.gateways.insert(object.clone(), status.clone())),
            None => drop(self.out.gateways.remove(&object)),
        }
        delta.gateways.push((object, status));
    }
}
