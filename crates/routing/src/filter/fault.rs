//! Errors made on purpose: which requests wait, and which are answered with an error instead of by a backend.
//!
//! Source: Istio reference, `HTTPFaultInjection`. Delay and abort are drawn each for itself, the delay comes first.

use std::time::Duration;

use http::StatusCode;
use karst_model::route::{self, FaultAnswer};

use super::Unusable;

/// The longest wait: a request holds a place while it waits.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// What shares are of.
const EVERYTHING: u32 = 1_000_000;

/// Faults of a rule, checked.
#[derive(Clone, Debug)]
pub struct Fault(route::Fault);

impl Fault {
    pub(super) fn compile(fault: &route::Fault) -> Result<Self, Unusable> {
        let shares = [
            fault.delay.as_ref().map(|delay| delay.millionths),
            fault.abort.as_ref().map(|abort| abort.millionths),
        ];
        for millionths in shares.into_iter().flatten() {
            if millionths > EVERYTHING {
                return Err(Unusable::Share {
                    numerator: millionths,
                    denominator: EVERYTHING,
                });
            }
        }
        if let Some(delay) = fault.delay.as_ref().filter(|delay| delay.wait > WAIT_MAX) {
            return Err(Unusable::Wait(delay.wait));
        }
        match fault.abort.as_ref().map(|abort| abort.answer) {
            Some(FaultAnswer::Http(status)) if !(200..=599).contains(&status) => {
                Err(Unusable::Status(status))
            }
            Some(FaultAnswer::Grpc(status)) if status > 16 => Err(Unusable::GrpcStatus(status)),
            _ => Ok(Self(fault.clone())),
        }
    }

    /// How long a request waits. `random` is drawn evenly from all of `u64`, as of [`Self::abort`] and apart from it.
    pub fn delay(&self, random: u64) -> Option<Duration> {
        let delay = self.0.delay.as_ref()?;
        hits(delay.millionths, random).then_some(delay.wait)
    }

    /// What a request is answered with.
    pub fn abort(&self, random: u64) -> Option<Abort> {
        let abort = self.0.abort.as_ref()?;
        hits(abort.millionths, random).then(|| match abort.answer {
            FaultAnswer::Grpc(status) => Abort::Grpc(status),
            FaultAnswer::Http(status) => {
                Abort::Http(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
            }
        })
    }
}

/// The answer of a request that is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(StatusCode),
    Grpc(u8),
}

fn hits(millionths: u32, random: u64) -> bool {
    let point = (u128::from(random) * u128::from(EVERYTHING)) >> 64;
    point < u128::from(millionths)
}
