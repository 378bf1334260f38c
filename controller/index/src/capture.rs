//! Where each pod stands between "not in the mesh" and "reached by HBONE", so that nobody fails on the way.
//!
//! ```text
//!              label            agent: captured          un-label           peers: acknowledged
//!   Off ──────────────► Ambient ───────────────► Published ─────► Withdrawing ────────────────► Releasing
//!                          │                        ▲                 │                             │ agent: not captured
//!                          └──── un-label ──► Off   └──── label ──────┘                             └──► Off
//! ```
//!
//! In `Withdrawing` the workload has no tunnel any more while its node still captures it, so that peers which have not
//! heard yet still get through. In `Releasing` its node is told to let it go, and goes on being told whatever the labels
//! say, until it has: it may not have heard of it yet, and what it says it captures is then about to end.

use hashbrown::HashSet;
use karst_model::{enrollment::EnrollMode, name::PodUid};

/// Reports about pods that the index has not seen yet which are remembered; further ones wait for the agent to repeat.
const MAX_EARLY_REPORTS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Capture {
    captured: HashSet<PodUid>,
    published: HashSet<PodUid>,
    withdrawing: HashSet<PodUid>,
    /// Members of `captured` that their node is told to release.
    releasing: HashSet<PodUid>,
    /// Members of `captured` without a pod.
    early: HashSet<PodUid>,
}

/// What comes of a pod's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What its node is told.
    pub(crate) mode: EnrollMode,
    /// Whether peers are told to use HBONE.
    pub(crate) hbone: bool,
    /// Whether it has just begun to be withdrawn.
    pub(crate) withdraws_now: bool,
}

impl Capture {
    pub(crate) fn report(&mut self, uid: PodUid, captured: bool, known: bool) {
        if !captured {
            self.captured.remove(&uid);
            self.releasing.remove(&uid);
            self.early.remove(&uid);
        } else if known || self.early.len() < MAX_EARLY_REPORTS {
            if !known {
                self.early.insert(uid.clone());
            }
            self.captured.insert(uid);
        }
    }

    pub(crate) fn withdrawn(&mut self, uid: &PodUid) {
        self.withdrawing.remove(uid);
    }

    pub(crate) fn known(&mut self, uid: &PodUid) {
        self.early.remove(uid);
    }

    pub(crate) fn forget(&mut self, uid: &PodUid) {
        self.captured.remove(uid);
        self.published.remove(uid);
        self.withdrawing.remove(uid);
        self.releasing.remove(uid);
    }

    /// Where a pod stands, now that it should (or should not) be in the mesh.
    pub(crate) fn settle(&mut self, uid: &PodUid, enrolled: bool) -> Standing {
        let was_published = self.published.contains(uid);
        if enrolled && !self.releasing.contains(uid) {
            self.withdrawing.remove(uid);
            let hbone = self.captured.contains(uid);
            if hbone {
                self.published.insert(uid.clone());
            } else {
                self.published.remove(uid);
            }
            return Standing {
                mode: EnrollMode::Ambient,
                hbone,
                withdraws_now: false,
            };
        }
        self.published.remove(uid);
        if was_published {
            self.withdrawing.insert(uid.clone());
        }
        if self.withdrawing.contains(uid) {
            return Standing {
                mode: EnrollMode::Ambient,
                hbone: false,
                withdraws_now: was_published,
            };
        }
        if self.captured.contains(uid) {
            self.releasing.insert(uid.clone());
        }
        Standing {
            mode: EnrollMode::Off,
            hbone: false,
            withdraws_now: false,
        }
    }
}
