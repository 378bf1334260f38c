//! Where replicas tell each other of their followers, and of collectors that fail these: one ConfigMap of the install
//! namespace with a key for each replica.
//!
//! A replica that does not lead writes its [`Summary`] when it differs, and every [`REFRESH`] to show that it is there;
//! the leader reads. A replica that has said nothing new for [`FORGOTTEN`] is gone, and its followers follow others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use karst_k8s_api::k8s_openapi::{
    api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::others::Summary;
use crate::serve::observations::{Failing, Observed};

/// Name of the ConfigMap.
const NAME: &str = "karst-followers";
/// Longest silence of a replica that is there.
const REFRESH: Duration = Duration::from_secs(10);
/// After that a replica counts no more.
const FORGOTTEN: Duration = Duration::from_secs(25);
/// Replicas that are remembered; further ones push out those that were silent longest.
const REPLICAS_MAX: usize = 16;
/// Failing collectors that one replica tells of.
const COLLECTORS_MAX: usize = 64;
/// Longest text that it says of one, in bytes.
const COLLECTOR_TEXT_MAX: usize = 1024;
/// Longest time for one exchange with the API server.
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands under a replica's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    /// Counts what the replica has said, so that silence can be told from having nothing new.
    number: u64,
    #[serde(flatten)]
    summary: Summary,
}

/// This replica's part in it.
pub struct Share {
    maps: Api<ConfigMap>,
    replica: String,
    observed: Arc<Observed>,
    /// Failing collectors that were told last.
    failing: Failing,
    number: u64,
    /// What was said last, and when.
    said: Option<(Summary, Instant)>,
    /// The number that each replica said last, and since when we know it.
    heard: BTreeMap<String, (u64, Instant)>,
}

impl Share {
    /// `replica`: the name of this one, other than all others'; `observed`: what it knows of collectors.
    pub fn new(client: Client, namespace: &str, replica: &str, observed: Arc<Observed>) -> Self {
        Self {
            maps: Api::namespaced(client, namespace),
            replica: key(replica),
            observed,
            failing: Failing::new(),
            number: 0,
            said: None,
            heard: BTreeMap::new(),
        }
    }

    /// Lets the leader know, if there is something to let know.
    ///
    /// # Errors
    /// The API server refuses or does not answer: said again the next time.
    pub async fn tell(&mut self, mut summary: Summary) -> Result<(), kube::Error> {
        self.observed.hear(Vec::new());
        summary.collectors = self.collectors();
        let same = self.said.as_ref().filter(|(said, _)| *said == summary);
        if same.is_some_and(|(_, at)| at.elapsed() < REFRESH) {
            return Ok(());
        }
        self.number += 1;
        let said = Said {
            number: self.number,
            summary: summary.clone(),
        };
        patient(self.write(&said)).await?;
        self.said = Some((summary, Instant::now()));
        Ok(())
    }

    /// What the other replicas say that are there.
    ///
    /// # Errors
    /// The API server refuses or does not answer: what was heard before stays with the caller.
    pub async fn hear(&mut self) -> Result<Vec<Summary>, kube::Error> {
        let map = patient(self.maps.get_opt(NAME)).await?;
        let data = map.and_then(|map| map.data).unwrap_or_default();
        let heard = self.heard(&data);
        self.observed.hear(heard.iter().map(failing).collect());
        Ok(heard)
    }

    /// Collectors that do not take what our followers send.
    fn collectors(&mut self) -> BTreeMap<String, (String, String)> {
        self.failing = self.observed.failing_here(&self.failing);
        let text = |text: &str| text[..text.floor_char_boundary(COLLECTOR_TEXT_MAX)].to_owned();
        let failing = self.failing.iter().take(COLLECTORS_MAX);
        failing
            .map(|(provider, (whose, why))| (text(provider), (text(whose), text(why))))
            .collect()
    }

    fn heard(&mut self, data: &BTreeMap<String, String>) -> Vec<Summary> {
        self.heard.retain(|replica, _| data.contains_key(replica));
        let mut summaries = Vec::new();
        for (replica, text) in data.iter().filter(|(replica, _)| **replica != self.replica) {
            let Ok(Said { number, summary }) = serde_json::from_str(text) else {
                continue;
            };
            let heard = self.heard.entry(replica.clone());
            let (known, since) = heard.or_insert_with(|| (number, Instant::now()));
            if *known != number {
                (*known, *since) = (number, Instant::now());
            }
            if since.elapsed() < FORGOTTEN {
                summaries.push(summary);
            }
        }
        summaries
    }

    async fn write(&mut self, said: &Said) -> Result<(), kube::Error> {
        let present = self.maps.get_opt(NAME).await?;
        let is_new = present.is_none();
        let mut map = present.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/part-of".to_owned(),
                    "karst".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        });
        let mut data = map.data.take().unwrap_or_default();
        // Takes note of who is silent, so that the keys of replicas that are gone go too.
        self.heard(&data);
        let silent = |replica: &String| {
            let heard = self.heard.get(replica);
            heard.is_some_and(|(_, since)| since.elapsed() >= 2 * FORGOTTEN)
        };
        data.retain(|replica, _| !silent(replica));
        while data.len() >= REPLICAS_MAX && !data.contains_key(&self.replica) {
            data.pop_first();
        }
        let text = serde_json::to_string(said).map_err(kube::Error::SerdeError)?;
        data.insert(self.replica.clone(), text);
        map.data = Some(data);
        let params = PostParams::default();
        match is_new {
            true => self.maps.create(&params, &map).await.map(drop),
            // It names the version that it replaces: of two replicas that write at once one is refused, and writes again.
            false => self.maps.replace(NAME, &params, &map).await.map(drop),
        }
    }
}

/// What a replica says of collectors, no more of it than it should say.
fn failing(summary: &Summary) -> Failing {
    let said = summary.collectors.iter().take(COLLECTORS_MAX);
    said.map(|(provider, (whose, why))| {
        let said = (whose.as_str().into(), why.as_str().into());
        (provider.as_str().into(), said)
    })
    .collect()
}

async fn patient<T>(exchange: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let answered = tokio::time::timeout(PATIENCE, exchange).await;
    answered
        .unwrap_or_else(|_elapsed| Err(kube::Error::Service("the API server took too long".into())))
}

/// A replica's name as a key of a ConfigMap.
fn key(replica: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let key = replica.chars().map(|c| if allowed(c) { c } else { '_' });
    key.take(253).collect()
}

#[cfg(test)]
mod tests {
    use karst_proto::reads::{FailingCollector, Observation};

    use super::*;

    fn share() -> Share {
        karst_identity::tls::install_provider();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        Share::new(client, "karst-system", "a", Arc::default())
    }

    fn said(number: u64, peers: usize) -> String {
        let summary = Summary {
            peers,
            ..Summary::default()
        };
        serde_json::to_string(&Said { number, summary }).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_for_long_counts_no_more() {
        let mut share = share();
        let peers = |share: &mut Share, data: &[(&str, String)]| {
            let data = data
                .iter()
                .map(|(key, text)| ((*key).to_owned(), text.clone()));
            let heard = share.heard(&data.collect());
            heard.iter().map(|one| one.peers).sum::<usize>()
        };
        let all = [("a", said(1, 100)), ("b", said(1, 2)), ("c", said(7, 3))];
        assert_eq!(peers(&mut share, &all), 5, "not ourselves");
        tokio::time::advance(FORGOTTEN).await;
        let later = [("b", said(2, 2)), ("c", said(7, 3)), ("d", "{".to_owned())];
        assert_eq!(peers(&mut share, &later), 2, "c is gone, d is damaged");
    }

    /// From one replica's programs to the condition that another one writes.
    #[tokio::test]
    async fn a_collector_that_fails_another_replica_s_followers_is_heard_of() {
        let mut follower = share();
        follower.observed.take(
            "shop/waypoint",
            Observation {
                program: "w".to_owned(),
                sequence: 1,
                failing_collectors: vec![FailingCollector {
                    provider: "otel".to_owned(),
                    error: "refused".repeat(1000),
                }],
                ..Observation::default()
            },
        );
        let summary = Summary {
            peers: 2,
            collectors: follower.collectors(),
            ..Summary::default()
        };
        let text = serde_json::to_string(&Said { number: 1, summary }).unwrap();
        assert!(text.len() < 2 * COLLECTOR_TEXT_MAX, "{text}");
        let mut leader = share();
        let heard = leader.heard(&BTreeMap::from([("b".to_owned(), text)]));
        let heard: Vec<Failing> = heard.iter().map(failing).collect();
        leader.observed.hear(heard);
        let (whose, why) = leader.observed.failing(&Failing::new())["otel"].clone();
        assert_eq!(
            (&*whose, why.starts_with("refused")),
            ("shop/waypoint", true)
        );
        assert!(leader.collectors().is_empty(), "it is not the leader's own");
        let earlier = r#"{"number":1,"peers":2,"through":{},"behind":{},"more":false}"#;
        let said: Said = serde_json::from_str(earlier).unwrap();
        assert!(said.summary.collectors.is_empty());
    }

    #[test]
    fn names_are_keys() {
        assert_eq!(key("karst-controller-7f/x y"), "karst-controller-7f_x_y");
    }
}
