//! The way to the controller: TLS verified by the mesh's roots, and the bearer token that says who this node's agent is.
//!
//! Two kinds of credentials: a node token that was got by a join token ([`Joined`]), and a Kubernetes service account's
//! projected token ([`ServiceAccount`]), whose files others renew and which are therefore read again at each use.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use karst_identity::{
    TrustBundle,
    tls::{Connector, ControlPlaneTrust, control_plane_client_config},
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use tokio::sync::watch;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    LinkConfig,
    join::{JoinError, Joined},
    service_account::ServiceAccount,
};

/// A verified way to the controller, with the agent's token. Clones are the same way.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    controller_name: Option<String>,
    credential: Credential,
    way: RwLock<Way>,
    /// The connection that discovery uses, once there is one.
    followed: watch::Sender<Option<Channel>>,
}

enum Credential {
    Joined(Joined),
    ServiceAccount(ServiceAccount),
}

/// How the controller is verified, as of the roots that were read last.
#[derive(Clone)]
struct Way {
    roots_pem: String,
    connector: Connector,
    channel: Channel,
}

impl Link {
    /// Uses the service account's token where one is named, else the node token of an earlier run, else joins with the
    /// join token; retries until what it needs is there.
    pub async fn establish(config: &LinkConfig, shutdown: &Shutdown) -> Result<Self, JoinError> {
        let (credential, roots_pem) = match ServiceAccount::of(config) {
            Some(account) => {
                let roots = account.wait_for_roots(shutdown).await?;
                (Credential::ServiceAccount(account), roots)
            }
            None => {
                let joined = Joined::establish(config, shutdown).await?;
                let roots = joined.root_bundle();
                (Credential::Joined(joined), roots)
            }
        };
        let endpoint = endpoint(config)?;
        let way = way(&endpoint, config.controller_name.as_deref(), roots_pem)?;
        let shared = Shared {
            endpoint,
            controller_name: config.controller_name.clone(),
            credential,
            way: RwLock::new(way),
            followed: watch::Sender::new(None),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// A new connection, for discovery.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let connector = self.way().connector;
        let endpoint = &self.shared.endpoint;
        let channel = endpoint.connect_with_connector(connector).await?;
        self.shared.followed.send_replace(Some(channel.clone()));
        Ok(channel)
    }

    /// The connection that discovery uses: of several controllers, the one that tells us what to capture is the one that
    /// must hear what is captured.
    pub fn followed(&self) -> watch::Receiver<Option<Channel>> {
        self.shared.followed.subscribe()
    }

    /// A connection that is made when it is used, and shared.
    pub fn channel(&self) -> Channel {
        self.way().channel
    }

    /// The bearer token as it is now.
    pub fn token(&self) -> io::Result<String> {
        match &self.shared.credential {
            Credential::Joined(joined) => Ok(joined.node_token()),
            Credential::ServiceAccount(account) => account.token(),
        }
    }

    /// The request with the bearer token.
    pub fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = self.bearer() {
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    /// `Bearer <token>`; None if the token cannot be had, and then the controller refuses the call.
    fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        let token = self.token().inspect_err(
            |error| tracing::warn!(%error, "cannot read the token for the controller"),
        );
        format!("Bearer {}", token.ok()?).parse().ok()
    }

    /// Keeps the credential alive until shutdown. A service account's is the kubelet's to renew.
    pub async fn keep_fresh(self, shutdown: Shutdown) {
        match &self.shared.credential {
            Credential::Joined(joined) => joined.keep_fresh(&self, &shutdown).await,
            Credential::ServiceAccount(_) => shutdown.cancelled().await,
        }
    }

    /// The way as it is now, made anew when the roots have changed. Roots that cannot be read leave it as it is.
    fn way(&self) -> Way {
        let held = self.read_way();
        let Credential::ServiceAccount(account) = &self.shared.credential else {
            return held;
        };
        let name = self.shared.controller_name.as_deref();
        let fresh = account.roots().and_then(|roots_pem| {
            if roots_pem == held.roots_pem {
                return Ok(None);
            }
            way(&self.shared.endpoint, name, roots_pem).map(Some)
        });
        match fresh {
            Ok(None) => held,
            Ok(Some(fresh)) => {
                tracing::info!("the roots that verify the controller have changed");
                let mut way = self
                    .shared
                    .way
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *way = fresh.clone();
                fresh
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the roots that verify the controller are not usable, the old ones are kept");
                held
            }
        }
    }

    fn read_way(&self) -> Way {
        let way = self
            .shared
            .way
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        way.clone()
    }
}

fn way(endpoint: &Endpoint, name: Option<&str>, roots_pem: String) -> Result<Way, JoinError> {
    let bundle = TrustBundle::from_pem(&roots_pem).map_err(JoinError::Bundle)?;
    let connector = connector(name, &ControlPlaneTrust::Bundle(bundle))?;
    let channel = endpoint.connect_with_connector_lazy(connector.clone());
    Ok(Way {
        roots_pem,
        connector,
        channel,
    })
}

/// The channel is given a plain URI, because TLS is the connector's: the transport must not bring its own.
pub(super) fn endpoint(config: &LinkConfig) -> Result<Endpoint, JoinError> {
    let plain = config.controller.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|_invalid| JoinError::Address(config.controller.clone()))?;
    Ok(endpoint
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

pub(super) fn connector(
    name: Option<&str>,
    trust: &ControlPlaneTrust,
) -> Result<Connector, JoinError> {
    let connector = Connector::new(control_plane_client_config(trust).map_err(JoinError::Tls)?);
    let name = name.and_then(|name| name.to_owned().try_into().ok());
    Ok(match name {
        Some(name) => connector.with_server_name(name),
        None => connector,
    })
}
