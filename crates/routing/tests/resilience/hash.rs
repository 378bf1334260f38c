//! Hash tables: against naive ones, and how many keys move.

use std::collections::BTreeMap;

use karst_model::traffic::HashTable;
use karst_routing::hash::{Node, Table, hash_of};
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use xxhash_rust::xxh64::xxh64;

use crate::cases;

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("Kubernetes//Pod/shop/web-{number}"))
        .collect()
}

fn nodes<'a>(names: &'a [String], weights: &[u32]) -> Vec<Node<'a>> {
    let pairs = names.iter().zip(weights);
    pairs
        .map(|(name, weight)| Node {
            name,
            weight: *weight,
        })
        .collect()
}

/// The ring as a map; the first point at or after the hash, else the first of all.
fn naive_ring(min_size: u32, nodes: &[Node<'_>]) -> BTreeMap<u64, (String, usize)> {
    let total: u64 = nodes.iter().map(|node| u64::from(node.weight)).sum();
    // 1024 points for each unit of weight, unless the ring is too large or too small then.
    let mut scale = 1024.0;
    let largest = (f64::from(min_size) * 2.0).max(262_144.0);
    while scale * total as f64 > largest {
        scale /= 2.0;
    }
    while scale * (total as f64) < f64::from(min_size) {
        scale *= 2.0;
    }
    let mut ring = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        if node.weight == 0 {
            continue;
        }
        let points = (f64::from(node.weight) * scale).floor().max(1.0) as u64;
        for number in 0..points {
            let point = xxh64(node.name.as_bytes(), number);
            let new = (node.name.to_owned(), index);
            let entry = ring.entry(point).or_insert_with(|| new.clone());
            if new.0 < entry.0 {
                *entry = new;
            }
        }
    }
    ring
}

fn naive_lookup(ring: &BTreeMap<u64, (String, usize)>, hash: u64, avoid: &[bool]) -> Option<usize> {
    let mut walk = ring
        .range(hash..)
        .chain(ring.range(..hash))
        .map(|(_, at)| at.1);
    let first = walk.next()?;
    if !avoid[first] {
        return Some(first);
    }
    walk.find(|index| !avoid[*index]).or(Some(first))
}

#[test]
fn rings_answer_as_a_map_does() {
    const LOOKUPS: u64 = 5_000;
    for seed in 0..cases().div_ceil(LOOKUPS) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let names = names(rng.random_range(1..30));
        let most = if rng.random_bool(0.2) { 100 } else { 5 };
        let weights: Vec<u32> = names.iter().map(|_| rng.random_range(0..most)).collect();
        let nodes = nodes(&names, &weights);
        let min_size = 1 << rng.random_range(0..17);
        let table = Table::new(HashTable::Ring { min_size }, &nodes);
        let ring = match weights.iter().any(|weight| *weight > 0) {
            true => naive_ring(min_size, &nodes),
            false => BTreeMap::new(),
        };
        let avoid: Vec<bool> = names.iter().map(|_| rng.random_bool(0.3)).collect();
        for _ in 0..LOOKUPS {
            let hash = rng.random();
            let found = table.at(hash, |index| avoid[index]);
            assert_eq!(found, naive_lookup(&ring, hash, &avoid), "seed {seed}");
        }
    }
}

/// The table of the paper, section 3.4, with weights as turns that are left out.
fn naive_maglev(size: u64, nodes: &[Node<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..nodes.len()).filter(|n| nodes[*n].weight > 0).collect();
    order.sort_by_key(|index| nodes[*index].name);
    let heaviest = u64::from(order.iter().map(|n| nodes[*n].weight).max().unwrap_or(0));
    let permutation = |index: usize| -> Vec<u64> {
        let name = nodes[index].name.as_bytes();
        let offset = xxh64(name, 0) % size;
        let skip = xxh64(name, 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1;
        (0..size).map(|j| (offset + j * skip) % size).collect()
    };
    let permutations: Vec<Vec<u64>> = order.iter().map(|n| permutation(*n)).collect();
    let mut table: Vec<Option<usize>> = vec![None; size as usize];
    let mut turns = vec![0_u64; order.len()];
    for round in 1.. {
        for (place, index) in order.iter().enumerate() {
            if table.iter().all(Option::is_some) {
                return table.into_iter().map(Option::unwrap).collect();
            }
            let due = u64::from(nodes[*index].weight) * round / heaviest;
            if turns[place] >= due {
                continue;
            }
            turns[place] += 1;
            let free = permutations[place]
                .iter()
                .find(|at| table[**at as usize].is_none());
            table[*free.unwrap() as usize] = Some(*index);
        }
    }
    Vec::new()
}

#[test]
fn maglev_tables_are_those_of_the_paper() {
    const LOOKUPS: u64 = 2_000;
    let primes = [31_u32, 101, 251];
    for seed in 0..cases().div_ceil(LOOKUPS) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let names = names(rng.random_range(1..12));
        let mut weights: Vec<u32> = names.iter().map(|_| rng.random_range(0..4)).collect();
        weights[0] = 1;
        let nodes = nodes(&names, &weights);
        let size = primes[rng.random_range(0..primes.len())];
        let table = Table::new(HashTable::Maglev { size }, &nodes);
        let naive = naive_maglev(size.into(), &nodes);
        let avoid: Vec<bool> = names.iter().map(|_| rng.random_bool(0.3)).collect();
        for _ in 0..LOOKUPS {
            let hash: u64 = rng.random();
            let start = (hash % u64::from(size)) as usize;
            let walk = (0..naive.len()).map(|step| naive[(start + step) % naive.len()]);
            let expected = walk.clone().find(|index| !avoid[*index]);
            let expected = expected.unwrap_or(naive[start]);
            let found = table.at(hash, |index| avoid[index]);
            assert_eq!(found, Some(expected), "seed {seed}");
        }
    }
}

/// The share of keys that are elsewhere after one of `count` endpoints has left, in percent.
fn moved(kind: HashTable, count: usize) -> f64 {
    const KEYS: u64 = 200_000;
    let names = names(count);
    let all = Table::new(kind, &nodes(&names, &vec![1; count]));
    let mut worst = 0.0_f64;
    let ideal = 100.0 / count as f64;
    for gone in [0, count / 2, count - 1] {
        let mut left = names.clone();
        left.remove(gone);
        let fewer = Table::new(kind, &nodes(&left, &vec![1; count - 1]));
        let moved = (0..KEYS)
            .map(|key| hash_of(&key.to_le_bytes()))
            .filter(|hash| {
                let before = &names[all.at(*hash, |_| false).unwrap()];
                let after = &left[fewer.at(*hash, |_| false).unwrap()];
                before != after
            })
            .count();
        let share = moved as f64 * 100.0 / KEYS as f64;
        if (share - ideal).abs() > (worst - ideal).abs() || worst == 0.0 {
            worst = share;
        }
    }
    worst
}

#[test]
fn an_endpoint_that_leaves_moves_its_own_keys_and_hardly_any_others() {
    for count in [5, 10, 30] {
        for kind in [
            HashTable::Ring { min_size: 1024 },
            HashTable::Maglev { size: 65_537 },
        ] {
            let ideal = 100.0 / count as f64;
            let moved = moved(kind, count);
            println!("{kind:?}, {count} endpoints: {moved:.2} % moved, ideal {ideal:.2} %");
            assert!((moved - ideal).abs() <= 1.0, "{kind:?}, {count}: {moved} %");
        }
    }
}

#[test]
fn one_that_is_passed_over_moves_nobody_else() {
    let names = names(10);
    let nodes = nodes(&names, &[1; 10]);
    for kind in [
        HashTable::Ring { min_size: 1024 },
        HashTable::Maglev { size: 65_537 },
    ] {
        let table = Table::new(kind, &nodes);
        for key in 0..50_000_u64 {
            let hash = hash_of(&key.to_le_bytes());
            let own = table.at(hash, |_| false).unwrap();
            let now = table.at(hash, |index| index == 3).unwrap();
            assert!(own == now || own == 3);
            assert_ne!(now, 3);
        }
    }
}

#[test]
fn the_order_of_the_endpoints_does_not_matter() {
    let names = names(10);
    let mut shuffled = names.clone();
    shuffled.shuffle(&mut SmallRng::seed_from_u64(7));
    for kind in [
        HashTable::Ring { min_size: 1 },
        HashTable::Maglev { size: 4_000 },
    ] {
        let one = Table::new(kind, &nodes(&names, &[1; 10]));
        let other = Table::new(kind, &nodes(&shuffled, &[1; 10]));
        for key in 0..10_000_u64 {
            let hash = hash_of(&key.to_le_bytes());
            let (a, b) = (one.at(hash, |_| false), other.at(hash, |_| false));
            assert_eq!(names[a.unwrap()], shuffled[b.unwrap()]);
        }
    }
}

#[test]
fn broken_sizes_still_make_a_table() {
    let names = names(3);
    let nodes = nodes(&names, &[1, 1, 1]);
    for kind in [
        HashTable::Ring { min_size: 0 },
        HashTable::Maglev { size: 0 },
        HashTable::Maglev { size: 4 },
    ] {
        assert!(Table::new(kind, &nodes).at(7, |_| false).is_some());
        assert_eq!(Table::new(kind, &[]).at(7, |_| false), None);
    }
}
