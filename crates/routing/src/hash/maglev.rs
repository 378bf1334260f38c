//! A table that the nodes fill in turn, each in an order of its own.

use xxhash_rust::xxh64::xxh64;

use super::{Node, SECOND_SEED};

/// The largest size that is honoured.
const SIZE_MAX: u64 = 5_000_011;
const FREE: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Maglev {
    table: Box<[u32]>,
    has: Box<[bool]>,
    pub(super) nodes: usize,
}

/// A node's walk through the table.
struct Walk {
    node: u32,
    weight: u64,
    next: u64,
    skip: u64,
    /// Turns are taken when the weight of all rounds reaches this.
    due: u64,
}

impl Maglev {
    pub(super) fn new(size: u32, nodes: &[Node<'_>]) -> Self {
        let size = prime_from(u64::from(size).clamp(2.max(nodes.len() as u64), SIZE_MAX));
        let mut walks = walks(size, nodes);
        let heaviest = walks.iter().map(|walk| walk.weight).max().unwrap_or(0);
        let mut table = vec![FREE; size as usize];
        let mut filled = 0;
        let mut round = 0;
        while filled < size && !walks.is_empty() {
            round += 1;
            for walk in &mut walks {
                if filled == size {
                    break;
                }
                if round * walk.weight < walk.due {
                    continue;
                }
                walk.due += heaviest;
                while table[walk.next as usize] != FREE {
                    walk.next = (walk.next + walk.skip) % size;
                }
                table[walk.next as usize] = walk.node;
                filled += 1;
            }
        }
        let mut has = vec![false; nodes.len()];
        for node in table.iter().filter(|node| **node != FREE) {
            has[*node as usize] = true;
        }
        let table = if walks.is_empty() { Vec::new() } else { table };
        Self {
            table: table.into(),
            has: has.into(),
            nodes: nodes.len(),
        }
    }

    pub(super) fn place(&self, hash: u64) -> usize {
        (hash % self.table.len().max(1) as u64) as usize
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn node(&self, place: usize) -> usize {
        self.table[place] as usize
    }

    pub(super) fn has(&self, node: usize) -> bool {
        self.has[node]
    }
}

/// In the order of the names, so that the table does not depend on that of the nodes.
fn walks(size: u64, nodes: &[Node<'_>]) -> Vec<Walk> {
    let mut order: Vec<usize> = (0..nodes.len())
        .filter(|index| nodes[*index].weight > 0)
        .collect();
    order.sort_unstable_by_key(|index| nodes[*index].name);
    let heaviest = order.iter().map(|index| nodes[*index].weight).max();
    let walk = |index: usize| Walk {
        node: index as u32,
        weight: nodes[index].weight.into(),
        next: xxh64(nodes[index].name.as_bytes(), 0) % size,
        skip: xxh64(nodes[index].name.as_bytes(), SECOND_SEED) % (size - 1) + 1,
        due: heaviest.unwrap_or(0).into(),
    };
    order.into_iter().map(walk).collect()
}

/// The smallest prime that is not below.
fn prime_from(size: u64) -> u64 {
    let is_prime = |n: &u64| {
        *n > 1
            && (2..)
                .take_while(|d| d * d <= *n)
                .all(|d| !n.is_multiple_of(d))
    };
    (size..).find(is_prime).unwrap_or(size)
}
