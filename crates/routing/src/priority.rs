//! How requests fall to levels of endpoints, the nearest level first, as far as it is healthy.
//!
//! Source: Envoy, "Priority levels" with its overprovisioning factor of 1.4: a level takes all requests while 72 % of it
//! are healthy, and gives on what it lacks below that. Of Envoy's panic thresholds we have what Istio sets: none. Only
//! when nobody at all is healthy, everybody counts as healthy.

/// Healthy endpoints stand in for this many more, in percent.
const OVERPROVISIONING: u64 = 140;

/// How many endpoints a level has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub healthy: u32,
    pub total: u32,
}

/// The shares of the levels in percent; they add up to 100 unless there is no endpoint at all.
pub fn split(levels: &[Level]) -> Vec<u32> {
    if levels.iter().all(|level| level.healthy == 0) {
        let first = levels.iter().position(|level| level.total > 0);
        return (0..levels.len())
            .map(|index| if Some(index) == first { 100 } else { 0 })
            .collect();
    }
    let health: Vec<u64> = levels.iter().map(health).collect();
    let all = health.iter().sum::<u64>().min(100);
    let mut left = 100;
    let mut shares: Vec<u32> = health
        .iter()
        .map(|health| {
            let share = (health * 100 / all).min(left);
            left -= share;
            share as u32
        })
        .collect();
    // What rounding left over.
    if let Some(first) = health.iter().position(|health| *health > 0) {
        shares[first] += left as u32;
    }
    shares
}

/// In percent, at most 100; at least 1 where there is a healthy endpoint.
fn health(level: &Level) -> u64 {
    if level.healthy == 0 {
        return 0;
    }
    let healthy = u64::from(level.healthy.min(level.total));
    (healthy * OVERPROVISIONING / u64::from(level.total.max(1))).clamp(1, 100)
}

/// The level that a number drawn evenly from all of `u64` falls to.
pub fn pick(shares: &[u32], random: u64) -> Option<usize> {
    let all: u64 = shares.iter().map(|share| u64::from(*share)).sum();
    let point = ((u128::from(random) * u128::from(all)) >> 64) as u64;
    let mut below = 0;
    shares.iter().position(|share| {
        below += u64::from(*share);
        point < below
    })
}

/// Whether endpoints that the request has been to may be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    Avoided,
    Allowed,
}

/// An endpoint of level `first`, or where that has none that is fit, of the levels after it and then of those before it:
/// one that was not tried, else one that was, else whoever there is. `draw` gives one of a level, and says whether it is
/// fit.
pub fn find<T>(
    levels: usize,
    first: usize,
    mut draw: impl FnMut(usize, Tried) -> Option<(T, bool)>,
) -> Option<T> {
    let mut somebody = None;
    for tried in [Tried::Avoided, Tried::Allowed] {
        for level in (first..levels).chain(0..first.min(levels)) {
            match draw(level, tried) {
                Some((drawn, true)) => return Some(drawn),
                Some((drawn, false)) => {
                    somebody.get_or_insert(drawn);
                }
                None => {}
            }
        }
    }
    somebody
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_fit_comes_before_who_is_near_and_who_was_tried_before_who_is_not_fit() {
        // Of each level: who is drawn while those tried are avoided, and otherwise; fit or not.
        type Level = [Option<(char, bool)>; 2];
        let found = |levels: &[Level], first: usize| {
            find(levels.len(), first, |level, tried| {
                levels[level][usize::from(tried == Tried::Allowed)]
            })
        };
        let (a, b, c) = (Some(('a', true)), Some(('b', true)), Some(('c', true)));
        let ejected = Some(('e', false));
        assert_eq!(found(&[[a, a], [b, b]], 0), Some('a'));
        assert_eq!(found(&[[a, a], [b, b], [c, c]], 1), Some('b'));
        assert_eq!(found(&[[ejected, a], [b, b]], 0), Some('b'));
        assert_eq!(found(&[[c, c], [ejected, a]], 1), Some('c'));
        assert_eq!(found(&[[ejected, a], [None, None]], 0), Some('a'));
        assert_eq!(found(&[[None, None], [ejected, ejected]], 0), Some('e'));
        assert_eq!(found(&[], 0), None);
    }

    fn shares(levels: &[(u32, u32)]) -> Vec<u32> {
        let level = |(healthy, total): &(u32, u32)| Level {
            healthy: *healthy,
            total: *total,
        };
        split(&levels.iter().map(level).collect::<Vec<_>>())
    }

    #[test]
    fn the_nearest_level_takes_all_until_too_many_are_unhealthy() {
        assert_eq!(shares(&[(10, 10), (10, 10)]), [100, 0]);
        assert_eq!(shares(&[(72, 100), (10, 10)]), [100, 0]);
        assert_eq!(shares(&[(50, 100), (10, 10)]), [70, 30]);
        assert_eq!(shares(&[(0, 10), (10, 10)]), [0, 100]);
        assert_eq!(shares(&[(0, 10), (25, 100), (10, 10)]), [0, 35, 65]);
    }

    #[test]
    fn few_healthy_ones_take_everything_where_there_are_no_others() {
        assert_eq!(shares(&[(1, 10)]), [100]);
        assert_eq!(shares(&[(20, 100), (20, 100)]), [50, 50]);
    }

    #[test]
    fn where_nobody_is_healthy_the_nearest_get_it() {
        assert_eq!(shares(&[(0, 0), (0, 3), (0, 9)]), [0, 100, 0]);
        assert_eq!(shares(&[]), [0; 0]);
        assert_eq!(pick(&[], 7), None);
    }
}
