//! Which pods to capture and which to release now: a pure diff, run again after every event.
//!
//! Level-triggered: the plan is made from what should be and what is, never from what was done before, so a crash at any
//! step is repaired by the next run.

use std::collections::BTreeMap;

use karst_model::{
    enrollment::{EnrollMode, Generation, NodeWorkload, Plaintext},
    name::PodUid,
};
use karst_netns::NetnsCookie;

/// What the agent should do next about one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Capture the pod whose namespace is known, or renew the capture because its options changed.
    Attach {
        pod: NodeWorkload,
        cookie: NetnsCookie,
    },
    /// Release the pod: it left the mesh, or it is gone.
    Detach {
        pod_uid: PodUid,
        cookie: NetnsCookie,
    },
    /// The pod is captured as it should be; what is said about it has changed.
    Note { pod: NodeWorkload },
    /// The pod should be captured and nothing has told its namespace yet.
    FindNamespace { pod_uid: PodUid },
}

/// A pod as it is captured now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) cookie: NetnsCookie,
    /// What it was captured as; differs from the desired value after a change of options.
    pub(crate) as_desired: NodeWorkload,
}

/// The steps that lead from `captured` to `desired`. Releases come first: an address may be about to be reused.
pub(crate) fn plan(
    desired: &BTreeMap<PodUid, NodeWorkload>,
    namespaces: &BTreeMap<PodUid, NetnsCookie>,
    captured: &BTreeMap<PodUid, Captured>,
) -> Vec<Step> {
    let wanted = |uid: &PodUid| {
        desired
            .get(uid)
            .filter(|pod| pod.mode == EnrollMode::Ambient)
    };
    let mut steps = Vec::new();
    for (uid, now) in captured {
        let keep = wanted(uid).is_some()
            && namespaces
                .get(uid)
                .is_none_or(|cookie| *cookie == now.cookie);
        if !keep {
            steps.push(Step::Detach {
                pod_uid: uid.clone(),
                cookie: now.cookie,
            });
        }
    }
    for (uid, pod) in desired
        .iter()
        .filter(|(_, pod)| pod.mode == EnrollMode::Ambient)
    {
        let Some(cookie) = namespaces.get(uid) else {
            if !captured.contains_key(uid) {
                steps.push(Step::FindNamespace {
                    pod_uid: uid.clone(),
                });
            }
            continue;
        };
        let current = captured
            .get(uid)
            .filter(|now| now.cookie == *cookie)
            .map(|now| &now.as_desired);
        match current {
            Some(now) if now == pod => {}
            Some(now) if same_capture(now, pod) => steps.push(Step::Note { pod: pod.clone() }),
            _ => steps.push(Step::Attach {
                pod: pod.clone(),
                cookie: *cookie,
            }),
        }
    }
    steps
}

/// Whether the kernel would do the same for both.
fn same_capture(a: &NodeWorkload, b: &NodeWorkload) -> bool {
    let said = |pod: &NodeWorkload| NodeWorkload {
        generation: Generation::default(),
        plaintext: Plaintext::default(),
        ..pod.clone()
    };
    said(a) == said(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, mode: EnrollMode) -> NodeWorkload {
        NodeWorkload {
            pod_uid: uid.into(),
            name: uid.into(),
            namespace: "shop".into(),
            service_account: "default".into(),
            workload_uid: uid.into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            mode,
            generation: Generation::default(),
            plaintext: Plaintext::default(),
            capture: Default::default(),
            probe_ports: vec![],
        }
    }

    /// (desired pods with mode, known namespaces, captured pods) to steps, by name.
    fn check(
        desired: &[(&str, EnrollMode)],
        namespaces: &[(&str, u64)],
        captured: &[(&str, u64)],
        expected: &[&str],
    ) {
        let desired = desired
            .iter()
            .map(|(uid, mode)| (PodUid::from(*uid), pod(uid, *mode)))
            .collect();
        let namespaces = namespaces
            .iter()
            .map(|(uid, c)| (PodUid::from(*uid), NetnsCookie(*c)))
            .collect();
        let captured = captured
            .iter()
            .map(|(uid, c)| {
                (
                    PodUid::from(*uid),
                    Captured {
                        cookie: NetnsCookie(*c),
                        as_desired: pod(uid, EnrollMode::Ambient),
                    },
                )
            })
            .collect();
        let got: Vec<String> = plan(&desired, &namespaces, &captured)
            .iter()
            .map(|step| match step {
                Step::Attach { pod, cookie } => format!("attach {} {}", pod.pod_uid, cookie.0),
                Step::Detach { pod_uid, cookie } => format!("detach {pod_uid} {}", cookie.0),
                Step::FindNamespace { pod_uid } => format!("find {pod_uid}"),
                Step::Note { pod } => format!("note {}", pod.pod_uid),
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn the_plan_is_the_difference() {
        use EnrollMode::{Ambient, Off};
        check(&[("a", Ambient)], &[("a", 1)], &[], &["attach a 1"]);
        check(&[("a", Ambient)], &[("a", 1)], &[("a", 1)], &[]);
        check(&[("a", Off)], &[("a", 1)], &[("a", 1)], &["detach a 1"]);
        check(&[], &[], &[("a", 1)], &["detach a 1"]);
        check(&[("a", Ambient)], &[], &[], &["find a"]);
        check(&[("a", Off)], &[("a", 1)], &[], &[]);
    }

    #[test]
    fn a_new_namespace_under_the_same_uid_is_captured_anew() {
        check(
            &[("a", EnrollMode::Ambient)],
            &[("a", 2)],
            &[("a", 1)],
            &["detach a 1", "attach a 2"],
        );
    }

    #[test]
    fn a_new_generation_is_noted_and_new_options_are_captured_anew() {
        let uid = PodUid::from("a");
        let now = Captured {
            cookie: NetnsCookie(1),
            as_desired: pod("a", EnrollMode::Ambient),
        };
        let steps = |desired: NodeWorkload| {
            plan(
                &BTreeMap::from([(uid.clone(), desired)]),
                &BTreeMap::from([(uid.clone(), NetnsCookie(1))]),
                &BTreeMap::from([(uid.clone(), now.clone())]),
            )
        };
        let renumbered = NodeWorkload {
            generation: Generation(2),
            plaintext: Plaintext::Leaving,
            ..now.as_desired.clone()
        };
        let expected = Step::Note {
            pod: renumbered.clone(),
        };
        assert_eq!(steps(renumbered), [expected]);
        let probed = NodeWorkload {
            generation: Generation(2),
            probe_ports: vec![8080],
            ..now.as_desired.clone()
        };
        assert!(matches!(*steps(probed), [Step::Attach { .. }]));
    }

    #[test]
    fn a_captured_pod_whose_namespace_record_is_lost_stays_captured() {
        check(&[("a", EnrollMode::Ambient)], &[], &[("a", 1)], &[]);
    }

    #[test]
    fn releases_come_before_captures() {
        check(
            &[("b", EnrollMode::Ambient)],
            &[("b", 2)],
            &[("a", 1)],
            &["detach a 1", "attach b 2"],
        );
    }
}
