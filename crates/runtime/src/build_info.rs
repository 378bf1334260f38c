//! Which build is running: printed by `--version`, the admin pages and the `istio_build` metric.

use std::fmt;

/// What is known of the build. The revision is set by `cargo xtask release` through `KARST_REVISION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// The workspace's version.
    pub version: &'static str,
    /// The commit, `unknown` for a build by plain cargo.
    pub revision: &'static str,
    /// `debug` or `release`.
    pub profile: &'static str,
}

/// This build.
pub const BUILD: BuildInfo = BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    revision: match option_env!("KARST_REVISION") {
        Some(revision) => revision,
        None => "unknown",
    },
    profile: if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    },
};

impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.version, self.revision, self.profile)
    }
}

impl BuildInfo {
    /// As JSON, for `/config_dump` and `/version`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "version": self.version, "revision": self.revision, "profile": self.profile })
    }
}
