//! A ring of points; a hash belongs to the first point at or after it.

use xxhash_rust::xxh64::xxh64;

use super::Node;

/// Points of a ring of small `min_size`: enough that shares are even to about 2 %.
const POINTS: u64 = 32_768;
/// The largest `min_size` that is honoured.
const MIN_SIZE_MAX: u32 = 1 << 22;

#[derive(Clone, Debug)]
pub(super) struct Ring {
    /// Ordered by hash.
    points: Box<[(u64, u32)]>,
    has: Box<[bool]>,
    pub(super) nodes: usize,
}

impl Ring {
    pub(super) fn new(min_size: u32, nodes: &[Node<'_>]) -> Self {
        let total = nodes.iter().map(|node| u64::from(node.weight)).sum();
        let wanted = POINTS.max(2 * u64::from(min_size.min(MIN_SIZE_MAX)));
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (index, node) in (0..).zip(nodes) {
            let count = points_of(node.weight, total, wanted);
            points.extend((0..count).map(|number| (xxh64(node.name.as_bytes(), number), index)));
        }
        // Of two points at one place the one of the smaller name counts, whatever the order of the nodes.
        let name = |index: u32| nodes.get(index as usize).map(|node| node.name);
        points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| name(a.1).cmp(&name(b.1))));
        points.dedup_by_key(|point| point.0);
        let mut has = vec![false; nodes.len()];
        for (_, index) in &points {
            has[*index as usize] = true;
        }
        Self {
            points: points.into(),
            has: has.into(),
            nodes: nodes.len(),
        }
    }

    pub(super) fn place(&self, hash: u64) -> usize {
        self.points.partition_point(|point| point.0 < hash) % self.points.len().max(1)
    }

    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    pub(super) fn node(&self, place: usize) -> usize {
        self.points[place].1 as usize
    }

    pub(super) fn has(&self, node: usize) -> bool {
        self.has[node]
    }
}

/// The weight times a power of two, so that the points of a node stay when the total changes a little.
fn points_of(weight: u32, total: u64, wanted: u64) -> u64 {
    let weight = u64::from(weight);
    if weight == 0 {
        return 0;
    }
    let points = if total <= wanted {
        weight << (wanted / total).ilog2()
    } else {
        weight >> (total.div_ceil(wanted)).next_power_of_two().ilog2()
    };
    points.max(1)
}
