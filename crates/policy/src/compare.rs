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

/// The same for decisions about requests, which a reference of their own checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestSite {
    Exact(RequestText),
    Prefix(RequestText),
    Suffix(RequestText),
    Presence(RequestText),
    Template,
    RemoteFamily,
    RemoteBits,
    HeaderThere,
    ClaimThere,
    /// The connection's part of a match.
    Connection,
    /// A positive list is empty or has a hit; a negative one has a hit.
    Wanted,
    Excluded,
    /// A hit of this list lets a request in, so only the plainest reading counts.
    Admits,
    Empty,
    Unreadable,
    Clause,
    Rule,
    DryRun,
    AllowApplies,
    DryRunAllowApplies,
    /// A look-up of the index.
    Index,
}

/// A text of a request that string matches look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestText {
    Method,
    Path,
    Host,
    Authority,
    Header,
    /// One of several readings of a header.
    HeaderReading,
    Sni,
    RequestPrincipal,
    Audience,
    Presenter,
    Claim,
    /// One of several readings of a claim.
    ClaimReading,
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

/// [`holds`] for decisions about requests.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn holds_request(_site: RequestSite, comparison: bool) -> bool {
    comparison
}

#[cfg(test)]
pub(crate) use mutant::{holds, holds_request};

#[cfg(test)]
pub(crate) mod mutant {
    //! The inverting half.

    use std::cell::Cell;

    use super::{Needs, Range, RequestSite, RequestText, Site, Text};

    thread_local! {
        static INVERTED: Cell<Option<Site>> = const { Cell::new(None) };
        static REQUEST_INVERTED: Cell<Option<RequestSite>> = const { Cell::new(None) };
    }

    pub(crate) fn holds_request(site: RequestSite, comparison: bool) -> bool {
        comparison != (REQUEST_INVERTED.get() == Some(site))
    }

    /// [`inverted`] for decisions about requests.
    pub(crate) fn request_inverted<T>(site: RequestSite, f: impl FnOnce() -> T) -> T {
        REQUEST_INVERTED.set(Some(site));
        let result = f();
        REQUEST_INVERTED.set(None);
        result
    }

    /// Every comparison of decisions about requests.
    pub(crate) fn all_of_requests() -> Vec<RequestSite> {
        let texts = [
            RequestText::Method,
            RequestText::Path,
            RequestText::Host,
            RequestText::Authority,
            RequestText::Header,
            RequestText::HeaderReading,
            RequestText::Sni,
            RequestText::RequestPrincipal,
            RequestText::Audience,
            RequestText::Presenter,
            RequestText::Claim,
            RequestText::ClaimReading,
        ];
        let of_texts = texts.into_iter().flat_map(|text| {
            [
                RequestSite::Exact(text),
                RequestSite::Prefix(text),
                RequestSite::Suffix(text),
                RequestSite::Presence(text),
            ]
        });
        let others = [
            RequestSite::Template,
            RequestSite::RemoteFamily,
            RequestSite::RemoteBits,
            RequestSite::HeaderThere,
            RequestSite::ClaimThere,
            RequestSite::Connection,
            RequestSite::Wanted,
            RequestSite::Excluded,
            RequestSite::Admits,
            RequestSite::Empty,
            RequestSite::Unreadable,
            RequestSite::Clause,
            RequestSite::Rule,
            RequestSite::DryRun,
            RequestSite::AllowApplies,
            RequestSite::DryRunAllowApplies,
            RequestSite::Index,
        ];
        // Whether there is a host or a header at all is asked elsewhere.
        let asked = |site: &RequestSite| {
            !matches!(
                site,
                RequestSite::Presence(
                    RequestText::Authority | RequestText::HeaderReading | RequestText::ClaimReading
                )
            )
        };
        of_texts.filter(asked).chain(others).collect()
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
