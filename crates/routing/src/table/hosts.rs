//! Something for each host: exact names, then suffixes from the longest, then any.

use hashbrown::HashMap;
use karst_model::route::HostMatch;

use crate::compare::{Site, holds};

/// Values by host.
#[derive(Debug)]
pub(super) struct ByHost<T> {
    exact: HashMap<Box<str>, T>,
    /// With the dot in front.
    suffixes: HashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Default for ByHost<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            suffixes: HashMap::new(),
            any: None,
        }
    }
}

impl<T> ByHost<T> {
    /// The value of one host of a match; `None` stands for any.
    pub(super) fn entry(&mut self, host: Option<&HostMatch>, new: impl FnOnce() -> T) -> &mut T {
        match host {
            Some(HostMatch::Exact(name)) => self.exact.entry(normalised(name)).or_insert_with(new),
            Some(HostMatch::Suffix(name)) => {
                self.suffixes.entry(normalised(name)).or_insert_with(new)
            }
            None => self.any.get_or_insert_with(new),
        }
    }

    /// The values whose hosts take this one, the most specific first. `host` is normalised.
    pub(super) fn taking<'a, 'h>(
        &'a self,
        host: &'h str,
    ) -> impl Iterator<Item = &'a T> + use<'a, 'h, T> {
        let exact = (!self.exact.is_empty())
            .then(|| self.exact.get(host))
            .flatten()
            .filter(|_| holds(Site::HostExact, true));
        // A suffix stands for one label or more, so a dot in front is none.
        let dots = host.bytes().enumerate().skip(1);
        let suffixes = dots
            .filter(|(_, byte)| !self.suffixes.is_empty() && *byte == b'.')
            .filter_map(|(dot, _)| self.suffixes.get(&host[dot..]))
            .filter(|_| holds(Site::HostSuffix, true));
        let any = self.any.iter().filter(|_| holds(Site::HostAny, true));
        exact.into_iter().chain(suffixes).chain(any)
    }

    pub(super) fn map<U>(self, mut f: impl FnMut(T) -> U) -> ByHost<U> {
        ByHost {
            exact: self
                .exact
                .into_iter()
                .map(|(name, value)| (name, f(value)))
                .collect(),
            suffixes: self
                .suffixes
                .into_iter()
                .map(|(name, value)| (name, f(value)))
                .collect(),
            any: self.any.map(f),
        }
    }
}

/// Whether a host of a match takes this one, which is normalised.
pub(super) fn takes_host(host: &HostMatch, name: &str) -> bool {
    match host {
        HostMatch::Exact(exact) => *normalised(exact) == *name,
        HostMatch::Suffix(suffix) => {
            let suffix = normalised(suffix);
            name.len() > suffix.len() && name.ends_with(&*suffix)
        }
    }
}

fn normalised(name: &str) -> Box<str> {
    name.strip_suffix('.')
        .unwrap_or(name)
        .to_ascii_lowercase()
        .into()
}
