//! What a store shows of itself: for `/config_dump` and the CLI. Never a private key.

use std::time::SystemTime;

use serde::Serialize;

use super::State;
use crate::{
    bundle::{certificate_pem, fingerprint, hex},
    certificate::Facts,
    clock::rfc3339,
    credential::Credential,
};

/// Where an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum IdentityState {
    /// Asked for, no answer yet.
    Initializing,
    /// A valid certificate is held.
    Available,
    /// No valid certificate, and the last request failed.
    Unavailable,
}

/// One identity of a store. Times are RFC 3339.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    pub identity: String,
    pub state: IdentityState,
    /// Local users of the identity.
    pub references: usize,
    pub request_in_flight: bool,
    /// When it is asked for next.
    pub next_request: String,
    pub last_error: Option<String>,
    /// Whether a restart would find it.
    pub saved: bool,
    pub cert_chain: Vec<CertificateStatus>,
    pub root_certs: Vec<CertificateStatus>,
}

/// One certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    pub pem: String,
    pub serial_number: String,
    pub valid_from: String,
    pub expiration_time: String,
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
}

pub(super) fn statuses(state: &State, now: SystemTime) -> Vec<IdentityStatus> {
    let of_slot = |(id, slot): (&_, &super::Slot)| {
        let plan = state.rotation.plan(id)?;
        let held = slot.credential.borrow().clone();
        Some(IdentityStatus {
            identity: held.as_ref().map_or(id, |held| &held.id).to_string(),
            state: state_of(held.as_deref(), now, slot.last_error.is_some()),
            references: plan.references,
            request_in_flight: plan.in_flight,
            next_request: rfc3339(plan.due),
            last_error: slot.last_error.clone(),
            saved: slot.saved,
            cert_chain: held
                .iter()
                .flat_map(|held| held.chain())
                .filter_map(certificate)
                .collect(),
            root_certs: held
                .iter()
                .flat_map(|held| held.bundle().roots())
                .filter_map(certificate)
                .collect(),
        })
    };
    state.slots.iter().filter_map(of_slot).collect()
}

/// When the first of the certificates that are held ends.
pub(super) fn soonest_expiry(state: &State) -> Option<SystemTime> {
    let held = state.slots.values().filter_map(|slot| {
        let held = slot.credential.borrow().clone()?;
        Facts::read(held.chain().first()?).ok()
    });
    held.map(|facts| facts.not_after).min()
}

fn state_of(held: Option<&Credential>, now: SystemTime, failed: bool) -> IdentityState {
    match held {
        Some(held) if held.is_valid_at(now) => IdentityState::Available,
        None if !failed => IdentityState::Initializing,
        _ => IdentityState::Unavailable,
    }
}

fn certificate(cert: &rustls_pki_types::CertificateDer<'static>) -> Option<CertificateStatus> {
    let facts = Facts::read(cert).ok()?;
    Some(CertificateStatus {
        pem: certificate_pem(cert),
        serial_number: facts.serial,
        valid_from: rfc3339(facts.not_before),
        expiration_time: rfc3339(facts.not_after),
        fingerprint: hex(&fingerprint(cert)),
    })
}
