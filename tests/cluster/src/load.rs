//! `karst-echo load` in a pod: new connections at a steady rate, long ones beside them, each exchange checked.

use std::{
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::{Cluster, eventually, until};

/// Load that runs until it is told to end, or its time is over.
pub struct Load {
    child: Child,
    pod: String,
    stop_file: String,
}

/// Load that nobody outside the pod holds: it goes on whatever becomes of the API server, the kubelet and the runtime.
pub struct Detached {
    pod: String,
    stop_file: String,
    report_file: String,
}

impl Detached {
    /// Starts it in a pod with a shell, against `host:port`, as soon as that is reached.
    pub fn start(cluster: &Cluster, pod: &str, target: &str, amount: Amount) -> Self {
        wait_reached(cluster, pod, target);
        let stop_file = stop_file();
        let report_file = format!("{stop_file}-report");
        let [rate, seconds] = [amount.rate, amount.seconds].map(|number| number.to_string());
        let script = format!(
            "setsid karst-echo load {target} --rate {rate} --duration {seconds} --stop-file {stop_file} \
             </dev/null >{report_file} 2>&1 &"
        );
        let started = cluster.exec(pod, &["sh", "-c", &script]);
        assert!(started.status.success(), "{started:?}");
        Self {
            pod: pod.to_owned(),
            stop_file,
            report_file,
        }
    }

    /// Ends it, which must still run: what came after its end would not have been measured.
    pub fn stop(self, cluster: &Cluster) -> Value {
        let said = || cluster.exec(&self.pod, &["cat", &self.report_file]);
        let early = said();
        let runs = early.status.success() && early.stdout.is_empty();
        assert!(runs, "the load ended before what it is for: {early:?}");
        let told = cluster.exec(&self.pod, &["touch", &self.stop_file]);
        assert!(told.status.success(), "{told:?}");
        until("the load's report", || {
            serde_json::from_slice(&said().stdout).ok()
        })
    }
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
        wait_reached(cluster, pod, target);
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
        let stop_file = stop_file();
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

/// A name of its own, so that no load ends by the word for another.
fn stop_file() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("/stop-{}-{count}", std::process::id())
}

fn wait_reached(cluster: &Cluster, pod: &str, target: &str) {
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
}
