//! The join tokens that were used: on disk, bounded, forgotten when they have expired.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use karst_identity::{
    JoinToken,
    private_file::{self, PrivateFileError},
};

use super::JoinError;

const FILE: &str = "used-join-tokens.json";
/// Most tokens remembered at once. Full means refuse: forgetting one would let it work twice.
pub(super) const USED_MAX: usize = 10_000;
/// Kept this long after expiry, in case the clock is set back.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// The list of used tokens cannot be read, so none can be accepted.
#[derive(Debug, thiserror::Error)]
pub enum UsedError {
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("{} is damaged: restore it, or remove it together with join-token.key so that no old token works", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

pub(super) struct UsedTokens {
    path: PathBuf,
    /// Token id to expiry in Unix seconds.
    expiry_by_id: BTreeMap<String, u64>,
}

impl UsedTokens {
    pub(super) fn load(state_dir: &Path) -> Result<Self, UsedError> {
        let path = state_dir.join(FILE);
        let expiry_by_id = match private_file::read(&path)? {
            Some(json) => serde_json::from_slice(&json).map_err(|source| UsedError::Damaged {
                path: path.clone(),
                source,
            })?,
            None => BTreeMap::new(),
        };
        Ok(Self { path, expiry_by_id })
    }

    /// Marks a token as used, on disk before it counts. An error means: not accepted.
    pub(super) fn spend(&mut self, token: &JoinToken, now: SystemTime) -> Result<(), JoinError> {
        if self.expiry_by_id.contains_key(&token.id) {
            return Err(JoinError::Used {
                node: token.node.clone(),
            });
        }
        let mut next = self.expiry_by_id.clone();
        next.retain(|_, expires| UNIX_EPOCH + Duration::from_secs(*expires) + GRACE >= now);
        if next.len() >= USED_MAX {
            return Err(JoinError::Full(next.len()));
        }
        let expires = token
            .expires
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        next.insert(token.id.clone(), expires);
        let json = serde_json::to_vec(&next).expect("strings and numbers always serialise");
        private_file::write(&self.path, &json)?;
        self.expiry_by_id = next;
        Ok(())
    }
}
