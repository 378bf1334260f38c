//! The way to the API server: the cluster that we run in, or the one that KUBECONFIG names.

use std::time::Duration;

use kube::{Client, Config, config::InferConfigError};

/// A connection that is not there after this long is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence on a request after which it is given up; above the length of a watch, which bookmarks keep alive.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// No way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "no Kubernetes API is configured: run in a pod with a service account's token, or set KUBECONFIG"
    )]
    Configuration(#[source] Box<InferConfigError>),
    #[error("the configured way to the Kubernetes API cannot be used")]
    Client(#[source] Box<kube::Error>),
}

/// A client; nothing is asked yet.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer()
        .await
        .map_err(|error| ConnectError::Configuration(Box::new(error)))?;
    client(config)
}

/// A client with our bounds.
///
/// # Errors
/// The configuration names no usable address or credentials.
pub fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // It would wait for minutes after 429, 503 and 504, and nobody would see that anything fails: everybody here who asks
    // tries again by itself, within bounds.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}
