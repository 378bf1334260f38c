//! Replaced paths, whole, by their prefix or by an expression, for rewrites and redirects alike.

use std::{borrow::Cow, sync::Arc};

use http::uri::PathAndQuery;
use karst_model::route::PathChange;

use super::Unusable;
use crate::pattern::Finder;

/// What of the path a rule's match took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedPath<'a> {
    /// A prefix match, without a slash at its end; empty for `/`.
    Prefix(&'a str),
    /// So many bytes of its start, letter by letter.
    Start(usize),
    /// Another kind of match: there is no prefix to replace, and the whole path counts as one.
    Whole,
}

/// A change of the path, checked.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Full(Arc<str>),
    Prefix(Arc<str>),
    Found(Finder),
}

impl Change {
    pub(super) fn compile(change: &PathChange) -> Result<Self, Unusable> {
        let text = match change {
            PathChange::Full(text) | PathChange::Prefix(text) => text,
            PathChange::Regex {
                pattern,
                substitution,
            } => {
                let finder = Finder::new(pattern, substitution)?;
                return finder
                    .map(Self::Found)
                    .ok_or_else(|| Unusable::Substitution(substitution.to_string()));
            }
        };
        let is_path = text.is_empty() || text.starts_with('/');
        if !is_path || text.contains(['?', '#']) || PathAndQuery::try_from(rooted(text)).is_err() {
            return Err(Unusable::Path(text.to_string()));
        }
        Ok(match change {
            PathChange::Full(full) => Self::Full(full.clone()),
            _ => Self::Prefix(text.clone()),
        })
    }

    /// The path after the change. The specification's table for prefixes is the test of this function.
    pub(super) fn of<'a>(&'a self, path: &'a str, matched: MatchedPath<'_>) -> Cow<'a, str> {
        let replacement = match self {
            Self::Full(full) => return Cow::Borrowed(rooted(full)),
            Self::Found(finder) => return finder.replace(path),
            Self::Prefix(replacement) => &**replacement,
        };
        let prefix = match matched {
            MatchedPath::Prefix(prefix) => prefix,
            MatchedPath::Start(len) => {
                let rest = path.get(len..).unwrap_or_default();
                let changed = format!("{replacement}{rest}");
                return match changed.starts_with('/') {
                    true => Cow::Owned(changed),
                    false => Cow::Owned(format!("/{changed}")),
                };
            }
            MatchedPath::Whole => return Cow::Borrowed(rooted(replacement)),
        };
        let replacement = replacement.trim_end_matches('/');
        // What follows the prefix is empty or begins with a slash, since prefixes end where segments do.
        let rest = path.strip_prefix(prefix).unwrap_or_default();
        match (replacement.is_empty(), rest.is_empty()) {
            (true, true) => Cow::Borrowed("/"),
            (true, false) => Cow::Borrowed(rest),
            (false, true) => Cow::Borrowed(replacement),
            (false, false) => Cow::Owned(format!("{replacement}{rest}")),
        }
    }
}

fn rooted(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}
