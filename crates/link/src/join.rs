//! How a node becomes known to the controller: a join token once, a node token from then on.
//!
//! The node token and the roots are kept in the run directory (root only), so that a restart needs no new join token.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use karst_identity::{
    join_token::JoinToken,
    tls::{Connector, ControlPlaneTrust},
};
use karst_proto::karst::{
    JoinRequest, NodeCredential, RenewRequest, enrollment_client::EnrollmentClient,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use serde::{Deserialize, Serialize};
use tonic::transport::Endpoint;

use crate::{
    LinkConfig,
    way::{Link, connector, endpoint},
};

/// First and longest pause between attempts to reach the controller.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));

/// How often the age of the node token is looked at.
const RENEW_CHECK: Duration = Duration::from_secs(60);

/// What a node holds after joining.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Credential {
    node_token: String,
    /// Seconds since the epoch.
    expires_at: i64,
    /// Seconds since the epoch.
    obtained_at: i64,
    root_bundle: String,
    trust_domain: String,
}

/// Why the node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("controller address {0:?} is no URI")]
    Address(String),
    #[error("no node token in {} and no join token: give --join-token-file (made by `karst-controller token create --node NODE`), or in Kubernetes --token-file and --root-cert-file", .0.display())]
    NoToken(PathBuf),
    #[error("cannot read the join token from {}", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("{} holds no join token", path.display())]
    TokenForm {
        path: PathBuf,
        source: karst_identity::join_token::JoinTokenError,
    },
    #[error("cannot read the mesh's roots from {}", path.display())]
    RootFile { path: PathBuf, source: io::Error },
    #[error("TLS towards the controller cannot be set up")]
    Tls(#[source] karst_identity::tls::TlsError),
    #[error("the roots of the mesh are not readable")]
    Bundle(#[source] karst_identity::BundleError),
    #[error("the controller refused the join token: {0}; ask for a new one, each works once")]
    Refused(String),
    #[error("cannot keep the node token in {}", path.display())]
    Save { path: PathBuf, source: io::Error },
    #[error("the program is ending")]
    Ended,
}

/// A node that has joined: its token, renewed at half its life.
pub(super) struct Joined {
    held: RwLock<Credential>,
    file: PathBuf,
}

impl Joined {
    /// Uses the node token of an earlier run, or joins with the join token; retries until the controller is there.
    pub(super) async fn establish(
        config: &LinkConfig,
        shutdown: &Shutdown,
    ) -> Result<Self, JoinError> {
        let file = config.run_dir.join("node-credential.json");
        let held = match read_credential(&file) {
            Some(held) => held,
            None => join(config, &file, shutdown).await?,
        };
        Ok(Self {
            held: RwLock::new(held),
            file,
        })
    }

    /// The bearer token as it is now.
    pub(super) fn node_token(&self) -> String {
        self.credential().node_token
    }

    /// The roots of the mesh as they were when the node joined, PEM.
    pub(super) fn root_bundle(&self) -> String {
        self.credential().root_bundle
    }

    /// Renews the node token at half its life, until shutdown.
    pub(super) async fn keep_fresh(&self, link: &Link, shutdown: &Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEW_CHECK) => {}
                () = shutdown.cancelled() => return,
            }
            let held = self.credential();
            let half = held.obtained_at + (held.expires_at - held.obtained_at) / 2;
            if now() < half {
                continue;
            }
            if let Err(error) = self.renew(link).await {
                tracing::warn!(error = %Chain(&error), "cannot renew the node token yet, the old one is kept");
            }
        }
    }

    async fn renew(&self, link: &Link) -> Result<(), tonic::Status> {
        let mut client = EnrollmentClient::new(link.channel());
        let fresh = client
            .renew(link.authorized(RenewRequest {}))
            .await?
            .into_inner();
        let credential = Credential::from(fresh);
        if let Err(error) = write_private(&self.file, &credential) {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep the renewed node token");
        }
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = credential;
        Ok(())
    }

    fn credential(&self) -> Credential {
        self.held
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl From<NodeCredential> for Credential {
    fn from(wire: NodeCredential) -> Self {
        Self {
            node_token: wire.node_token,
            expires_at: wire.expires_at,
            obtained_at: now(),
            root_bundle: wire.root_bundle,
            trust_domain: wire.trust_domain,
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The credential of an earlier run if it is still good for a while.
fn read_credential(file: &Path) -> Option<Credential> {
    let held: Credential = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (held.expires_at > now() + 60).then_some(held)
}

fn write_private(file: &Path, credential: &Credential) -> io::Result<()> {
    let aside = file.with_extension("json.new");
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    out.set_permissions(fs::Permissions::from_mode(0o600))?;
    out.write_all(&serde_json::to_vec(credential).map_err(io::Error::other)?)?;
    out.sync_all()?;
    fs::rename(&aside, file)
}

async fn join(
    config: &LinkConfig,
    file: &Path,
    shutdown: &Shutdown,
) -> Result<Credential, JoinError> {
    let path = config
        .join_token_file
        .clone()
        .ok_or_else(|| JoinError::NoToken(file.to_owned()))?;
    let token = fs::read_to_string(&path).map_err(|source| JoinError::TokenFile {
        path: path.clone(),
        source,
    })?;
    let token = token.trim();
    let parsed = JoinToken::parse(token).map_err(|source| JoinError::TokenForm { path, source })?;
    let trust = ControlPlaneTrust::PinnedRoot(parsed.root);
    let connector = connector(config.controller_name.as_deref(), &trust)?;
    let endpoint = endpoint(config)?;
    let mut pause = BACKOFF.0;
    loop {
        match attempt(&endpoint, connector.clone(), token, &config.node).await {
            Ok(credential) => {
                write_private(file, &credential).map_err(|source| JoinError::Save {
                    path: file.to_owned(),
                    source,
                })?;
                return Ok(credential);
            }
            Err(status) if is_refusal(&status) => {
                return Err(JoinError::Refused(status.message().to_owned()));
            }
            Err(status) => tracing::info!(error = %Chain(&status), "waiting for the controller"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
            () = shutdown.cancelled() => return Err(JoinError::Ended),
        }
    }
}

fn is_refusal(status: &tonic::Status) -> bool {
    use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated};
    matches!(
        status.code(),
        Unauthenticated | PermissionDenied | InvalidArgument
    )
}

async fn attempt(
    endpoint: &Endpoint,
    connector: Connector,
    token: &str,
    node: &str,
) -> Result<Credential, tonic::Status> {
    let connected = endpoint.connect_with_connector(connector).await;
    let channel =
        connected.map_err(|error| tonic::Status::unavailable(Chain(&error).to_string()))?;
    let request = JoinRequest {
        join_token: token.to_owned(),
        node: node.to_owned(),
    };
    let joined = EnrollmentClient::new(channel).join(request).await?;
    Ok(joined.into_inner().into())
}
