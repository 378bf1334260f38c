//! The program's Kubernetes service account: a projected token and the mesh's roots, both files that others renew.
//!
//! The kubelet replaces the token at four fifths of its life, the controller the roots during a rotation. Both are read
//! at each use, so no watch can miss a change.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;

use crate::{JoinError, LinkConfig};

/// Longest token or root file that is read.
const FILE_LIMIT: u64 = 1 << 20;
/// First and longest pause between looks for a root file that is not there yet.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Where the two files are.
#[derive(Clone, Debug)]
pub(super) struct ServiceAccount {
    token_file: PathBuf,
    root_cert_file: PathBuf,
}

impl ServiceAccount {
    /// None when the configuration names no token file: the node joins with a join token then.
    pub(super) fn of(config: &LinkConfig) -> Option<Self> {
        Some(Self {
            token_file: config.token_file.clone()?,
            root_cert_file: config.root_cert_file.clone()?,
        })
    }

    /// The token as it is now.
    pub(super) fn token(&self) -> io::Result<String> {
        let text = read(&self.token_file)?;
        let token = text.trim();
        if token.is_empty() {
            let text = format!("{} is empty", self.token_file.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(token.to_owned())
    }

    /// The mesh's roots as they are now, PEM.
    pub(super) fn roots(&self) -> Result<String, JoinError> {
        read(&self.root_cert_file).map_err(|source| JoinError::RootFile {
            path: self.root_cert_file.clone(),
            source,
        })
    }

    /// Waits until the roots can be read: a new cluster's controller writes them only when it runs.
    pub(super) async fn wait_for_roots(&self, shutdown: &Shutdown) -> Result<String, JoinError> {
        let mut pause = BACKOFF.0;
        let mut told = false;
        loop {
            let missing = match self.roots() {
                Ok(roots) if !roots.trim().is_empty() => return Ok(roots),
                Ok(_empty) => format!("{} is empty", self.root_cert_file.display()),
                Err(error) => Chain(&error).to_string(),
            };
            if !told {
                tracing::warn!(
                    missing,
                    "waiting for the mesh's roots, which the controller writes: is it running?"
                );
                told = true;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
                () = shutdown.cancelled() => return Err(JoinError::Ended),
            }
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(named)?;
    file.take(FILE_LIMIT)
        .read_to_string(&mut text)
        .map_err(named)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn account(dir: &Path) -> ServiceAccount {
        ServiceAccount {
            token_file: dir.join("token"),
            root_cert_file: dir.join("root-cert.pem"),
        }
    }

    #[test]
    fn a_renewed_token_is_used_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let account = account(dir.path());
        fs::write(&account.token_file, "first\n").unwrap();
        assert_eq!(account.token().unwrap(), "first");
        // As the kubelet does it: another file under the same name.
        fs::write(dir.path().join("new"), "second").unwrap();
        fs::rename(dir.path().join("new"), &account.token_file).unwrap();
        assert_eq!(account.token().unwrap(), "second");
    }

    #[test]
    fn a_missing_or_empty_token_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let account = account(dir.path());
        assert!(account.token().unwrap_err().to_string().contains("token"));
        fs::write(&account.token_file, "\n").unwrap();
        assert!(
            account
                .token()
                .unwrap_err()
                .to_string()
                .ends_with("is empty")
        );
    }

    #[tokio::test]
    async fn the_agent_waits_for_roots_that_are_not_written_yet() {
        let dir = tempfile::tempdir().unwrap();
        let account = account(dir.path());
        let (waiting, shutdown) = (account.clone(), Shutdown::new());
        let write = async {
            tokio::task::yield_now().await;
            fs::write(&account.root_cert_file, "roots").unwrap();
        };
        let (roots, ()) = tokio::join!(waiting.wait_for_roots(&shutdown), write);
        assert_eq!(roots.unwrap(), "roots");
    }

    #[tokio::test]
    async fn waiting_for_roots_ends_with_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new();
        shutdown.cancel();
        let ended = account(dir.path()).wait_for_roots(&shutdown).await;
        assert!(matches!(ended, Err(JoinError::Ended)));
    }
}
