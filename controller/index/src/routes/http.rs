//! Rules of an HTTPRoute.

use std::time::Duration;

use hashbrown::HashSet;
use karst_k8s_api::gateway::{
    HttpRouteSpec,
    http_route::{
        HttpPathMatch, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteTimeouts,
        ValueMatch as Source,
    },
};
use karst_model::route::{
    HeaderMatch, HttpMatch, HttpRule, PathMatch, QueryMatch, RetryPolicy, RouteRules, Timeouts,
};

use super::{
    Fault, HOSTNAMES, Rules,
    backends::Resolver,
    check_names, each_rule,
    filters::{self, Dialect},
    sessions, text, values,
};

/// Methods of the API's schema.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
/// Tries after the first where a retry names no number.
const DEFAULT_ATTEMPTS: u32 = 2;
/// More tries would only be a storm.
const ATTEMPTS_MAX: i64 = 100;

pub(super) fn rules(spec: &HttpRouteSpec, resolver: &mut Resolver<'_>) -> Rules {
    let default = [HttpRouteRule::default()];
    let sources = spec.rules.as_deref().unwrap_or(&default);
    let mut names = check_names(sources.iter().map(|rule| rule.name.as_ref())).into_iter();
    let (rules, faults) = each_rule(sources, |source| match names.next().flatten() {
        Some(fault) => Err(fault),
        None => rule(source, resolver),
    });
    Rules {
        rules: RouteRules::Http(rules),
        faults,
        references: resolver.take_faults(),
        idle: (!spec.hostnames.is_empty()).then_some(HOSTNAMES),
    }
}

fn rule(source: &HttpRouteRule, resolver: &mut Resolver<'_>) -> Result<HttpRule, Fault> {
    let default = [HttpRouteMatch::default()];
    let sources = match source.matches.is_empty() {
        true => &default[..],
        false => &source.matches,
    };
    let matches: Vec<HttpMatch> = sources.iter().map(one_match).collect::<Result<_, _>>()?;
    let place = filters::Place {
        dialect: Dialect::Http,
        replaces_prefix: matches!(&matches[..], [one] if matches!(one.path, Some(PathMatch::Prefix(_)))),
    };
    let filters = filters::lower(&source.filters, &place, resolver)?;
    if filters::redirects(&filters) && !source.backend_refs.is_empty() {
        return Err(Fault::incompatible(
            "a RequestRedirect answers itself, so that the rule cannot have backendRefs",
        ));
    }
    Ok(HttpRule {
        name: text(source.name.as_ref()),
        matches,
        filters,
        backends: resolver.weighted(&source.backend_refs, |resolver, backend| {
            filters::lower(&backend.filters, &place, resolver)
        })?,
        timeouts: timeouts(source.timeouts.as_ref())?,
        retry: source.retry.as_ref().map(retry).transpose()?,
        session: sessions::persistence(source.session_persistence.as_ref())?,
    })
}

fn one_match(source: &HttpRouteMatch) -> Result<HttpMatch, Fault> {
    let method = source.method.as_deref().map(method).transpose()?;
    Ok(HttpMatch {
        hosts: Vec::new(),
        path: Some(path(source.path.as_ref())?),
        method: method.map(Into::into),
        headers: headers(&source.headers)?,
        query: query(&source.query_params)?,
        ..HttpMatch::default()
    })
}

/// What is left out of a path match is the prefix `/`.
fn path(source: Option<&HttpPathMatch>) -> Result<PathMatch, Fault> {
    let kind = source.and_then(|source| source.kind.as_deref());
    let value = source.and_then(|source| source.value.as_deref());
    let value = value.unwrap_or("/");
    match kind.unwrap_or("PathPrefix") {
        "Exact" => values::path(value).map(PathMatch::Exact),
        "PathPrefix" => values::path(value).map(PathMatch::Prefix),
        "RegularExpression" => values::regex(value).map(PathMatch::Regex),
        other => Err(Fault::unsupported(format!(
            "type {other:?} of a path match is none of Exact, PathPrefix, RegularExpression"
        ))),
    }
}

fn method(text: &str) -> Result<&str, Fault> {
    METHODS.contains(&text).then_some(text).ok_or_else(|| {
        Fault::unsupported(format!("method {text:?} is none of {}", METHODS.join(", ")))
    })
}

/// Of equal names the first counts, without case.
pub(super) fn headers(sources: &[Source]) -> Result<Vec<HeaderMatch>, Fault> {
    let mut seen = HashSet::new();
    let mut headers = Vec::new();
    for source in sources {
        let name = values::header_name(&source.name)?;
        let value = values::value(source.kind.as_deref(), &source.name, &source.value)?;
        if seen.insert(name.clone()) {
            headers.push(HeaderMatch { name, value });
        }
    }
    Ok(headers)
}

/// Of equal names the first counts.
fn query(sources: &[Source]) -> Result<Vec<QueryMatch>, Fault> {
    let mut seen = HashSet::new();
    let mut query = Vec::new();
    for source in sources {
        if source.name.is_empty() {
            return Err(Fault::unsupported("a query parameter has no name"));
        }
        let value = values::value(source.kind.as_deref(), &source.name, &source.value)?;
        if seen.insert(&source.name) {
            query.push(QueryMatch {
                name: source.name.as_str().into(),
                value,
            });
        }
    }
    Ok(query)
}

/// A zero means no limit.
fn timeouts(source: Option<&HttpRouteTimeouts>) -> Result<Timeouts, Fault> {
    let read = |field: &str, text: Option<&String>| {
        let duration = text.map(|text| values::duration(field, text)).transpose()?;
        Ok(duration.filter(|duration| *duration > Duration::ZERO))
    };
    let Some(source) = source else {
        return Ok(Timeouts::default());
    };
    let timeouts = Timeouts {
        request: read("timeouts.request", source.request.as_ref())?,
        backend_request: read("timeouts.backendRequest", source.backend_request.as_ref())?,
    };
    match (timeouts.request, timeouts.backend_request) {
        (Some(whole), Some(each)) if each > whole => Err(Fault::unsupported(
            "timeouts.backendRequest is longer than timeouts.request, of which it is a part",
        )),
        _ => Ok(timeouts),
    }
}

fn retry(source: &HttpRouteRetry) -> Result<RetryPolicy, Fault> {
    let statuses = source
        .codes
        .iter()
        .map(|code| values::number("retry.codes", *code, 400..=599));
    let attempts = source
        .attempts
        .map(|attempts| values::number("retry.attempts", attempts, 1..=ATTEMPTS_MAX));
    let backoff = source
        .backoff
        .as_ref()
        .map(|text| values::duration("retry.backoff", text));
    Ok(RetryPolicy {
        attempts: attempts.transpose()?.unwrap_or(DEFAULT_ATTEMPTS),
        statuses: statuses.collect::<Result<_, _>>()?,
        backoff: backoff.transpose()?,
        ..RetryPolicy::default()
    })
}
