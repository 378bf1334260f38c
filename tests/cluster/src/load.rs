//! `karst-echo load` in a pod: new connections at a steady rate, long ones beside them, each exchange checked.

use std::{
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::{Cluster, eventually};

/// Load that runs until it is told to end, or its time is over.
pub struct Load {
    child: Child,
    pod: String,
    stop_file: String,
}

/// How much load, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// New connections a second.
    pub rate: u32,
    /// Connections that stay open for the whole time.
    pub long: u32,
    /// How long new connections are opened at most.
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
        Self::spawn(cluster, pod, &words)
    }

    /// A command of karst-echo that knows `--stop-file`.
    pub fn spawn(cluster: &Cluster, pod: &str, words: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let stop_file = format!("/stop-{}-{count}", std::process::id());
        let words = [words, &["--stop-file", &stop_file]].concat();
        Self {
            child: cluster.spawn(pod, &words),
            pod: pod.to_owned(),
            stop_file,
        }
    }

    /// Ends it, which must still run: what came after its end would not have been measured.
    pub fn stop(mut self, cluster: &Cluster) -> Value {
        assert!(!self.is_over(), "the load ended before what it is for");
        let told = cluster.exec(&self.pod, &["touch", &self.stop_file]);
        assert!(told.status.success(), "{told:?}");
        self.report()
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
