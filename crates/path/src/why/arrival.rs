//! What happens at the server's node: the agent's policies decide, then the application has the connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    enrollment::Plaintext,
    identity::SpiffeId,
    policy::Action,
    protocol::{RESERVED_PORTS, TunnelProtocol},
    workload::Workload,
};
use karst_policy::{
    Attribute, Compiled, Connection, DenyReason, DryRunAllow, Explanation, Outcome as TraceOutcome,
    PolicyTrace, RuleRef, Unmet, Verdict as Decided,
};

use super::{Ask, Detail, Fate, Object, Outcome, StepName, Verdict, question::shown};

/// A connection that has reached the server's node.
pub(super) struct Arriving {
    /// `None`: nobody that the mesh knows.
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) target: SocketAddr,
    /// As which the peer is verified; `None` in plain text.
    pub(super) identity: Option<SpiffeId>,
    /// The peer's address.
    pub(super) ip: IpAddr,
}

impl Ask<'_> {
    /// Decides at the server's node.
    pub(super) fn arrive(&mut self, arriving: &Arriving) -> Fate {
        let target = arriving.target;
        let Some(workload) = &arriving.workload else {
            let text =
                format!("{target} is nobody that the mesh knows: Karst decides nothing there");
            self.say(StepName::Arrival, Outcome::Passes, text.clone());
            return Fate::new(Verdict::Allowed, StepName::Arrival, text);
        };
        let name = shown(workload);
        let pod = Object::new("Pod", &workload.namespace, &workload.name);
        if let Some(text) = self.unprotected(arriving, workload) {
            self.say(StepName::Policy, Outcome::Passes, text.clone())
                .about = Some(pod);
            return Fate::new(Verdict::Allowed, StepName::Policy, text);
        }
        if RESERVED_PORTS.contains(&target.port()) {
            let text = format!(
                "port {} of {name} belongs to the proxy itself",
                target.port()
            );
            self.say(StepName::Policy, Outcome::Stops, text.clone())
                .about = Some(pod);
            return Fate::new(Verdict::Fails, StepName::Policy, text);
        }
        let explained = explain(self.facts, workload, arriving);
        self.policies(&name, &explained)
    }

    /// Why no policy is asked at the server's node, where that is so.
    fn unprotected(&self, arriving: &Arriving, workload: &Workload) -> Option<String> {
        let name = shown(workload);
        if workload.tunnel == TunnelProtocol::None {
            let would = self.facts.mesh.policies_for(workload).policies.len();
            let would = match would {
                0 => String::new(),
                some => format!("; {some} policies that select it are enforced by nobody"),
            };
            return Some(format!(
                "{name} is not in the mesh: no agent decides there{would}"
            ));
        }
        let pod = self
            .facts
            .pod(workload)
            .filter(|_| arriving.identity.is_none())?;
        let port = arriving.target.port();
        if pod.capture.exclude_inbound_ports.contains(&port) {
            return Some(format!(
                "{name} excludes inbound port {port} from capture: no policy is asked"
            ));
        }
        match pod.plaintext {
            Plaintext::Enforced => None,
            Plaintext::Entering | Plaintext::Leaving => Some(format!(
                "{name} is on its way into or out of the mesh: plain connections pass without policy for a moment"
            )),
        }
    }

    fn policies(&mut self, name: &str, explained: &Explanation) -> Fate {
        let peer = match &explained.connection.source {
            Some(identity) => format!("{identity}"),
            None => "a peer without an identity (plain text)".to_owned(),
        };
        let details = details(explained);
        let (outcome, fate) = match &explained.decision.verdict {
            Decided::Allow => (Outcome::Passes, allowed(name, explained)),
            Decided::Deny(reason) => (Outcome::Stops, denied(name, reason, explained)),
        };
        let text = format!(
            "{name} is asked by {peer}: {}",
            match explained.policies.len() {
                0 => "no policy applies".to_owned(),
                1 => "1 policy applies".to_owned(),
                some => format!("{some} policies apply"),
            }
        );
        self.say(StepName::Policy, outcome, text).details = details;
        fate
    }
}

/// Asks `karst-policy` as the agent does.
pub(crate) fn explain(
    facts: &crate::Facts,
    workload: &Workload,
    arriving: &Arriving,
) -> Explanation {
    let applies = facts.mesh.policies_for(workload);
    let compiled = Compiled::compile(applies.policies.into_iter(), &applies.missing);
    compiled.explain(&Connection {
        source: arriving.identity.clone(),
        source_ip: arriving.ip,
        destination: arriving.target,
    })
}

fn allowed(name: &str, explained: &Explanation) -> Fate {
    let fate = |because: String| Fate::new(Verdict::Allowed, StepName::Policy, because);
    if let Some(rule) = &explained.allowed_by {
        return fate(format!("{rule} allows it at {name}"))
            .by(Object::of_policy(&rule.policy), Some(rule.rule));
    }
    let Some(rule) = port_left_out(explained) else {
        return fate(format!(
            "no policy of {name} refuses it, and none must allow it"
        ));
    };
    let object = Object::of_policy(&rule.policy);
    let port = explained.connection.destination.port();
    fate(format!(
        "{object} takes mutual TLS only at {name} and leaves out port {port}; no other policy refuses it"
    ))
    .by(object, Some(rule.rule))
}

/// The rule of a PeerAuthentication that refuses plain text on other ports than this one: without the exception it would
/// have refused.
fn port_left_out(explained: &Explanation) -> Option<RuleRef> {
    if explained.connection.source.is_some() {
        return None;
    }
    explained.policies.iter().find_map(|trace| {
        let TraceOutcome::NotMatched { rules } = &trace.outcome else {
            return None;
        };
        if Object::of_policy(&trace.policy).kind != "PeerAuthentication" {
            return None;
        }
        let is_port = |unmet: &Unmet| {
            matches!(
                unmet,
                Unmet::Excludes {
                    attribute: Attribute::DestinationPort,
                    ..
                }
            )
        };
        let rule = rules.iter().find(|rule| rule.unmet.iter().any(is_port))?;
        Some(RuleRef {
            policy: trace.policy.clone(),
            rule: rule.rule,
        })
    })
}

fn denied(name: &str, reason: &DenyReason, explained: &Explanation) -> Fate {
    let fate = |because: String| Fate::new(Verdict::Denied, StepName::Policy, because);
    match reason {
        DenyReason::Policy(rule) => {
            let object = Object::of_policy(&rule.policy);
            let because = match object.kind.as_str() {
                "PeerAuthentication" => format!("{name} takes mutual TLS only, and the peer shows no identity"),
                "Seal" => format!("{name} is sealed: its port takes the waypoint of service {} only", object.name),
                _ => format!("rule {} of this DENY policy matches at {name}", rule.rule),
            };
            fate(because).by(object, Some(rule.rule))
        }
        DenyReason::Missing(key) => fate(format!(
            "policy {key} applies to {name} and has not been received yet: until then nothing is allowed"
        ))
        .by(Object::of_policy(key), None),
        DenyReason::NotAllowed => {
            let mut allowing: Vec<_> = explained
                .policies
                .iter()
                .filter(|trace| trace.action == Action::Allow && !trace.dry_run)
                .collect();
            // What somebody wrote decides; what was derived from it only lets waypoints in beside it.
            allowing.sort_by_key(|trace| {
                Object::of_policy(&trace.policy).kind != "AuthorizationPolicy"
            });
            let lines: Vec<String> = allowing
                .iter()
                .take(3)
                .flat_map(|trace| lines_of(trace))
                .collect();
            let because = format!(
                "ALLOW policies apply to {name} and none matches: {}",
                lines.join("; ")
            );
            match allowing.first() {
                Some(first) => fate(because).by(Object::of_policy(&first.policy), None),
                None => fate(because),
            }
        }
    }
}

fn details(explained: &Explanation) -> Vec<Detail> {
    let missing = explained.missing.iter().map(|key| {
        Detail::about(
            Object::of_policy(key),
            format!("policy {key} applies and has not been received yet"),
        )
    });
    let traces = explained.policies.iter().flat_map(|trace| {
        let object = Object::of_policy(&trace.policy);
        lines_of(trace)
            .into_iter()
            .map(move |line| Detail::about(object.clone(), line))
    });
    let mut details: Vec<Detail> = missing.chain(traces).collect();
    details.extend(dry_run(&explained.decision.dry_run));
    details
}

/// What policies in dry run would have done.
pub(super) fn dry_run(dry_run: &karst_policy::DryRun) -> Vec<Detail> {
    let mut details = Vec::new();
    if let Some(rule) = &dry_run.deny {
        details.push(Detail::about(
            Object::of_policy(&rule.policy),
            format!("dry run: {rule} would deny it"),
        ));
    }
    match &dry_run.allow {
        DryRunAllow::Silent => {}
        DryRunAllow::Matches(rule) => details.push(Detail::about(
            Object::of_policy(&rule.policy),
            format!("dry run: {rule} would allow it"),
        )),
        DryRunAllow::WouldDeny => details.push(Detail::new(
            "dry run: were the ALLOW policies in dry run enforced, none would match and it would be denied",
        )),
    }
    details
}

/// The lines of what a policy said.
fn lines_of(trace: &PolicyTrace) -> Vec<String> {
    one_by_one(&trace.outcome, |outcome| PolicyTrace {
        policy: trace.policy.clone(),
        action: trace.action,
        dry_run: trace.dry_run,
        outcome,
    })
}

/// One line for each rule that does not match, or one for the policy. Line ends in values that others wrote stay within
/// their line: the text is never taken apart at line ends.
pub(super) fn one_by_one<T: fmt::Display>(
    outcome: &TraceOutcome,
    trace: impl Fn(TraceOutcome) -> T,
) -> Vec<String> {
    let parts = match outcome {
        TraceOutcome::NotMatched { rules } if !rules.is_empty() => rules
            .iter()
            .map(|rule| TraceOutcome::NotMatched {
                rules: vec![rule.clone()],
            })
            .collect(),
        whole => vec![whole.clone()],
    };
    parts
        .into_iter()
        .map(|part| {
            let line = trace(part).to_string();
            line.strip_suffix('\n').unwrap_or(&line).to_owned()
        })
        .collect()
}
