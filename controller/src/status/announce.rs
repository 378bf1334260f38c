//! Events about objects that have no status of ours, so many in a time at most.

use std::time::Duration;

use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Announcement, write::FIELD_MANAGER};

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
        let event: DynamicObject = serde_json::from_value(event(announcement, namespace))
            .map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &event).await {
            // A namespace that is going takes no Events; nobody would read them.
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 403 | 404) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn event(announcement: &Announcement, namespace: &str) -> Value {
    let key = &announcement.key;
    let mut note = announcement.message.clone();
    if note.len() > NOTE_BYTES_MAX {
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    }
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": format!("{}.", key.name), "namespace": namespace},
        "eventTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
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
