//! The resolved objects, as files: what a cluster's API server would hold. The controller watches this folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use karst_k8s_api::Object;
use serde_json::{Value, json};

use crate::LabError;

/// The folder and what was last written there.
#[derive(Debug)]
pub(crate) struct ResolvedObjects {
    dir: PathBuf,
    written: BTreeMap<String, String>,
}

impl ResolvedObjects {
    pub(crate) fn new(dir: PathBuf) -> Result<Self, LabError> {
        fs::create_dir_all(&dir).map_err(LabError::io(format!("making {}", dir.display())))?;
        Ok(Self {
            dir,
            written: BTreeMap::new(),
        })
    }

    /// Makes the folder hold exactly these objects. Each file is replaced as a whole; unchanged ones are not touched.
    pub(crate) fn write(
        &mut self,
        objects: impl IntoIterator<Item = Value>,
    ) -> Result<(), LabError> {
        let mut seen = BTreeSet::new();
        for object in objects {
            let (name, text) = (file_name(&object), object.to_string());
            seen.insert(name.clone());
            if self.written.get(&name) != Some(&text) {
                replace(&self.dir, &name, &text)
                    .map_err(LabError::io(format!("writing {name}")))?;
                self.written.insert(name, text);
            }
        }
        let gone: Vec<String> = self
            .written
            .keys()
            .filter(|name| !seen.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            fs::remove_file(self.dir.join(&name))
                .map_err(LabError::io(format!("removing {name}")))?;
            self.written.remove(&name);
        }
        Ok(())
    }
}

fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let metadata = &object["metadata"];
    format!(
        "{}.{}.{}.yaml",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let aside = dir.join(format!(".{name}.new"));
    fs::write(&aside, text)?;
    fs::rename(aside, dir.join(name))
}

/// An object as JSON (which is YAML), with `apiVersion` and `kind`.
pub(crate) fn to_json(object: &Object) -> Value {
    let value = match object {
        Object::Namespace(object) => serde_json::to_value(object),
        Object::Node(object) => serde_json::to_value(object),
        Object::ServiceAccount(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::ConfigMap(object) => serde_json::to_value(object),
        Object::Deployment(object) => serde_json::to_value(object),
        Object::AuthorizationPolicy(object) => serde_json::to_value(object),
        Object::PeerAuthentication(object) => serde_json::to_value(object),
        Object::RequestAuthentication(object) => serde_json::to_value(object),
        Object::ServiceEntry(object) => serde_json::to_value(object),
        Object::WorkloadEntry(object) => serde_json::to_value(object),
        Object::DestinationRule(object) => serde_json::to_value(object),
        Object::VirtualService(object) => serde_json::to_value(object),
        Object::Telemetry(object) => serde_json::to_value(object),
        Object::GatewayClass(object) => serde_json::to_value(object),
        Object::Gateway(object) => serde_json::to_value(object),
        Object::HttpRoute(object) => serde_json::to_value(object),
        Object::GrpcRoute(object) => serde_json::to_value(object),
        Object::TlsRoute(object) => serde_json::to_value(object),
        Object::TcpRoute(object) => serde_json::to_value(object),
        Object::ReferenceGrant(object) => serde_json::to_value(object),
        Object::BackendTlsPolicy(object) => serde_json::to_value(object),
        Object::RateLimit(object) => serde_json::to_value(object),
        Object::HealthCheck(object) => serde_json::to_value(object),
    };
    let mut value = value.unwrap_or_default();
    value["apiVersion"] = json!(object.kind().api_version());
    value["kind"] = json!(object.kind().name());
    drop_nulls(&mut value);
    value
}

/// A field without a value is no field: strict readers refuse `field: null`.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_holds_exactly_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut resolved = ResolvedObjects::new(dir.path().to_path_buf()).unwrap();
        let object =
            |name: &str| json!({"kind": "Pod", "metadata": {"namespace": "a", "name": name}});
        resolved.write([object("x"), object("y")]).unwrap();
        resolved.write([object("y")]).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["pod.a.y.yaml"]);
    }

    #[test]
    fn what_is_written_is_read_back_as_the_same_object() {
        let yaml = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: a}, spec: {action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}}";
        let (objects, _) = karst_files::parse(Path::new("a.yaml"), yaml);
        let (again, problems) =
            karst_files::parse(Path::new("b.yaml"), &to_json(&objects[0]).to_string());
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(objects, again);
    }
}
