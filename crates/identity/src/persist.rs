//! Credentials on disk, so that an agent that restarts without a controller still serves its pods.
//!
//! One file per identity, mode 0600 in a folder of mode 0700, meant for a tmpfs: keys then never reach a disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use karst_model::identity::{SpiffeId, TrustDomain, TrustDomains};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    bundle::hex,
    clock::Clock,
    credential::{Credential, CredentialError},
    key::{KeyError, PrivateKey},
    private_file::{self, PrivateFileError},
    signer::SignedCertificate,
};

const EXTENSION: &str = "credential";
const VERSION: u32 = 1;
/// Far more than a chain, its roots and a key need.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// The folder, prepared.
pub(crate) struct Folder {
    dir: PathBuf,
    /// Files are named for identities in this one: an identity has one file, whatever its certificate calls it.
    home: TrustDomain,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    id: SpiffeId,
    key_pem: String,
    chain_pem: Vec<String>,
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("file is larger than {FILE_SIZE_MAX} bytes")]
    TooLarge,
    #[error("file is not what this version writes")]
    Json(#[source] serde_json::Error),
    #[error("file has version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("certificate has expired")]
    Expired,
}

impl Folder {
    pub(crate) fn open(dir: &Path, home: &TrustDomain) -> Result<Self, PrivateFileError> {
        private_file::prepare_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            home: home.clone(),
        })
    }

    /// Replaces what is saved for this identity; after an error the former file is whole.
    pub(crate) fn save(&self, credential: &Credential) -> Result<(), PrivateFileError> {
        let saved = Saved {
            version: VERSION,
            id: credential.id.clone(),
            key_pem: credential.key().pem().to_string(),
            chain_pem: credential.to_signed().chain_pem,
        };
        let json = Zeroizing::new(serde_json::to_vec(&saved).expect("strings always serialise"));
        private_file::write(&self.path(&credential.id), &json)
    }

    pub(crate) fn remove(&self, id: &SpiffeId) {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "removing a saved credential failed");
            }
            _ => {}
        }
    }

    /// All saved credentials that still hold, by identity in the home domain, at most `max`. Others are removed, with a warning that says why.
    pub(crate) fn load(
        &self,
        trust: &Arc<TrustDomains>,
        clock: &Clock,
        max: usize,
    ) -> BTreeMap<SpiffeId, Arc<Credential>> {
        let mut found = BTreeMap::new();
        for path in self.files() {
            if found.len() >= max {
                tracing::warn!(
                    max,
                    "more saved credentials than identities allowed, the rest is ignored"
                );
                break;
            }
            match load_one(&path, trust, clock) {
                Ok(credential) => {
                    let id = credential.id.in_trust_domain(&self.home);
                    found.insert(id, Arc::new(credential));
                }
                Err(error) => {
                    let error = crate::store::chain_text(&error);
                    tracing::warn!(path = %path.display(), error, "saved credential is not usable, removing it");
                    let _next_save_replaces_it = fs::remove_file(&path);
                }
            }
        }
        found
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == EXTENSION))
            .collect()
    }

    /// Named by hash: an identity may be longer than a file name.
    fn path(&self, id: &SpiffeId) -> PathBuf {
        let digest = Sha256::digest(id.in_trust_domain(&self.home).to_string());
        self.dir.join(format!("{}.{EXTENSION}", hex(&digest[..16])))
    }
}

fn load_one(
    path: &Path,
    trust: &Arc<TrustDomains>,
    clock: &Clock,
) -> Result<Credential, LoadError> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > FILE_SIZE_MAX) {
        return Err(LoadError::TooLarge);
    }
    let json = Zeroizing::new(private_file::read(path)?.unwrap_or_default());
    let mut saved: Saved = serde_json::from_slice(&json).map_err(LoadError::Json)?;
    if saved.version != VERSION {
        return Err(LoadError::Version(saved.version));
    }
    let key = Arc::new(PrivateKey::from_pem(&saved.key_pem)?);
    let signed = SignedCertificate {
        chain_pem: std::mem::take(&mut saved.chain_pem),
    };
    let credential =
        Credential::from_signed(&saved.id, key, &signed, trust.clone(), clock.clone())?;
    if !credential.is_valid_at(clock.now()) {
        return Err(LoadError::Expired);
    }
    Ok(credential)
}
