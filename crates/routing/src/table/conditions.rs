//! What a match asks of a request beside host and path: method, headers, query parameters, the port that was dialled,
//! who sends, what its token claims.

use std::{borrow::Cow, cell::OnceCell, sync::Arc};

use hashbrown::{HashMap, hash_map::Entry};
use http::{HeaderName, header};
use karst_model::route::{ClaimMatch, HttpMatch, SourceMatch, ValueMatch};

use crate::{
    compare::{Site, holds},
    pattern::{Pattern, PatternError},
    request::{Request, Sender},
};

/// Why a match is left out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("{0:?} is not the name of a header")]
    HeaderName(String),
    #[error("a path that is compared letter by letter is no part of the Gateway API")]
    Start,
}

/// Expressions that were compiled already: routes repeat them.
#[derive(Debug, Default)]
pub(super) struct Patterns(HashMap<Arc<str>, Result<Arc<Pattern>, PatternError>>);

impl Patterns {
    fn compile(&mut self, text: &Arc<str>) -> Result<Arc<Pattern>, PatternError> {
        match self.0.entry(text.clone()) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => new.insert(Pattern::new(text).map(Arc::new)).clone(),
        }
    }
}

/// AND of all.
#[derive(Debug)]
pub(super) struct Conditions {
    pub(super) method: Option<Arc<str>>,
    pub(super) headers: Box<[(HeaderKey, Value)]>,
    pub(super) query: Box<[(Arc<str>, Value)]>,
    port: Option<u16>,
    /// Few matches ask this.
    rare: Option<Box<Rare>>,
}

/// What is asked of the sender.
#[derive(Debug)]
struct Rare {
    source: Source,
    claims: Box<[Claim]>,
}

#[derive(Debug)]
struct Claim {
    path: Box<[Arc<str>]>,
    value: Value,
}

/// Who must send.
#[derive(Debug)]
pub(super) struct Source {
    namespace: Option<Arc<str>>,
    labels: Box<[(Arc<str>, Arc<str>)]>,
    principal: Option<Value>,
}

/// How a header is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum HeaderKey {
    Name(HeaderName),
    /// The host, and what HTTP/2 begins with a colon.
    Special(Arc<str>),
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Exact(Arc<str>),
    Pattern(Arc<Pattern>),
    Prefix(Arc<str>),
    Present,
    Absent,
    Not(Box<Self>),
}

impl Conditions {
    /// Of a header or parameter named twice the first entry counts.
    pub(super) fn new(m: &HttpMatch, patterns: &mut Patterns) -> Result<Self, Unreadable> {
        let mut headers: Vec<(HeaderKey, Value)> = Vec::with_capacity(m.headers.len());
        for header in &m.headers {
            let key = HeaderKey::new(&header.name)?;
            let first = headers.iter().all(|(earlier, _)| *earlier != key);
            if holds(Site::FirstHeader, first) {
                headers.push((key, Value::new(&header.value, patterns)?));
            }
        }
        let mut query: Vec<(Arc<str>, Value)> = Vec::with_capacity(m.query.len());
        for param in &m.query {
            let first = query.iter().all(|(earlier, _)| *earlier != param.name);
            if holds(Site::FirstParam, first) {
                query.push((param.name.clone(), Value::new(&param.value, patterns)?));
            }
        }
        Ok(Self {
            method: m.method.clone(),
            headers: headers.into(),
            query: query.into(),
            port: m.port,
            rare: Rare::new(m, patterns)?,
        })
    }

    /// Whether who sends must be known.
    pub(super) fn ask_source(&self) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| !rare.source.is_anybody())
    }

    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        let method = self
            .method
            .as_deref()
            .is_none_or(|method| method == asked.request.method().as_str());
        let mut headers = self.headers.iter();
        let mut query = self.query.iter();
        let port = self.port.is_none_or(|port| port == asked.request.port());
        holds(Site::Method, method)
            && holds(Site::DialledPort, port)
            && headers
                .all(|(key, value)| holds(Site::Header, value.holds(asked.header(key).as_deref())))
            && query
                .all(|(name, value)| holds(Site::Param, value.holds(asked.param(name.as_bytes()))))
            && self
                .rare
                .as_ref()
                .is_none_or(|rare| rare.hold(asked.request))
    }
}

impl Rare {
    fn new(m: &HttpMatch, patterns: &mut Patterns) -> Result<Option<Box<Self>>, PatternError> {
        let claim = |claim: &ClaimMatch, patterns: &mut Patterns| {
            Ok(Claim {
                path: claim.path.clone().into(),
                value: Value::new(&claim.value, patterns)?,
            })
        };
        if m.source == SourceMatch::default() && m.claims.is_empty() {
            return Ok(None);
        }
        let claims: Result<Vec<_>, PatternError> =
            m.claims.iter().map(|one| claim(one, patterns)).collect();
        Ok(Some(Box::new(Self {
            source: Source::new(&m.source, patterns)?,
            claims: claims?.into(),
        })))
    }

    fn hold(&self, request: &Request) -> bool {
        let claims = || {
            let holds = |claim: &Claim| claim.value.holds_of_claim(&request.claim(&claim.path));
            self.claims.iter().all(holds)
        };
        self.source.takes(request.source()) && (self.claims.is_empty() || claims())
    }
}

impl Source {
    pub(super) fn new(source: &SourceMatch, patterns: &mut Patterns) -> Result<Self, PatternError> {
        let principal = source.principal.as_ref();
        Ok(Self {
            namespace: source.namespace.clone(),
            labels: source.labels.clone().into(),
            principal: principal
                .map(|value| Value::new(value, patterns))
                .transpose()?,
        })
    }

    pub(super) fn is_anybody(&self) -> bool {
        self.namespace.is_none() && self.labels.is_empty() && self.principal.is_none()
    }

    pub(super) fn takes(&self, sender: &Sender) -> bool {
        let namespace = self
            .namespace
            .as_ref()
            .is_none_or(|wanted| sender.namespace.as_ref() == Some(wanted));
        let mut labels = self.labels.iter();
        let principal = |value: &Value| value.holds(sender.principal.as_deref().map(str::as_bytes));
        holds(Site::SourceNamespace, namespace)
            && labels.all(|wanted| holds(Site::SourceLabel, sender.labels.contains(wanted)))
            && self
                .principal
                .as_ref()
                .is_none_or(|value| holds(Site::SourcePrincipal, principal(value)))
    }
}

impl HeaderKey {
    fn new(name: &str) -> Result<Self, Unreadable> {
        if name.starts_with(':') || name.eq_ignore_ascii_case(header::HOST.as_str()) {
            return Ok(Self::Special(name.to_ascii_lowercase().into()));
        }
        HeaderName::from_bytes(name.as_bytes())
            .map(Self::Name)
            .map_err(|_invalid| Unreadable::HeaderName(name.to_owned()))
    }
}

impl Value {
    fn new(value: &ValueMatch, patterns: &mut Patterns) -> Result<Self, PatternError> {
        Ok(match value {
            ValueMatch::Exact(text) => Self::Exact(text.clone()),
            ValueMatch::Regex(text) => Self::Pattern(patterns.compile(text)?),
            ValueMatch::Prefix(text) => Self::Prefix(text.clone()),
            ValueMatch::Present => Self::Present,
            ValueMatch::Absent => Self::Absent,
            ValueMatch::Not(inner) => Self::Not(Box::new(Self::new(inner, patterns)?)),
        })
    }

    /// Of a list any entry may match.
    fn holds_of_claim(&self, entries: &[Cow<'_, str>]) -> bool {
        match self {
            Self::Not(inner) => !inner.holds_of_claim(entries),
            _ if entries.is_empty() => holds(Site::Claim, self.holds(None)),
            _ => {
                let mut entries = entries.iter();
                holds(
                    Site::Claim,
                    entries.any(|entry| self.holds(Some(entry.as_bytes()))),
                )
            }
        }
    }

    fn holds(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (Self::Absent, value) => holds(Site::ValueAbsent, value.is_none()),
            (Self::Present, value) => holds(Site::ValuePresent, value.is_some()),
            (Self::Not(inner), value) => !inner.holds(value),
            (_, None) => false,
            (Self::Exact(exact), Some(value)) => holds(Site::ValueExact, exact.as_bytes() == value),
            (Self::Prefix(prefix), Some(value)) => {
                holds(Site::ValuePrefix, value.starts_with(prefix.as_bytes()))
            }
            (Self::Pattern(pattern), Some(value)) => {
                holds(Site::ValuePattern, pattern.matches(value))
            }
        }
    }
}

type Param<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// A request that is being matched, with what was read of it so far.
pub(super) struct Asked<'a> {
    pub(super) request: &'a Request,
    params: OnceCell<Vec<Param<'a>>>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(request: &'a Request) -> Self {
        Self {
            request,
            params: OnceCell::new(),
        }
    }

    pub(super) fn header(&self, key: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        match key {
            HeaderKey::Name(name) => self.request.header_named(name),
            HeaderKey::Special(name) => self.request.header(name),
        }
    }

    /// The value of the first parameter of this name.
    pub(super) fn param(&self, name: &[u8]) -> Option<&[u8]> {
        let mut params = self.params().iter();
        params
            .find(|(key, _)| **key == *name)
            .map(|(_, value)| &**value)
    }

    pub(super) fn params(&self) -> &[Param<'a>] {
        self.params
            .get_or_init(|| self.request.query_params().collect())
    }
}
