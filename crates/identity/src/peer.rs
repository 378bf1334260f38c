//! Who a peer is, read from its certificate, and every reason for not believing it.

use std::{error::Error, io, sync::Arc, time::SystemTime};

use karst_model::identity::{SpiffeId, SpiffeIdError, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::{
    certificate::{Facts, FactsError},
    clock::{rfc3339, rough},
};

/// Why a peer's certificate was refused. Every text names the peer and says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerCertError {
    #[error(
        "peer sent no certificate: it is not a mesh member, or a proxy in between ended its TLS"
    )]
    Missing,
    #[error(
        "peer sent bytes that are no certificate ({reason}): it is not a mesh member, or its CA is faulty"
    )]
    Malformed { reason: String },
    #[error(
        "certificate of {peer} is valid only in {} (from {}): compare the clocks of both nodes and of the CA",
        rough(not_before.duration_since(*now).unwrap_or_default()), rfc3339(*not_before)
    )]
    NotYetValid {
        peer: String,
        not_before: SystemTime,
        now: SystemTime,
    },
    #[error(
        "certificate of {peer} expired {} ago (at {}): its node cannot renew, look at that agent's connection to the CA, and at the clocks",
        rough(now.duration_since(*not_after).unwrap_or_default()), rfc3339(*not_after)
    )]
    Expired {
        peer: String,
        not_after: SystemTime,
        now: SystemTime,
    },
    #[error(
        "certificate of {peer}, issued by {issuer:?}, chains to none of our {roots} roots: the peer is of another mesh, or a root was retired before everyone had renewed"
    )]
    UnknownRoot {
        peer: String,
        issuer: String,
        roots: usize,
    },
    #[error(
        "certificate of {peer} is not for {usage}: its CA must issue the extended key usages serverAuth and clientAuth"
    )]
    WrongUsage { peer: String, usage: &'static str },
    #[error(
        "certificate with serial {serial}, issued by {issuer:?}, holds no URI name: a mesh certificate has exactly one, its SPIFFE ID"
    )]
    NoUri { serial: String, issuer: String },
    #[error(
        "certificate with serial {serial} holds {count} URI names ({first:?}, {second:?}): who the peer is would be ambiguous, its CA must issue exactly one"
    )]
    ManyUris {
        serial: String,
        count: usize,
        first: String,
        second: String,
    },
    #[error(
        "certificate with serial {serial} names no workload: its CA must issue SPIFFE IDs of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    NotSpiffe {
        serial: String,
        #[source]
        source: SpiffeIdError,
    },
    #[error("{peer} is of another trust domain than ours, {own:?}: list {} as an alias if it should be trusted", peer.trust_domain)]
    TrustDomain { peer: SpiffeId, own: TrustDomain },
    #[error(
        "peer is {peer}, expected {}: the address now belongs to another workload, or discovery is behind",
        expected_text(accepted)
    )]
    Unexpected {
        peer: SpiffeId,
        accepted: Arc<[SpiffeId]>,
    },
    #[error(
        "certificate chain of {peer} does not verify: its CA is faulty, or somebody impersonates it"
    )]
    Chain {
        peer: String,
        #[source]
        source: webpki::Error,
    },
}

fn expected_text(accepted: &[SpiffeId]) -> String {
    match accepted {
        [] => "nobody (the destination has no known identity)".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} or one of {} more", rest.len()),
    }
}

impl PeerCertError {
    /// A short, bounded name for metrics and access logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "no_certificate",
            Self::Malformed { .. } => "malformed",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::UnknownRoot { .. } => "unknown_root",
            Self::WrongUsage { .. } => "wrong_usage",
            Self::NoUri { .. } => "no_uri",
            Self::ManyUris { .. } => "many_uris",
            Self::NotSpiffe { .. } => "not_spiffe",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Unexpected { .. } => "unexpected_identity",
            Self::Chain { .. } => "chain",
        }
    }
}

/// The identity of the first certificate: its one URI name. Zero or several are refused, so that two readers of one
/// certificate can never disagree about who it is. Does not verify anything; handshakes have done that.
pub fn peer_id(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerCertError> {
    let leaf = certs.first().ok_or(PeerCertError::Missing)?;
    id_of(&Facts::read(leaf)?)
}

/// Finds the refusal inside the error of a failed handshake, for its label and text.
pub fn peer_cert_error(error: &io::Error) -> Option<&PeerCertError> {
    let mut cause: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
                return other.0.downcast_ref();
            }
            Some(rustls::Error::NoCertificatesPresented) => return Some(&PeerCertError::Missing),
            _ => cause = error.source(),
        }
    }
    None
}

impl From<FactsError> for PeerCertError {
    fn from(error: FactsError) -> Self {
        Self::Malformed {
            reason: error.to_string(),
        }
    }
}

/// The one SPIFFE ID of a parsed certificate.
pub(crate) fn id_of(facts: &Facts) -> Result<SpiffeId, PeerCertError> {
    match &facts.uris[..] {
        [] => Err(PeerCertError::NoUri {
            serial: facts.serial.clone(),
            issuer: facts.issuer.clone(),
        }),
        [uri] => uri.parse().map_err(|source| PeerCertError::NotSpiffe {
            serial: facts.serial.clone(),
            source,
        }),
        [first, second, ..] => Err(PeerCertError::ManyUris {
            serial: facts.serial.clone(),
            count: facts.uris.len(),
            first: first.clone(),
            second: second.clone(),
        }),
    }
}
