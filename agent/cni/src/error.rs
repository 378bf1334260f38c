//! Failures as the CNI specification wants them: a code, what happened, and on standard output as JSON.

use std::{io, path::PathBuf};

use serde_json::json;

/// Newest version of the specification that we speak; errors are written in it.
pub(crate) const NEWEST: &str = "1.1.0";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error(
        "cniVersion {version:?} is not one of {supported}: install a karst-cni of the cluster's age"
    )]
    Version { version: String, supported: String },
    #[error("environment: {0}")]
    Environment(String),
    #[error("cannot read the configuration from standard input: {0}")]
    Input(#[source] io::Error),
    #[error("the configuration on standard input is longer than {limit} bytes")]
    TooLong { limit: u64 },
    #[error("the configuration is not understood: {0}")]
    Decode(#[source] serde_json::Error),
    #[error("configuration: {0}")]
    Config(String),
    #[error(
        "the karst agent of this node does not answer at {}, and namespace {namespace} is not known to be outside the mesh: \
         the pod starts when the agent is back", socket.display()
    )]
    NoAgent {
        socket: PathBuf,
        namespace: String,
        source: io::Error,
    },
    #[error("the karst agent refuses pod {pod}: {reason}")]
    Refused {
        pod: String,
        reason: String,
        retry: bool,
    },
}

impl CniError {
    /// Codes 1 to 99 are the specification's, from 100 on our own.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Environment(_) => 4,
            Self::Input(_) | Self::TooLong { .. } => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::NoAgent { .. } | Self::Refused { retry: true, .. } => 11,
            Self::Refused { retry: false, .. } => 100,
        }
    }

    /// The error object of the specification.
    pub(crate) fn to_json(&self) -> String {
        let details = std::error::Error::source(self)
            .map(ToString::to_string)
            .unwrap_or_default();
        json!({"cniVersion": NEWEST, "code": self.code(), "msg": self.to_string(), "details": details}).to_string()
    }
}
