//! `karst-echo load` in a pod: new connections at a steady rate, long ones beside them, each exchange checked.

use std::process::Child;

use serde_json::Value;

use crate::{Cluster, eventually};

/// Load that runs until its time is over.
pub struct Load {
    child: Child,
}

/// How much load, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// New connections a second.
    pub rate: u32,
    /// Connections that stay open for the whole time.
    pub long: u32,
    /// How long new connections are opened.
    pub seconds: u32,
}

impl Load {
    /// Starts it in a pod (`namespace/name`) that has karst-echo, against `host:port`, as soon as that is reached:
    /// kube-proxy refuses connections to a service until it has heard of the first endpoint.
    pub fn start(cluster: &Cluster, pod: &str, target: &str, amount: Amount) -> Self {
        let try_out = [
            "karst-echo",
            "load",
            target,
            "--rate",
            "5",
            "--duration",
            "1",
        ];
        eventually(&format!("{target} is reached"), || {
            let said = cluster.exec(pod, &try_out).stdout;
            let report: Value = serde_json::from_slice(&said).unwrap_or_default();
            report["failures"] == 0
        });
        let [rate, long, seconds] =
            [amount.rate, amount.long, amount.seconds].map(|number| number.to_string());
        let words = [
            "karst-echo",
            "load",
            target,
            "--rate",
            &rate,
            "--long",
            &long,
            "--duration",
            &seconds,
        ];
        Self {
            child: cluster.spawn(pod, &words),
        }
    }

    /// Whether it has ended, so that what happens from now on would not be measured.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits for its end; its report.
    pub fn report(self) -> Value {
        let said = self.child.wait_with_output().expect("the load ends");
        let text = String::from_utf8_lossy(&said.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no report: {error}: {text}"))
    }
}
