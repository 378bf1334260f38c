//! Secrets that DestinationRules name (`credentialName`): what of them TLS towards servers outside of the mesh needs, and
//! how it gets into the settings of one service at one waypoint. The Secret lies in the waypoint's namespace, as in Istio.
//!
//! ```text
//!   credentialName ──Lookup──► certificate with its key, roots, revoked certificates ──► UpstreamTls of the one waypoint
//!                      │                 (roots: of the Secret itself, else of NAME-cacert)
//!                      └──► which Secrets are to be read, and why some cannot be used
//! ```
//!
//! Whoever owns the index reads the Secrets and has tried what they hold; nothing here knows what a certificate is. What
//! cannot be had breaks the settings, so that connections fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use hashbrown::HashMap;
use karst_model::traffic::{ClientCredential, Secret, TlsMode, TrustAnchors, UpstreamTls};

/// What the name of the Secret that holds only roots ends with, where the one with the certificate has none.
const ROOTS_SUFFIX: &str = "-cacert";

/// A Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a Secret holds that TLS can use. All of it was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credential {
    /// Chain, the leaf first, and its key; PEM.
    pub pair: Option<(Arc<str>, Secret)>,
    /// PEM.
    pub roots: Option<Arc<str>>,
    /// Revoked certificates, PEM.
    pub revoked: Option<Arc<str>>,
}

/// What reading a Secret has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSecret {
    /// The last that could be used.
    pub good: Option<Arc<Credential>>,
    /// Why what is there now cannot be used, as it goes on after the Secret's name: `is not there`.
    pub problem: Option<Arc<str>>,
}

/// Looks up what the TLS settings of one service at one waypoint name.
pub(crate) struct Lookup<'a> {
    read: &'a HashMap<SecretName, ReadSecret>,
    namespace: Arc<str>,
    /// Why nothing can be named here at all.
    refused: Option<&'static str>,
    found: LookedUp,
}

/// What was looked up.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct LookedUp {
    pub(crate) secrets: BTreeSet<SecretName>,
    /// By `credentialName`, with what is wrong.
    pub(crate) named: BTreeMap<Arc<str>, Option<String>>,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(read: &'a HashMap<SecretName, ReadSecret>, namespace: &str) -> Self {
        Self {
            read,
            namespace: namespace.into(),
            refused: None,
            found: LookedUp::default(),
        }
    }

    /// Whatever is named breaks its settings.
    pub(crate) fn refusing(self, why: &'static str) -> Self {
        Self {
            refused: Some(why),
            ..self
        }
    }

    pub(crate) fn done(self) -> LookedUp {
        self.found
    }

    /// Puts what the Secret `name` holds into settings. `system_roots`: servers are verified by the well-known ones.
    pub(crate) fn secure(&mut self, name: &Arc<str>, system_roots: bool, tls: &mut UpstreamTls) {
        if tls.broken.is_some() {
            return;
        }
        if let Some(why) = self.refused {
            tls.broken = Some(why.into());
            return;
        }
        self.found.named.entry(name.clone()).or_default();
        if let Err(why) = self.fill(name, system_roots, tls) {
            tls.broken = Some(format!("{why}: connections fail").into());
            self.say(name, format!("{why}: connections fail"));
        }
    }

    fn say(&mut self, name: &Arc<str>, what: String) {
        self.found.named.insert(name.clone(), Some(what));
    }

    fn fill(
        &mut self,
        name: &Arc<str>,
        system_roots: bool,
        tls: &mut UpstreamTls,
    ) -> Result<(), String> {
        let own = self.get(name, name)?;
        let secret = format!("{}/{name}", self.namespace);
        if tls.mode == TlsMode::Mutual {
            let (chain, key) = own.pair.clone().ok_or_else(|| {
                format!("Secret {secret} has no certificate with its key (tls.crt and tls.key, or cert and key)")
            })?;
            tls.credential = Some(ClientCredential {
                name: secret.as_str().into(),
                chain,
                key,
            });
        }
        tls.crl.clone_from(&own.revoked);
        if system_roots || tls.insecure {
            return Ok(());
        }
        let roots = match own.roots.is_some() {
            true => own,
            false => self.roots_apart(name, &secret)?,
        };
        tls.crl = tls.crl.take().or_else(|| roots.revoked.clone());
        tls.anchors = match &roots.roots {
            Some(pem) => TrustAnchors::Pem(pem.clone()),
            None => {
                return Err(format!(
                    "Secret {secret}{ROOTS_SUFFIX} has no ca.crt or cacert"
                ));
            }
        };
        Ok(())
    }

    fn roots_apart(&mut self, name: &Arc<str>, secret: &str) -> Result<Arc<Credential>, String> {
        let apart = self.get(name, &format!("{name}{ROOTS_SUFFIX}"));
        apart.map_err(|why| {
            format!(
                "Secret {secret} has no roots to verify the server by (ca.crt or cacert; `caCertificates: system` takes the well-known ones), and {why}"
            )
        })
    }

    fn get(&mut self, named: &Arc<str>, name: &str) -> Result<Arc<Credential>, String> {
        let secret = SecretName {
            namespace: self.namespace.clone(),
            name: name.into(),
        };
        let read = self.read.get(&secret);
        self.found.secrets.insert(secret.clone());
        let Some(read) = read else {
            return Err(format!("Secret {secret} has not been read yet"));
        };
        match (&read.good, &read.problem) {
            (Some(good), None) => Ok(good.clone()),
            (Some(good), Some(problem)) => {
                let what = format!("Secret {secret} {problem}; what it held before is used");
                self.say(named, what);
                Ok(good.clone())
            }
            (None, Some(problem)) => Err(format!("Secret {secret} {problem}")),
            (None, None) => Err(format!("Secret {secret} has not been read yet")),
        }
    }
}
