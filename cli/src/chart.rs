//! The chart, which is built into this program: values in, Kubernetes objects out.
//!
//! ```text
//! values.yaml ─┐
//! --values F ──┼─► merged ─► checked against values.schema.json ─► templates ─► objects, in the order of applying
//! --set a.b=c ─┘
//! ```
//!
//! Helm renders the same files; see `docs/design/0011-the-chart-is-the-source.md`.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};

mod schema;
mod template;

include!(concat!(env!("OUT_DIR"), "/chart.rs"));

const VALUES: &str = include_str!("../../manifests/chart/values.yaml");
const SCHEMA: &str = include_str!("../../manifests/chart/values.schema.json");

/// The chart's `appVersion`, and the tag of its images: this program's own version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why nothing can be rendered. All but `Template` and `Output` are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChartError {
    #[error("cannot read values file {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("values file {path} is not YAML")]
    Yaml {
        path: String,
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    #[error("--set {0}: expected NAME=VALUE, such as controller.replicas=3")]
    Set(String),
    #[error("these values are not right:\n  {}", .0.join("\n  "))]
    Values(Vec<String>),
    #[error("the chart built into this program is broken; please report it")]
    Template(#[from] template::TemplateError),
    #[error(
        "template {template} renders to something that is not YAML; look at the values used there"
    )]
    Output {
        template: String,
        #[source]
        source: Box<serde_saphyr::Error>,
    },
}

/// What an installation is told: values that differ from the chart's.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ValueArgs {
    /// Set a value of the chart: NAME=VALUE, such as controller.replicas=3; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// YAML file of values; may be repeated, the last one wins
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) values: Vec<std::path::PathBuf>,
}

impl ValueArgs {
    /// Only what these arguments say, over `base`.
    pub(crate) fn over(&self, mut base: Value) -> Result<Value, ChartError> {
        for path in &self.values {
            merge(&mut base, read_values(path)?);
        }
        for assignment in &self.set {
            merge(&mut base, assigned(assignment)?);
        }
        Ok(base)
    }
}

fn read_values(path: &Path) -> Result<Value, ChartError> {
    let text = fs::read_to_string(path).map_err(|source| ChartError::Read {
        path: path.display().to_string(),
        source,
    })?;
    serde_saphyr::from_str(&text).map_err(|source| ChartError::Yaml {
        path: path.display().to_string(),
        source: Box::new(source),
    })
}

/// `a.b=c` as `{a: {b: c}}`; numbers, true, false and null are read as such.
fn assigned(assignment: &str) -> Result<Value, ChartError> {
    let wrong = || ChartError::Set(assignment.to_owned());
    let (name, text) = assignment.split_once('=').ok_or_else(wrong)?;
    if name.split('.').any(str::is_empty) {
        return Err(wrong());
    }
    let value = match text {
        "true" | "false" | "null" => json!(serde_json::from_str::<Value>(text).unwrap_or_default()),
        _ => text
            .parse::<i64>()
            .map_or_else(|_| json!(text), |number| json!(number)),
    };
    let nested = name.rsplit('.').fold(value, |value, key| {
        let mut map = Map::new();
        map.insert(key.to_owned(), value);
        Value::Object(map)
    });
    Ok(nested)
}

/// Lays `over` on `base`: maps key by key, anything else replaces; null takes a key away.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match value {
                    Value::Null => drop(base.remove(&key)),
                    value => merge(base.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// All values, checked: the chart's own with `given` laid over them.
pub(crate) fn values(given: Value) -> Result<Value, ChartError> {
    let mut values = defaults();
    merge(&mut values, given);
    let schema: Value = serde_json::from_str(SCHEMA).unwrap_or_default();
    let mistakes = schema::mistakes(&schema, &values);
    if mistakes.is_empty() {
        Ok(values)
    } else {
        Err(ChartError::Values(mistakes))
    }
}

fn defaults() -> Value {
    serde_saphyr::from_str(VALUES).unwrap_or_default()
}

/// The objects of an installation in `namespace`, in the order in which they are applied; without the CRDs.
pub(crate) fn objects(namespace: &str, values: &Value) -> Result<Vec<Value>, ChartError> {
    let data = json!({
        "Values": values,
        "Release": {"Name": "karst", "Namespace": namespace, "Service": "karst"},
        "Chart": {"Name": "karst", "Version": VERSION, "AppVersion": VERSION},
        "Files": FILES.iter().copied().collect::<BTreeMap<&str, &str>>(),
    });
    let mut objects = Vec::new();
    for (name, text) in TEMPLATES {
        objects.extend(documents(name, &template::render(name, text, &data)?)?);
    }
    objects.sort_by_key(place);
    Ok(objects)
}

/// The CRDs that Karst reads.
pub(crate) fn crds() -> Result<Vec<Value>, ChartError> {
    let mut crds = Vec::new();
    for (name, text) in CRDS {
        crds.extend(documents(name, text)?);
    }
    crds.retain(|object| object["kind"] == "CustomResourceDefinition");
    Ok(crds)
}

fn documents(name: &str, text: &str) -> Result<Vec<Value>, ChartError> {
    let mut documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|source| ChartError::Output {
            template: name.to_owned(),
            source: Box::new(source),
        })?;
    documents.retain(Value::is_object);
    Ok(documents)
}

/// What others stand on comes first; the webhook comes last, when somebody is there to answer it.
fn place(object: &Value) -> usize {
    const ORDER: &[&str] = &[
        "Namespace",
        "PriorityClass",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "Secret",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
        "DaemonSet",
    ];
    let kind = object["kind"].as_str().unwrap_or_default();
    ORDER
        .iter()
        .position(|known| *known == kind)
        .unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests;
