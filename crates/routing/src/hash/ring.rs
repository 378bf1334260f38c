//! A ring of points; a hash belongs to the first point at or after it.

use xxhash_rust::xxh64::xxh64;

use super::Node;

/// Points of each unit of weight, as a power of two: enough that shares are even to about 3 %. It must not depend on how
/// many endpoints there are: if all had more points because one has left, everybody's keys would move.
const POINTS_LOG: i32 = 10;
/// Only a ring that would be larger than this, or smaller than its `min_size`, has fewer or more of them.
const SIZE_MAX: u64 = 1 << 18;
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
        let scale = scale(min_size.min(MIN_SIZE_MAX).into(), total);
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (index, node) in (0..).zip(nodes) {
            let count = points_of(node.weight, scale);
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

/// The power of two that weights are multiplied with.
fn scale(min_size: u64, total: u64) -> i32 {
    let total = total.max(1);
    let largest = SIZE_MAX.max(2 * min_size);
    if total << POINTS_LOG > largest {
        return match largest / total {
            0 => {
                -((total.div_ceil(largest))
                    .next_power_of_two()
                    .ilog2()
                    .cast_signed())
            }
            times => times.ilog2().cast_signed(),
        };
    }
    let least = min_size.div_ceil(total).next_power_of_two().ilog2();
    POINTS_LOG.max(least.cast_signed())
}

fn points_of(weight: u32, scale: i32) -> u64 {
    let weight = u64::from(weight);
    match weight {
        0 => 0,
        _ if scale >= 0 => weight << scale,
        _ => (weight >> -scale).max(1),
    }
}
