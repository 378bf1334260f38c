//! Events about objects that have no status of ours, so many in a time at most.

use std::time::Duration;

use karst_k8s_api::object::FIELD_MANAGER;
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Announcement;

/// Events at once after a silence.
const BURST: u32 = 20;
/// Between two Events after that.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest note of an Event.
const NOTE_BYTES_MAX: usize = 1_000;

pub(super) struct Announcer {
    client: Client,
    left: u32,
    refilled: Instant,
}

impl Announcer {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            left: BURST,
            refilled: Instant::now(),
        }
    }

    /// Whether the next Event is due.
    pub(super) fn may_speak(&mut self) -> bool {
        let waited = self.refilled.elapsed().as_millis() / PAUSE.as_millis();
        if let Ok(new @ 1..) = u32::try_from(waited) {
            self.left = self.left.saturating_add(new).min(BURST);
            self.refilled = Instant::now();
        }
        self.left > 0
    }

    pub(super) async fn speak(&mut self, announcement: &Announcement) -> Result<(), kube::Error> {
        self.left = self.left.saturating_sub(1);
        let namespace = match &*announcement.key.namespace {
            "" => "default",
            namespace => namespace,
        };
        let gvk = GroupVersionKind::gvk("events.k8s.io", "v1", "Event");
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk(&gvk));
        let event: DynamicObject =
            serde_json::from_value(event(announcement, namespace, jiff::Timestamp::now()))
                .map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &event).await {
            // A namespace that is going takes no Events; nobody would read them.
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 403 | 404) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn event(announcement: &Announcement, namespace: &str, now: jiff::Timestamp) -> Value {
    let key = &announcement.key;
    // As Kubernetes' own recorder names them; a generated name may not end in a dot.
    let name = format!("{}.{:x}", key.name, now.as_nanosecond());
    let mut note = announcement.message.clone();
    if note.len() > NOTE_BYTES_MAX {
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": "karst-controller",
        "type": "Warning",
        "action": "Read",
        "reason": announcement.reason,
        "note": note,
        "regarding": {
            "apiVersion": key.kind.api_version(),
            "kind": key.kind.name(),
            "name": &*key.name,
            "namespace": &*key.namespace,
            "uid": announcement.uid,
        },
    })
}

#[cfg(test)]
mod tests {
    use karst_k8s_api::{Kind, ObjectKey};

    use super::*;

    #[test]
    fn an_event_names_its_object_and_has_a_valid_name() {
        let announcement = Announcement {
            key: ObjectKey::new(Kind::Namespace, "", "shop"),
            uid: "5".to_owned(),
            reason: "NotHonoured".to_owned(),
            message: "x".repeat(5_000),
        };
        let event = event(&announcement, "default", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(event["metadata"]["name"], "shop.0");
        assert_eq!(event["regarding"]["kind"], "Namespace");
        assert_eq!(event["note"].as_str().unwrap().len(), NOTE_BYTES_MAX);
        assert!(event["eventTime"].as_str().unwrap().ends_with("00.000000Z"));
    }
}
