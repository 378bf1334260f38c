//! P30 and P32: agents follow a controller; a policy changes, then the controller is away for a moment.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use karst_proto::type_url;
use karst_runtime::supervise::spawn_connection;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tonic::transport::Channel;

use crate::{
    AgentsArgs,
    agent::{Agent, Heard, Stream},
    controller::Controller,
    objects::{Size, namespace_name},
    process,
};

/// Longest wait for all agents to hear of one change, or to come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between attempts of an agent that lost its controller, doubled up to a second as the real one's is.
const BACKOFF: Duration = Duration::from_millis(10);

pub(crate) async fn run(args: &AgentsArgs) -> Result<Vec<Value>> {
    let size = Size {
        nodes: args.agents,
        services: (args.workloads / 10).max(1),
        workloads: args.workloads,
    };
    let mut controller = Controller::start(&args.controller, size.objects()).await?;
    let mut agents = Agents::start(&controller, size, args.agents).await?;
    let memory = process::resident(&controller.pid())?;
    let mut times = Vec::new();
    let cpu = process::cpu(&controller.pid())?;
    for round in 0..args.changes {
        times.extend(agents.change(&controller, round).await?);
    }
    let cpu = process::cpu(&controller.pid())?.saturating_sub(cpu);
    times.sort_unstable();
    let reconnect = agents.reconnect(&mut controller).await?;
    Ok(vec![
        json!({
            "id": "P30",
            "what": format!("policy file written to held by each of {} agents, {} workloads", args.agents, args.workloads),
            "karst": ms(percentile(&times, 50)),
            "p99": ms(percentile(&times, 99)),
            "max": times.last().copied().map(ms),
            "unit": "ms p50",
            "controller_cpu_ms_per_change": ms(cpu) / args.changes.max(1) as f64,
            "controller_memory_mb": memory as f64 / 1e6,
        }),
        reconnect,
    ])
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// What the tasks of the agents share.
struct Shared {
    /// Opens a connection; replaced by nothing, the address stays over restarts.
    dial: Box<dyn Fn() -> DialFuture + Send + Sync>,
    resent: AtomicUsize,
}

type DialFuture = std::pin::Pin<Box<dyn Future<Output = Result<Channel>> + Send>>;

struct Agents {
    count: usize,
    held: usize,
    heard: mpsc::Receiver<(usize, Heard)>,
    /// How many agents are in step after their newest connection.
    in_step: watch::Receiver<usize>,
    shared: Arc<Shared>,
    steps: watch::Sender<usize>,
}

impl Agents {
    async fn start(controller: &Controller, size: Size, count: usize) -> Result<Self> {
        let (report, heard) = mpsc::channel(count * 16);
        let (steps, in_step) = watch::channel(0);
        let shared = Arc::new(Shared {
            dial: Box::new(controller.dialler()?),
            resent: AtomicUsize::new(0),
        });
        let mut held = 0;
        for index in 0..count {
            let channel = (shared.dial)().await?;
            let node = size.node(index);
            let bearer = controller.join(channel.clone(), &node).await?;
            let mut agent = Agent::new(node, bearer);
            let mut stream = agent.open(channel).await?;
            timeout(PATIENCE, agent.catch_up(&mut stream))
                .await
                .context("an agent was not given the mesh")??;
            held += agent.holds();
            let follow = follow(
                (index, agent, stream),
                report.clone(),
                steps.clone(),
                shared.clone(),
            );
            spawn_connection("simulated agent", follow);
        }
        Ok(Self {
            count,
            held,
            heard,
            in_step,
            shared,
            steps,
        })
    }

    /// Writes a policy and waits until each agent holds it; the time that each took.
    async fn change(&mut self, controller: &Controller, round: usize) -> Result<Vec<Duration>> {
        let name = format!("change-{round}");
        let policy = policy(&name);
        let wanted = format!("{}/{name}", namespace_name(0));
        let start = Instant::now();
        controller.write(&format!("{name}.yaml"), &policy)?;
        let mut waiting: BTreeSet<usize> = (0..self.count).collect();
        let mut times = Vec::with_capacity(self.count);
        while !waiting.is_empty() {
            let (agent, heard) = timeout(PATIENCE, self.heard.recv())
                .await
                .context("an agent never heard of a policy")?
                .context("all agents are gone")?;
            let is_it = heard.kind == type_url::AUTHORIZATION && heard.names.contains(&wanted);
            if is_it && waiting.remove(&agent) {
                times.push(heard.at - start);
            }
        }
        Ok(times)
    }

    /// Kills the controller, starts it again, and waits until every agent is in step.
    async fn reconnect(&mut self, controller: &mut Controller) -> Result<Value> {
        self.steps.send_replace(0);
        controller.restart()?;
        controller.wait().await?;
        let start = Instant::now();
        let count = self.count;
        timeout(PATIENCE, self.in_step.wait_for(|agents| *agents >= count))
            .await
            .context("agents did not come back")??;
        let resent = self.shared.resent.load(Ordering::Relaxed);
        Ok(json!({
            "id": "P32",
            "what": format!("{count} agents in step again, from the moment the new controller answers"),
            "karst": start.elapsed().as_secs_f64(),
            "unit": "s",
            "resent_percent": 100.0 * resent as f64 / self.held.max(1) as f64,
            "controller_memory_mb": process::resident(&controller.pid())? as f64 / 1e6,
        }))
    }
}

/// One agent to the end of the program: reads, and comes back when the stream breaks.
async fn follow(
    (index, mut agent, mut stream): (usize, Agent, Stream),
    report: mpsc::Sender<(usize, Heard)>,
    steps: watch::Sender<usize>,
    shared: Arc<Shared>,
) {
    loop {
        while let Ok(heard) = agent.next(&mut stream).await {
            if report.send((index, heard)).await.is_err() {
                return;
            }
        }
        stream = come_back(&mut agent, &shared).await;
        steps.send_modify(|agents| *agents += 1);
    }
}

async fn come_back(agent: &mut Agent, shared: &Shared) -> Stream {
    let mut pause = BACKOFF;
    loop {
        let attempt = async {
            let mut stream = agent.open((shared.dial)().await?).await?;
            let resent = agent.catch_up(&mut stream).await?;
            shared.resent.fetch_add(resent, Ordering::Relaxed);
            anyhow::Ok(stream)
        };
        match attempt.await {
            Ok(stream) => return stream,
            Err(_not_yet) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {}}}\n\
         spec: {{action: DENY, rules: [{{from: [{{source: {{principals: [cluster.local/ns/x/sa/{name}]}}}}]}}]}}\n",
        namespace_name(0)
    )
}
