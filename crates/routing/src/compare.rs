//! Every comparison of a match passes through [`holds`], which in the product returns it unchanged.
//!
//! Only this crate's own unit tests compile the other half: they invert one comparison at a time and demand that the
//! naive reference notices (`mutation.rs`). So a comparison that no test covers cannot exist unnoticed.

/// A place where two values are compared, or where one of the orders of precedence is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Which routes are looked at.
    Service,
    Port,
    Consumer,
    Kind,
    /// What of a request is compared.
    HostExact,
    HostSuffix,
    HostAny,
    PathExact,
    PathPrefix,
    PathRegex,
    PathAny,
    Method,
    Header,
    Param,
    DialledPort,
    SourceNamespace,
    SourceLabel,
    SourcePrincipal,
    Claim,
    /// Paths and hosts of what is tried in its order.
    OrderedExact,
    OrderedStart,
    OrderedHost,
    ValueExact,
    ValuePrefix,
    ValuePattern,
    ValuePresent,
    ValueAbsent,
    /// Only the first entry of a name counts.
    FirstHeader,
    FirstParam,
    /// Look-ups of a bucket.
    IndexMethod,
    IndexHeader,
    IndexParam,
    /// Sentences of precedence.
    OrderExpression,
    OrderMethod,
    OrderHeaders,
    OrderQuery,
    OrderAge,
    OrderName,
}

/// The comparison itself, unless a mutation test inverts it.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn holds(_site: Site, comparison: bool) -> bool {
    comparison
}

/// What a sentence of precedence says, unless a mutation test forgets it.
pub(crate) fn told<T: Default>(site: Site, order: T) -> T {
    if holds(site, true) {
        order
    } else {
        T::default()
    }
}

#[cfg(test)]
pub(crate) use mutant::holds;

#[cfg(test)]
pub(crate) mod mutant {
    //! The inverting half.

    use std::cell::Cell;

    use super::Site;

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
        Site::Service,
        Site::Port,
        Site::Consumer,
        Site::Kind,
        Site::HostExact,
        Site::HostSuffix,
        Site::HostAny,
        Site::PathExact,
        Site::PathPrefix,
        Site::PathRegex,
        Site::PathAny,
        Site::Method,
        Site::Header,
        Site::Param,
        Site::DialledPort,
        Site::SourceNamespace,
        Site::SourceLabel,
        Site::SourcePrincipal,
        Site::Claim,
        Site::OrderedExact,
        Site::OrderedStart,
        Site::OrderedHost,
        Site::ValueExact,
        Site::ValuePrefix,
        Site::ValuePattern,
        Site::ValuePresent,
        Site::ValueAbsent,
        Site::FirstHeader,
        Site::FirstParam,
        Site::IndexMethod,
        Site::IndexHeader,
        Site::IndexParam,
        Site::OrderExpression,
        Site::OrderMethod,
        Site::OrderHeaders,
        Site::OrderQuery,
        Site::OrderAge,
        Site::OrderName,
    ];
}
