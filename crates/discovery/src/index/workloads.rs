//! Workloads by uid, address and hostname.

use std::sync::Arc;

use hashbrown::{HashMap, hash_map::Entry};
use karst_model::{
    addr::NetworkAddr, name::WorkloadUid, protocol::TunnelProtocol, workload::Workload,
};
use smallvec::SmallVec;

/// All who claim one address, oldest claim first. Nearly always one.
type Claims = SmallVec<[Arc<Workload>; 1]>;

#[derive(Default)]
pub(crate) struct Workloads {
    by_uid: HashMap<WorkloadUid, Arc<Workload>>,
    by_addr: HashMap<NetworkAddr, Claims>,
    by_hostname: HashMap<Arc<str>, Claims>,
}

impl Workloads {
    /// Inserts or replaces; returns what it replaced.
    pub(super) fn insert(&mut self, workload: Arc<Workload>) -> Option<Arc<Workload>> {
        let old = self.by_uid.insert(workload.uid.clone(), workload.clone());
        if let Some(old) = &old {
            self.unindex(old);
        }
        for addr in indexed_addresses(&workload) {
            self.by_addr.entry(addr).or_default().push(workload.clone());
        }
        if let Some(hostname) = &workload.hostname {
            self.by_hostname
                .entry(hostname.clone())
                .or_default()
                .push(workload.clone());
        }
        old
    }

    pub(super) fn remove(&mut self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        let old = self.by_uid.remove(uid)?;
        self.unindex(&old);
        Some(old)
    }

    fn unindex(&mut self, old: &Workload) {
        for addr in indexed_addresses(old) {
            release(&mut self.by_addr, addr, &old.uid);
        }
        if let Some(hostname) = &old.hostname {
            release(&mut self.by_hostname, hostname.clone(), &old.uid);
        }
    }

    pub(crate) fn get(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// The workload that an address stands for. A stale pod and its successor may both claim it for a while, or a
    /// ServiceEntry and a pod: pods win, then those that speak HBONE, then the latest claim.
    pub(crate) fn at(&self, addr: &NetworkAddr) -> Option<&Arc<Workload>> {
        self.by_addr.get(addr)?.iter().max_by_key(|w| {
            (
                w.uid.0.contains("//Pod/"),
                w.tunnel == TunnelProtocol::Hbone,
            )
        })
    }

    pub(crate) fn by_hostname(&self, hostname: &str) -> Option<&Arc<Workload>> {
        self.by_hostname.get(hostname)?.last()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = &NetworkAddr> {
        self.by_addr.keys()
    }

    pub(crate) fn has_address(&self, addr: &NetworkAddr) -> bool {
        self.by_addr.contains_key(addr)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }
}

/// Takes `uid` off the claims of `key`; those of others stay.
fn release<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Claims>, key: K, uid: &WorkloadUid) {
    if let Entry::Occupied(mut claims) = index.entry(key) {
        claims.get_mut().retain(|w| w.uid != *uid);
        if claims.get().is_empty() {
            claims.remove();
        }
    }
}

/// The addresses under which a workload is found. A host-network pod shares its node's, so it is found under none.
pub(super) fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddr> + '_ {
    let addresses = if workload.host_network {
        &[][..]
    } else {
        &workload.addresses[..]
    };
    let distinct = addresses
        .iter()
        .enumerate()
        .filter(|(n, ip)| !addresses[..*n].contains(ip));
    distinct.map(|(_, ip)| NetworkAddr::new(workload.network.clone(), *ip))
}
