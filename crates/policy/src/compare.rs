//! Every comparison of a decision passes through [`holds`], which in the product returns it unchanged.
//!
//! Only this crate's own unit tests compile the other half: they invert one comparison at a time and demand that the
//! naive reference notices (`mutation.rs`). So a comparison that no test covers cannot exist unnoticed.

/// A place where two values are compared. New comparisons get a new name here, and with it a mutation test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Site {
    Exact(Text),
    Prefix(Text),
    Suffix(Text),
    Presence(Text),
    ServiceAccountNamespace,
    ServiceAccountName,
    Identity(Needs),
    Source(Range),
    Destination(Range),
    Port,
    /// A positive list is empty, or has a hit.
    ListEmpty,
    ListHit,
    NotListHit,
    /// Look-ups in the long lists of one match.
    LookUp,
    LookUpBlock,
    /// A match that says nothing is skipped.
    MatchEmpty,
    Unreadable,
    ClauseTrue,
    RuleTrue,
    PolicyDenies,
    PolicyDryRun,
    Missing,
    AllowApplies,
    DryRunAllowApplies,
    /// Look-ups of the index: a key of a hash table is there, a prefix covers the value.
    IndexPrincipal,
    IndexNamespace,
    IndexServiceAccount,
    IndexPort,
    IndexIdentity,
    IndexPrincipalPrefix,
    IndexPrincipalSuffix,
    IndexNamespacePrefix,
    IndexNamespaceSuffix,
    IndexSource,
    IndexDestination,
}

/// A text that string matches look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Text {
    Principal,
    Namespace,
}

/// What cannot be compared without an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Needs {
    Principal,
    ServiceAccount,
}

/// The two halves of "the address lies in the range".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Range {
    Family,
    Bits,
}

/// The comparison itself, unless a mutation test inverts it.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn holds(_site: Site, comparison: bool) -> bool {
    comparison
}

#[cfg(test)]
pub(crate) use mutant::holds;

#[cfg(test)]
pub(crate) mod mutant {
    //! The inverting half.

    use std::cell::Cell;

    use super::{Needs, Range, Site, Text};

    thread_local! {
        static INVERTED: Cell<Option<Site>> = const { Cell::new(None) };
    }

    pub(crate) fn holds(site: Site, comparison: bool) -> bool {
        comparison != (INVERTED.get() == Some(site))
    }

    /// Runs `f` on this thread with one comparison inverted.
    pub(crate) fn inverted<T>(site: Site, f: impl FnOnce() -> T) -> T {
        INVERTED.set(Some(site));
        let result = f();
        INVERTED.set(None);
        result
    }

    /// Every comparison there is. A site that is missing here fails `mutation::every_site_is_listed`.
    pub(crate) const ALL: &[Site] = &[
        Site::Exact(Text::Principal),
        Site::Exact(Text::Namespace),
        Site::Prefix(Text::Principal),
        Site::Prefix(Text::Namespace),
        Site::Suffix(Text::Principal),
        Site::Suffix(Text::Namespace),
        Site::Presence(Text::Principal),
        Site::Presence(Text::Namespace),
        Site::ServiceAccountNamespace,
        Site::ServiceAccountName,
        Site::Identity(Needs::Principal),
        Site::Identity(Needs::ServiceAccount),
        Site::Source(Range::Family),
        Site::Source(Range::Bits),
        Site::Destination(Range::Family),
        Site::Destination(Range::Bits),
        Site::Port,
        Site::ListEmpty,
        Site::ListHit,
        Site::NotListHit,
        Site::LookUp,
        Site::LookUpBlock,
        Site::MatchEmpty,
        Site::Unreadable,
        Site::ClauseTrue,
        Site::RuleTrue,
        Site::PolicyDenies,
        Site::PolicyDryRun,
        Site::Missing,
        Site::AllowApplies,
        Site::DryRunAllowApplies,
        Site::IndexPrincipal,
        Site::IndexNamespace,
        Site::IndexServiceAccount,
        Site::IndexPort,
        Site::IndexIdentity,
        Site::IndexPrincipalPrefix,
        Site::IndexPrincipalSuffix,
        Site::IndexNamespacePrefix,
        Site::IndexNamespaceSuffix,
        Site::IndexSource,
        Site::IndexDestination,
    ];
}
