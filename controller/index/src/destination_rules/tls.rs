//! `tls`: how endpoints are spoken to. Neither files of a proxy nor Secrets can be named: a waypoint has none of the
//! author's files, and the controller reads no Secrets of others. What needs them fails closed, and says so.

use std::sync::Arc;

use karst_k8s_api::istio::destination_rule::{ClientTls, TlsMode as Mode};
use karst_model::traffic::{San, TlsMode, UpstreamTls};

use super::values::{Place, text};

/// What is told to whoever asks for it; it holds as asked.
const UNVERIFIED: &str = "the server's certificate is not checked, as asked: whoever stands in between can read and change everything";

pub(super) fn lower(spec: &ClientTls, place: &mut Place<'_>) -> UpstreamTls {
    let mode = match spec.mode {
        Some(Mode::Simple) => TlsMode::Simple,
        Some(Mode::Mutual) => TlsMode::Mutual,
        Some(Mode::IstioMutual) => TlsMode::Mesh,
        Some(Mode::Disable) | None => TlsMode::Disable,
    };
    let mut tls = UpstreamTls::new(mode);
    if matches!(mode, TlsMode::Simple | TlsMode::Mutual) {
        tls.sni = text(spec.sni.as_ref());
        let sans = spec.subject_alt_names.iter();
        tls.sans = sans.map(|san| San::Any(san.as_str().into())).collect();
        tls.insecure = spec.insecure_skip_verify == Some(true);
        if tls.insecure {
            place.fault("insecureSkipVerify", UNVERIFIED);
        }
        tls.broken = files(spec, place);
        if tls.broken.is_none() && mode == TlsMode::Mutual {
            let why = "MUTUAL needs a certificate of its own, and none can be named in this version: connections fail";
            place.fault("mode", why);
            tls.broken = Some(why.into());
        }
    } else {
        idle(spec, place);
    }
    tls
}

/// Fields that name files and Secrets. `system` is none.
fn files(spec: &ClientTls, place: &mut Place<'_>) -> Option<Arc<str>> {
    let certificates = spec.ca_certificates.as_deref();
    let named = [
        ("clientCertificate", spec.client_certificate.as_deref()),
        ("privateKey", spec.private_key.as_deref()),
        (
            "caCertificates",
            certificates.filter(|name| *name != "system"),
        ),
        ("caCrl", spec.ca_crl.as_deref()),
        ("credentialName", spec.credential_name.as_deref()),
    ];
    let mut broken = None;
    for (field, _) in named
        .into_iter()
        .filter(|(_, file)| file.is_some_and(|file| !file.is_empty()))
    {
        let why = format!(
            "{field} names what a waypoint cannot read (a file, a Secret): connections fail; for roots of your own use a BackendTLSPolicy"
        );
        place.fault(field, why.clone());
        broken = Some(why.into());
    }
    broken
}

/// What has no meaning without TLS of the rule's own.
fn idle(spec: &ClientTls, place: &mut Place<'_>) {
    let set = [
        ("credentialName", spec.credential_name.is_some()),
        ("clientCertificate", spec.client_certificate.is_some()),
        ("privateKey", spec.private_key.is_some()),
        ("caCertificates", spec.ca_certificates.is_some()),
        ("sni", spec.sni.is_some()),
        ("subjectAltNames", !spec.subject_alt_names.is_empty()),
    ];
    for (field, _) in set.into_iter().filter(|(_, set)| *set) {
        place.fault(field, "has an effect in the modes SIMPLE and MUTUAL only");
    }
}
