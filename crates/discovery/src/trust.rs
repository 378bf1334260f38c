//! Hands the names of the mesh's trust domain on to whoever verifies peers and asks for certificates.

use std::sync::Arc;

use karst_identity::Store;
use karst_model::identity::TrustDomains;
use karst_runtime::supervise::Shutdown;

use crate::{Change, Changed, State};

/// Keeps `identities` told until `shutdown`. While no controller has said anything, `configured` holds.
pub async fn follow(
    state: Arc<State>,
    identities: Store,
    configured: TrustDomains,
    shutdown: Shutdown,
) {
    let mut changes = state.changes();
    loop {
        let said = state.trust_domains();
        identities.update_trust(said.as_deref().unwrap_or(&configured));
        tokio::select! {
            () = changed(&mut changes) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn changed(changes: &mut crate::Changes) {
    loop {
        match changes.next().await {
            Some(Changed::Some(some)) if !some.contains(&Change::TrustDomains) => {}
            Some(_) => return,
            None => std::future::pending().await,
        }
    }
}
