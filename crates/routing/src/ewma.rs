//! How slow an endpoint is: a mean of response times that forgets with time and that a peak raises at once.
//!
//! Source: "peak EWMA" of Finagle's aperture and p2c balancers. The cost of an endpoint is its mean times the requests
//! that it would have with one more.

use std::time::Duration;

/// Time in which a measurement loses all but 1/e of its weight.
const TAU_MILLIS: f64 = 10_000.0;
/// What an endpoint that nobody measured and that is working on its first request costs, in microseconds: the others
/// come first until it has answered.
const UNKNOWN_MICROS: f64 = 1e9;

/// The mean of one endpoint. It fits into 64 bits, so that threads can share it without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ewma {
    /// 0: nothing was measured.
    micros: f32,
    /// Milliseconds on a clock that wraps.
    at_millis: u32,
}

impl Ewma {
    /// A response took `took`. `now` is the time since some fixed moment.
    pub fn observe(&mut self, now: Duration, took: Duration) {
        let took = (took.as_secs_f64() * 1e6).max(1.0);
        let old = self.value(now);
        let mean = match self.micros {
            0.0 => took,
            _ if took >= f64::from(self.micros) => took,
            _ => old + took * (1.0 - self.kept(now)),
        };
        *self = Self {
            micros: mean.max(1.0) as f32,
            at_millis: millis(now),
        };
    }

    /// What one more request would cost an endpoint that works on `in_flight`, in microseconds.
    pub fn cost(&self, now: Duration, in_flight: u32) -> u64 {
        let requests = f64::from(in_flight) + 1.0;
        if self.micros == 0.0 {
            return if in_flight == 0 {
                0
            } else {
                (UNKNOWN_MICROS * requests) as u64
            };
        }
        (self.value(now) * requests) as u64
    }

    pub fn to_bits(self) -> u64 {
        (u64::from(self.at_millis) << 32) | u64::from(self.micros.to_bits())
    }

    pub fn from_bits(bits: u64) -> Self {
        Self {
            micros: f32::from_bits(bits as u32),
            at_millis: (bits >> 32) as u32,
        }
    }

    /// The mean now: an endpoint that gets nothing is forgiven.
    fn value(&self, now: Duration) -> f64 {
        f64::from(self.micros) * self.kept(now)
    }

    fn kept(&self, now: Duration) -> f64 {
        let age = millis(now)
            .wrapping_sub(self.at_millis)
            .cast_signed()
            .max(0);
        (-f64::from(age) / TAU_MILLIS).exp()
    }
}

fn millis(now: Duration) -> u32 {
    now.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_with_time() {
        let mut mean = Ewma::default();
        assert_eq!(mean.cost(ms(0), 0), 0, "somebody has to try it");
        assert!(mean.cost(ms(0), 1) > 1_000_000, "but not everybody");
        mean.observe(ms(0), ms(2));
        assert_eq!(mean.cost(ms(0), 0), 2_000);
        assert_eq!(mean.cost(ms(0), 3), 8_000);
        mean.observe(ms(10), ms(500));
        assert_eq!(mean.cost(ms(10), 0), 500_000);
        mean.observe(ms(10_010), ms(2));
        let after = mean.cost(ms(10_010), 0);
        assert!((180_000..190_000).contains(&after), "{after}");
        assert_eq!(Ewma::from_bits(mean.to_bits()), mean);
    }

    #[test]
    fn the_clock_may_wrap_and_may_be_late() {
        let mut mean = Ewma::default();
        let wrap = ms(u64::from(u32::MAX));
        mean.observe(wrap, ms(100));
        let later = mean.cost(wrap + ms(10_001), 0);
        assert!((36_000..37_000).contains(&later), "{later}");
        assert_eq!(mean.cost(wrap - ms(5), 0), 100_000, "another thread's time");
    }
}
