//! Replaced paths, whole or by their prefix, for rewrites and redirects alike.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use karst_model::route::PathChange;

use super::Unusable;

/// What of the path a rule's match took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedPath<'a> {
    /// A prefix match, without a slash at its end; empty for `/`.
    Prefix(&'a str),
    /// Another kind of match: there is no prefix to replace, and the whole path counts as one.
    Whole,
}

/// The path after the change. The specification's table for prefixes is the test of this function.
pub(super) fn changed<'a>(
    change: &'a PathChange,
    path: &'a str,
    matched: MatchedPath<'_>,
) -> Cow<'a, str> {
    let replacement = match change {
        PathChange::Full(full) => return Cow::Borrowed(rooted(full)),
        PathChange::Prefix(replacement) => replacement.trim_end_matches('/'),
    };
    let prefix = match matched {
        MatchedPath::Prefix(prefix) => prefix,
        MatchedPath::Whole => path,
    };
    // What follows the prefix is empty or begins with a slash, since prefixes end where segments do.
    let rest = path.strip_prefix(prefix).unwrap_or_default();
    match (replacement.is_empty(), rest.is_empty()) {
        (true, true) => Cow::Borrowed("/"),
        (true, false) => Cow::Borrowed(rest),
        (false, true) => Cow::Borrowed(replacement),
        (false, false) => Cow::Owned(format!("{replacement}{rest}")),
    }
}

fn rooted(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// Whether a change gives paths.
pub(super) fn check(change: &PathChange) -> Result<(), Unusable> {
    let (PathChange::Full(text) | PathChange::Prefix(text)) = change;
    let is_path = text.is_empty() || text.starts_with('/');
    if is_path && !text.contains(['?', '#']) && PathAndQuery::try_from(rooted(text)).is_ok() {
        return Ok(());
    }
    Err(Unusable::Path(text.to_string()))
}
