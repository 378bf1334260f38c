//! What a process uses, from /proc.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Resident memory of process `pid` (`self` for this one), in bytes.
pub(crate) fn resident(pid: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("the kernel names no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// CPU time that process `pid` has used, in user and kernel.
pub(crate) fn cpu(pid: &str) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold blanks; utime and stime are the 12th and 13th field after it (proc(5)).
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has no name")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}
