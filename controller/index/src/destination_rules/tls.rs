//! `tls`: how endpoints are spoken to. A certificate of one's own and roots of one's own come from a Secret in the
//! waypoint's namespace (`credentialName`); files of a proxy cannot be named, since a waypoint has none of the author's.
//! What cannot be had fails closed, and says so.

use std::sync::Arc;

use karst_k8s_api::istio::destination_rule::{ClientTls, TlsMode as Mode};
use karst_model::traffic::{San, TlsMode, UpstreamTls};

use super::values::{Place, text};
use crate::credentials::Lookup;

/// What is told to whoever asks for it; it holds as asked.
const UNVERIFIED: &str = "the server's certificate is not checked, as asked: whoever stands in between can read and change everything";

/// The roots of the machine, in `caCertificates`.
const SYSTEM: &str = "system";
/// How Istio may write the name of a Secret.
const SCHEME: &str = "kubernetes://";
/// Longest name of a Secret.
const NAME_MAX: usize = 253;

/// TLS as a rule asks for it, before the Secret that it names is looked up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TlsWish {
    tls: UpstreamTls,
    /// `credentialName`.
    pub(super) secret: Option<Arc<str>>,
    /// Servers are verified by the well-known roots, whatever the Secret has.
    system_roots: bool,
}

impl TlsWish {
    /// With what its Secret holds.
    pub(super) fn secured(mut self, lookup: &mut Lookup<'_>) -> UpstreamTls {
        if let Some(secret) = &self.secret {
            lookup.secure(secret, self.system_roots, &mut self.tls);
        }
        self.tls
    }
}

pub(super) fn lower(spec: &ClientTls, place: &mut Place<'_>) -> TlsWish {
    let mode = match spec.mode {
        Some(Mode::Simple) => TlsMode::Simple,
        Some(Mode::Mutual) => TlsMode::Mutual,
        Some(Mode::IstioMutual) => TlsMode::Mesh,
        Some(Mode::Disable) | None => TlsMode::Disable,
    };
    let mut tls = UpstreamTls::new(mode);
    let mut secret = None;
    if matches!(mode, TlsMode::Simple | TlsMode::Mutual) {
        tls.sni = text(spec.sni.as_ref());
        let sans = spec.subject_alt_names.iter();
        tls.sans = sans.map(|san| San::Any(san.as_str().into())).collect();
        tls.insecure = spec.insecure_skip_verify == Some(true);
        if tls.insecure {
            place.fault("insecureSkipVerify", UNVERIFIED);
        }
        tls.broken = files(spec, place);
        if tls.broken.is_none() {
            (secret, tls.broken) = named(spec, mode, place);
        }
    } else {
        idle(spec, place);
    }
    TlsWish {
        tls,
        secret,
        system_roots: spec.ca_certificates.as_deref() == Some(SYSTEM),
    }
}

/// Fields that name files. `system` is none.
fn files(spec: &ClientTls, place: &mut Place<'_>) -> Option<Arc<str>> {
    let certificates = spec.ca_certificates.as_deref();
    let named = [
        ("clientCertificate", spec.client_certificate.as_deref()),
        ("privateKey", spec.private_key.as_deref()),
        (
            "caCertificates",
            certificates.filter(|name| *name != SYSTEM),
        ),
        ("caCrl", spec.ca_crl.as_deref()),
    ];
    let mut broken = None;
    for (field, _) in named
        .into_iter()
        .filter(|(_, file)| file.is_some_and(|file| !file.is_empty()))
    {
        let why = format!(
            "{field} names a file, and a waypoint's pod has none of yours: connections fail; put it into a Secret and name that in credentialName"
        );
        place.fault(field, why.clone());
        broken = Some(why.into());
    }
    broken
}

/// The Secret that is named, or why connections fail.
fn named(
    spec: &ClientTls,
    mode: TlsMode,
    place: &mut Place<'_>,
) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let Some(name) = text(spec.credential_name.as_ref()) else {
        if mode != TlsMode::Mutual {
            return (None, None);
        }
        let why = "MUTUAL needs a certificate of its own, and credentialName names no Secret: connections fail";
        place.fault("mode", why);
        return (None, Some(why.into()));
    };
    let name = name.strip_prefix(SCHEME).unwrap_or(&name);
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(fits) {
        let why = format!(
            "{name:?} can be no Secret of the waypoint's namespace, which is what is named: connections fail"
        );
        place.fault("credentialName", why.clone());
        return (None, Some(why.into()));
    }
    (Some(name.into()), None)
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
