//! Addresses for ServiceEntry hosts that bring none: one of 240.240.0.0/16 and its twin of 2001:2::/48.
//!
//! Every host tries places in an order of its own (a hash), and the oldest host that wants a place has it. So the
//! outcome depends on which hosts there are and on nothing else, not on the order in which they came: two controllers
//! agree without talking, and a new host never moves an older one.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hashbrown::HashMap;

use crate::facts::Created;

/// Places that a host tries before it goes without. With the range half full, one host in 2^64 does.
const MAX_TRIES: u32 = 64;

/// Addresses of a /16 without its first and last.
const PLACES: u64 = 65_534;

/// A host that wants an address. Older ones sort first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Claimant {
    pub(crate) created: Created,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) host: Arc<str>,
}

impl Claimant {
    /// Which place is tried at this turn, from 1.
    fn place(&self, turn: u32) -> u16 {
        let words = [&*self.namespace, &*self.name, &*self.host].map(str::as_bytes);
        let turn = turn.to_be_bytes();
        let bytes = words
            .into_iter()
            .chain([&turn[..]])
            .flat_map(|word| word.iter().copied().chain([0]));
        u16::try_from(fnv1a(bytes) % PLACES + 1).unwrap_or(1)
    }
}

/// FNV-1a with 64 bits. Not the standard library's hash, which may change with the compiler: an address must outlive a
/// new build of the controller, and two of them must agree. Somebody who chooses names so that they collide gets other
/// places, no more.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Debug, Default)]
pub(crate) struct Vips {
    /// How many places each host was refused; `MAX_TRIES` means that it has none.
    turns: HashMap<Claimant, u32>,
    owners: HashMap<u16, Claimant>,
    /// Hosts that an older one keeps from a place.
    refused: HashMap<u16, BTreeSet<Claimant>>,
}

impl Vips {
    /// The addresses of a host.
    pub(crate) fn addresses(&self, claimant: &Claimant) -> Option<[IpAddr; 2]> {
        let turn = *self.turns.get(claimant).filter(|turn| **turn < MAX_TRIES)?;
        let place = claimant.place(turn);
        let [high, low] = place.to_be_bytes();
        Some([
            Ipv4Addr::new(240, 240, high, low).into(),
            Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, place).into(),
        ])
    }

    /// Adds a host; returns others whose address this changed.
    pub(crate) fn insert(&mut self, claimant: Claimant) -> Vec<Claimant> {
        if self.turns.contains_key(&claimant) {
            return Vec::new();
        }
        let mut moved = Vec::new();
        let mut seeker = Some((claimant, 0));
        while let Some((claimant, turn)) = seeker.take() {
            if turn >= MAX_TRIES {
                self.turns.insert(claimant, MAX_TRIES);
                continue;
            }
            let place = claimant.place(turn);
            match self.owners.get(&place).cloned() {
                Some(owner) if owner < claimant => {
                    self.refused
                        .entry(place)
                        .or_default()
                        .insert(claimant.clone());
                    seeker = Some((claimant, turn + 1));
                }
                younger => {
                    self.turns.insert(claimant.clone(), turn);
                    self.owners.insert(place, claimant);
                    if let Some(younger) = younger {
                        self.refused
                            .entry(place)
                            .or_default()
                            .insert(younger.clone());
                        let turn = self.turns.get(&younger).copied().unwrap_or_default();
                        moved.push(younger.clone());
                        seeker = Some((younger, turn + 1));
                    }
                }
            }
        }
        moved
    }

    /// Takes a host away; returns others whose address this changed.
    pub(crate) fn remove(&mut self, claimant: &Claimant) -> Vec<Claimant> {
        let mut moved = Vec::new();
        let Some(turn) = self.turns.remove(claimant) else {
            return moved;
        };
        let mut free = self.release(claimant, 0, turn);
        while let Some(place) = free.take() {
            let Some(next) = self.refused.get(&place).and_then(BTreeSet::first).cloned() else {
                continue;
            };
            let before = self.turns.get(&next).copied().unwrap_or_default();
            let Some(now) = (0..before).find(|turn| next.place(*turn) == place) else {
                continue;
            };
            free = self.release(&next, now, before);
            self.turns.insert(next.clone(), now);
            self.owners.insert(place, next.clone());
            moved.push(next);
        }
        moved
    }

    /// Forgets what a host tried from one turn up to where it stands, and gives the place that it held.
    fn release(&mut self, claimant: &Claimant, from: u32, stands: u32) -> Option<u16> {
        for turn in from..stands {
            let place = claimant.place(turn);
            if let Some(waiting) = self.refused.get_mut(&place) {
                waiting.remove(claimant);
                if waiting.is_empty() {
                    self.refused.remove(&place);
                }
            }
        }
        let held = (stands < MAX_TRIES).then(|| claimant.place(stands))?;
        self.owners.remove(&held);
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_same_in_every_build() {
        // The published test vectors of FNV-1a.
        assert_eq!(fnv1a(b"".iter().copied()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a".iter().copied()), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
    }

    fn claimant(number: usize) -> Claimant {
        let created = Created(i64::try_from(number % 7).unwrap_or_default());
        Claimant {
            created,
            namespace: "n".into(),
            name: "e".into(),
            host: format!("h{number}.example").into(),
        }
    }

    fn outcome(vips: &Vips) -> Vec<(Claimant, Option<[IpAddr; 2]>)> {
        let mut all: Vec<_> = vips
            .turns
            .keys()
            .map(|c| (c.clone(), vips.addresses(c)))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_outcome_depends_only_on_who_is_there() {
        const HOSTS: usize = 20_000;
        let mut forward = Vips::default();
        (0..HOSTS).for_each(|n| drop(forward.insert(claimant(n))));
        let mut backward = Vips::default();
        (0..HOSTS)
            .rev()
            .for_each(|n| drop(backward.insert(claimant(n))));
        assert!(outcome(&forward) == outcome(&backward));
        (0..HOSTS)
            .filter(|n| n % 3 == 0)
            .for_each(|n| drop(forward.remove(&claimant(n))));
        let mut fewer = Vips::default();
        (0..HOSTS)
            .filter(|n| n % 3 != 0)
            .for_each(|n| drop(fewer.insert(claimant(n))));
        assert!(outcome(&forward) == outcome(&fewer));
        assert_eq!(forward.owners.len(), fewer.owners.len());
        (0..HOSTS).for_each(|n| drop(forward.remove(&claimant(n))));
        assert!(
            forward.turns.is_empty() && forward.owners.is_empty() && forward.refused.is_empty()
        );
    }

    #[test]
    fn no_two_hosts_share_an_address_and_a_newcomer_moves_nobody_older() {
        let mut vips = Vips::default();
        let mut seen = std::collections::HashSet::new();
        for number in 0..5_000 {
            let newcomer = Claimant {
                created: Created(i64::from(number)),
                ..claimant(0)
            };
            let newcomer = Claimant {
                host: format!("h{number}").into(),
                ..newcomer
            };
            assert_eq!(vips.insert(newcomer.clone()), [], "older hosts stay");
            let [v4, v6] = vips.addresses(&newcomer).unwrap();
            assert!(seen.insert(v4) && seen.insert(v6));
            assert!(
                v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2::")
            );
        }
    }
}
