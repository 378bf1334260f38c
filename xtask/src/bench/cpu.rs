//! CPU time of the whole machine, from the first line of /proc/stat.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Clock ticks per second in /proc: fixed by Linux for user space.
const TICKS_PER_SECOND: f64 = 100.0;
/// user, nice, system, idle, iowait, irq, softirq, steal: which of them is work done here.
const IS_WORK: [bool; 7] = [true, true, true, false, false, true, true];

/// Time spent since boot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CpuTime {
    seconds: f64,
}

impl CpuTime {
    /// As of now.
    pub(super) fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&stat).context("/proc/stat has no cpu line")
    }

    fn parse(stat: &str) -> Option<Self> {
        let fields = stat
            .lines()
            .next()?
            .strip_prefix("cpu ")?
            .split_whitespace();
        let ticks = fields
            .zip(IS_WORK)
            .filter(|(_, work)| *work)
            .map(|(field, _)| field.parse::<f64>().ok());
        Some(Self {
            seconds: ticks.sum::<Option<f64>>()? / TICKS_PER_SECOND,
        })
    }

    /// What was spent between the two.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_secs_f64((self.seconds - earlier.seconds).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_are_no_work() {
        let before = CpuTime::parse("cpu  0 0 0 0 0 0 0 0\n").unwrap();
        let after = CpuTime::parse("cpu  100 100 100 9999 999 50 50 77\n").unwrap();
        assert_eq!(after.since(before), Duration::from_secs(4));
        assert!(CpuTime::parse("intr 5").is_none());
    }
}
