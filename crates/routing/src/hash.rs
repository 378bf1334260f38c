//! Tables that map a request's hash to an endpoint, so that few requests move when endpoints come and go.
//!
//! ```text
//!   key of the request ──hash_of──► u64 ──Ring or Maglev──► place ──(that endpoint is to be avoided)──► next place …
//! ```
//!
//! A table is made of all endpoints, whatever their state: the requests of one that is ejected go to the endpoints at
//! the next places and come back with it, and nobody else's move. Sources: Karger et al. 1997 (ring); Eisenbud et al.,
//! "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

mod maglev;
mod ring;

use karst_model::traffic::HashTable;
use xxhash_rust::xxh64::xxh64;

use self::{maglev::Maglev, ring::Ring};

/// Distinguishes a Maglev skip from its offset.
const SECOND_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// An endpoint as a table knows it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// What stays the same as long as the endpoint is the same.
    pub name: &'a str,
    /// 0: it gets no place.
    pub weight: u32,
}

/// A table. Places hold indices of the nodes that it was made of.
#[derive(Clone, Debug)]
pub struct Table(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Ring(Ring),
    Maglev(Maglev),
}

/// The hash of a request's key.
pub fn hash_of(key: &[u8]) -> u64 {
    xxh64(key, 0)
}

impl Table {
    pub fn new(kind: HashTable, nodes: &[Node<'_>]) -> Self {
        Self(match kind {
            HashTable::Ring { min_size } => Kind::Ring(Ring::new(min_size, nodes)),
            HashTable::Maglev { size } => Kind::Maglev(Maglev::new(size, nodes)),
        })
    }

    /// The node that a hash belongs to. `avoid` names nodes that are passed over while there is another with a place;
    /// `None` where no node has a place.
    pub fn at(&self, hash: u64, avoid: impl Fn(usize) -> bool) -> Option<usize> {
        let places = self.places();
        if places == 0 {
            return None;
        }
        let start = match &self.0 {
            Kind::Ring(ring) => ring.place(hash),
            Kind::Maglev(maglev) => maglev.place(hash),
        };
        let own = self.node(start);
        if !avoid(own) {
            return Some(own);
        }
        // Nodes are few and places are many: each node is asked once.
        let mut last = own;
        let further = (1..places).map(|step| self.node((start + step) % places));
        let mut changes = further.filter(|node| std::mem::replace(&mut last, *node) != *node);
        let nodes = match &self.0 {
            Kind::Ring(ring) => ring.nodes,
            Kind::Maglev(maglev) => maglev.nodes,
        };
        match (0..nodes).any(|node| self.has(node) && !avoid(node)) {
            true => changes.find(|node| !avoid(*node)).or(Some(own)),
            false => Some(own),
        }
    }

    fn has(&self, node: usize) -> bool {
        match &self.0 {
            Kind::Ring(ring) => ring.has(node),
            Kind::Maglev(maglev) => maglev.has(node),
        }
    }

    fn places(&self) -> usize {
        match &self.0 {
            Kind::Ring(ring) => ring.len(),
            Kind::Maglev(maglev) => maglev.len(),
        }
    }

    fn node(&self, place: usize) -> usize {
        match &self.0 {
            Kind::Ring(ring) => ring.node(place),
            Kind::Maglev(maglev) => maglev.node(place),
        }
    }
}
