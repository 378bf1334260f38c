//! Karst on a cluster: images into its nodes, then `karst install`, as a user does it.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Cluster, kubectl};
use crate::{image, release, shell};

/// Where it is installed.
const NAMESPACE: &str = "karst-system";

/// How long the controller and every agent may take until they are ready, in seconds.
const READY_SECONDS: &str = "180";

/// Makes all images, loads them, and installs Karst; one that is installed gets what the new version asks for, such as
/// rights, and is started anew from the new images.
pub(super) fn install(cluster: &Cluster, no_build: bool) -> Result<()> {
    image::load_all(cluster, no_build)?;
    let mut installed = kubectl(&cluster.plan);
    installed.args(["-n", NAMESPACE, "get", "daemonset/karst-agent"]);
    if shell::succeeds(&mut installed) {
        karst(cluster, "upgrade").context("Karst could not be upgraded")?;
        return restart(cluster);
    }
    karst(cluster, "install").context("Karst could not be installed")
}

fn karst(cluster: &Cluster, verb: &str) -> Result<()> {
    let mut karst = Command::new(release::folder().join("karst"));
    karst
        .env("KUBECONFIG", cluster.kubeconfig())
        .args([verb, "--timeout-seconds", READY_SECONDS]);
    shell::run(&mut karst)
}

fn restart(cluster: &Cluster) -> Result<()> {
    let programs = ["deployment/karst-controller", "daemonset/karst-agent"];
    for program in programs {
        let rollout = |verb: &str| {
            let mut rollout = kubectl(&cluster.plan);
            rollout.args(["-n", NAMESPACE, "rollout", verb, program]);
            shell::run(&mut rollout)
        };
        rollout("restart")?;
        rollout("status")?;
    }
    Ok(())
}
