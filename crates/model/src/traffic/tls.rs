//! TLS to endpoints outside of the mesh.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// How connections to endpoints are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTls {
    pub mode: TlsMode,
    /// Server name; `None`: the host of the request.
    pub sni: Option<Arc<str>>,
    /// The certificate must have one of these. Empty: the server name.
    pub sans: Vec<San>,
    pub anchors: TrustAnchors,
    /// Revoked certificates, PEM.
    pub crl: Option<Arc<str>>,
    /// With [`TlsMode::Mutual`]. `None` there: it could not be read, and connections fail.
    pub credential: Option<ClientCredential>,
    /// The certificate is not checked at all.
    pub insecure: bool,
    /// Why this cannot work, where the configuration is broken: connections fail with it.
    pub broken: Option<Arc<str>>,
}

impl UpstreamTls {
    pub fn new(mode: TlsMode) -> Self {
        Self {
            mode,
            sni: None,
            sans: Vec::new(),
            anchors: TrustAnchors::System,
            crl: None,
            credential: None,
            insecure: false,
            broken: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// Plain, even to endpoints in the mesh.
    Disable,
    /// TLS without a certificate of our own.
    Simple,
    /// TLS with a certificate of our own.
    Mutual,
    /// Through the mesh, with the waypoint's own identity.
    Mesh,
}

/// A name that a certificate must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum San {
    /// A DNS name or a URI, as Istio's `subjectAltNames`.
    Any(Arc<str>),
    Dns(Arc<str>),
    Uri(Arc<str>),
}

/// Who may have signed a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustAnchors {
    /// The well-known ones.
    System,
    /// PEM.
    Pem(Arc<str>),
    /// The mesh's own.
    Mesh,
}

/// A certificate of our own, from a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCredential {
    /// `<namespace>/<name>` of the Secret.
    pub name: Arc<str>,
    /// PEM, the leaf first.
    pub chain: Arc<str>,
    /// PEM.
    pub key: Secret,
}

/// A text that is shown to nobody: neither in logs nor in dumps, which is why it does not survive serde.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

/// What is shown instead.
const HIDDEN: &str = "(not shown)";

impl Secret {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}
