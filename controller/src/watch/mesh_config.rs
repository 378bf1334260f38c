//! The mesh configuration of the root namespace: read now and then, handed to the index, and whatever in it does not hold
//! is told.

use std::time::Duration;

use karst_index::Event;
use karst_k8s_api::{
    Kind, Object, ObjectKey,
    istio::mesh_config::{CONFIG_MAP, KEY, MeshConfig},
    k8s_openapi::api::core::v1::ConfigMap,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::{Told, read::Complaint};
use crate::mesh::Command;

/// Between looks: a wrong endpoint is to be told within ten seconds.
const INTERVAL: Duration = Duration::from_secs(3);

/// What the controller was told by its flags, which decide.
#[derive(Clone, Debug)]
pub struct Expected {
    pub root_namespace: String,
}

/// Looks at the ConfigMap.
pub struct MeshConfigWatch {
    api: Api<ConfigMap>,
    key: ObjectKey,
    expected: Expected,
    told: Told,
    commands: mpsc::Sender<Command>,
    /// Version that was looked at last; empty for none there.
    seen: Option<String>,
}

impl MeshConfigWatch {
    pub fn new(
        client: Client,
        expected: Expected,
        told: Told,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, &expected.root_namespace),
            key: ObjectKey::new(Kind::ConfigMap, &expected.root_namespace, CONFIG_MAP),
            expected,
            told,
            commands,
            seen: None,
        }
    }

    /// What it says first, as soon as the API server says it.
    pub async fn first(&mut self) -> Event {
        loop {
            if let Some(event) = self.look().await {
                return event;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Until `shutdown`.
    pub async fn run(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
            if let Some(event) = self.look().await {
                // An error only means that the controller is going down.
                let _ = self.commands.send(Command::Objects(vec![event])).await;
            }
        }
    }

    /// What is different since the last look; while the API server does not answer, what was there stays.
    async fn look(&mut self) -> Option<Event> {
        match self.api.get_opt(CONFIG_MAP).await {
            Ok(map) => self.take(map.unwrap_or_default()),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the mesh configuration cannot be read now");
                None
            }
        }
    }

    fn take(&mut self, mut map: ConfigMap) -> Option<Event> {
        let version = map.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref() == Some(&version) {
            return None;
        }
        self.seen = Some(version);
        let text = map.data.as_ref().and_then(|data| data.get(KEY));
        let text = text.map(String::as_str).unwrap_or_default();
        let complaints = complaints(&MeshConfig::read(text), &self.expected);
        let uid = map.metadata.uid.clone().unwrap_or_default();
        self.told.statuses.complain(&self.key, &uid, &complaints);
        self.told.problems.set_object(&self.key, complaints);
        // One that is gone is an empty one.
        map.metadata.name = Some(CONFIG_MAP.to_owned());
        map.metadata.namespace = Some(self.key.namespace.to_string());
        Some(Event::Apply(Object::ConfigMap(Box::new(map))))
    }
}

fn complaints(config: &MeshConfig, expected: &Expected) -> Vec<Complaint> {
    let read = config.problems.iter().map(|problem| Complaint {
        field: problem.field.clone(),
        message: problem.message.clone(),
    });
    let runs = &expected.root_namespace;
    let asked = config.root_namespace.as_ref();
    let differs = asked.filter(|asked| *asked != runs).map(|asked| Complaint {
        field: "rootNamespace".to_owned(),
        message: format!(
            "{asked:?} is not what the controller runs with ({runs:?}): set --root-namespace and restart it"
        ),
    });
    read.chain(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_runs_with_is_compared() {
        let expected = Expected {
            root_namespace: "karst-system".to_owned(),
        };
        let told = |yaml: &str| complaints(&MeshConfig::read(yaml), &expected);
        assert_eq!(
            told("trustDomain: example.org\nrootNamespace: karst-system"),
            []
        );
        let all = told("rootNamespace: istio-system\ndiscoverySelectors: []");
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[1].message.contains("--root-namespace"));
    }
}
