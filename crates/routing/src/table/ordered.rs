//! Matches that are tried in the order in which they are written: those of a VirtualService.

use std::sync::Arc;

use karst_model::route::{HostMatch, HttpMatch};

use super::{
    conditions::{Asked, Conditions},
    hosts::takes_host,
    paths::PathKey,
};
use crate::{
    compare::{Site, holds},
    filter::MatchedPath,
    pattern::{Pattern, PatternError},
};

/// Hosts and path of one match; the rest of it is in its [`Conditions`], of the same number.
#[derive(Debug)]
pub(super) struct Place {
    hosts: Box<[HostMatch]>,
    path: Path,
}

#[derive(Debug)]
enum Path {
    Any,
    Exact(Box<str>),
    ExactAnyCase(Box<str>),
    /// Letter by letter.
    Start(Box<str>),
    StartAnyCase(Box<str>),
    /// By segments, without a slash at its end.
    Segments(Box<str>),
    Pattern(Arc<Pattern>),
}

impl Place {
    pub(super) fn new(m: &HttpMatch) -> Result<Self, PatternError> {
        let path = match (PathKey::new(m.path.as_ref()), m.ignore_path_case) {
            _ if m.path.is_none() => Path::Any,
            (PathKey::Exact(text), false) => Path::Exact(text),
            (PathKey::Exact(text), true) => Path::ExactAnyCase(text),
            (PathKey::Start(text), false) => Path::Start(text),
            (PathKey::Start(text), true) => Path::StartAnyCase(text),
            (PathKey::Prefix(text), _) => Path::Segments(text),
            (PathKey::Regex(text), _) => Path::Pattern(Arc::new(Pattern::new(&text)?)),
        };
        Ok(Self {
            hosts: m.hosts.clone().into(),
            path,
        })
    }

    fn takes(&self, asked: &Asked<'_>) -> bool {
        let host = asked.request.host();
        let hosts = self.hosts.is_empty() || self.hosts.iter().any(|one| takes_host(one, host));
        holds(Site::OrderedHost, hosts) && self.path.takes(asked.request.path())
    }

    /// What of the path the match took.
    pub(super) fn matched(&self) -> MatchedPath<'_> {
        match &self.path {
            Path::Start(text) | Path::StartAnyCase(text) => MatchedPath::Start(text.len()),
            Path::Segments(text) => MatchedPath::Prefix(text),
            // What Envoy takes to be the prefix `/`.
            Path::Any => MatchedPath::Start(1),
            Path::Exact(_) | Path::ExactAnyCase(_) | Path::Pattern(_) => MatchedPath::Whole,
        }
    }
}

impl Path {
    fn takes(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(text) => holds(Site::OrderedExact, **text == *path),
            Self::ExactAnyCase(text) => holds(Site::OrderedExact, text.eq_ignore_ascii_case(path)),
            Self::Start(text) => holds(Site::OrderedStart, path.starts_with(&**text)),
            Self::StartAnyCase(text) => {
                let start = path.get(..text.len());
                let same = start.is_some_and(|start| start.eq_ignore_ascii_case(text));
                holds(Site::OrderedStart, same)
            }
            Self::Segments(text) => {
                let rest = path.strip_prefix(&**text);
                let ends = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                holds(Site::PathPrefix, ends)
            }
            Self::Pattern(pattern) => holds(Site::PathRegex, pattern.matches(path.as_bytes())),
        }
    }
}

/// The first match that takes the request.
pub(super) fn find(
    places: &[Place],
    conditions: &[Conditions],
    asked: &Asked<'_>,
) -> Option<usize> {
    let mut numbered = places.iter().zip(conditions).enumerate();
    numbered
        .find(|(_, (place, conditions))| place.takes(asked) && conditions.hold(asked))
        .map(|(number, _)| number)
}
