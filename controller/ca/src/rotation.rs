//! Root rotation in two phases, so that no handshake fails: pure, time is a parameter.
//!
//! ```text
//!   Steady ──announce──► Announced ──switch──► Switched ──retire──► Steady
//!   [old]               [old, new]            [new, old]           [new]      (the first signs, all are trusted)
//! ```
//!
//! `switch` waits until everyone trusts the new root; `retire` until nobody shows a leaf of the old one. Both hold for
//! sure once the longest leaf of the phase before has expired, as every agent then got a new leaf with the new bundle.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// One root, which signs.
    Steady,
    /// A second root is in every bundle, and does not sign yet.
    Announced { at: SystemTime },
    /// The new root signs, the former is still trusted.
    Switched { at: SystemTime },
}

/// The step to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Announce,
    Switch,
    Retire,
}

/// When roots are rotated.
#[derive(Clone, Copy, Debug)]
pub struct RotationTimes {
    /// Begin when the signing root has less than this left.
    pub root_left_min: Duration,
    /// Longest life of a leaf: how long each phase lasts at least.
    pub leaf_ttl_max: Duration,
}

/// A step that was asked for too early or out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("a root rotation is under way already ({0:?})")]
    UnderWay(Phase),
    #[error("no root rotation is at this step (it is at {0:?})")]
    OutOfOrder(Phase),
    #[error("too early: agents may still hold certificates from before, wait another {0:?}")]
    TooEarly(Duration),
}

/// The step that is due by itself at `now`, if any.
pub fn due(
    phase: Phase,
    root_not_after: SystemTime,
    times: &RotationTimes,
    now: SystemTime,
) -> Option<Step> {
    let step = match phase {
        Phase::Steady
            if root_not_after.duration_since(now).unwrap_or_default() < times.root_left_min =>
        {
            return Some(Step::Announce);
        }
        Phase::Steady => return None,
        Phase::Announced { .. } => Step::Switch,
        Phase::Switched { .. } => Step::Retire,
    };
    check(step, phase, times, now).is_ok().then_some(step)
}

/// Whether `step` may be taken at `now`.
pub fn check(
    step: Step,
    phase: Phase,
    times: &RotationTimes,
    now: SystemTime,
) -> Result<(), StepError> {
    let since = match (step, phase) {
        (Step::Announce, Phase::Steady) => return Ok(()),
        (Step::Announce, phase) => return Err(StepError::UnderWay(phase)),
        (Step::Switch, Phase::Announced { at }) | (Step::Retire, Phase::Switched { at }) => at,
        (_, phase) => return Err(StepError::OutOfOrder(phase)),
    };
    let waited = now.duration_since(since).unwrap_or_default();
    match times.leaf_ttl_max.checked_sub(waited) {
        Some(left) if !left.is_zero() => Err(StepError::TooEarly(left)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_rotation_takes_its_steps_in_order_and_not_early() {
        let times = RotationTimes {
            root_left_min: 30 * DAY,
            leaf_ttl_max: DAY,
        };
        let end = SystemTime::UNIX_EPOCH + 1000 * DAY;
        let (early, late) = (end - 100 * DAY, end - 20 * DAY);
        assert_eq!(due(Phase::Steady, end, &times, early), None);
        assert_eq!(due(Phase::Steady, end, &times, late), Some(Step::Announce));
        let announced = Phase::Announced { at: late };
        assert_eq!(due(announced, end, &times, late + DAY / 2), None);
        assert_eq!(
            check(Step::Switch, announced, &times, late + DAY / 2),
            Err(StepError::TooEarly(DAY / 2))
        );
        assert_eq!(due(announced, end, &times, late + DAY), Some(Step::Switch));
        let switched = Phase::Switched { at: late };
        assert_eq!(due(switched, end, &times, late + DAY), Some(Step::Retire));
        assert_eq!(
            check(Step::Announce, switched, &times, late),
            Err(StepError::UnderWay(switched))
        );
        assert_eq!(
            check(Step::Retire, announced, &times, late),
            Err(StepError::OutOfOrder(announced))
        );
    }
}
