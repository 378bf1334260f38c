//! A load of karst-echo in a pod that goes on until its test has done what the load is for: how long that takes depends on
//! the machine.

use std::{
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::lab::Lab;

/// Ends the load of a test that has failed, if its lab does not.
const AT_MOST_SECONDS: &str = "900";

/// A running load.
pub struct Load {
    child: Child,
    pod: String,
    stop_file: String,
}

impl Load {
    /// Starts a command of karst-echo that knows `--duration` and `--stop-file` (`load`, `requests`) in a pod.
    pub fn start(lab: &Lab, pod: &str, words: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A pod's own `/tmp`.
        let stop_file = format!("/tmp/stop-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let until = ["--duration", AT_MOST_SECONDS, "--stop-file", &stop_file];
        let command = [&["karst-echo"], words, &until].concat();
        Self {
            child: lab.spawn(pod, &command),
            pod: pod.to_owned(),
            stop_file,
        }
    }

    /// Ends it, which must still run: what came after its end would not have been measured. Its report.
    #[track_caller]
    pub fn stop(mut self, lab: &Lab) -> Value {
        let over = self.child.try_wait().expect("a child");
        assert!(over.is_none(), "the load ended before what it is for");
        lab.exec(&self.pod, &["touch", &self.stop_file]).success();
        let said = self.child.wait_with_output().expect("the load ends");
        let text = String::from_utf8_lossy(&said.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no report: {error}: {said:?}"))
    }
}
