//! What proofs read: pages of the shop, and lines of the agents' access logs.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Lab, Pod},
    shell,
};

/// How long a line may take to be written.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// A page as curl got it.
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) seconds: f64,
    pub(super) text: String,
}

impl Page {
    /// Loads a page in a pod, with `marker` as a header. No answer at all is an error.
    pub(super) fn load(lab: &Lab, by: Pod, url: &str, marker: &str) -> Result<Self> {
        let header = format!("x-marker: {marker}");
        let written = "\n%{http_code} %{time_total}";
        let printed = lab.exec(
            by,
            &[
                "curl",
                "-sS",
                "--max-time",
                "5",
                "-H",
                &header,
                "-w",
                written,
                url,
            ],
        );
        let printed = printed.map_err(|error| {
            // What curl says is enough of a reason.
            let text = format!("{error:#}");
            match text.find("curl: (") {
                Some(at) => anyhow::anyhow!("{}", text[at..].trim()),
                None => error,
            }
        })?;
        let (text, figures) = printed
            .rsplit_once('\n')
            .context("curl printed no figures")?;
        let (status, seconds) = figures
            .split_once(' ')
            .context("curl printed other figures")?;
        Ok(Self {
            status: status.parse()?,
            seconds: seconds.parse()?,
            text: text.trim().to_owned(),
        })
    }

    /// The page, if it is one and no message of failure.
    pub(super) fn served(self) -> Result<Self> {
        ensure!(self.status == 200, "the page is {self}");
        Ok(self)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            seconds,
            text,
        } = self;
        write!(f, "{status} in {:.1} ms: {text}", seconds * 1000.0)
    }
}

/// One line of an agent's access log: columns separated by tabs, then fields `name=value`.
pub(super) struct AccessLine(String);

impl AccessLine {
    /// Waits for a line that is `wanted`; the newest is taken.
    pub(super) fn wait(
        lab: &Lab,
        node: &str,
        what: &str,
        wanted: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        shell::wait_for(what, LOG_PATIENCE, || {
            let log = lab.agent_log(node).ok()?;
            let mut lines = log.lines().rev().map(|line| Self(line.to_owned()));
            lines.find(|line| wanted(line))
        })
    }

    /// What the line is about.
    pub(super) fn message(&self) -> &str {
        self.0.split('\t').nth(3).unwrap_or_default()
    }

    /// A field's value as it was written.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.0.split('\t').skip(4);
        let mut named = fields.filter_map(|field| field.split_once('='));
        let (_, value) = named.find(|(key, _)| *key == name)?;
        Some(value)
    }

    /// Why the connection failed, one reason per line.
    pub(super) fn reason(&self) -> String {
        let error = self.field("error").unwrap_or("no reason is given");
        error.trim_matches('"').replace("; ", "\n      ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_line_are_found() {
        let line = AccessLine(
            "2026-11-21T04:05:26Z\twarn\taccess\tconnection failed\tdst.workload=redis\terror=\"denied: a; b\"".to_owned(),
        );
        assert_eq!(line.message(), "connection failed");
        assert_eq!(line.field("dst.workload"), Some("redis"));
        assert_eq!(line.field("workload"), None);
        assert_eq!(line.reason(), "denied: a\n      b");
    }
}
