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

use super::election::{Action, DURATION, Election, Observed};

/// Name of the Lease in the install namespace.
const NAME: &str = "karst-controller";
/// Between looks at the Lease.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest time that one request may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether this replica leads: for everything that only one of them may do. Cheap to clone.
#[derive(Clone)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Whether this replica leads now.
    pub fn is_held(&self) -> bool {
        *self.0.borrow()
    }

    /// The same for those who select over it.
    pub fn receiver(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }

    /// Waits until this replica leads. Never returns when the program is going down.
    pub async fn held(&mut self) {
        self.until(true).await;
    }

    /// Waits until this replica leads no more.
    pub async fn lost(&mut self) {
        self.until(false).await;
    }

    async fn until(&mut self, held: bool) {
        if self.0.wait_for(|leads| *leads == held).await.is_err() {
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
    let (tx, rx) = watch::channel(false);
    let start: u32 = rand::rng().random();
    let keeper = Keeper {
        leases: Api::namespaced(client, namespace),
        election: Election::new(format!("{replica}_{start:08x}")),
        lease: None,
        leads: tx,
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
    leads: watch::Sender<bool>,
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

    fn tell(&self) {
        let leads = self.election.leads(Instant::now());
        self.gauge.set(i64::from(leads));
        if self.leads.send_replace(leads) != leads {
            match leads {
                true => tracing::info!(name = self.election.name(), "this replica leads"),
                false => tracing::warn!("this replica leads no more"),
            }
        }
    }

    /// Lets go at the end, so that another replica need not wait.
    async fn release(self) {
        let leads = self.election.leads(Instant::now());
        self.leads.send_replace(false);
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
