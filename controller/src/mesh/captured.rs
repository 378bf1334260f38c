//! Which pods were captured, on disk: a controller that starts again must not publish a captured pod as plaintext
//! until its agent has reconnected and said so.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use karst_index::Event;
use karst_model::name::PodUid;

/// Name of the file in the state folder.
const FILE: &str = "captured.json";

/// The set, and the file that holds it.
pub struct CapturedPods {
    path: PathBuf,
    pods: BTreeSet<PodUid>,
}

impl CapturedPods {
    /// Reads the set. A missing file is an empty set; a damaged one too, with a warning.
    pub fn load(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let pods = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "list of captured pods is damaged: until their agents report, captured pods are published as outside the mesh");
                BTreeSet::new()
            }),
        };
        Ok(Self { path, pods })
    }

    /// The set as events.
    pub fn events(&self) -> Vec<Event> {
        self.pods
            .iter()
            .map(|uid| Event::Captured {
                pod_uid: uid.clone(),
                captured: true,
            })
            .collect()
    }

    /// Takes over what an agent reports, and writes the file if that changes anything.
    pub fn record(&mut self, events: &[Event]) {
        let mut changed = false;
        for event in events {
            changed |= match event {
                Event::Captured {
                    pod_uid,
                    captured: true,
                } => self.pods.insert(pod_uid.clone()),
                Event::Captured {
                    pod_uid,
                    captured: false,
                } => self.pods.remove(pod_uid),
                _ => false,
            };
        }
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
    use super::*;

    fn captured(uid: &str, captured: bool) -> Event {
        Event::Captured {
            pod_uid: uid.into(),
            captured,
        }
    }

    #[test]
    fn the_set_survives_a_restart_and_damage_is_an_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let mut pods = CapturedPods::load(dir.path()).unwrap();
        pods.record(&[captured("a", true), captured("b", true)]);
        pods.record(&[captured("a", false)]);
        let again = CapturedPods::load(dir.path()).unwrap();
        assert_eq!(again.pods, BTreeSet::from([PodUid::from("b")]));
        fs::write(dir.path().join(FILE), "[\"b").unwrap();
        assert!(CapturedPods::load(dir.path()).unwrap().pods.is_empty());
    }
}
