//! Karst's controllers, sent away for a while.

use crate::{Cluster, cluster::run, wait::eventually};

/// No controller runs until this is dropped.
pub struct ControllersAway<'a>(&'a Cluster);

impl<'a> ControllersAway<'a> {
    /// Returns when none runs any more.
    pub fn send(cluster: &'a Cluster) -> Self {
        let away = Self(cluster);
        away.scale("0");
        eventually("every controller has ended", || {
            let label = "app.kubernetes.io/name=karst-controller";
            let pods = cluster.object(&["-n", "karst-system", "pods", "-l", label]);
            pods["items"].as_array().is_some_and(Vec::is_empty)
        });
        away
    }

    fn scale(&self, replicas: &str) {
        let replicas = format!("--replicas={replicas}");
        let mut scale = self.0.kubectl();
        scale.args(["-n", "karst-system", "scale", "deployment/karst-controller"]);
        run(scale.arg(&replicas));
    }
}

impl Drop for ControllersAway<'_> {
    fn drop(&mut self) {
        self.scale("2");
    }
}
