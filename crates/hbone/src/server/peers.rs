//! How much one peer address may make a server hold: connections are counted per address, and the later ones get smaller
//! windows, so that all windows of one address together stay below 64 MiB with the default bound, and 64 KiB more for
//! each connection that a higher one allows. The address is that of the peer's pod, which has a connection for each of
//! its agent's data-path threads and each of our pods that it talks to.
//!
//! The listener asks [`Peers::admit`] after accepting, before TLS, and keeps the [`PeerSlot`] as long as the connection.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::ServerConfig;

/// Connections from one address that are served at once, where nothing else is asked for.
pub const CONNECTIONS_MAX: usize = 384;

/// (connections with these windows, connection window, stream window), first come first served. Sizes in bytes; the last
/// row, for all further connections, is what HTTP/2 gives without asking. With the default bound together
/// 2 * 16 MiB + 8 * 1 MiB + 374 * 64 KiB < 64 MiB.
const TIERS: [(usize, u32, u32); 3] = [
    (2, crate::CONNECTION_WINDOW, crate::STREAM_WINDOW),
    (8, 1 << 20, 256 << 10),
    (usize::MAX, 65_535, 65_535),
];

/// Open connections by peer address. Clones share it; entries exist only while connections do.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
    connections_max: usize,
}

#[derive(Default)]
struct Shared {
    open: Mutex<HashMap<IpAddr, Tiers>>,
    refused: AtomicU64,
}

/// Connections in use of each tier.
type Tiers = [usize; TIERS.len()];

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Tiers>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::bounded(CONNECTIONS_MAX)
    }
}

impl Peers {
    /// At most this many connections from one address at once.
    pub fn bounded(connections_max: usize) -> Self {
        Self {
            shared: Arc::default(),
            connections_max,
        }
    }

    /// A place for one more connection from `peer`; `None` when it has too many: close the connection.
    pub fn admit(&self, peer: IpAddr) -> Option<PeerSlot> {
        let peer = peer.to_canonical();
        let mut open = self.shared.lock();
        let used = open.entry(peer).or_default();
        let room = used.iter().sum::<usize>() < self.connections_max;
        let mut tiers = 0..TIERS.len();
        let tier = tiers.find(|tier| room && used[*tier] < TIERS[*tier].0);
        let Some(tier) = tier else {
            if used.iter().all(|used| *used == 0) {
                open.remove(&peer);
            }
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        used[tier] += 1;
        Some(PeerSlot {
            shared: self.shared.clone(),
            peer,
            tier,
        })
    }

    /// Connections refused since start.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

/// One admitted connection; dropped, it gives its place back.
pub struct PeerSlot {
    shared: Arc<Shared>,
    peer: IpAddr,
    tier: usize,
}

impl PeerSlot {
    /// `base` with the windows that this connection may have.
    pub fn limit(&self, base: &ServerConfig) -> ServerConfig {
        let (_, connection, stream) = TIERS[self.tier];
        ServerConfig {
            connection_window: base.connection_window.min(connection),
            stream_window: base.stream_window.min(stream),
            ..base.clone()
        }
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        if let Some(used) = open.get_mut(&self.peer) {
            used[self.tier] -= 1;
            if used.iter().all(|used| *used == 0) {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_gets_bounded_windows_and_others_are_not_touched() {
        let (peers, base) = (Peers::default(), ServerConfig::default());
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let slots: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|i| peers.admit(if i % 2 == 0 { peer } else { mapped }).unwrap())
            .collect();
        let windows: u64 = slots
            .iter()
            .map(|slot| u64::from(slot.limit(&base).connection_window))
            .sum();
        assert!(windows <= 64 << 20, "{windows}");
        assert_eq!(
            slots[0].limit(&base).connection_window,
            crate::CONNECTION_WINDOW
        );
        assert!(peers.admit(peer).is_none());
        assert_eq!(peers.refused(), 1);
        let other = peers.admit("10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(
            other.limit(&base).connection_window,
            crate::CONNECTION_WINDOW
        );
        drop((slots, other));
        assert!(peers.shared.lock().is_empty());
        assert_eq!(
            peers.admit(peer).unwrap().limit(&base).stream_window,
            crate::STREAM_WINDOW
        );
        let few = Peers::bounded(1);
        let one = few.admit(peer).unwrap();
        assert!(few.admit(peer).is_none());
        drop(one);
        assert!(few.admit(peer).is_some());
    }
}
