//! The pinned maps, typed. Each behind its own lock, as aya writes through `&mut`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Pod as Plain;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, SockMap};
use karst_ebpf_abi::{
    Address, ClientKey, Config, Counter, Dialled, ExcludedCidr, ExcludedPort, Pod, ProbeKey,
};

use crate::MapError;

/// A hash map of fixed-size keys and values.
pub(crate) struct Table<K: Plain, V: Plain> {
    name: &'static str,
    map: Mutex<HashMap<MapData, K, V>>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    fn open(dir: &Path, name: &'static str) -> Result<Self, MapError> {
        let map =
            HashMap::try_from(Map::HashMap(pinned(dir, name)?)).map_err(MapError::of(name))?;
        Ok(Self {
            name,
            map: Mutex::new(map),
        })
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> Result<(), MapError> {
        lock(&self.map)
            .insert(key, value, 0)
            .map_err(MapError::of(self.name))
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        lock(&self.map).get(key, 0).ok()
    }

    /// Removes an entry, there or not.
    pub(crate) fn remove(&self, key: &K) -> Result<(), MapError> {
        match lock(&self.map).remove(key) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(call))
                if call.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(MapError::of(self.name)(error)),
        }
    }

    pub(crate) fn keys(&self) -> Result<Vec<K>, MapError> {
        lock(&self.map)
            .keys()
            .collect::<Result<_, _>>()
            .map_err(MapError::of(self.name))
    }

    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        lock(&self.map)
            .iter()
            .collect::<Result<_, _>>()
            .map_err(MapError::of(self.name))
    }

    /// Removes every entry whose key is not wanted.
    pub(crate) fn remove_where(&self, unwanted: impl Fn(&K) -> bool) -> Result<(), MapError> {
        for key in self.keys()?.iter().filter(|key| unwanted(key)) {
            self.remove(key)?;
        }
        Ok(())
    }
}

/// Every map that user space touches.
pub(crate) struct Maps {
    config: Mutex<Array<MapData, Config>>,
    counters: PerCpuArray<MapData, u64>,
    pods: Mutex<Array<MapData, Pod>>,
    pub(crate) pod_by_cookie: Table<u64, u32>,
    pub(crate) guarded: Table<u32, u32>,
    pub(crate) destinations: Table<Address, u32>,
    pub(crate) excluded_ports: Table<ExcludedPort, u32>,
    excluded_cidrs: Mutex<LpmTrie<MapData, ExcludedCidr, u32>>,
    pub(crate) probe_ports: Table<ProbeKey, u32>,
    listeners: Mutex<SockMap<MapData>>,
    pub(crate) orig_dst: Table<ClientKey, Dialled>,
    dial_intent: Mutex<HashMap<MapData, u64, Dialled>>,
}

impl Maps {
    /// Opens what is pinned in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, MapError> {
        let config = Array::try_from(Map::Array(pinned(dir, "CONFIG")?));
        let counters = PerCpuArray::try_from(Map::PerCpuArray(pinned(dir, "COUNTERS")?));
        let pods = Array::try_from(Map::Array(pinned(dir, "PODS")?));
        let cidrs = LpmTrie::try_from(Map::LpmTrie(pinned(dir, "EXCLUDED_CIDRS")?));
        let listeners = SockMap::try_from(Map::SockMap(pinned(dir, "LISTENERS")?));
        let intent = HashMap::try_from(Map::LruHashMap(pinned(dir, "DIAL_INTENT")?));
        Ok(Self {
            config: Mutex::new(config.map_err(MapError::of("CONFIG"))?),
            counters: counters.map_err(MapError::of("COUNTERS"))?,
            pods: Mutex::new(pods.map_err(MapError::of("PODS"))?),
            pod_by_cookie: Table::open(dir, "POD_BY_COOKIE")?,
            guarded: Table::open(dir, "GUARDED")?,
            destinations: Table::open(dir, "DESTINATIONS")?,
            excluded_ports: Table::open(dir, "EXCLUDED_PORTS")?,
            excluded_cidrs: Mutex::new(cidrs.map_err(MapError::of("EXCLUDED_CIDRS"))?),
            probe_ports: Table::open(dir, "PROBE_PORTS")?,
            listeners: Mutex::new(listeners.map_err(MapError::of("LISTENERS"))?),
            orig_dst: Table::open(dir, "ORIG_DST")?,
            dial_intent: Mutex::new(intent.map_err(MapError::of("DIAL_INTENT"))?),
        })
    }

    pub(crate) fn config(&self) -> Result<Config, MapError> {
        lock(&self.config)
            .get(&0, 0)
            .map_err(MapError::of("CONFIG"))
    }

    pub(crate) fn set_config(&self, config: Config) -> Result<(), MapError> {
        lock(&self.config)
            .set(0, config, 0)
            .map_err(MapError::of("CONFIG"))
    }

    /// Places for pods.
    pub(crate) fn pods_max(&self) -> u32 {
        lock(&self.pods).len()
    }

    pub(crate) fn pod(&self, slot: u32) -> Result<Pod, MapError> {
        lock(&self.pods).get(&slot, 0).map_err(MapError::of("PODS"))
    }

    pub(crate) fn set_pod(&self, slot: u32, pod: &Pod) -> Result<(), MapError> {
        lock(&self.pods)
            .set(slot, pod, 0)
            .map_err(MapError::of("PODS"))
    }

    pub(crate) fn set_listener(
        &self,
        at: u32,
        socket: &impl std::os::fd::AsRawFd,
    ) -> Result<(), MapError> {
        lock(&self.listeners)
            .set(at, socket, 0)
            .map_err(MapError::of("LISTENERS"))
    }

    /// Empties a place, full or not.
    pub(crate) fn clear_listener(&self, at: u32) {
        let _absent = lock(&self.listeners).clear_index(&at);
    }

    pub(crate) fn exclude_cidr(&self, bits: u32, cidr: ExcludedCidr) -> Result<(), MapError> {
        lock(&self.excluded_cidrs)
            .insert(&Key::new(bits, cidr), 1, 0)
            .map_err(MapError::of("EXCLUDED_CIDRS"))
    }

    pub(crate) fn clear_cidrs(&self, slot: u32) -> Result<(), MapError> {
        let mut map = lock(&self.excluded_cidrs);
        let keys: Vec<_> = map
            .keys()
            .collect::<Result<_, _>>()
            .map_err(MapError::of("EXCLUDED_CIDRS"))?;
        for key in keys.iter().filter(|key| key.data().slot == slot) {
            map.remove(key).map_err(MapError::of("EXCLUDED_CIDRS"))?;
        }
        Ok(())
    }

    pub(crate) fn announce(&self, socket: u64, shown: Dialled) -> Result<(), MapError> {
        lock(&self.dial_intent)
            .insert(socket, shown, 0)
            .map_err(MapError::of("DIAL_INTENT"))
    }

    /// The sum over all CPUs.
    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        let per_cpu = self.counters.get(&(counter as u32), 0);
        per_cpu.map_or(0, |values| values.iter().sum())
    }
}

pub(crate) fn pin_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

fn pinned(dir: &Path, name: &'static str) -> Result<MapData, MapError> {
    MapData::from_pin(pin_path(dir, name)).map_err(MapError::of(name))
}

/// A poisoned lock guards a descriptor only: what is in the kernel is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
