//! The rules of all policies, compiled, and the comparisons of one match.

use std::sync::Arc;

use karst_model::{
    policy::StringMatch,
    waypoint_policy::{
        ClaimValues, HeaderValues, RequestAction, RequestMatch, RequestRule, WaypointPolicy,
    },
};
use karst_routing::token::Token;

use super::{
    Phase,
    template::{Path, Shape},
    view::View,
};
use crate::{
    compare::{RequestSite, RequestText, holds_request},
    decision::RuleRef,
    list::Conditions,
    matcher::{self, Block},
};

/// Number of a rule among all rules of all policies.
pub(super) type RuleId = u32;

/// All rules, in the order of their policies.
#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
pub(super) struct Rule {
    policy: u32,
    index: u32,
    pub(super) phase: Phase,
    /// AND of OR.
    pub(super) clauses: Vec<Vec<Compiled>>,
}

/// One match.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) meaning: Meaning,
    connection: Conditions,
    groups: Vec<Group>,
    action: RequestAction,
}

/// Whether a match can be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It says nothing, and is skipped.
    Empty,
    /// Part of it cannot be read: it allows nothing, and denies.
    Unreadable,
    Readable,
}

/// The two lists of one attribute.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) attribute: RequestAttribute,
    wanted: Vec<Entry>,
    excluded: Vec<Entry>,
}

/// What of a request a group is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestAttribute {
    Method,
    Path,
    Host,
    Header(Arc<str>),
    RemoteIp,
    Sni,
    RequestPrincipal,
    Audience,
    Presenter,
    Claim(Vec<Arc<str>>),
}

impl RequestAttribute {
    /// Whether a connection that is no HTTP has none of it.
    fn is_of_request(&self) -> bool {
        !matches!(self, Self::RemoteIp | Self::Sni)
    }
}

/// One entry of a list.
#[derive(Debug)]
enum Entry {
    Text(StringMatch),
    Path(Path),
    Block(Block),
}

/// Which readings of a value count. Reasons to refuse take all of them, reasons to admit only the plainest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readings {
    Plain,
    All,
}

impl Readings {
    fn of(action: RequestAction, wanted: bool) -> Self {
        let admits = (action == RequestAction::Allow) == wanted;
        match holds_request(RequestSite::Admits, admits) {
            true => Self::Plain,
            false => Self::All,
        }
    }
}

impl Rules {
    pub(super) fn new(policies: &[Arc<WaypointPolicy>]) -> Self {
        let mut rules = Vec::new();
        for (policy, written) in (0..).zip(policies) {
            for (index, rule) in (0..).zip(&written.rules) {
                rules.push(Rule {
                    policy,
                    index,
                    phase: Phase::of(written),
                    clauses: compile(rule, written.action),
                });
            }
        }
        Self(rules)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        (0..).zip(&self.0)
    }

    /// The rules of the policy of this number, in their order.
    pub(super) fn of_policy(&self, policy: usize) -> impl Iterator<Item = &Rule> {
        let start = self
            .0
            .partition_point(|rule| (rule.policy as usize) < policy);
        self.0[start..]
            .iter()
            .take_while(move |rule| rule.policy as usize == policy)
    }

    pub(super) fn hold(&self, rule: RuleId, view: &View<'_>) -> bool {
        self.0[rule as usize].holds(view)
    }

    pub(super) fn reference(&self, rule: RuleId, policies: &[Arc<WaypointPolicy>]) -> RuleRef {
        let rule = &self.0[rule as usize];
        RuleRef {
            policy: policies[rule.policy as usize].key.clone(),
            rule: rule.index as usize,
        }
    }
}

fn compile(rule: &RequestRule, action: RequestAction) -> Vec<Vec<Compiled>> {
    let clauses = rule.clauses.iter();
    clauses
        .map(|clause| {
            clause
                .matches
                .iter()
                .map(|m| Compiled::new(m, action))
                .collect()
        })
        .collect()
}

impl Rule {
    fn holds(&self, view: &View<'_>) -> bool {
        let mut clauses = self.clauses.iter();
        holds_request(
            RequestSite::Rule,
            clauses.all(|clause| clause_holds(clause, view)),
        )
    }
}

/// OR of its matches; a clause without matches is true.
fn clause_holds(clause: &[Compiled], view: &View<'_>) -> bool {
    let holding = clause.is_empty() || clause.iter().any(|m| m.holds(view));
    holds_request(RequestSite::Clause, holding)
}

impl Compiled {
    pub(super) fn new(m: &RequestMatch, action: RequestAction) -> Self {
        let groups = groups(m);
        let meaning = match (&groups, matcher::is_unreadable(&m.connection)) {
            _ if *m == RequestMatch::default() => Meaning::Empty,
            (Some(_), false) => Meaning::Readable,
            (None, _) | (_, true) => Meaning::Unreadable,
        };
        Self {
            meaning,
            connection: Conditions::new(&m.connection),
            groups: groups.unwrap_or_default(),
            action,
        }
    }

    pub(super) fn holds(&self, view: &View<'_>) -> bool {
        match self.meaning {
            Meaning::Empty => holds_request(RequestSite::Empty, false),
            Meaning::Unreadable => {
                holds_request(RequestSite::Unreadable, self.action != RequestAction::Allow)
            }
            Meaning::Readable => {
                holds_request(
                    RequestSite::Connection,
                    self.connection.hold(&view.connection),
                ) && self.failing(view).is_none()
            }
        }
    }

    /// The first group that does not hold, and whether it is its positive list.
    pub(super) fn failing(&self, view: &View<'_>) -> Option<(&Group, bool)> {
        self.groups.iter().find_map(|group| {
            if group.attribute.is_of_request() && !view.is_request() {
                // As with what cannot be read: it lets nothing in and keeps nothing from being refused.
                return (self.action == RequestAction::Allow).then_some((group, true));
            }
            let wanted = group.wanted.is_empty()
                || group.hit(&group.wanted, Readings::of(self.action, true), view);
            if !holds_request(RequestSite::Wanted, wanted) {
                return Some((group, true));
            }
            let excluded = group.hit(&group.excluded, Readings::of(self.action, false), view);
            holds_request(RequestSite::Excluded, excluded).then_some((group, false))
        })
    }
}

/// The groups that say something; `None` if one of them cannot be read.
fn groups(m: &RequestMatch) -> Option<Vec<Group>> {
    let texts = |attribute, wanted: &[StringMatch], excluded: &[StringMatch]| Group {
        wanted: wanted.iter().cloned().map(Entry::Text).collect(),
        excluded: excluded.iter().cloned().map(Entry::Text).collect(),
        attribute,
    };
    let lowered = |list: &[StringMatch]| list.iter().map(lower).collect::<Vec<_>>();
    let mut groups = vec![
        texts(RequestAttribute::Method, &m.methods, &m.not_methods),
        Group {
            attribute: RequestAttribute::Path,
            wanted: paths(&m.paths)?,
            excluded: paths(&m.not_paths)?,
        },
        texts(
            RequestAttribute::Host,
            &lowered(&m.hosts),
            &lowered(&m.not_hosts),
        ),
        Group {
            attribute: RequestAttribute::RemoteIp,
            wanted: blocks(&m.remote_ips)?,
            excluded: blocks(&m.not_remote_ips)?,
        },
        texts(
            RequestAttribute::Sni,
            &lowered(&m.sni),
            &lowered(&m.not_sni),
        ),
        texts(
            RequestAttribute::RequestPrincipal,
            &m.request_principals,
            &m.not_request_principals,
        ),
        texts(RequestAttribute::Audience, &m.audiences, &m.not_audiences),
        texts(
            RequestAttribute::Presenter,
            &m.presenters,
            &m.not_presenters,
        ),
    ];
    // A condition on a header or claim that names no value means something that this version does not know.
    if m.headers
        .iter()
        .any(|header| header.values.is_empty() && header.not_values.is_empty())
        || m.claims.iter().any(is_vain)
    {
        return None;
    }
    groups.extend(m.headers.iter().map(|header: &HeaderValues| {
        let attribute = RequestAttribute::Header(header.name.to_ascii_lowercase().into());
        texts(attribute, &header.values, &header.not_values)
    }));
    groups.extend(m.claims.iter().map(|claim: &ClaimValues| {
        let attribute = RequestAttribute::Claim(claim.path.clone());
        texts(attribute, &claim.values, &claim.not_values)
    }));
    groups.retain(|group| !(group.wanted.is_empty() && group.excluded.is_empty()));
    Some(groups)
}

/// A condition on a claim that says nothing.
fn is_vain(claim: &ClaimValues) -> bool {
    claim.path.is_empty() || (claim.values.is_empty() && claim.not_values.is_empty())
}

fn paths(list: &[karst_model::waypoint_policy::PathPattern]) -> Option<Vec<Entry>> {
    let paths = list.iter().map(|pattern| Path::new(pattern).ok());
    paths.map(|path| path.map(Entry::Path)).collect()
}

fn blocks(list: &[karst_model::policy::IpBlock]) -> Option<Vec<Entry>> {
    list.iter()
        .map(|block| Block::new(block).map(Entry::Block))
        .collect()
}

/// A host as hosts are compared: in lower case, without a final dot.
fn lower(text: &StringMatch) -> StringMatch {
    let ending = |text: &str| -> Arc<str> {
        text.strip_suffix('.')
            .unwrap_or(text)
            .to_ascii_lowercase()
            .into()
    };
    match text {
        StringMatch::Exact(text) => StringMatch::Exact(ending(text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(ending(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase().into()),
        StringMatch::Presence => StringMatch::Presence,
    }
}

impl Group {
    fn hit(&self, entries: &[Entry], readings: Readings, view: &View<'_>) -> bool {
        entries
            .iter()
            .any(|entry| self.entry_hits(entry, readings, view))
    }

    fn entry_hits(&self, entry: &Entry, readings: Readings, view: &View<'_>) -> bool {
        match entry {
            Entry::Path(path) => match readings {
                Readings::Plain => shape(&path.plain, view.path()),
                Readings::All => {
                    shape(&path.plain, view.path())
                        || view.decoded_paths().any(|read| shape(&path.decoded, read))
                }
            },
            Entry::Block(block) => {
                let ip = Block::host(view.remote_ip);
                holds_request(RequestSite::RemoteFamily, block.v4 == ip.v4)
                    && holds_request(RequestSite::RemoteBits, block.covers(ip.bits))
            }
            Entry::Text(wanted) => self.text_hits(wanted, readings, view),
        }
    }

    fn text_hits(&self, wanted: &StringMatch, readings: Readings, view: &View<'_>) -> bool {
        let hits = |value: &[u8], of| text(wanted, value, of);
        let present = |value: Option<&[u8]>, of| value.is_some_and(|value| hits(value, of));
        match &self.attribute {
            RequestAttribute::Method => hits(view.method(), RequestText::Method),
            RequestAttribute::Host if *wanted == StringMatch::Presence => {
                hits(view.host(), RequestText::Host)
            }
            // With the port that was sent, and without.
            RequestAttribute::Host => {
                hits(view.host(), RequestText::Host)
                    || hits(&view.authority, RequestText::Authority)
            }
            RequestAttribute::Sni => present(view.sni(), RequestText::Sni),
            RequestAttribute::RequestPrincipal => {
                present(view.request_principal(), RequestText::RequestPrincipal)
            }
            RequestAttribute::Audience => view.token().is_some_and(|token| {
                let mut audiences = token.audiences();
                audiences.any(|audience| hits(audience.as_bytes(), RequestText::Audience))
            }),
            RequestAttribute::Presenter => {
                let presenter = view.token().and_then(Token::presenter);
                present(presenter.map(str::as_bytes), RequestText::Presenter)
            }
            RequestAttribute::Claim(path) => claim_hits(path, wanted, readings, view),
            RequestAttribute::Header(name) => header_hits(name, wanted, readings, view),
            RequestAttribute::Path | RequestAttribute::RemoteIp => false,
        }
    }
}

fn header_hits(name: &str, wanted: &StringMatch, readings: Readings, view: &View<'_>) -> bool {
    let Some(joined) = view.header(name) else {
        return false;
    };
    if text(wanted, &joined, RequestText::Header) {
        return true;
    }
    if readings == Readings::Plain {
        return false;
    }
    // A header that is there without a value is one that a backend may take for set.
    let there = *wanted == StringMatch::Presence;
    holds_request(RequestSite::HeaderThere, there)
        || view
            .header_readings(name)
            .any(|value| text(wanted, value, RequestText::HeaderReading))
}

/// The claim's texts; what refuses takes numbers and truth values for text as well, and a claim of any kind for one that
/// is there.
fn claim_hits(
    path: &[Arc<str>],
    wanted: &StringMatch,
    readings: Readings,
    view: &View<'_>,
) -> bool {
    let Some(token) = view.token().filter(|token| token.claim(path).is_some()) else {
        return false;
    };
    let mut texts = token.claim_texts(path);
    if texts.any(|value| text(wanted, value.as_bytes(), RequestText::Claim)) {
        return true;
    }
    if readings == Readings::Plain {
        return false;
    }
    let there = *wanted == StringMatch::Presence;
    let mut loose = token.claim_readings(path).into_iter();
    holds_request(RequestSite::ClaimThere, there)
        || loose.any(|value| text(wanted, value.as_bytes(), RequestText::ClaimReading))
}

fn text(wanted: &StringMatch, value: &[u8], of: RequestText) -> bool {
    match wanted {
        StringMatch::Exact(exact) => {
            holds_request(RequestSite::Exact(of), value == exact.as_bytes())
        }
        StringMatch::Prefix(prefix) => holds_request(
            RequestSite::Prefix(of),
            value.starts_with(prefix.as_bytes()),
        ),
        StringMatch::Suffix(suffix) => {
            holds_request(RequestSite::Suffix(of), value.ends_with(suffix.as_bytes()))
        }
        StringMatch::Presence => holds_request(RequestSite::Presence(of), !value.is_empty()),
    }
}

fn shape(wanted: &Shape, path: &[u8]) -> bool {
    let of = RequestText::Path;
    match wanted {
        Shape::Exact(exact) => holds_request(RequestSite::Exact(of), **exact == *path),
        Shape::Prefix(prefix) => holds_request(RequestSite::Prefix(of), path.starts_with(prefix)),
        Shape::Suffix(suffix) => holds_request(RequestSite::Suffix(of), path.ends_with(suffix)),
        Shape::Presence => holds_request(RequestSite::Presence(of), !path.is_empty()),
        Shape::Template(template) => holds_request(RequestSite::Template, template.matches(path)),
    }
}
