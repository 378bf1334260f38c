//! Which client connections one replica of a proxy asks to reconnect, so that every replica has about the same to do.
//!
//! A connection stays where it was opened, so a replica that comes later gets nothing from clients that are connected
//! already. Whoever has more than its share lets connections go: as many as it has too many of; and where connections
//! are few and large, so that nothing evens out at any moment (10 over 4), one at a time in turns, so that it evens out
//! over time. Each replica decides for itself, from what the others say they have.

use std::time::Duration;

/// So much more than the mean is nobody's concern.
const TOLERANCE: f64 = 1.1;
/// Below so many requests per second and replica nothing is moved.
const WORTH: f64 = 10.0;
/// A connection stays at least so long.
const STAYS: Duration = Duration::from_secs(2);
/// How long what was moved takes to be seen where it went.
const SETTLES: Duration = Duration::from_millis(900);
/// So many connections may be moved at once, and of more a quarter.
const AT_ONCE: usize = 8;

/// One client connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub id: u64,
    /// Requests per second.
    pub rate: f64,
    pub age: Duration,
}

/// When something was moved last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    quiet_until: Duration,
}

impl Share {
    /// The connections that should reconnect now. `own`: those of this replica that have not been asked already.
    /// `others`: requests per second of each other replica. `now`: since any fixed moment.
    pub fn decide(&mut self, now: Duration, own: &[Load], others: &[f64]) -> Vec<u64> {
        let has: f64 = own.iter().map(|one| one.rate).sum();
        let mean = (has + others.iter().sum::<f64>()) / (others.len() + 1) as f64;
        let Some(least) = others.iter().copied().reduce(f64::min) else {
            return Vec::new();
        };
        if now < self.quiet_until || mean < WORTH || has <= mean * TOLERANCE {
            return Vec::new();
        }
        let mut may_go: Vec<&Load> = own
            .iter()
            .filter(|one| one.rate > 0.0 && one.age >= STAYS)
            .collect();
        let mut chosen = surplus(&mut may_go, own.len(), has - mean);
        if chosen.is_empty() {
            chosen.extend(turn(&may_go, has, least));
        }
        if !chosen.is_empty() {
            self.quiet_until = now + SETTLES;
        }
        chosen
    }
}

/// As many as make up what is too much and no more, the busiest first.
fn surplus(may_go: &mut [&Load], all: usize, mut excess: f64) -> Vec<u64> {
    may_go.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.age.cmp(&a.age)));
    let fits = |one: &&&Load| {
        let fits = one.rate <= excess;
        if fits {
            excess -= one.rate;
        }
        fits
    };
    let most = AT_ONCE.max(all / 4);
    let chosen = may_go.iter().filter(fits).take(most);
    chosen.map(|one| one.id).collect()
}

/// The one that has been here longest, where another replica would then have no more than we have now. A replica's only
/// busy connection stays: it would be too much wherever it went.
fn turn(may_go: &[&Load], has: f64, least: f64) -> Option<u64> {
    if may_go.len() < 2 {
        return None;
    }
    let bearable = |one: &&&Load| least + one.rate <= has * TOLERANCE;
    let longest = may_go.iter().filter(bearable).max_by_key(|one| one.age);
    longest.map(|one| one.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(id: u64, rate: f64) -> Load {
        Load {
            id,
            rate,
            age: Duration::from_secs(60),
        }
    }

    fn loads(rates: &[f64]) -> Vec<Load> {
        let numbered = (0..).zip(rates);
        numbered.map(|(id, rate)| load(id, *rate)).collect()
    }

    fn decide(own: &[f64], others: &[f64]) -> Vec<u64> {
        Share::default().decide(Duration::from_secs(100), &loads(own), others)
    }

    #[test]
    fn nobody_moves_without_reason() {
        assert_eq!(decide(&[50.0; 4], &[]), [0; 0], "alone");
        assert_eq!(decide(&[50.0; 4], &[200.0, 190.0]), [0; 0], "even");
        assert_eq!(decide(&[50.0; 2], &[200.0]), [0; 0], "less than the others");
        assert_eq!(decide(&[1.0; 8], &[0.0, 0.0]), [0; 0], "too little to care");
        assert_eq!(
            decide(&[500.0], &[0.0, 0.0]),
            [0; 0],
            "one connection cannot be shared"
        );
        assert_eq!(decide(&[0.0; 500], &[900.0]), [0; 0], "idle connections");
    }

    #[test]
    fn what_is_too_much_goes_at_once_and_then_it_waits() {
        let mut share = Share::default();
        let ten = loads(&[100.0; 10]);
        let gone = share.decide(Duration::from_secs(100), &ten, &[0.0, 0.0, 0.0]);
        assert_eq!(gone.len(), 7);
        let left: Vec<Load> = ten
            .into_iter()
            .filter(|one| !gone.contains(&one.id))
            .collect();
        // The others do not know yet of what comes.
        let soon = Duration::from_millis(100_800);
        assert_eq!(share.decide(soon, &left, &[0.0, 0.0, 0.0]), [0; 0]);
    }

    #[test]
    fn of_many_a_quarter_goes_at_once() {
        assert_eq!(decide(&[10.0; 1000], &[0.0; 3]).len(), 250);
    }

    #[test]
    fn few_large_ones_take_turns() {
        assert_eq!(decide(&[100.0; 3], &[300.0, 200.0, 200.0]).len(), 1);
        assert_eq!(
            decide(&[100.0; 3], &[250.0, 250.0, 250.0]),
            [0; 0],
            "it would only move the trouble elsewhere"
        );
        let mut young = loads(&[100.0; 3]);
        young[0].age = Duration::from_secs(1);
        young[1].age = Duration::from_secs(90);
        let chosen =
            Share::default().decide(Duration::from_secs(9), &young, &[300.0, 200.0, 200.0]);
        assert_eq!(chosen, [1]);
    }
}
