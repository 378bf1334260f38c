//! An object as the API server sent it, before anything of it is believed: one that does not fit its type must not cost
//! the whole list that it came in.

use std::borrow::Cow;

use karst_k8s_api::{
    Kind, ObjectKey, k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    object::FIELD_MANAGER,
};
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// An object as JSON, and of its metadata what names it.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Name, namespace, UID and resource version; nothing else.
    metadata: ObjectMeta,
    pub(super) json: Value,
}

impl Raw {
    pub(super) fn key(&self, kind: Kind) -> ObjectKey {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        ObjectKey::new(
            kind,
            &text(&self.metadata.namespace),
            &text(&self.metadata.name),
        )
    }

    /// Tells two versions of an object apart, also when one of the name was deleted and made again.
    pub(super) fn version(&self) -> Version {
        Version(
            self.metadata.uid.as_deref().unwrap_or_default().into(),
            self.metadata
                .resource_version
                .as_deref()
                .unwrap_or_default()
                .into(),
        )
    }
}

/// UID and resource version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version(Box<str>, Box<str>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut json = Value::deserialize(input)?;
        if let Some(Value::Object(metadata)) = json.get_mut("metadata") {
            keep_own_status(metadata);
        }
        let text = |name: &str| {
            let field = json.get("metadata").and_then(|meta| meta.get(name));
            field.and_then(Value::as_str).map(str::to_owned)
        };
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, json })
    }
}

/// Of who wrote which field, often the larger half of an object, leaves what is ours of the status: by it
/// [`wrote_addresses`](karst_k8s_api::object::wrote_addresses) tells our addresses from those of somebody else.
fn keep_own_status(metadata: &mut Map<String, Value>) {
    let Some(Value::Array(mut writers)) = metadata.remove("managedFields") else {
        return;
    };
    writers.retain(|one| one["manager"] == FIELD_MANAGER && one["subresource"] == "status");
    if !writers.is_empty() {
        metadata.insert("managedFields".to_owned(), writers.into());
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(api: &ApiResource) -> Cow<'_, str> {
        api.kind.as_str().into()
    }

    fn group(api: &ApiResource) -> Cow<'_, str> {
        api.group.as_str().into()
    }

    fn version(api: &ApiResource) -> Cow<'_, str> {
        api.version.as_str().into()
    }

    fn plural(api: &ApiResource) -> Cow<'_, str> {
        api.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
