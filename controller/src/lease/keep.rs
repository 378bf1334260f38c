//! The shell around [`Election`]: reads and writes the Lease.

use std::time::{Duration, Instant, SystemTime};

use karst_k8s_api::k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use prometheus_client::metrics::gauge::Gauge;
use rand::RngExt as _;
use tokio::sync::watch;

use super::election::{Action, DURATION, Election, MARGIN, Observed};

/// Name of the Lease in the install namespace.
const NAME: &str = "karst-controller";
/// Between looks at the Lease.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest time that one request may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Longest time that one write of a leader may take: shorter than the time between its end and another's beginning.
pub const WRITE_PATIENCE: Duration = MARGIN.saturating_sub(Duration::from_secs(2));

/// Whether this replica leads: for everything that only one of them may do. Cheap to clone.
///
/// It ends by itself: a program that was stopped for a while (a frozen cgroup, a machine without time) must not act on
/// what it was told before, so whoever writes does it with the client of [`super::fenced`].
#[derive(Clone)]
pub struct Leadership(pub(super) watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Whether this replica leads now, by the clock.
    pub fn is_held(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this replica leads. Never returns when the program is going down.
    pub async fn held(&mut self) {
        while !self.is_held() {
            self.changed().await;
        }
    }

    /// Waits until this replica leads no more.
    pub async fn lost(&mut self) {
        loop {
            let Some(until) = *self.0.borrow_and_update() else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.changed() => {}
            }
            if !self.is_held() {
                return;
            }
        }
    }

    async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The task that keeps the Lease, and what it says.
pub fn keep(
    client: Client,
    namespace: &str,
    replica: &str,
    registry: &Registry,
    shutdown: Shutdown,
) -> (Leadership, impl Future<Output = ()> + Send + use<>) {
    let (tx, rx) = watch::channel(None);
    let start: u32 = rand::rng().random();
    let keeper = Keeper {
        leases: Api::namespaced(client, namespace),
        election: Election::new(format!("{replica}_{start:08x}")),
        lease: None,
        leads: tx,
        led: false,
        gauge: registry.register(
            "karst_controller_leader",
            "Whether this replica leads: 1 or 0",
            Gauge::default(),
        ),
        failing: false,
    };
    (Leadership(rx), keeper.run(shutdown))
}

struct Keeper {
    leases: Api<Lease>,
    election: Election,
    /// As it was read last.
    lease: Option<Lease>,
    /// Until when we lead.
    leads: watch::Sender<Option<Instant>>,
    led: bool,
    gauge: Gauge,
    failing: bool,
}

impl Keeper {
    async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_cancelled() {
            self.look().await;
            self.tell();
            let jitter = rand::rng().random_range(0.9..1.1);
            let pause = tokio::time::sleep(PERIOD.mul_f64(jitter));
            shutdown.run_until_cancelled(pause).await;
        }
        self.release().await;
    }

    async fn look(&mut self) {
        let begun = Instant::now();
        let looked = tokio::time::timeout(PATIENCE, self.attempt(begun)).await;
        let trouble = match looked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Chain(&error).to_string()),
            Err(_elapsed) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if let Some(reason) = trouble.as_ref().filter(|_| !self.failing) {
            tracing::warn!(
                reason,
                "Lease {NAME} cannot be read or written: without it nobody writes status and trust bundles"
            );
        }
        self.failing = trouble.is_some();
    }

    async fn attempt(&mut self, begun: Instant) -> kube::Result<()> {
        self.lease = self.leases.get_opt(NAME).await?;
        let observed = self.lease.as_ref().map(observed);
        let action = self.election.handle_read(observed, begun);
        let params = PostParams::default();
        let written = match action {
            Action::Wait => return Ok(()),
            Action::Create => self.leases.create(&params, &self.wanted(action)).await,
            Action::Take | Action::Renew => {
                self.leases
                    .replace(NAME, &params, &self.wanted(action))
                    .await
            }
        };
        match written {
            Ok(_) => self.election.handle_written(begun),
            Err(kube::Error::Api(status)) if status.code == 409 => self.election.handle_conflict(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The Lease as we write it, over the version that was read.
    fn wanted(&self, action: Action) -> Lease {
        let before = self.lease.clone().unwrap_or_default();
        let spec = before.spec.unwrap_or_default();
        let now = now();
        let transitions = spec.lease_transitions.unwrap_or_default();
        let (acquired, transitions) = match action {
            Action::Renew => (spec.acquire_time, transitions),
            _ => (Some(now.clone()), transitions.saturating_add(1)),
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                resource_version: before.metadata.resource_version,
                labels: before.metadata.labels,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.election.name().to_owned()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: acquired,
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    fn tell(&mut self) {
        let leads = self.election.leads(Instant::now());
        self.gauge.set(i64::from(leads));
        self.leads.send_replace(self.election.leads_until());
        if std::mem::replace(&mut self.led, leads) != leads {
            match leads {
                true => tracing::info!(name = self.election.name(), "this replica leads"),
                false => tracing::warn!("this replica leads no more"),
            }
        }
    }

    /// Lets go at the end, so that another replica need not wait.
    async fn release(self) {
        let leads = self.election.leads(Instant::now());
        self.leads.send_replace(None);
        if !leads {
            return;
        }
        let release = async {
            let mut lease = self.leases.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.election.name()) {
                spec.holder_identity = None;
                self.leases
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        let _ = tokio::time::timeout(PATIENCE, release).await;
    }
}

fn observed(lease: &Lease) -> Observed {
    let holder = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.clone());
    Observed {
        holder: holder.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH))
}
