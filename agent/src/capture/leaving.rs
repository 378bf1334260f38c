//! Pods on their way out of the mesh. They go in steps, for connections that others began while they believed the pod to
//! be captured: what it dials is released at once, then what arrives, then its listeners. Its DNS socket stays
//! ([`crate::dns::pod`]).

use std::{collections::BTreeMap, time::Duration};

use karst_model::name::PodUid;
use tokio::time::Instant;

/// Time between one step and the next.
const BETWEEN: Duration = Duration::from_secs(2);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// What arrives is not to be steered to the agent any more.
    ReleaseInbound,
    /// The listeners close, and nothing of the capture is left.
    LetGo,
}

/// Released pods, whose last connections still find what they need.
#[derive(Debug)]
pub(crate) struct LeavingPods<P> {
    pods: BTreeMap<PodUid, Leaving<P>>,
}

#[derive(Debug)]
struct Leaving<P> {
    pod: P,
    next: Due,
    at: Instant,
}

impl<P> Default for LeavingPods<P> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
        }
    }
}

impl<P: Clone> LeavingPods<P> {
    /// A pod whose own connections are captured no more, as of `now`.
    pub(crate) fn insert(&mut self, now: Instant, pod_uid: PodUid, pod: P) {
        let leaving = Leaving {
            pod,
            next: Due::ReleaseInbound,
            at: now + BETWEEN,
        };
        self.pods.insert(pod_uid, leaving);
    }

    /// It goes at once, or comes back.
    pub(crate) fn remove(&mut self, pod_uid: &PodUid) -> Option<P> {
        self.pods.remove(pod_uid).map(|leaving| leaving.pod)
    }

    pub(crate) fn contains(&self, pod_uid: &PodUid) -> bool {
        self.pods.contains_key(pod_uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &P> {
        self.pods.values().map(|leaving| &leaving.pod)
    }

    /// When the first step of any pod is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.pods.values().map(|leaving| leaving.at).min()
    }

    /// One step of every pod that is due, to be carried out by the caller; the last one forgets the pod.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<(P, Due)> {
        let mut due = Vec::new();
        self.pods.retain(|_, leaving| {
            if leaving.at > now {
                return true;
            }
            let step = leaving.next;
            due.push((leaving.pod.clone(), step));
            (leaving.next, leaving.at) = (Due::LetGo, now + BETWEEN);
            step != Due::LetGo
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> PodUid {
        name.into()
    }

    #[test]
    fn what_arrives_is_released_before_the_listeners() {
        let (mut leaving, start) = (LeavingPods::default(), Instant::now());
        leaving.insert(start, uid("pod"), "pod");
        let (second, third) = (start + BETWEEN, start + 2 * BETWEEN);
        let early = Duration::from_millis(1);

        assert_eq!(leaving.take_due(second - early), []);
        assert_eq!(leaving.next_due(), Some(second));
        assert_eq!(leaving.take_due(second), [("pod", Due::ReleaseInbound)]);
        assert_eq!(leaving.take_due(third - early), []);
        assert_eq!(leaving.take_due(third), [("pod", Due::LetGo)]);
        assert_eq!((leaving.len(), leaving.next_due()), (0, None));
    }

    /// A step that comes late is no reason to hurry the next one: connections end meanwhile.
    #[test]
    fn each_pod_goes_by_its_own_time_and_no_step_is_left_out() {
        let (mut leaving, start) = (LeavingPods::default(), Instant::now());
        leaving.insert(start, uid("late"), "late");
        let much_later = start + 10 * BETWEEN;
        leaving.insert(much_later, uid("new"), "new");

        assert_eq!(
            leaving.take_due(much_later),
            [("late", Due::ReleaseInbound)]
        );
        assert_eq!(leaving.next_due(), Some(much_later + BETWEEN));
        assert_eq!(leaving.remove(&uid("new")), Some("new"));
        assert!(!leaving.contains(&uid("new")));
        assert_eq!(
            leaving.take_due(much_later + BETWEEN),
            [("late", Due::LetGo)]
        );
    }
}
