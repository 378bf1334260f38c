//! Host names of endpoints outside of the mesh. They are resolved here, since it is this waypoint that connects: what a
//! name stands for elsewhere does not matter.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashbrown::{HashMap, HashSet};
use karst_dns::{Limits, Resolver};
use karst_model::{
    name::ServiceKey,
    service::{LoadBalancing, Naming, Service},
    workload::Workload,
};
use tokio::sync::broadcast;

use super::Port;
use crate::config::Config;

/// How long a request waits for the first answer about its host.
const PATIENCE: Duration = Duration::from_secs(5);
/// Hosts of which the endpoints are kept; further ones push all out.
const ASKED_MAX: usize = 1_024;

/// The names that compiled services need, and hosts that clients asked for.
pub(crate) struct Names {
    resolver: Resolver,
    users: Mutex<HashMap<ServiceKey, Vec<Arc<str>>>>,
    asked: Mutex<HashMap<AskedKey, AskedPort>>,
}

/// A port of a service, and the host that was asked for there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AskedKey {
    pub(super) service: ServiceKey,
    pub(super) port: u16,
    pub(super) host: Arc<str>,
}

struct AskedPort {
    addresses: Arc<[IpAddr]>,
    port: Arc<Port>,
}

/// Why a host that a client asks for leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoHost {
    /// The client's fault.
    #[error("host {host:?} is none of service {service}")]
    NotOfService { service: ServiceKey, host: String },
    /// The resolver's or the name's owner's fault.
    #[error("host {0:?} has no address that may be connected")]
    Unresolved(Arc<str>),
    /// The name's owner's fault: whoever may reach a name must not reach by it what the mesh's own policies guard.
    #[error(
        "host {host:?} leads to {ip}, which is an address of the mesh: ask for what is there by its own name"
    )]
    Inside { host: Arc<str>, ip: IpAddr },
}

impl Names {
    pub(super) fn new(config: &Config) -> Self {
        let servers = match config.dns.is_empty() {
            true => karst_dns::servers(),
            false => config.dns.clone(),
        };
        Self {
            resolver: Resolver::new(servers, Limits::default()),
            users: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        self.resolver.changes()
    }

    /// The services that need a name.
    pub(super) fn users_of(&self, name: &str) -> Vec<ServiceKey> {
        let users = lock(&self.users);
        let with = users
            .iter()
            .filter(|(_, names)| names.iter().any(|one| **one == *name));
        with.map(|(service, _)| service.clone()).collect()
    }

    /// The endpoints of a service, with those that are known by a name only in the place of what they resolve to. A name
    /// without an answer stays one, and is no endpoint yet.
    pub(super) fn resolved(
        &self,
        service: &Service,
        endpoints: &[Arc<Workload>],
        place: &Workload,
    ) -> Vec<Arc<Workload>> {
        self.follow(
            &service.key,
            endpoints.iter().filter_map(|one| name_of(one)),
        );
        let resolve = |workload: &Arc<Workload>| {
            let known = name_of(workload).and_then(|name| self.resolver.look(name));
            let Some(addresses) = known else {
                return vec![workload.clone()];
            };
            let usable = near(&addresses, place);
            let most = match service.naming {
                Naming::One => 1,
                Naming::Every | Naming::Asked => usize::MAX,
            };
            let at = |ip| Arc::new(addressed(workload, ip));
            usable.take(most).map(at).collect()
        };
        endpoints.iter().flat_map(resolve).collect()
    }

    /// A service needs these names from now on.
    fn follow<'a>(&self, service: &ServiceKey, names: impl Iterator<Item = &'a Arc<str>>) {
        let names: Vec<Arc<str>> = names.cloned().collect();
        let mut users = lock(&self.users);
        let before = match names.is_empty() {
            true => users.remove(service),
            false => users.insert(service.clone(), names.clone()),
        };
        if before.unwrap_or_default() != names {
            let all: HashSet<Arc<str>> = users.values().flatten().cloned().collect();
            self.resolver.pin(all);
        }
    }

    /// The service is compiled no more, or again: hosts that were asked for there are looked at anew.
    pub(super) fn forget(&self, touched: Option<&HashSet<&ServiceKey>>) {
        let touches = |key: &AskedKey| touched.is_none_or(|touched| touched.contains(&key.service));
        lock(&self.asked).retain(|key, _| !touches(key));
    }

    /// The port for a host that a client asks for. `inside`: whether an address is one of the mesh, which no name of others
    /// may lead to. `compile` makes the port of the host's endpoints.
    pub(super) async fn asked(
        &self,
        service: &Service,
        (number, host): (u16, &str),
        place: &Workload,
        inside: impl Fn(IpAddr) -> bool,
        compile: impl FnOnce(&Arc<Service>, &[Arc<Workload>]) -> Port,
    ) -> Result<Arc<Port>, NoHost> {
        let host = host_of(service, host)?;
        let found = self.resolver.resolve(&host, PATIENCE).await;
        let found = found.unwrap_or_default();
        let key = AskedKey {
            service: service.key.clone(),
            port: number,
            host: host.clone(),
        };
        let outside = found.iter().copied().filter(|ip| may_be_asked(*ip));
        let (inside, usable): (Vec<IpAddr>, Vec<IpAddr>) = outside.partition(|ip| inside(*ip));
        let mut asked = lock(&self.asked);
        if let Some(known) = asked.get(&key).filter(|known| *known.addresses == *usable) {
            return Ok(known.port.clone());
        }
        match (usable.is_empty(), inside.first()) {
            (true, Some(ip)) => return Err(NoHost::Inside { host, ip: *ip }),
            (true, None) => return Err(NoHost::Unresolved(host)),
            (false, _) => {}
        }
        let target = service
            .ports
            .get(&number)
            .map_or(number, |port| port.target_port);
        let stand_in = stand_in(service, &host, (number, target));
        let endpoints: Vec<Arc<Workload>> = near(&usable, place)
            .map(|ip| Arc::new(addressed(&stand_in, ip)))
            .collect();
        let service = Arc::new(Service {
            naming: Naming::Every,
            load_balancing: LoadBalancing::default(),
            ..service.clone()
        });
        let port = Arc::new(compile(&service, &endpoints));
        if asked.len() >= ASKED_MAX {
            tracing::warn!(
                hosts = ASKED_MAX,
                "too many hosts are asked for: their connections begin anew"
            );
            asked.clear();
        }
        let known = AskedPort {
            addresses: usable.into(),
            port: port.clone(),
        };
        asked.insert(key, known);
        Ok(port)
    }
}

/// The address that a client dialled, as an endpoint: of a service that leaves the choice to its clients.
pub(crate) fn dialled(service: &Service, ip: IpAddr) -> Workload {
    let all = service.ports.iter();
    let mut workload = stand_in(service, &service.key.hostname, (0, 0));
    let ports = all.map(|(number, _)| (*number, *number)).collect();
    workload.services.insert(service.key.clone(), ports);
    addressed(&workload, ip)
}

/// The name of an endpoint that has no address.
fn name_of(workload: &Arc<Workload>) -> Option<&Arc<str>> {
    let name = workload.hostname.as_ref().filter(|name| !name.is_empty());
    name.filter(|_| workload.addresses.is_empty())
}

/// Addresses of the family that this pod has, or all where there are none of it.
fn near<'a>(addresses: &'a [IpAddr], place: &Workload) -> impl Iterator<Item = IpAddr> + use<'a> {
    let own_v4 = place.addresses.first().is_none_or(IpAddr::is_ipv4);
    let any_own = addresses.iter().any(|ip| ip.is_ipv4() == own_v4);
    let all = addresses.iter().copied();
    all.filter(move |ip| !any_own || ip.is_ipv4() == own_v4)
}

fn addressed(workload: &Workload, ip: IpAddr) -> Workload {
    Workload {
        uid: format!("{}#{ip}", workload.uid.0).as_str().into(),
        addresses: vec![ip],
        ..workload.clone()
    }
}

fn stand_in(service: &Service, host: &Arc<str>, (port, target): (u16, u16)) -> Workload {
    let mut workload = Workload::new(&format!("{}/{host}", service.key));
    workload.name = service.name.clone();
    workload.namespace = service.key.namespace.clone();
    workload.service_account = "".into();
    workload.workload_name = service.name.clone();
    workload.canonical_name = service.name.clone();
    workload.hostname = Some(host.clone());
    workload
        .services
        .insert(service.key.clone(), [(port, target)].into());
    workload
}

/// The host in its plain form, if it is one that the service stands for.
fn host_of(service: &Service, host: &str) -> Result<Arc<str>, NoHost> {
    let plain = host.trim_end_matches('.').to_ascii_lowercase();
    let own = &service.key.hostname;
    let fits = match own.strip_prefix('*') {
        Some(suffix) => plain.len() > suffix.len() && plain.ends_with(suffix),
        None => plain == **own,
    };
    match fits {
        true => Ok(plain.into()),
        false => Err(NoHost::NotOfService {
            service: service.key.clone(),
            host: host.to_owned(),
        }),
    }
}

/// A name that somebody else controls must not lead to this pod itself or to what only neighbours reach.
fn may_be_asked(ip: IpAddr) -> bool {
    let local = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_service_are_resolved() {
        let service = Service::new("shop", "*.example.com");
        let host = |text: &str| host_of(&service, text).map(|host| host.to_string()).ok();
        assert_eq!(host("API.example.com."), Some("api.example.com".to_owned()));
        assert_eq!(host("a.b.example.com"), Some("a.b.example.com".to_owned()));
        for other in [
            "example.com",
            ".example.com",
            "example.org",
            "evil-example.com",
            "10.0.0.1",
        ] {
            assert_eq!(host(other), None, "{other}");
        }
    }

    #[test]
    fn names_of_others_lead_to_no_neighbour() {
        for (ip, may) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("fe80::1", false),
            ("::ffff:169.254.169.254", false),
        ] {
            assert_eq!(may_be_asked(ip.parse().unwrap()), may, "{ip}");
        }
    }
}
