//! Services by key, virtual address, address range and hostname.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hashbrown::{HashMap, hash_map::Entry};
use ipnet::IpNet;
use karst_model::{
    addr::{Network, NetworkAddr},
    name::ServiceKey,
    service::{Service, Vip, Visibility},
};
use prefix_trie::joint::JointPrefixMap;

/// Several services may share an address or a hostname; ordered by key, so that "the first" does not depend on the
/// order of arrival.
type Candidates = BTreeMap<ServiceKey, Arc<Service>>;

#[derive(Default)]
pub(crate) struct Services {
    by_key: HashMap<ServiceKey, Arc<Service>>,
    by_vip: HashMap<NetworkAddr, Candidates>,
    by_range: HashMap<Network, JointPrefixMap<IpNet, Candidates>>,
    by_host: HashMap<Arc<str>, Candidates>,
}

impl Services {
    /// Inserts or replaces; returns what it replaced.
    pub(super) fn insert(&mut self, service: Arc<Service>) -> Option<Arc<Service>> {
        let old = self.remove(&service.key);
        let key = &service.key;
        for vip in &service.addresses {
            let candidates = match place(vip) {
                Place::Exact(addr) => self.by_vip.entry(addr).or_default(),
                Place::Range(network, range) => self
                    .by_range
                    .entry(network)
                    .or_default()
                    .entry(range)
                    .or_default(),
            };
            candidates.insert(key.clone(), service.clone());
        }
        self.by_host
            .entry(key.hostname.clone())
            .or_default()
            .insert(key.clone(), service.clone());
        self.by_key.insert(key.clone(), service);
        old
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let old = self.by_key.remove(key)?;
        for vip in &old.addresses {
            match place(vip) {
                Place::Exact(addr) => release(self.by_vip.entry(addr), key),
                Place::Range(network, range) => self.release_range(&network, range, key),
            }
        }
        release(self.by_host.entry(key.hostname.clone()), key);
        Some(old)
    }

    fn release_range(&mut self, network: &Network, range: IpNet, key: &ServiceKey) {
        let Some(ranges) = self.by_range.get_mut(network) else {
            return;
        };
        if let Some(candidates) = ranges.get_mut(&range) {
            candidates.remove(key);
            if candidates.is_empty() {
                ranges.remove(&range);
            }
        }
        if ranges.is_empty() {
            self.by_range.remove(network);
        }
    }

    pub(crate) fn get(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_key.get(key)
    }

    /// The service at an address as a client of `client_namespace` sees it: an exact address first, then ranges.
    pub(crate) fn at(&self, addr: &NetworkAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let exact = self
            .by_vip
            .get(addr)
            .and_then(|c| choose(c, client_namespace));
        exact.or_else(|| self.in_range(addr, client_namespace))
    }

    /// Of all ranges that hold the address: the client's namespace, then the longest prefix, then canonical.
    fn in_range(&self, addr: &NetworkAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let host = IpNet::from(addr.ip);
        let ranges = self.by_range.get(&addr.network)?.cover(&host);
        let visible = ranges
            .filter_map(|(range, c)| Some((range.prefix_len(), choose(c, client_namespace)?)));
        visible
            .max_by_key(|(len, s)| (*s.key.namespace == *client_namespace, *len))
            .map(|(_, service)| service)
    }

    /// The service of a hostname as a client of `client_namespace` sees it.
    pub(crate) fn by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        choose(self.by_host.get(hostname)?, client_namespace)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = &NetworkAddr> {
        self.by_vip.keys()
    }

    pub(crate) fn has_address(&self, addr: &NetworkAddr) -> bool {
        self.by_vip.contains_key(addr)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

enum Place {
    Exact(NetworkAddr),
    Range(Network, IpNet),
}

/// Where a virtual address is indexed. A range of one address is that address.
fn place(vip: &Vip) -> Place {
    let full = if vip.ip.is_ipv4() { 32 } else { 128 };
    match vip.prefix_len.filter(|len| *len < full) {
        Some(len) => Place::Range(vip.network.clone(), range(vip.ip, len)),
        None => Place::Exact(NetworkAddr::new(vip.network.clone(), vip.ip)),
    }
}

/// The range with its host bits cleared.
fn range(ip: IpAddr, len: u8) -> IpNet {
    IpNet::new_assert(ip, len).trunc()
}

/// Visibility filters; then the client's own namespace wins, then canonical, then the first.
fn choose<'a>(candidates: &'a Candidates, client_namespace: &str) -> Option<&'a Arc<Service>> {
    let own = |s: &Service| *s.key.namespace == *client_namespace;
    let visible = candidates
        .values()
        .filter(|s| s.visibility == Visibility::Public || own(s));
    // `max_by_key` takes the last of equals, so the order is reversed to take the first.
    visible.rev().max_by_key(|s| (own(s), s.canonical))
}

fn release<K: std::hash::Hash + Eq, S: std::hash::BuildHasher>(
    entry: Entry<'_, K, Candidates, S>,
    key: &ServiceKey,
) {
    if let Entry::Occupied(mut candidates) = entry {
        candidates.get_mut().remove(key);
        if candidates.get().is_empty() {
            candidates.remove();
        }
    }
}
