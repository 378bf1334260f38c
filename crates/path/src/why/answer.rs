//! What is answered: a verdict, what decided, and every step on the way with what it looked at.
//!
//! The text form is for people, the fields are for tools. Nothing that others wrote (names, paths, header values) can
//! forge a line or reach a terminal as anything but text: see [`super::printable`].

use std::fmt;

use karst_model::name::{PolicyKey, ServiceKey};
use serde::{Deserialize, Serialize};

use super::printable::printable;

/// Lines of one step that the text form shows before it says how many more there are.
const SHOWN: usize = 40;

/// What the names of policies begin with that the controller derives, and what users know them as. The rest of the name
/// is that of the PeerAuthentication, the sealed service, or the waypoint.
const DERIVED: [(&str, &str); 3] = [
    ("converted_peer_authentication_", "PeerAuthentication"),
    ("karst-seal-", "Seal"),
    ("karst-allow-waypoint-", "WaypointAllowance"),
];

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The question as it was understood.
    pub question: String,
    pub verdict: Verdict,
    /// Why, in one line.
    pub because: String,
    /// The object that decided, and its rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decided_by: Option<Decider>,
    /// The step in which it was decided.
    pub decided_at: StepName,
    /// In the order in which a connection meets them.
    pub steps: Vec<Step>,
}

/// What would happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It reaches the application.
    Allowed,
    /// A policy refuses it.
    Denied,
    /// Nobody refuses it, and it does not get there.
    Fails,
    /// A route answers itself (a redirect, a fixed answer).
    Answered,
    /// On what the question does not say, or on which endpoint is chosen.
    Depends,
}

/// An object, as users know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Object {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decider {
    #[serde(flatten)]
    pub object: Object,
    /// Index of the rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<usize>,
}

/// A stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepName {
    Enrolment,
    Dns,
    Service,
    Endpoints,
    Path,
    Waypoint,
    Route,
    Token,
    RequestPolicy,
    RateLimit,
    Backend,
    Policy,
    Arrival,
}

/// What one stage came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: StepName,
    pub outcome: Outcome,
    pub text: String,
    /// Whose object `text` tells about, where somebody could be kept from seeing it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub about: Option<Object>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub details: Vec<Detail>,
}

/// Whether a stage lets the connection on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Passes,
    Stops,
    /// For some of what may be chosen it passes, for some it stops; or it cannot be said.
    Depends,
}

/// One thing that a stage looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub about: Option<Object>,
    pub text: String,
}

impl Object {
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The object that a policy of the data plane was made of.
    pub fn of_policy(key: &PolicyKey) -> Self {
        let (kind, name) = match &*key.name {
            "istio_converted_static_strict" => ("PeerAuthentication", "STRICT"),
            name => DERIVED
                .iter()
                .find_map(|(start, kind)| Some((*kind, name.strip_prefix(start)?)))
                .unwrap_or(("AuthorizationPolicy", name)),
        };
        Self::new(kind, &key.namespace, name)
    }

    pub(crate) fn of_service(key: &ServiceKey) -> Self {
        Self::new("Service", &key.namespace, &key.hostname)
    }
}

impl Detail {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            about: None,
            text: text.into(),
        }
    }

    pub(crate) fn about(object: Object, text: impl Into<String>) -> Self {
        Self {
            about: Some(object),
            text: text.into(),
        }
    }
}

impl Answer {
    /// Takes away what is about objects of namespaces that the asker may not see, and says so.
    pub fn hide(&mut self, may_see: impl Fn(&str) -> bool) {
        let hidden = |object: &Option<Object>| {
            object
                .as_ref()
                .filter(|object| !may_see(&object.namespace))
                .map(|object| {
                    format!(
                        "{} of namespace {}, which you may not see",
                        article(&object.kind),
                        object.namespace
                    )
                })
        };
        let deciding = self
            .decided_by
            .as_ref()
            .map(|decider| decider.object.clone());
        if let Some(text) = hidden(&deciding) {
            self.because = text;
            if let Some(decider) = &mut self.decided_by {
                decider.object.name.clear();
                decider.rule = None;
            }
        }
        for step in &mut self.steps {
            if let Some(text) = hidden(&step.about) {
                step.text = text;
                step.about = None;
            }
            for detail in &mut step.details {
                if let Some(text) = hidden(&detail.about) {
                    *detail = Detail::new(text);
                }
            }
            step.details.dedup();
        }
    }

    /// Namespaces of everything that it tells about.
    pub fn namespaces(&self) -> Vec<String> {
        let of_steps = self.steps.iter().flat_map(|step| {
            step.about.iter().chain(
                step.details
                    .iter()
                    .filter_map(|detail| detail.about.as_ref()),
            )
        });
        let deciding = self.decided_by.iter().map(|decider| &decider.object);
        let mut all: Vec<String> = of_steps
            .chain(deciding)
            .map(|object| object.namespace.clone())
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.is_empty() {
            true => write!(f, "{} of namespace {}", self.kind, self.namespace),
            false => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{} rule {rule}", self.object),
            None => self.object.fmt(f),
        }
    }
}

impl StepName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::Dns => "dns",
            Self::Service => "service",
            Self::Endpoints => "endpoints",
            Self::Path => "path",
            Self::Waypoint => "waypoint",
            Self::Route => "route",
            Self::Token => "token",
            Self::RequestPolicy => "request policy",
            Self::RateLimit => "rate limit",
            Self::Backend => "backend",
            Self::Policy => "policy",
            Self::Arrival => "arrival",
        }
    }
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Denied => "DENIED",
            Self::Fails => "FAILS",
            Self::Answered => "ANSWERED",
            Self::Depends => "DEPENDS",
        }
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passes => "ok",
            Self::Stops => "STOP",
            Self::Depends => "?",
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", printable(&self.question))?;
        write!(f, "{}", self.verdict.as_str())?;
        if let Some(decider) = &self.decided_by {
            write!(f, " by {}", printable(&decider.to_string()))?;
        }
        writeln!(f, ": {}", printable(&self.because))?;
        writeln!(f)?;
        for step in &self.steps {
            writeln!(
                f,
                "{:>4}  {:<14}  {}",
                step.outcome.as_str(),
                step.name.as_str(),
                printable(&step.text)
            )?;
            for detail in step.details.iter().take(SHOWN) {
                writeln!(f, "{:22}- {}", "", printable(&detail.text))?;
            }
            if step.details.len() > SHOWN {
                let more = step.details.len() - SHOWN;
                writeln!(f, "{:22}- and {more} more (--output json has all)", "")?;
            }
        }
        Ok(())
    }
}
