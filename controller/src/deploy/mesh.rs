//! The mesh as one object of the Gateway API: an XMesh says which features the mesh has, as a GatewayClass does of
//! waypoints. Pure. The kind is experimental (`gateway.networking.x-k8s.io`), so that a cluster may not know it, and few
//! who have it make one: the controller does.

use karst_k8s_api::gateway::gateway_class::{SUPPORTED_FEATURES, WAYPOINT_CONTROLLER};
use kube::{
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{CONTROLLER, MANAGED_BY};

const GROUP: &str = "gateway.networking.x-k8s.io";
const VERSION: &str = "v1alpha1";
const KIND: &str = "XMesh";
/// The one that the controller makes.
const NAME: &str = "karst";

/// How the API server is asked for the kind.
pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, KIND), "xmeshes")
}

/// What is to be done about the XMeshes that are there.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// None speaks of this mesh: this one is to be made.
    Make(Value),
    /// These are to be told, each an object without status, and the status.
    Tell(Vec<(Value, Value)>),
}

/// `namespace` is the controller's own, by which people know whose word it is.
pub(super) fn next(present: &[DynamicObject], namespace: &str, now: &str) -> Next {
    let is_ours =
        |mesh: &&DynamicObject| mesh.data["spec"]["controllerName"] == WAYPOINT_CONTROLLER;
    // An object of our name that is another mesh's stays so: the field cannot be changed.
    let is_taken = present
        .iter()
        .any(|mesh| mesh.metadata.name.as_deref() == Some(NAME));
    if !is_taken && !present.iter().any(|mesh| is_ours(&mesh)) {
        return Next::Make(made());
    }
    let told = present.iter().filter(is_ours).filter_map(|mesh| {
        let name = mesh.metadata.name.as_deref()?;
        Some((object(name), status(mesh, namespace, now)?))
    });
    Next::Tell(told.collect())
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": {"name": name},
    })
}

fn made() -> Value {
    let mut made = object(NAME);
    made["metadata"]["labels"] = json!({MANAGED_BY: CONTROLLER});
    made["spec"] = json!({
        "controllerName": WAYPOINT_CONTROLLER,
        // At most 64 characters.
        "description": "Karst, an ambient mesh",
    });
    made
}

/// The status that one of ours should have; `None` where it has it.
fn status(mesh: &DynamicObject, namespace: &str, now: &str) -> Option<Value> {
    let (status, reason, message) = match mesh.data["spec"]["parametersRef"].is_null() {
        true => (
            "True",
            "Accepted",
            format!("this is the mesh of Karst's controller in namespace {namespace}"),
        ),
        false => (
            "False",
            "InvalidParameters",
            format!(
                "parametersRef names an object, and Karst takes none: its settings are MeshConfig and the values of its \
                 chart, in namespace {namespace}"
            ),
        ),
    };
    let present = &mesh.data["status"];
    let before = present["conditions"].as_array().into_iter().flatten();
    let since = before
        .filter(|one| one["type"] == "Accepted" && one["status"] == status)
        .find_map(|one| one["lastTransitionTime"].as_str());
    let features = SUPPORTED_FEATURES.map(|name| json!({"name": name}));
    let wanted = json!({
        "conditions": [{
            "type": "Accepted",
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": mesh.metadata.generation.unwrap_or_default(),
            "lastTransitionTime": since.unwrap_or(now),
        }],
        "supportedFeatures": features,
    });
    (wanted != *present).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the API server gives it: with the status that the definition puts first.
    fn mesh(name: &str, spec: &Value, status: &Value) -> DynamicObject {
        let mut mesh = object(name);
        mesh["metadata"]["generation"] = 1.into();
        mesh["spec"] = spec.clone();
        mesh["status"] = status.clone();
        serde_json::from_value(mesh).unwrap()
    }

    fn pending() -> Value {
        json!({"conditions": [{"type": "Accepted", "status": "Unknown", "reason": "Pending",
            "message": "Waiting for controller", "lastTransitionTime": "1970-01-01T00:00:00Z"}]})
    }

    fn told(present: &[DynamicObject], now: &str) -> Vec<(Value, Value)> {
        match next(present, "karst-system", now) {
            Next::Tell(told) => told,
            made => panic!("{made:?}"),
        }
    }

    #[test]
    fn one_is_made_told_its_features_and_then_left_alone() {
        let theirs = mesh(
            "other",
            &json!({"controllerName": "example.com/other"}),
            &pending(),
        );
        let Next::Make(made) = next(std::slice::from_ref(&theirs), "karst-system", "t1") else {
            panic!("nobody has made one")
        };
        let ours = mesh("karst", &made["spec"], &pending());
        let told_now = told(&[theirs, ours], "t1");
        let [(object, status)] = &told_now[..] else {
            panic!("{told_now:?}")
        };
        assert_eq!(object["metadata"]["name"], "karst");
        let accepted = &status["conditions"][0];
        assert_eq!(
            (&accepted["status"], &accepted["lastTransitionTime"]),
            (&"True".into(), &"t1".into())
        );
        let names = status["supportedFeatures"].as_array().unwrap();
        assert!(
            names.contains(&json!({"name": "Mesh"})) && names.len() == SUPPORTED_FEATURES.len()
        );
        assert_eq!(told(&[mesh("karst", &made["spec"], status)], "t2"), []);
    }

    #[test]
    fn somebodys_own_is_told_too_and_refused_where_it_asks_for_parameters() {
        let spec = json!({"controllerName": WAYPOINT_CONTROLLER, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "m"}});
        let told = told(&[mesh("mine", &spec, &pending())], "t1");
        let accepted = &told[0].1["conditions"][0];
        assert_eq!(
            (&accepted["status"], &accepted["reason"]),
            (&"False".into(), &"InvalidParameters".into())
        );
    }

    #[test]
    fn our_name_in_another_meshs_hands_is_theirs() {
        let theirs = mesh(
            "karst",
            &json!({"controllerName": "example.com/other"}),
            &pending(),
        );
        assert_eq!(told(&[theirs], "t1"), []);
    }
}
