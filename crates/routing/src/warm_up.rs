//! How much of its share a new endpoint gets.
//!
//! Source: Envoy, "Slow start mode": `max(min, (age / duration) ^ (1 / aggression))`.

use std::time::Duration;

use karst_model::traffic::WarmUp;

/// All of the share.
pub const FULL: u32 = 1000;

/// The share of an endpoint that is here for `age`, in thousandths; at least one.
pub fn share(warm_up: &WarmUp, age: Duration) -> u32 {
    if age >= warm_up.duration {
        return FULL;
    }
    let least = f64::from(warm_up.min_percent.min(100)) / 100.0;
    let grown = age.as_secs_f64() / warm_up.duration.as_secs_f64();
    let aggression = f64::from(warm_up.aggression_milli.max(1)) / 1000.0;
    let share = grown.powf(1.0 / aggression).max(least);
    ((share * f64::from(FULL)) as u32).clamp(1, FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_from_the_least_to_all() {
        let warm_up = |aggression_milli| WarmUp {
            duration: Duration::from_secs(100),
            aggression_milli,
            min_percent: 10,
        };
        let at = |aggression, secs| share(&warm_up(aggression), Duration::from_secs(secs));
        assert_eq!([at(1000, 0), at(1000, 50), at(1000, 100)], [100, 500, 1000]);
        assert_eq!(at(2000, 25), 500, "faster at first");
        assert_eq!(at(500, 50), 250, "slower at first");
        assert_eq!(at(0, 50), 100);
        let none = WarmUp {
            duration: Duration::ZERO,
            ..warm_up(1000)
        };
        assert_eq!(share(&none, Duration::ZERO), FULL);
    }
}
