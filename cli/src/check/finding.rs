//! One result of a check.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What was looked at, what was found, what to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// Short name of the check; stable, scripts may use it.
    pub(crate) check: String,
    /// What it is about: a node, a namespace, an object; empty for the cluster.
    #[serde(default)]
    pub(crate) subject: String,
    pub(crate) verdict: Verdict,
    pub(crate) message: String,
    /// The one setting to change; empty where nothing is wrong.
    #[serde(default)]
    pub(crate) fix: String,
}

/// How bad it is, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Fine,
    Warning,
    Failure,
}

impl Finding {
    pub(crate) fn fine(check: &str, subject: &str, message: impl Into<String>) -> Self {
        Self::new(Verdict::Fine, check, subject, message.into(), String::new())
    }

    pub(crate) fn warning(
        check: &str,
        subject: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Warning, check, subject, message.into(), fix.into())
    }

    pub(crate) fn failure(
        check: &str,
        subject: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Failure, check, subject, message.into(), fix.into())
    }

    fn new(verdict: Verdict, check: &str, subject: &str, message: String, fix: String) -> Self {
        Self {
            check: check.to_owned(),
            subject: subject.to_owned(),
            verdict,
            message,
            fix,
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        self.verdict == Verdict::Failure
    }

    pub(crate) fn is_fine(&self) -> bool {
        self.verdict == Verdict::Fine
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Fine => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILED ",
        };
        write!(f, "{mark}  {}", self.check)?;
        if !self.subject.is_empty() {
            write!(f, " [{}]", self.subject)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.fix.is_empty() {
            write!(f, "\n         -> {}", self.fix)?;
        }
        Ok(())
    }
}
