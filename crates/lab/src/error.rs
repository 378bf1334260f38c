//! Why something in the lab did not work, and what to do about it.

use std::{io, path::PathBuf};

/// Any failure of the lab. Texts name the object and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The operating system refused.
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    /// A program of the system (ip, nft, ...) failed.
    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
    /// A program is missing or cannot be started.
    #[error(
        "cannot start `{program}`: is the package {package} installed? (`cargo xtask setup` installs it)"
    )]
    Missing {
        program: String,
        package: &'static str,
        source: io::Error,
    },
    /// The user's YAML.
    #[error("{}", .0.join("\n"))]
    Objects(Vec<String>),
    #[error("{0:?} is no lab name: use 1 to 12 letters a-z and digits, starting with a letter")]
    Name(String),
    #[error("no lab named {name} is running: start one with `karst lab up DIR --name {name}`")]
    NotRunning { name: String },
    #[error(
        "lab {name} is already there: `karst lab apply DIR --name {name}` changes it, `karst lab down --name {name}` removes it"
    )]
    AlreadyRunning { name: String },
    #[error("the lab needs root: it makes network namespaces, cgroups and mounts")]
    NotRoot,
    /// The daemon answered with an error.
    #[error("{0}")]
    Daemon(String),
    #[error("the lab's daemon ended; its log is {}", log.display())]
    DaemonGone { log: PathBuf },
    #[error("{0}")]
    NotFound(String),
    #[error("{what} left: {}", left.join(", "))]
    LeftBehind {
        what: &'static str,
        left: Vec<String>,
    },
}

impl LabError {
    /// For `map_err`: wraps an I/O error with what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// The message with all causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
