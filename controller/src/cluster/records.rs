//! What is captured where, in one ConfigMap per node of the install namespace: replicas follow each other by it, and a
//! controller that starts goes on from it. See docs/design on two replicas.
//!
//! ```text
//!   index's owner ──RecordBook──► NodeRecords ──► ConfigMap karst-node-<node> ──watch──► NodeRecords of other replicas
//!                                                                                             └──► Command::Elsewhere
//! ```
//!
//! A node's agent reports to one replica; that one writes. An agent that comes over makes its new replica write, over
//! whatever is there; the former one sees a record that is not its own and follows from then on. Writes name the version
//! that they replace, so that a late one of the former replica is refused.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use karst_index::Event;
use karst_k8s_api::k8s_openapi::{
    api::core::v1::{ConfigMap, Node},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use karst_telemetry::error_chain::Chain;
use kube::{Api, Client, api::PostParams, runtime::watcher};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::{
    mesh::{Command, Published, RecordBook},
    watch::steady,
};

/// Label that marks the ConfigMaps.
const LABEL: &str = "karst.dev/record";
const NODE: &str = "node";
/// Annotation with the replica that wrote it.
const WRITER: &str = "karst.dev/written-by";
/// Keys in it.
const NAME_KEY: &str = "node";
const PODS_KEY: &str = "pods";
/// Longest name of a ConfigMap.
const NAME_MAX: usize = 253;
/// Attempts at one write that somebody else's gets in the way of.
const ATTEMPTS: usize = 4;
/// Longest time that one write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

type Events = Pin<Box<dyn Stream<Item = watcher::Event<ConfigMap>> + Send>>;

/// Keeps and follows the records.
pub struct NodeRecords {
    maps: Api<ConfigMap>,
    nodes: Api<Node>,
    events: Events,
    /// Who we are, in this start.
    instance: String,
    book: Arc<RecordBook>,
    written: BTreeMap<Arc<str>, Written>,
}

/// Our last write of a node's record.
struct Written {
    version: String,
    /// Whether the watch has told of it: what it tells before that is older.
    echoed: bool,
}

/// A record as it was read.
struct Record {
    node: Arc<str>,
    version: String,
    writer: String,
    published: Published,
}

/// How a write ended.
enum Outcome {
    Written,
    /// Another replica has written since: the node is its own.
    Lost(Record),
}

impl NodeRecords {
    pub fn new(client: &Client, namespace: &str, instance: String, book: Arc<RecordBook>) -> Self {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let config = watcher::Config::default()
            .timeout(60)
            .labels(&format!("{LABEL}={NODE}"));
        let events = steady(maps.clone(), config);
        let events = events.filter_map(|event| async move {
            let told = event.inspect_err(|error| {
                tracing::warn!(error = %Chain(error), "node records: watch interrupted, trying again");
            });
            told.ok()
        });
        Self {
            events: Box::pin(events),
            nodes: Api::all(client.clone()),
            maps,
            instance,
            book,
            written: BTreeMap::new(),
        }
    }

    /// The records as they are when we start: all of them are somebody else's.
    pub async fn first(&mut self) -> Vec<Event> {
        let mut all = BTreeMap::new();
        while let Some(event) = self.events.next().await {
            match event {
                watcher::Event::Init => all.clear(),
                watcher::Event::InitApply(map) | watcher::Event::Apply(map) => {
                    let record = Record::read(&map);
                    all.extend(record.map(|record| (record.node, record.published)));
                }
                watcher::Event::InitDone => break,
                watcher::Event::Delete(_) => {}
            }
        }
        all.into_iter()
            .map(|(node, published)| Event::NodeElsewhere {
                node,
                published: published.into_iter().collect(),
            })
            .collect()
    }

    /// Writes what we serve, follows what others do.
    pub async fn keep(mut self, commands: mpsc::Sender<Command>) {
        let book = self.book.clone();
        loop {
            let told = tokio::select! {
                event = self.events.next() => match event {
                    Some(event) => self.told(event),
                    None => return,
                },
                () = book.changed() => None,
            };
            let mut lost: Vec<Record> = told.into_iter().collect();
            while let Some((node, published)) = book.take() {
                match self.write(&node, &published).await {
                    Ok(Outcome::Written) => {}
                    Ok(Outcome::Lost(record)) => lost.push(record),
                    Err(reason) => {
                        tracing::warn!(%node, reason, "node record not written: other replicas and the next start do not know what is captured there; trying again");
                        book.put_back(&node);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
            for Record {
                node, published, ..
            } in lost
            {
                self.written.remove(&node);
                book.forget(&node);
                let elsewhere = Command::Elsewhere { node, published };
                if commands.send(elsewhere).await.is_err() {
                    return;
                }
            }
        }
    }

    /// A record that is another replica's, unless ours is newer.
    fn told(&mut self, event: watcher::Event<ConfigMap>) -> Option<Record> {
        let map = match event {
            watcher::Event::InitApply(map) | watcher::Event::Apply(map) => map,
            watcher::Event::Delete(map) => {
                let record = Record::read(&map)?;
                self.written.remove(&record.node);
                self.book.put_back(&record.node);
                return None;
            }
            watcher::Event::Init | watcher::Event::InitDone => return None,
        };
        let record = Record::read(&map)?;
        let written = self.written.get_mut(&record.node);
        if record.writer == self.instance {
            if let Some(written) = written.filter(|written| written.version == record.version) {
                written.echoed = true;
            }
            return None;
        }
        let ours_is_newer = match written {
            Some(written) => !written.echoed,
            None => self.book.serves(&record.node),
        };
        (!ours_is_newer).then_some(record)
    }

    async fn write(&mut self, node: &Arc<str>, published: &Published) -> Result<Outcome, String> {
        let written = tokio::time::timeout(PATIENCE, self.attempts(node, published)).await;
        match written {
            Ok(outcome) => outcome.map_err(|error| Chain(&error).to_string()),
            Err(_elapsed) => Err(format!("the API server gave no answer within {PATIENCE:?}")),
        }
    }

    async fn attempts(&mut self, node: &Arc<str>, published: &Published) -> kube::Result<Outcome> {
        let name = name(node);
        let params = PostParams::default();
        let mut attempt = 0;
        loop {
            let present = match self.written.get(node) {
                Some(written) => Some(written.version.clone()),
                None => {
                    let present = self.maps.get_opt(&name).await?;
                    present.and_then(|map| map.metadata.resource_version)
                }
            };
            let map = self.map(&name, node, published, present.clone()).await;
            let answer = match present {
                Some(_) => self.maps.replace(&name, &params, &map).await,
                None => self.maps.create(&params, &map).await,
            };
            attempt += 1;
            match answer {
                Ok(map) => {
                    let written = Written {
                        version: map.metadata.resource_version.unwrap_or_default(),
                        echoed: false,
                    };
                    self.written.insert(node.clone(), written);
                    return Ok(Outcome::Written);
                }
                Err(kube::Error::Api(status))
                    if matches!(status.code, 404 | 409) && attempt < ATTEMPTS =>
                {
                    let held = self.written.remove(node).is_some();
                    let map = self.maps.get_opt(&name).await?;
                    let other = map.as_ref().and_then(Record::read);
                    if let Some(record) =
                        other.filter(|other| held && other.writer != self.instance)
                    {
                        return Ok(Outcome::Lost(record));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn map(
        &mut self,
        name: &str,
        node: &Arc<str>,
        published: &Published,
        version: Option<String>,
    ) -> ConfigMap {
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let pods = serde_json::to_string(published).unwrap_or_default();
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                resource_version: version,
                labels: Some(BTreeMap::from([
                    text(LABEL, NODE),
                    text("app.kubernetes.io/part-of", "karst"),
                ])),
                annotations: Some(BTreeMap::from([text(WRITER, &self.instance)])),
                owner_references: self.owner(node).await.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                text(NAME_KEY, node),
                text(PODS_KEY, &pods),
            ])),
            ..ConfigMap::default()
        }
    }

    /// The Node, so that its record goes with it. Where it cannot be read, the record stays.
    async fn owner(&mut self, node: &str) -> Option<OwnerReference> {
        let metadata = self.nodes.get_metadata_opt(node).await.ok()??.metadata;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: metadata.uid?,
            ..OwnerReference::default()
        })
    }
}

impl Record {
    /// None where the ConfigMap is none of ours, or damaged: what was known before stays.
    fn read(map: &ConfigMap) -> Option<Self> {
        let data = map.data.as_ref()?;
        let pods = serde_json::from_str(data.get(PODS_KEY)?);
        let published = pods
            .inspect_err(|error| {
                tracing::warn!(name = map.metadata.name, %error, "node record is damaged: left out until it is written again");
            })
            .ok()?;
        let annotations = map.metadata.annotations.as_ref();
        let writer = annotations.and_then(|all| all.get(WRITER));
        Some(Self {
            node: data.get(NAME_KEY)?.as_str().into(),
            version: map.metadata.resource_version.clone().unwrap_or_default(),
            writer: writer.cloned().unwrap_or_default(),
            published,
        })
    }
}

/// Name of a node's ConfigMap: with the node's name as far as that fits.
fn name(node: &str) -> String {
    let name = format!("karst-node-{node}");
    if name.len() <= NAME_MAX {
        return name;
    }
    let digest = Sha256::digest(node.as_bytes());
    let digest: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept = name[..NAME_MAX - 17].trim_end_matches(['.', '-']);
    format!("{kept}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_records_fit_and_differ() {
        assert_eq!(name("n1"), "karst-node-n1");
        let long = |end: &str| format!("{}.{end}", "a".repeat(251));
        assert!(name(&long("b")).len() <= NAME_MAX);
        assert_ne!(name(&long("b")), name(&long("c")));
    }
}
