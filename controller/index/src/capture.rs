//! Where each pod stands between "not in the mesh" and "reached by HBONE only", so that nobody fails on the way.
//!
//! ```text
//!                   Off ◄──────────────────────────── label gone ───────────────────────────┐
//!                    │ label: a new generation                                              │
//!                    ▼                                                                      │
//!   node captures  Told ──────────────────────────── report of this generation ─────────────┤
//!                    │ plain connections pass                   │ policy holds (new pod)    │
//!   published        ▼                                          ▼                           │
//!   as HBONE      Entering ── peers acknowledged, and ────► Enforced                        │
//!                    │        everybody of the step is          │                           │
//!                    │        captured; or 5 s                  │ label gone                │
//!                    │ label gone                               ▼                           │
//!                    │                                       Opening                        │
//!   withdrawn        │                                          │ plain connections pass,   │
//!                    └──────────► Withdrawing ◄─────────────────┘ or 5 s                    │
//!                                      └──── peers acknowledged, or 5 s ────────────────────┘
//! ```
//!
//! In `Entering` and `Withdrawing` some peers use the tunnel and others plain connections, so the node lets both pass.
//! A label that comes back leads from `Opening` and `Withdrawing` to `Entering`.
//!
//! What a node reports counts only under the generation that the pod is in: a report that was under way when the pod
//! was let go says nothing about its next enrolment. `Opening` has a number of its own, so that only what the node says
//! after it has heard of it counts.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use karst_model::{
    enrollment::{EnrollMode, Generation, Plaintext, PodCapture},
    name::PodUid,
};

use crate::delta::{Awaited, Transition};

/// Captures of pods that the index has not seen yet which are remembered; further ones wait for the agent to repeat.
const MAX_EARLY: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Capture {
    /// Pods that are to be in the mesh, or still are.
    pods: HashMap<PodUid, Enrolment>,
    /// What nodes said last, of pods that they capture.
    reports: HashMap<PodUid, PodCapture>,
    /// What an earlier controller had published, until the pod is settled for the first time.
    resumed: HashMap<PodUid, PodCapture>,
    /// How many pods of each generation are told and not yet captured.
    told: BTreeMap<Generation, usize>,
    /// Pods in `Entering` whose peers know, which wait for others of their generation or an earlier one.
    ready: HashSet<PodUid>,
    /// The present step.
    now: Generation,
}

#[derive(Debug)]
struct Enrolment {
    generation: Generation,
    stage: Stage,
    /// The step in which the stage began: tells a late acknowledgement from one that counts.
    since: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Told,
    Entering { peers: Peers },
    Enforced,
    Opening,
    Withdrawing,
}

/// How far the peers of a pod that enters have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peers {
    Unaware,
    /// All have acknowledged that the pod is reached by HBONE.
    Aware,
    /// Waited for long enough.
    Overdue,
}

/// What comes of a pod's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What its node is told.
    pub(crate) mode: EnrollMode,
    pub(crate) generation: Generation,
    pub(crate) plaintext: Plaintext,
    /// Whether peers are told to use HBONE.
    pub(crate) hbone: bool,
    /// A stage that has just begun and that others must end.
    pub(crate) begins: Option<Transition>,
}

impl Standing {
    const OFF: Self = Self {
        mode: EnrollMode::Off,
        generation: Generation(0),
        plaintext: Plaintext::Enforced,
        hbone: false,
        begins: None,
    };
}

impl Capture {
    /// `first`: a number above every generation that an earlier controller has used.
    pub(crate) fn starting_at(first: Generation) -> Self {
        Self {
            now: first,
            ..Self::default()
        }
    }

    /// A new step: pods that are enrolled from here on are of a new generation.
    pub(crate) fn step(&mut self) {
        self.now = Generation(self.now.0 + 1);
    }

    /// What a node says about a pod; `None` where it does not capture it.
    pub(crate) fn report(&mut self, uid: PodUid, capture: Option<PodCapture>, known: bool) {
        match capture {
            Some(capture) if known => {
                let newer = |old: &PodCapture| old.generation > capture.generation;
                if !self.reports.get(&uid).is_some_and(newer) {
                    self.reports.insert(uid, capture);
                }
            }
            // Its node repeats it when it is told about the pod.
            Some(_) => {}
            None => {
                self.reports.remove(&uid);
                self.resumed.remove(&uid);
            }
        }
    }

    /// Whether a report under this generation counts.
    pub(crate) fn is_current(&self, uid: &PodUid, generation: Generation) -> bool {
        let pod = self.pods.get(uid);
        pod.is_some_and(|pod| pod.generation == generation)
    }

    /// What an earlier controller had published.
    pub(crate) fn resume(&mut self, uid: PodUid, capture: PodCapture) {
        if self.resumed.len() < MAX_EARLY || self.resumed.contains_key(&uid) {
            self.now = self.now.max(capture.generation);
            self.resumed.insert(uid, capture);
        }
    }

    /// Every peer has acknowledged what the transition published.
    pub(crate) fn acknowledged(&mut self, done: &Transition) {
        let Some(pod) = self.waiting(done) else {
            return;
        };
        match done.awaited {
            Awaited::Entering => {
                pod.stage = Stage::Entering {
                    peers: Peers::Aware,
                };
                self.ready.insert(done.pod_uid.clone());
            }
            Awaited::Withdrawing => self.let_go(&done.pod_uid),
            Awaited::Opening => {}
        }
    }

    /// Nobody is waited for any longer.
    pub(crate) fn overdue(&mut self, done: &Transition) {
        let Some(pod) = self.waiting(done) else {
            return;
        };
        match done.awaited {
            Awaited::Entering => {
                pod.stage = Stage::Entering {
                    peers: Peers::Overdue,
                };
            }
            // What the node would have said.
            Awaited::Opening => {
                let generation = pod.generation;
                let opened = PodCapture {
                    generation,
                    plaintext_open: true,
                };
                self.reports.insert(done.pod_uid.clone(), opened);
            }
            Awaited::Withdrawing => self.let_go(&done.pod_uid),
        }
    }

    /// The pod, if it is still in the stage that began with this transition.
    fn waiting(&mut self, done: &Transition) -> Option<&mut Enrolment> {
        let pod = self.pods.get_mut(&done.pod_uid)?;
        let stage = match pod.stage {
            Stage::Entering { .. } => Awaited::Entering,
            Stage::Opening => Awaited::Opening,
            Stage::Withdrawing => Awaited::Withdrawing,
            Stage::Told | Stage::Enforced => return None,
        };
        (stage == done.awaited && pod.since == done.since).then_some(pod)
    }

    pub(crate) fn forget(&mut self, uid: &PodUid) {
        self.let_go(uid);
        self.reports.remove(uid);
        self.resumed.remove(uid);
    }

    fn let_go(&mut self, uid: &PodUid) {
        if let Some(pod) = self.pods.remove(uid)
            && pod.stage == Stage::Told
        {
            self.no_longer_told(pod.generation);
        }
        self.ready.remove(uid);
    }

    fn no_longer_told(&mut self, generation: Generation) {
        if let Some(count) = self.told.get_mut(&generation) {
            *count -= 1;
            if *count == 0 {
                self.told.remove(&generation);
            }
        }
    }

    /// Pods that wait for nobody any more and must be settled again.
    pub(crate) fn unblocked(&mut self) -> Vec<PodUid> {
        let pods = &self.pods;
        let first = self.told.keys().next().copied();
        let waits = |uid: &PodUid| {
            let generation = pods.get(uid).map(|pod| pod.generation);
            generation.is_some_and(|generation| first.is_some_and(|first| first <= generation))
        };
        self.ready.extract_if(|uid| !waits(uid)).collect()
    }

    /// Where a pod stands, now that it should (or should not) be in the mesh.
    pub(crate) fn settle(&mut self, uid: &PodUid, enrolled: bool) -> Standing {
        if !self.pods.contains_key(uid) {
            self.begin(uid, enrolled);
        }
        let report = self.reports.get(uid).copied();
        let blocked = self.told.keys().next().copied();
        let Some(pod) = self.pods.get(uid) else {
            return Standing::OFF;
        };
        let before = pod.stage;
        let seen = Seen {
            held: report.is_some(),
            open: report
                .filter(|report| report.generation == pod.generation)
                .map(|report| report.plaintext_open),
            blocked: blocked.is_some_and(|first| first <= pod.generation),
        };
        match next(before, enrolled, seen) {
            Next::Off => {
                self.let_go(uid);
                Standing::OFF
            }
            Next::Anew => {
                self.let_go(uid);
                self.tell(uid);
                self.standing(uid, None)
            }
            Next::Stage(stage) => {
                let begins = self.enter(uid, before, stage);
                self.standing(uid, begins)
            }
        }
    }

    /// Where a pod stands whose node another controller serves: as that one has published it.
    pub(crate) fn follow(
        &mut self,
        uid: &PodUid,
        enrolled: bool,
        published: Option<PodCapture>,
    ) -> Standing {
        self.forget(uid);
        Self::followed(enrolled, published)
    }

    /// The same, of a pod that is followed already.
    pub(crate) fn followed(enrolled: bool, published: Option<PodCapture>) -> Standing {
        let (generation, plaintext) = match published {
            None if !enrolled => return Standing::OFF,
            None => (Generation(0), Plaintext::Entering),
            Some(capture) if capture.plaintext_open => (capture.generation, Plaintext::Entering),
            Some(capture) => (capture.generation, Plaintext::Enforced),
        };
        Standing {
            mode: EnrollMode::Ambient,
            generation,
            plaintext,
            hbone: published.is_some(),
            begins: None,
        }
    }

    /// How a pod that is reached by HBONE is held, for other controllers to follow and to go on from.
    pub(crate) fn published(&self, uid: &PodUid) -> Option<PodCapture> {
        let pod = self.pods.get(uid)?;
        let plaintext_open = match pod.stage {
            Stage::Entering { .. } | Stage::Opening => true,
            Stage::Enforced => false,
            Stage::Told | Stage::Withdrawing => return None,
        };
        Some(PodCapture {
            generation: pod.generation,
            plaintext_open,
        })
    }

    /// A pod that is not in the mesh so far.
    fn begin(&mut self, uid: &PodUid, enrolled: bool) {
        match self.resumed.remove(uid) {
            Some(capture) => {
                self.reports.entry(uid.clone()).or_insert(capture);
                let stage = match capture.plaintext_open {
                    // It was on its way in or out.
                    true => Stage::Opening,
                    false => Stage::Enforced,
                };
                let enrolment = Enrolment {
                    generation: capture.generation,
                    stage,
                    since: self.now,
                };
                self.pods.insert(uid.clone(), enrolment);
            }
            None if enrolled => self.tell(uid),
            None => {}
        }
    }

    fn tell(&mut self, uid: &PodUid) {
        let enrolment = Enrolment {
            generation: self.now,
            stage: Stage::Told,
            since: self.now,
        };
        *self.told.entry(self.now).or_default() += 1;
        self.pods.insert(uid.clone(), enrolment);
    }

    /// Puts the pod into a stage; what others must end is returned, if it begins here.
    fn enter(&mut self, uid: &PodUid, before: Stage, stage: Stage) -> Option<Transition> {
        let same = std::mem::discriminant(&before) == std::mem::discriminant(&stage);
        let pod = self.pods.get_mut(uid)?;
        pod.stage = stage;
        if same {
            return None;
        }
        pod.since = self.now;
        let generation = pod.generation;
        if stage == Stage::Opening {
            pod.generation = self.now;
        }
        if before == Stage::Told {
            self.no_longer_told(generation);
        }
        self.ready.remove(uid);
        let awaited = match stage {
            Stage::Entering { .. } => Awaited::Entering,
            Stage::Opening => Awaited::Opening,
            Stage::Withdrawing => Awaited::Withdrawing,
            Stage::Told | Stage::Enforced => return None,
        };
        Some(Transition {
            pod_uid: uid.clone(),
            awaited,
            since: self.now,
        })
    }

    /// Where a pod stands since it was settled last.
    pub(crate) fn now(&self, uid: &PodUid) -> Standing {
        self.standing(uid, None)
    }

    fn standing(&self, uid: &PodUid, begins: Option<Transition>) -> Standing {
        let Some(pod) = self.pods.get(uid) else {
            return Standing::OFF;
        };
        let plaintext = match pod.stage {
            Stage::Told | Stage::Entering { .. } => Plaintext::Entering,
            Stage::Enforced => Plaintext::Enforced,
            Stage::Opening | Stage::Withdrawing => Plaintext::Leaving,
        };
        let published = matches!(
            pod.stage,
            Stage::Entering { .. } | Stage::Enforced | Stage::Opening
        );
        Standing {
            mode: EnrollMode::Ambient,
            generation: pod.generation,
            plaintext,
            hbone: published,
            begins,
        }
    }
}

enum Next {
    Off,
    /// The node has lost it: enrolled again, under a new generation.
    Anew,
    Stage(Stage),
}

/// What is known when a pod's next stage is chosen.
#[derive(Clone, Copy)]
struct Seen {
    /// Its node captures it.
    held: bool,
    /// Whether plain connections pass; `None` where its node has not said so under this generation.
    open: Option<bool>,
    /// Pods of this generation or an earlier one are still to be captured.
    blocked: bool,
}

fn next(stage: Stage, enrolled: bool, seen: Seen) -> Next {
    let Seen {
        held,
        open,
        blocked,
    } = seen;
    let entering = Stage::Entering {
        peers: Peers::Unaware,
    };
    Next::Stage(match (stage, enrolled) {
        (Stage::Told, false) => return Next::Off,
        (Stage::Told, true) => match open {
            None => Stage::Told,
            Some(true) => entering,
            Some(false) => Stage::Enforced,
        },
        (_, true) if !held => return Next::Anew,
        (Stage::Entering { .. }, true) if open == Some(false) => Stage::Enforced,
        (Stage::Entering { peers }, true) => match peers {
            Peers::Aware if !blocked => Stage::Enforced,
            Peers::Overdue => Stage::Enforced,
            Peers::Aware | Peers::Unaware => stage,
        },
        (Stage::Enforced, true) => stage,
        (Stage::Opening | Stage::Withdrawing, true) => entering,
        (Stage::Entering { .. } | Stage::Enforced, false) if held => Stage::Opening,
        (Stage::Opening, false) if held && open != Some(true) => stage,
        (_, false) => Stage::Withdrawing,
    })
}
