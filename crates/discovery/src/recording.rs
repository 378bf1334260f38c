//! What discovery has to do with recording: it says what is recorded, where the collectors are, and which workloads are
//! gone.

use std::{sync::Arc, time::Duration};

use hashbrown::HashSet;
use karst_model::workload::Workload;
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{
    export::Connect,
    hub::Hub,
    metrics::{http::HttpMetrics, series::Party, tcp::TcpMetrics},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::state::{Change, Changed, State};

/// Between two looks at series that nobody counts in.
const SWEEP: Duration = Duration::from_secs(5);

/// Keeps a program's recording up to date with the state.
pub struct Recorder {
    pub state: Arc<State>,
    pub hub: Arc<Hub>,
    pub tcp: TcpMetrics,
    /// Of a waypoint.
    pub http: Option<HttpMetrics>,
}

/// The name by which metrics know a workload: that of its Deployment, else its own.
fn owner(workload: &Workload) -> Arc<str> {
    match workload.workload_name.is_empty() {
        true => workload.name.clone(),
        false => workload.workload_name.clone(),
    }
}

/// Where a collector is now.
pub fn connect(state: &Arc<State>) -> Connect {
    let state = state.clone();
    Arc::new(move |collector| state.sockets(&collector.service, collector.port))
}

impl Recorder {
    /// Until `shutdown`.
    pub async fn follow(self, shutdown: Shutdown) {
        let mut changes = self.state.changes();
        self.configure();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut workloads_changed = true;
        loop {
            tokio::select! {
                changed = changes.next() => match changed {
                    None => return,
                    Some(Changed::Everything) => {
                        self.configure();
                        workloads_changed = true;
                    }
                    Some(Changed::Some(changes)) => {
                        if changes.contains(&Change::Telemetry) {
                            self.configure();
                        }
                        let of_workload = |change: &Change| matches!(change, Change::Workload(_));
                        workloads_changed |= changes.iter().any(of_workload);
                    }
                },
                _ = sweep.tick() => self.sweep(std::mem::take(&mut workloads_changed)),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn configure(&self) {
        self.hub.configure(self.state.telemetries());
    }

    /// Lets series go: of workloads that are gone, and those that nobody has counted in for long.
    pub fn sweep(&self, workloads_changed: bool) {
        if workloads_changed {
            let live: HashSet<Party> = self
                .state
                .workloads()
                .iter()
                .map(|one| (one.namespace.clone(), owner(one)))
                .collect();
            let is_live = |party: &Party| live.contains(party);
            self.tcp.retire(&is_live);
            if let Some(http) = &self.http {
                http.retire(&is_live);
            }
        }
        self.tcp.sweep();
        if let Some(http) = &self.http {
            http.sweep();
        }
    }
}
