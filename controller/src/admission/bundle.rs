//! Keeps the roots in the webhook's configuration: the API server must know by what the webhook's certificate is signed.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{CONFIGURATION, configuration::WEBHOOKS};
use crate::lease::Leadership;

/// Between looks: the configuration is installed, changed and removed by others.
const INTERVAL: Duration = Duration::from_secs(5);
/// Who writes the field. Not the name of an installation: what that one wrote would be taken away by an apply without it.
const FIELD_MANAGER: &str = "karst-webhook-roots";

/// Writes the roots wherever they differ, for as long as this replica leads.
///
/// `roots` gives the present bundle as PEM.
pub async fn keep(
    client: Client,
    leadership: Leadership,
    roots: impl Fn() -> String + Send,
    shutdown: Shutdown,
) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource());
    loop {
        if leadership.is_held()
            && let Err(error) = put(&api, &roots()).await
        {
            tracing::warn!(error = %Chain(&error), "the webhook's configuration could not be given its roots: objects are not checked at admission; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Nothing to do where the configuration is not installed, or has the roots.
async fn put(api: &Api<DynamicObject>, roots: &str) -> Result<(), kube::Error> {
    let Some(present) = api.get_opt(CONFIGURATION).await? else {
        return Ok(());
    };
    let Some(patch) = difference(&present.data, roots) else {
        return Ok(());
    };
    api.patch(
        CONFIGURATION,
        &PatchParams::apply(FIELD_MANAGER).force(),
        &Patch::Apply(patch),
    )
    .await?;
    tracing::info!("the webhook's configuration has the present roots");
    Ok(())
}

/// What to apply, if anything: the bundle of each of our webhooks that is there.
fn difference(present: &Value, roots: &str) -> Option<Value> {
    let bundle = STANDARD.encode(roots);
    let ours = |hook: &&Value| WEBHOOKS.iter().any(|name| hook["name"] == **name);
    let hooks: Vec<&Value> = present["webhooks"]
        .as_array()?
        .iter()
        .filter(ours)
        .collect();
    let same = hooks
        .iter()
        .all(|hook| hook["clientConfig"]["caBundle"] == *bundle);
    let webhooks: Vec<Value> = hooks
        .iter()
        .map(|hook| json!({"name": hook["name"], "clientConfig": {"caBundle": bundle}, "admissionReviewVersions": hook["admissionReviewVersions"], "sideEffects": hook["sideEffects"]}))
        .collect();
    (!same).then(|| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": CONFIGURATION},
            "webhooks": webhooks,
        })
    })
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let hook =
            |bundle: &str| json!({"name": WEBHOOKS[0], "clientConfig": {"caBundle": bundle}});
        let foreign = json!({"name": "other.example", "clientConfig": {}});
        let present = |bundle: &str| json!({"webhooks": [hook(bundle), foreign]});
        assert_eq!(difference(&present(&STANDARD.encode("root")), "root"), None);
        let patch = difference(&present(""), "root").unwrap();
        assert_eq!(patch["webhooks"].as_array().unwrap().len(), 1, "only ours");
        assert_eq!(difference(&json!({}), "root"), None);
    }
}
