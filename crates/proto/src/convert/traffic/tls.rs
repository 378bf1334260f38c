//! TLS to endpoints outside of the mesh.

use karst_model::traffic::{ClientCredential, San, Secret, TlsMode, TrustAnchors, UpstreamTls};

use super::{Problem, all, string, text};
use crate::karst as wire;

pub(in crate::convert) fn from(tls: &wire::UpstreamTls) -> Result<UpstreamTls, Problem> {
    use wire::{subject_alt_name, upstream_tls::Anchors};
    let mode = match wire::UpstreamTlsMode::try_from(tls.mode) {
        Ok(wire::UpstreamTlsMode::TlsDisable) => TlsMode::Disable,
        Ok(wire::UpstreamTlsMode::TlsSimple) => TlsMode::Simple,
        Ok(wire::UpstreamTlsMode::TlsMutual) => TlsMode::Mutual,
        Ok(wire::UpstreamTlsMode::TlsMesh) => TlsMode::Mesh,
        Ok(wire::UpstreamTlsMode::TlsUnspecified) | Err(_) => {
            return Err(Problem::UnknownValue(tls.mode));
        }
    };
    let san = |san: &wire::SubjectAltName| {
        Ok(match san.kind.as_ref().ok_or(Problem::Missing)? {
            subject_alt_name::Kind::Any(name) => San::Any(name.as_str().into()),
            subject_alt_name::Kind::Dns(name) => San::Dns(name.as_str().into()),
            subject_alt_name::Kind::Uri(name) => San::Uri(name.as_str().into()),
        })
    };
    Ok(UpstreamTls {
        mode,
        sni: text(tls.sni.as_deref()),
        sans: all(&tls.sans, san)?,
        anchors: match tls.anchors.as_ref().ok_or(Problem::Missing)? {
            Anchors::System(()) => TrustAnchors::System,
            Anchors::Pem(pem) => TrustAnchors::Pem(pem.as_str().into()),
            Anchors::Mesh(()) => TrustAnchors::Mesh,
        },
        crl: text(tls.crl.as_deref()),
        credential: tls.credential.as_ref().map(|credential| ClientCredential {
            name: credential.name.as_str().into(),
            chain: credential.chain.as_str().into(),
            key: Secret::new(&credential.key),
        }),
        insecure: tls.insecure,
        broken: text(tls.broken.as_deref()),
    })
}

pub(in crate::convert) fn to(tls: &UpstreamTls) -> wire::UpstreamTls {
    use wire::{subject_alt_name, upstream_tls::Anchors};
    let mode = match tls.mode {
        TlsMode::Disable => wire::UpstreamTlsMode::TlsDisable,
        TlsMode::Simple => wire::UpstreamTlsMode::TlsSimple,
        TlsMode::Mutual => wire::UpstreamTlsMode::TlsMutual,
        TlsMode::Mesh => wire::UpstreamTlsMode::TlsMesh,
    };
    let san = |san: &San| wire::SubjectAltName {
        kind: Some(match san {
            San::Any(name) => subject_alt_name::Kind::Any(name.to_string()),
            San::Dns(name) => subject_alt_name::Kind::Dns(name.to_string()),
            San::Uri(name) => subject_alt_name::Kind::Uri(name.to_string()),
        }),
    };
    let anchors = match &tls.anchors {
        TrustAnchors::System => Anchors::System(()),
        TrustAnchors::Pem(pem) => Anchors::Pem(pem.to_string()),
        TrustAnchors::Mesh => Anchors::Mesh(()),
    };
    wire::UpstreamTls {
        mode: mode.into(),
        sni: string(tls.sni.as_ref()),
        sans: tls.sans.iter().map(san).collect(),
        anchors: Some(anchors),
        crl: string(tls.crl.as_ref()),
        credential: tls
            .credential
            .as_ref()
            .map(|credential| wire::ClientCredential {
                name: credential.name.to_string(),
                chain: credential.chain.to_string(),
                key: credential.key.expose().to_owned(),
            }),
        insecure: tls.insecure,
        broken: string(tls.broken.as_ref()),
    }
}
