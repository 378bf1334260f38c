//! CustomResourceDefinitions made from the Rust types: what `manifests/crds` holds.
//!
//! `schemars` derives a JSON schema; [`structural`] makes of it what the API server calls a structural schema. Written
//! by `cargo run -p karst-k8s-api --example print_crds`; a test compares.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{Kind, istio, karst, labels};

/// The definition of one of Istio's kinds or of ours; nothing for kinds of Kubernetes itself.
pub fn of(kind: Kind) -> Option<Value> {
    let shape =
        match kind {
            Kind::AuthorizationPolicy => Shape::new::<istio::AuthorizationPolicySpec>(&["ap"])
                .column("Action", ".spec.action"),
            Kind::PeerAuthentication => Shape::new::<istio::PeerAuthenticationSpec>(&["pa"])
                .column("Mode", ".spec.mtls.mode"),
            Kind::RequestAuthentication => Shape::new::<istio::RequestAuthenticationSpec>(&["ra"]),
            Kind::ServiceEntry => Shape::new::<istio::ServiceEntrySpec>(&["se"])
                .with_status::<istio::ServiceEntryStatus>()
                .spec_required()
                .column("Hosts", ".spec.hosts")
                .column("Location", ".spec.location")
                .column("Resolution", ".spec.resolution"),
            Kind::WorkloadEntry => Shape::new::<istio::WorkloadEntrySpec>(&["we"])
                .spec_required()
                .column("Address", ".spec.address"),
            Kind::DestinationRule => {
                Shape::new::<istio::DestinationRuleSpec>(&["dr"]).column("Host", ".spec.host")
            }
            Kind::VirtualService => Shape::new::<istio::VirtualServiceSpec>(&["vs"])
                .column("Gateways", ".spec.gateways")
                .column("Hosts", ".spec.hosts"),
            Kind::Telemetry => Shape::new::<istio::TelemetrySpec>(&["telemetry"]),
            Kind::RateLimit => Shape::new::<karst::RateLimitSpec>(&["rl"])
                .spec_required()
                .column("Mode", ".spec.mode"),
            Kind::HealthCheck => Shape::new::<karst::HealthCheckSpec>(&["hc"]).spec_required(),
            Kind::Namespace
            | Kind::Node
            | Kind::ServiceAccount
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::ConfigMap
            | Kind::Deployment
            | Kind::GatewayClass
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::ReferenceGrant
            | Kind::BackendTlsPolicy => return None,
        };
    Some(shape.definition(kind))
}

/// The category that all kinds of one family share, for `kubectl get`.
fn family(kind: Kind) -> &'static str {
    if kind.is_karst() { "karst" } else { "istio-io" }
}

/// File name of a kind's definition in `manifests/crds`.
pub fn file_name(kind: Kind) -> String {
    format!("{}.{}.yaml", kind.plural(), kind.group())
}

/// Schema of an object's `spec`, for whoever walks its fields.
pub fn spec_schema(kind: Kind) -> Option<Value> {
    let definition = of(kind)?;
    definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .cloned()
}

/// What one kind's definition is made of.
struct Shape {
    spec: Value,
    status: Value,
    short_names: &'static [&'static str],
    required: Vec<&'static str>,
    columns: Vec<Value>,
}

impl Shape {
    fn new<Spec: JsonSchema>(short_names: &'static [&'static str]) -> Self {
        Self {
            spec: schema::<Spec>(),
            status: schema::<istio::IstioStatus>(),
            short_names,
            required: Vec::new(),
            columns: Vec::new(),
        }
    }

    fn with_status<Status: JsonSchema>(mut self) -> Self {
        self.status = schema::<Status>();
        self
    }

    fn spec_required(mut self) -> Self {
        self.required.push("spec");
        self
    }

    fn column(mut self, name: &str, path: &str) -> Self {
        self.columns
            .push(json!({"name": name, "type": "string", "jsonPath": path}));
        self
    }

    fn definition(mut self, kind: Kind) -> Value {
        self.columns.push(
            json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
        );
        let versions: Vec<Value> = kind
            .versions()
            .iter()
            .enumerate()
            .map(|(position, version)| self.version(version, position == 0))
            .collect();
        let (group, plural, name) = (kind.group(), kind.plural(), kind.name());
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                "labels": {labels::PART_OF: labels::PART_OF_KARST},
                // Objects of users go with their definition: uninstalling a chart must not take them.
                "annotations": {"helm.sh/resource-policy": "keep"},
            },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {
                    "kind": name,
                    "listKind": format!("{name}List"),
                    "plural": plural,
                    "singular": name.to_lowercase(),
                    "shortNames": self.short_names,
                    "categories": [family(kind), group.replace('.', "-")],
                },
                "versions": versions,
            },
        })
    }

    fn version(&self, name: &str, stored: bool) -> Value {
        let mut object = json!({
            "type": "object",
            "properties": {"spec": self.spec, "status": self.status},
        });
        if !self.required.is_empty() {
            object["required"] = json!(self.required);
        }
        json!({
            "name": name,
            "served": true,
            "storage": stored,
            "subresources": {"status": {}},
            "additionalPrinterColumns": self.columns,
            "schema": {"openAPIV3Schema": object},
        })
    }
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let root = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = root.to_value();
    structural(&mut schema);
    schema
}

/// Keywords of JSON schema that a structural schema does not have, or that say what Rust does rather than the API.
const LEFT_OUT: [&str; 6] = [
    "$schema",
    "title",
    "default",
    "components",
    "nullable",
    "$defs",
];
/// Formats that the API server knows.
const FORMATS: [&str; 5] = ["int32", "int64", "double", "date-time", "byte"];

/// Makes a derived schema structural: no references, no null, plain enums, bounds instead of Rust's integer formats.
fn structural(schema: &mut Value) {
    match schema {
        Value::Bool(_) => *schema = json!({"x-kubernetes-preserve-unknown-fields": true}),
        Value::Object(fields) => {
            LEFT_OUT.iter().for_each(|name| drop(fields.remove(*name)));
            unwrap_option(fields);
            plain_enum(fields);
            plain_type(fields);
            children(fields);
        }
        _ => {}
    }
}

/// `anyOf: [X, null]` is X.
fn unwrap_option(fields: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = fields.get("anyOf") else {
        return;
    };
    let is_null = |choice: &Value| {
        choice["type"] == "null" || choice.get("enum").is_some_and(|all| *all == json!([null]))
    };
    let some: Vec<Value> = choices.iter().filter(|c| !is_null(c)).cloned().collect();
    let wraps = some.len() == 1 && choices.len() > 1;
    if let (true, Some(Value::Object(inner))) = (wraps, some.into_iter().next()) {
        fields.remove("anyOf");
        for (name, value) in inner {
            fields.entry(name).or_insert(value);
        }
        for name in LEFT_OUT {
            fields.remove(name);
        }
    }
}

/// Documented variants come as `oneOf` of constants; the API server wants one list.
fn plain_enum(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(choices)) = fields.get("oneOf") {
        let mut names = Vec::new();
        for choice in choices {
            match (choice.get("const"), choice.get("enum")) {
                (Some(name), _) => names.push(name.clone()),
                (None, Some(Value::Array(all))) => names.extend(all.iter().cloned()),
                _ => return,
            }
        }
        fields.remove("oneOf");
        fields.insert("type".to_owned(), json!("string"));
        fields.insert("enum".to_owned(), names.into());
    }
    if let Some(Value::Array(names)) = fields.get_mut("enum") {
        names.retain(|name| !name.is_null());
    }
}

fn plain_type(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get("type") {
        let kept = types.iter().find(|name| *name != "null").cloned();
        fields.insert("type".to_owned(), kept.unwrap_or_default());
    }
    let unknown_format = fields
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|format| !FORMATS.contains(&format));
    if unknown_format {
        let bound = match fields["format"].as_str() {
            Some("uint8") => Some(u64::from(u8::MAX)),
            Some("uint16") => Some(u64::from(u16::MAX)),
            Some("uint32") => Some(u64::from(u32::MAX)),
            _ => None,
        };
        fields.remove("format");
        if let Some(bound) = bound {
            fields.entry("maximum").or_insert_with(|| bound.into());
        }
    }
    // Keys that are numbers come as patterns; keys are text to the API server.
    if let Some(Value::Object(patterns)) = fields.remove("patternProperties")
        && let Some((_, value)) = patterns.into_iter().next()
    {
        fields.insert("additionalProperties".to_owned(), value);
    }
}

fn children(fields: &mut Map<String, Value>) {
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(child) = fields.get_mut(name) {
            structural(child);
        }
    }
}

/// A definition as the YAML that is checked in.
///
/// # Errors
/// The serializer's; a definition of [`of`] gives none.
pub fn to_yaml(definition: &Value) -> Result<String, serde_saphyr::ser::Error> {
    let text = serde_saphyr::to_string(definition)?;
    Ok(format!(
        "# Made from the types of crates/k8s-api: cargo run -p karst-k8s-api --example print_crds\n{text}"
    ))
}
