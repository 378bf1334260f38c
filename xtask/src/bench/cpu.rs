//! CPU time of the whole machine, from the first line of /proc/stat, and of processes, from /proc/PID/stat.

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

/// What is needed of /proc/PID/stat (proc_pid_stat(5)).
pub(super) struct ProcessStat {
    pub(super) pid: u64,
    pub(super) parent: u64,
    ticks: u64,
    pages: u64,
}

impl ProcessStat {
    /// Of a process that runs.
    pub(super) fn of(pid: u64) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        // The name may hold spaces and brackets.
        let fields: Vec<&str> = rest.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: number(4)?,
            ticks: number(14)? + number(15)?,
            pages: number(24)?,
        })
    }

    /// Time that it has spent, in user space and in the kernel.
    pub(super) fn cpu(&self) -> Duration {
        Duration::from_secs_f64(self.ticks as f64 / TICKS_PER_SECOND)
    }

    /// Memory that is resident, in megabytes.
    pub(super) fn memory_mb(&self) -> f64 {
        (self.pages * 4096) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let text =
            "42 (a (b) c) S 7 1 1 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 100 1000 55 1844 1 1\n";
        let stat = ProcessStat::parse(text).unwrap();
        assert_eq!(
            (stat.pid, stat.parent, stat.ticks, stat.pages),
            (42, 7, 42, 55)
        );
    }

    #[test]
    fn idle_waiting_and_stolen_time_are_no_work() {
        let before = CpuTime::parse("cpu  0 0 0 0 0 0 0 0\n").unwrap();
        let after = CpuTime::parse("cpu  100 100 100 9999 999 50 50 77\n").unwrap();
        assert_eq!(after.since(before), Duration::from_secs(4));
        assert!(CpuTime::parse("intr 5").is_none());
    }
}
