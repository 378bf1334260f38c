//! How pods were captured, on disk: a controller that starts again must not publish a captured pod as plaintext until
//! its agent has reconnected and said so.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use karst_index::{Event, Index, NodeChange};
use karst_model::{
    enrollment::{EnrollMode, PodCapture},
    name::PodUid,
};

/// Name of the file in the state folder.
const FILE: &str = "captured.json";

/// The pods, and the file that holds them.
pub struct CapturedPods {
    path: PathBuf,
    pods: BTreeMap<PodUid, PodCapture>,
}

impl CapturedPods {
    /// Reads the pods. A missing file is none; a damaged one too, with a warning.
    pub fn load(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let pods = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "list of captured pods is damaged: until their agents report, captured pods are published as outside the mesh");
                BTreeMap::new()
            }),
        };
        Ok(Self { path, pods })
    }

    /// The pods as events.
    pub fn events(&self) -> Vec<Event> {
        self.pods
            .iter()
            .map(|(uid, capture)| Event::Resumed {
                pod_uid: uid.clone(),
                capture: *capture,
            })
            .collect()
    }

    /// Takes over what an agent reports, as far as it counts in `index`, and writes the file if that changes anything.
    pub fn record(&mut self, events: &[Event], index: &Index) {
        let mut changed = false;
        for event in events {
            let Event::Captured { pod_uid, capture } = event else {
                continue;
            };
            changed |= match capture {
                Some(capture) if !index.is_current(pod_uid, capture.generation) => false,
                Some(capture) => self.pods.insert(pod_uid.clone(), *capture) != Some(*capture),
                None => self.pods.remove(pod_uid).is_some(),
            };
        }
        self.keep(changed);
    }

    /// Forgets the pods that their nodes are told to let go.
    pub fn forget_released(&mut self, changes: &[NodeChange]) {
        let mut changed = false;
        for change in changes {
            let released = match change {
                NodeChange::Updated { workload, .. } if workload.mode == EnrollMode::Off => {
                    &workload.pod_uid
                }
                NodeChange::Updated { .. } => continue,
                NodeChange::Removed { pod_uid, .. } => pod_uid,
            };
            changed |= self.pods.remove(released).is_some();
        }
        self.keep(changed);
    }

    fn keep(&self, changed: bool) {
        if changed && let Err(error) = self.write() {
            tracing::error!(file = %self.path.display(), %error, "list of captured pods cannot be written: a restart of the controller would publish captured pods as outside the mesh until their agents report; free the disk");
        }
    }

    /// Beside the old file, then over it: a crash leaves one or the other.
    fn write(&self) -> io::Result<()> {
        let aside = self.path.with_extension("json.new");
        fs::write(&aside, serde_json::to_vec(&self.pods)?)?;
        fs::rename(&aside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use karst_index::IndexConfig;
    use karst_k8s_api::{Kind, Object};
    use karst_model::enrollment::Generation;

    use super::*;

    fn captured(uid: &str, generation: Option<u64>) -> Event {
        Event::Captured {
            pod_uid: uid.into(),
            capture: generation.map(|generation| PodCapture {
                generation: Generation(generation),
                plaintext_open: false,
            }),
        }
    }

    /// An index with pods `a` and `b` in the mesh.
    fn index() -> Index {
        let mut index = Index::new(IndexConfig::default());
        let objects = ["a", "b"].map(|uid| {
            let text = format!(
                r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{uid}", "namespace": "shop", "uid": "{uid}",
                "labels": {{"istio.io/dataplane-mode": "ambient"}}}}, "spec": {{"nodeName": "n", "containers": []}}}}"#
            );
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            Object::deserialize(Kind::Pod, value).unwrap()
        });
        index.handle_all(objects.map(Event::Apply));
        index
    }

    #[test]
    fn the_pods_survive_a_restart_and_damage_is_none() {
        let index = index();
        let dir = tempfile::tempdir().unwrap();
        let mut pods = CapturedPods::load(dir.path()).unwrap();
        pods.record(&[captured("a", Some(1)), captured("b", Some(1))], &index);
        let of_another_enrolment = captured("b", Some(9));
        pods.record(&[captured("a", None), of_another_enrolment], &index);
        let again = CapturedPods::load(dir.path()).unwrap();
        let left = again.pods.iter().map(|(uid, c)| (&*uid.0, c.generation.0));
        assert_eq!(left.collect::<Vec<_>>(), [("b", 1)]);
        fs::write(dir.path().join(FILE), "[\"b").unwrap();
        assert!(CapturedPods::load(dir.path()).unwrap().pods.is_empty());
    }
}
