//! What discovery has to do with recording: it says what is recorded, where the collectors are, and which workloads are
//! gone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hashbrown::HashSet;
use karst_identity::tls::{Inside, Origination};
use karst_model::{
    telemetry::{Collector, OtlpProtocol},
    traffic::UpstreamTls,
    workload::Workload,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{
    export::{Connect, Io, Reach, Securing},
    hub::Hub,
    metrics::{http::HttpMetrics, series::Party, tcp::TcpMetrics},
};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};

use crate::state::{Change, Changed, State};

/// Between two looks at series that nobody counts in.
const SWEEP: Duration = Duration::from_secs(5);
/// For the TLS handshake with a collector.
const HANDSHAKE: Duration = Duration::from_secs(3);

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

/// How collectors are reached.
pub fn connect(state: &Arc<State>) -> Connect {
    Arc::new(Collectors(state.clone()))
}

struct Collectors(Arc<State>);

impl Reach for Collectors {
    fn addresses(&self, collector: &Collector) -> Vec<SocketAddr> {
        self.0.sockets(&collector.service, collector.port)
    }

    fn secure(&self, collector: &Collector, tls: &UpstreamTls, stream: TcpStream) -> Securing {
        let inside = match collector.protocol {
            OtlpProtocol::Grpc => Inside::Http2,
            OtlpProtocol::Http { .. } => Inside::Http1,
        };
        let made = Origination::new(tls, &collector.service.hostname, inside);
        Box::pin(async move {
            let secured = made?.connect(stream, HANDSHAKE).await?;
            let secured: Box<dyn Io> = Box::new(secured);
            Ok(secured)
        })
    }
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

#[cfg(test)]
mod tests {
    use karst_telemetry::metrics::{
        Registry,
        tcp::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels},
    };

    use super::*;
    use crate::update::{Kind, Update};

    fn labels(name: &str) -> TcpLabels {
        let peer = |name: &str| Peer {
            workload: name.into(),
            canonical_service: name.into(),
            canonical_revision: "latest".into(),
            namespace: "shop".into(),
            principal: format!("spiffe://cluster.local/ns/shop/sa/{name}").into(),
            app: name.into(),
            version: "latest".into(),
            cluster: "Kubernetes".into(),
            ..Peer::default()
        };
        TcpLabels {
            reporter: Reporter::Source,
            source: peer(name),
            destination: peer("orders"),
            service: ServiceLabels {
                host: "orders.shop.svc.cluster.local".into(),
                namespace: "shop".into(),
                name: "orders".into(),
            },
            response_flags: ResponseFlags::None,
            security: Security::MutualTls,
        }
    }

    fn total(page: &str, metric: &str) -> u64 {
        let lines = page.lines().filter(|line| line.starts_with(metric));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    }

    /// 10,000 workloads that live shortly, as discovery tells of them: the page stays small, and no count is lost.
    #[test]
    fn workloads_that_come_and_go_leave_a_small_page_and_exact_totals() {
        let registry = Registry::new();
        let recorder = Recorder {
            state: Arc::new(State::new()),
            hub: Arc::new(Hub::new(&registry)),
            tcp: TcpMetrics::register(&registry),
            http: None,
        };
        let (mut opened, mut bytes, mut largest) = (0, 0, (0, 0));
        let uid = |number: usize| format!("Kubernetes//Pod/shop/job-{number}");
        for number in 0..10_000usize {
            let name = format!("job-{number}");
            let workload = Workload {
                name: name.as_str().into(),
                namespace: "shop".into(),
                workload_name: name.as_str().into(),
                ..Workload::new(&uid(number))
            };
            let orders = Workload {
                name: "orders".into(),
                namespace: "shop".into(),
                ..Workload::new("Kubernetes//Pod/shop/orders")
            };
            recorder.state.apply([
                Update::Workload(Arc::new(workload)),
                Update::Workload(Arc::new(orders)),
            ]);
            let handles = recorder.tcp.handles(&labels(&name));
            for connection in 0..=number % 3 {
                handles.opened.inc();
                handles.received.inc_by((number * 7 + connection) as u64);
                handles.closed.inc();
                opened += 1;
                bytes += (number * 7 + connection) as u64;
            }
            drop(handles);
            if number >= 50 {
                let gone = uid(number - 50).as_str().into();
                recorder.state.apply([Update::Removed(Kind::Address, gone)]);
            }
            if number % 100 == 99 {
                recorder.sweep(true);
                let page = registry.encode();
                largest = (
                    largest
                        .0
                        .max(page.lines().filter(|l| !l.starts_with('#')).count()),
                    largest.1.max(page.len()),
                );
                assert_eq!(total(&page, "istio_tcp_connections_opened_total"), opened);
                assert_eq!(total(&page, "istio_tcp_connections_closed_total"), opened);
                assert_eq!(total(&page, "istio_tcp_received_bytes_total"), bytes);
            }
        }
        let (series, size) = largest;
        assert!(
            series < 5000 && size < 2_000_000,
            "{series} series, {size} bytes"
        );
        assert!(series > 100, "those that live have series of their own");
    }
}
