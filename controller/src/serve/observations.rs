//! What agents and waypoints observed: their latest denials and failures, and who talks to whom. Kept in memory, bounded,
//! gone with the process; whoever may read is asked of the API server (`read`).

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use karst_policy::token::Rejected;
use karst_proto::reads::{
    Edge, Incident, IncidentKind, Observation, ObservationAnswer, Peer as End,
    observations_server::Observations as Service,
};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::caller::Gate;

/// Incidents that are kept of one program.
const INCIDENTS_MAX: usize = 1000;
/// Programs whose incidents are kept; the one that was heard of longest ago is forgotten first.
const PROGRAMS_MAX: usize = 2000;
/// Edges of the whole mesh; what belongs to further ones is only counted.
const EDGES_MAX: usize = 50_000;
/// Incidents and edges of one message that are looked at: as many as programs send.
const MESSAGE_MAX: (usize, usize) = (500, 2000);
/// Failing collectors of one program.
const COLLECTORS_MAX: usize = 64;
/// Longest text of an incident, in bytes.
const TEXT_MAX: usize = 2048;

/// By provider: which program says that its collector fails, and why.
pub type Failing = BTreeMap<Arc<str>, (Arc<str>, Arc<str>)>;

/// Everything that was observed.
#[derive(Default)]
pub struct Observed {
    state: Mutex<State>,
    /// Counts messages that tell of tokens with keys that nobody knows.
    unknown_keys: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    programs: HashMap<String, Program>,
    edges: HashMap<EdgeKey, Edge>,
    /// Failing collectors as the other replicas know them, while this one leads.
    elsewhere: Vec<Failing>,
    /// Connections and requests of edges that there was no room for.
    beyond: u64,
    heard: u64,
}

/// One start of an agent or a waypoint.
#[derive(Default)]
struct Program {
    /// Node of an agent, or `namespace/name` of a waypoint.
    whose: String,
    sequence: u64,
    incidents: VecDeque<Incident>,
    /// Providers whose collector does not take what the program sends, and why.
    failing: BTreeMap<Arc<str>, Arc<str>>,
    heard: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct EdgeKey {
    direction: String,
    source: (String, String, String),
    destination: (String, String),
    service: String,
    port: u32,
    mutual_tls: bool,
}

/// Waypoints give the refusal of a token as the reason.
fn is_of_unknown_key(reason: &str) -> bool {
    reason == Rejected::KeyUnknown.to_string()
}

impl EdgeKey {
    fn of(edge: &Edge) -> Self {
        Self {
            direction: edge.direction.clone(),
            source: (
                edge.source_namespace.clone(),
                edge.source_workload.clone(),
                edge.source_identity.clone(),
            ),
            destination: (
                edge.destination_namespace.clone(),
                edge.destination_workload.clone(),
            ),
            service: edge.service.clone(),
            port: edge.port,
            mutual_tls: edge.mutual_tls,
        }
    }
}

impl Observed {
    /// Takes a message. One that was taken already changes nothing.
    pub fn take(&self, whose: &str, message: Observation) {
        let mut state = self.lock();
        state.heard += 1;
        let heard = state.heard;
        let program = state.programs.entry(message.program).or_default();
        if message.sequence <= program.sequence {
            return;
        }
        whose.clone_into(&mut program.whose);
        (program.sequence, program.heard) = (message.sequence, heard);
        let incidents = message.incidents.iter().take(MESSAGE_MAX.0);
        if incidents
            .into_iter()
            .any(|one| is_of_unknown_key(&one.reason))
        {
            self.unknown_keys.send_modify(|count| *count += 1);
        }
        for mut incident in message.incidents.into_iter().take(MESSAGE_MAX.0) {
            shorten(&mut incident);
            if program.incidents.len() >= INCIDENTS_MAX {
                program.incidents.pop_front();
            }
            program.incidents.push_back(incident);
        }
        program.failing = message
            .failing_collectors
            .into_iter()
            .take(COLLECTORS_MAX)
            .map(|mut one| {
                truncate(&mut one.error);
                (one.provider.into(), one.error.into())
            })
            .collect();
        state.trim();
        for edge in message.edges.into_iter().take(MESSAGE_MAX.1) {
            state.add(edge);
        }
    }

    /// Changes when a token was refused because its key is not known.
    pub fn unknown_keys(&self) -> watch::Receiver<u64> {
        self.unknown_keys.subscribe()
    }

    /// The program's stream has ended: what it said of collectors is not known to hold.
    pub fn ended(&self, program: &str) {
        if let Some(program) = self.lock().programs.get_mut(program) {
            program.failing.clear();
        }
    }

    /// Collectors that do not take what some program sends: by provider who says so, and why. Of several programs one is
    /// named; `before` if it still says so.
    pub fn failing(&self, before: &Failing) -> Failing {
        let state = self.lock();
        let elsewhere = state.elsewhere.iter().flatten();
        let elsewhere = elsewhere.map(|(provider, said)| (provider.clone(), said.clone()));
        one_each(before, state.failing().chain(elsewhere))
    }

    /// The same, of the programs that follow this replica alone.
    pub fn failing_here(&self, before: &Failing) -> Failing {
        one_each(before, self.lock().failing())
    }

    /// What the other replicas know; replaces what they said before.
    pub fn hear(&self, elsewhere: Vec<Failing>) {
        self.lock().elsewhere = elsewhere;
    }

    /// Incidents with one end in the namespace, or all.
    pub fn incidents(&self, namespace: Option<&str>) -> Vec<Value> {
        let state = self.lock();
        let all = state.programs.values().flat_map(|program| {
            let incidents = program.incidents.iter();
            incidents.map(|incident| (program.whose.as_str(), incident))
        });
        let is_within = |end: &Option<End>| {
            let of = end.as_ref().map(|end| end.namespace.as_str());
            namespace.is_none() || of == namespace
        };
        let within = all.filter(|(_, incident)| {
            is_within(&incident.source) || is_within(&incident.destination)
        });
        let mut shown: Vec<Value> = within
            .map(|(whose, incident)| show(whose, incident))
            .collect();
        shown.sort_by_key(|incident| incident["at"].as_u64());
        shown
    }

    /// Edges with one end in the namespace, or all.
    pub fn edges(&self, namespace: Option<&str>) -> Vec<Value> {
        let state = self.lock();
        let within = state.edges.values().filter(|edge| {
            namespace.is_none_or(|namespace| {
                edge.source_namespace == namespace || edge.destination_namespace == namespace
            })
        });
        let sorted: BTreeMap<String, Value> = within
            .map(|edge| {
                let shown = show_edge(edge);
                (shown.to_string(), shown)
            })
            .collect();
        sorted.into_values().collect()
    }

    /// Every critical section leaves the maps whole, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A provider, who says that its collector fails, and why.
type Said = (Arc<str>, (Arc<str>, Arc<str>));

/// Of several that say it of one collector, one; the one of `before` if it still does.
fn one_each(before: &Failing, all: impl Iterator<Item = Said>) -> Failing {
    let mut failing = Failing::new();
    for (provider, said) in all {
        match before.get(&provider) == Some(&said) {
            true => drop(failing.insert(provider, said)),
            false => drop(failing.entry(provider).or_insert(said)),
        }
    }
    failing
}

impl State {
    /// What the programs that follow us say of collectors.
    fn failing(&self) -> impl Iterator<Item = Said> {
        self.programs.values().flat_map(|program| {
            let failing = program.failing.iter();
            failing.map(|(provider, error)| {
                let said = (program.whose.as_str().into(), error.clone());
                (provider.clone(), said)
            })
        })
    }

    fn trim(&mut self) {
        while self.programs.len() > PROGRAMS_MAX {
            let oldest = self.programs.iter().min_by_key(|(_, one)| one.heard);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.programs.remove(&oldest);
        }
    }

    fn add(&mut self, edge: Edge) {
        let key = EdgeKey::of(&edge);
        let room = self.edges.len() < EDGES_MAX;
        match self.edges.get_mut(&key) {
            Some(known) => {
                known.connections += edge.connections;
                known.requests += edge.requests;
                known.denied += edge.denied;
                known.failed += edge.failed;
                known.request_bytes += edge.request_bytes;
                known.response_bytes += edge.response_bytes;
            }
            None if room => drop(self.edges.insert(key, edge)),
            None => self.beyond += edge.connections + edge.requests,
        }
    }
}

fn shorten(incident: &mut Incident) {
    for text in [
        &mut incident.reason,
        &mut incident.path,
        &mut incident.host,
        &mut incident.method,
        &mut incident.route,
        &mut incident.service,
    ] {
        truncate(text);
    }
}

fn truncate(text: &mut String) {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
    }
}

fn show(whose: &str, incident: &Incident) -> Value {
    let end = |end: &Option<End>| {
        let end = end.clone().unwrap_or_default();
        json!({
            "namespace": end.namespace,
            "workload": end.workload,
            "identity": end.identity,
            "address": end.address,
        })
    };
    let kind = match incident.kind() {
        IncidentKind::Denied => "denied",
        IncidentKind::Failed => "failed",
    };
    json!({
        "at": incident.at,
        "by": whose,
        "number": incident.number,
        "kind": kind,
        "direction": incident.direction,
        "source": end(&incident.source),
        "destination": end(&incident.destination),
        "service": incident.service,
        "flag": incident.flag,
        "reason": incident.reason,
        "method": incident.method,
        "path": incident.path,
        "host": incident.host,
        "status": incident.status,
        "route": incident.route,
        "traceId": incident.trace_id,
    })
}

fn show_edge(edge: &Edge) -> Value {
    json!({
        "direction": edge.direction,
        "sourceNamespace": edge.source_namespace,
        "sourceWorkload": edge.source_workload,
        "sourceIdentity": edge.source_identity,
        "destinationNamespace": edge.destination_namespace,
        "destinationWorkload": edge.destination_workload,
        "service": edge.service,
        "port": edge.port,
        "mutualTls": edge.mutual_tls,
        "connections": edge.connections,
        "requests": edge.requests,
        "denied": edge.denied,
        "failed": edge.failed,
        "requestBytes": edge.request_bytes,
        "responseBytes": edge.response_bytes,
    })
}

/// The service.
pub struct ObservationService {
    pub gate: Gate,
    pub observed: Arc<Observed>,
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Service for ObservationService {
    type ObserveStream =
        Pin<Box<dyn Stream<Item = Result<ObservationAnswer, Status>> + Send + 'static>>;

    async fn observe(
        &self,
        request: Request<Streaming<Observation>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (peer, _caller) = self.gate.proxy(request.metadata()).await?;
        let whose = peer.to_string();
        let (tx, rx) = mpsc::channel(1);
        let (observed, shutdown) = (self.observed.clone(), self.shutdown.clone());
        let mut messages = request.into_inner();
        spawn_connection("observations", async move {
            let mut program = String::new();
            let follow = async {
                while let Ok(Some(message)) = messages.message().await {
                    let sequence = message.sequence;
                    program.clone_from(&message.program);
                    observed.take(&whose, message);
                    let answer = ObservationAnswer { sequence };
                    if tx.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            };
            // Its end is the program's to repair: it opens another stream.
            let _ended = shutdown.run_until_cancelled(follow).await;
            observed.ended(&program);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

#[cfg(test)]
mod tests {
    use karst_proto::reads::FailingCollector;

    use super::*;

    fn message(sequence: u64, incidents: usize, ports: std::ops::Range<u32>) -> Observation {
        let end = |namespace: &str| {
            Some(End {
                namespace: namespace.to_owned(),
                ..End::default()
            })
        };
        let incident = |number: usize| Incident {
            at: number as u64,
            source: end("shop"),
            destination: end("bank"),
            reason: "x".repeat(10_000),
            ..Incident::default()
        };
        let edge = |port| Edge {
            source_namespace: "shop".to_owned(),
            port,
            connections: 1,
            ..Edge::default()
        };
        Observation {
            program: "p".to_owned(),
            sequence,
            incidents: (0..incidents).map(incident).collect(),
            edges: ports.map(edge).collect(),
            ..Observation::default()
        }
    }

    fn connections(edges: &[Value]) -> Vec<u64> {
        let mut counts: Vec<u64> = edges
            .iter()
            .filter_map(|edge| edge["connections"].as_u64())
            .collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn a_message_that_comes_twice_counts_once() {
        let observed = Observed::default();
        observed.take("n1", message(1, 3, 1..3));
        observed.take("n1", message(1, 3, 1..3));
        assert_eq!(observed.incidents(None).len(), 3);
        assert_eq!(connections(&observed.edges(None)), [1, 1]);
        observed.take("n1", message(2, 1, 1..2));
        assert_eq!(observed.incidents(Some("bank")).len(), 4);
        assert!(observed.incidents(Some("other")).is_empty());
        assert_eq!(connections(&observed.edges(Some("shop"))), [1, 2]);
    }

    #[test]
    fn a_failing_collector_is_said_by_one_as_long_as_any_program_says_so() {
        let says = |program: &str, sequence, errors: &[&str]| Observation {
            program: program.to_owned(),
            sequence,
            failing_collectors: errors
                .iter()
                .map(|error| FailingCollector {
                    provider: "otel".to_owned(),
                    error: (*error).to_owned(),
                })
                .collect(),
            ..Observation::default()
        };
        let observed = Observed::default();
        observed.take("n1", says("a", 1, &["refused"]));
        let one = observed.failing(&Failing::new());
        assert_eq!(*one["otel"].0, *"n1");
        for node in 2..9 {
            observed.take(&format!("n{node}"), says(&node.to_string(), 1, &["late"]));
            assert_eq!(observed.failing(&one), one);
        }
        observed.take("n1", says("a", 2, &[]));
        assert_eq!(*observed.failing(&one)["otel"].1, *"late");
        (2..9).for_each(|node| observed.ended(&node.to_string()));
        assert!(observed.failing(&one).is_empty());
    }

    #[test]
    fn what_other_replicas_know_of_collectors_counts_and_is_not_told_again() {
        let observed = Observed::default();
        let of = |whose: &str| Failing::from([("otel".into(), (whose.into(), "refused".into()))]);
        observed.hear(vec![of("n7"), of("n8")]);
        assert_eq!(observed.failing(&of("n8")), of("n8"));
        assert!(observed.failing_here(&Failing::new()).is_empty());
        observed.hear(Vec::new());
        assert!(observed.failing(&of("n8")).is_empty());
    }

    #[test]
    fn whatever_is_sent_memory_is_bounded() {
        let observed = Observed::default();
        for sequence in 1..=60 {
            let first = u32::try_from(sequence).unwrap() * 2000;
            observed.take("n1", message(sequence, 5000, first..first + 5000));
        }
        let state = observed.lock();
        assert_eq!(state.programs["p"].incidents.len(), INCIDENTS_MAX);
        assert!(state.programs["p"].incidents[0].reason.len() <= TEXT_MAX);
        assert_eq!(state.edges.len(), EDGES_MAX);
        assert!(state.beyond > 0);
        drop(state);
        for number in 0..PROGRAMS_MAX + 50 {
            let mut one = message(1, 1, 0..0);
            one.program = number.to_string();
            observed.take("n1", one);
        }
        assert!(observed.lock().programs.len() <= PROGRAMS_MAX);
    }
}
