//! Filters of HTTPRoute and GRPCRoute.
//!
//! Each filter is compiled once as the waypoint will compile it, so that a header, host or path that cannot be sent is a
//! condition here and no surprise there. A filter that cannot be had at all (`ExtensionRef`, `ExternalAuth`) must not be
//! skipped: requests of its rule are answered with 500, and `ResolvedRefs` says so.

use std::sync::Arc;

use hashbrown::HashSet;
use karst_k8s_api::gateway::route::{
    Cors as CorsSource, Filter, Fraction, Header, HeaderModifier, PathModifier, RequestMirror,
    RequestRedirect, UrlRewrite,
};
use karst_model::route::{
    Cors, DirectResponse, HeaderChanges, HttpFilter, Mirror, OriginMatch, PathChange, Redirect,
    Rewrite,
};
use karst_routing::filter::Filter as Compiled;

use super::{Fault, backends::Resolver, values};

/// Status of a redirect that names none.
const DEFAULT_REDIRECT: i64 = 302;
/// Seconds of `maxAge` where left out.
const DEFAULT_MAX_AGE: i64 = 5;
/// What a fraction is of where it does not say.
const DEFAULT_DENOMINATOR: i64 = 100;

/// Whose filters they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Http,
    /// Header changes and mirrors only.
    Grpc,
}

/// Where the filters stand.
pub(super) struct Place {
    pub(super) dialect: Dialect,
    /// The rule has exactly one match, by a prefix: that can be replaced.
    pub(super) replaces_prefix: bool,
}

/// Whether one of the filters answers with a redirect.
pub(super) fn redirects(filters: &[HttpFilter]) -> bool {
    filters
        .iter()
        .any(|filter| matches!(filter, HttpFilter::Redirect(_)))
}

pub(super) fn lower(
    sources: &[Filter],
    place: &Place,
    resolver: &mut Resolver<'_>,
) -> Result<Vec<HttpFilter>, Fault> {
    let mut kinds = HashSet::new();
    let mut filters = Vec::with_capacity(sources.len());
    for source in sources {
        let again = !kinds.insert(source.kind.as_str());
        if again && !matches!(source.kind.as_str(), "RequestMirror" | "ExtensionRef") {
            return Err(Fault::incompatible(format!(
                "filter {} is there twice",
                source.kind
            )));
        }
        let filter = one(source, place, resolver)?;
        if let Err(unusable) = Compiled::compile(&filter) {
            return Err(Fault::unsupported(format!(
                "filter {}: {unusable}",
                source.kind
            )));
        }
        filters.push(filter);
    }
    if kinds.contains("RequestRedirect") && kinds.contains("URLRewrite") {
        return Err(Fault::incompatible(
            "RequestRedirect and URLRewrite exclude each other",
        ));
    }
    Ok(filters)
}

fn one(source: &Filter, place: &Place, resolver: &mut Resolver<'_>) -> Result<HttpFilter, Fault> {
    only_its_own_field(source)?;
    let missing = || {
        Fault::unsupported(format!(
            "filter of type {} lacks the field of that name",
            source.kind
        ))
    };
    let is_http = place.dialect == Dialect::Http;
    Ok(match source.kind.as_str() {
        "RequestHeaderModifier" => HttpFilter::RequestHeaders(changes(
            source
                .request_header_modifier
                .as_ref()
                .ok_or_else(missing)?,
        )?),
        "ResponseHeaderModifier" => HttpFilter::ResponseHeaders(changes(
            source
                .response_header_modifier
                .as_ref()
                .ok_or_else(missing)?,
        )?),
        "RequestMirror" => HttpFilter::Mirror(mirror(
            source.request_mirror.as_ref().ok_or_else(missing)?,
            resolver,
        )?),
        "RequestRedirect" if is_http => HttpFilter::Redirect(redirect(
            source.request_redirect.as_ref().ok_or_else(missing)?,
            place,
        )?),
        "URLRewrite" if is_http => HttpFilter::Rewrite(rewrite(
            source.url_rewrite.as_ref().ok_or_else(missing)?,
            place,
        )?),
        "CORS" if is_http => HttpFilter::Cors(cors(source.cors.as_ref().ok_or_else(missing)?)?),
        "ExtensionRef" => {
            let reference = source.extension_ref.as_ref().ok_or_else(missing)?;
            let message = format!(
                "filter ExtensionRef to {} {:?}: there are no such filters, and requests of the rule are answered with 500",
                reference["kind"].as_str().unwrap_or_default(),
                reference["name"].as_str().unwrap_or_default()
            );
            refusing("InvalidKind", message, resolver)
        }
        "ExternalAuth" if is_http => {
            let message =
                "filter ExternalAuth is not supported: requests of the rule are answered with 500";
            refusing("UnsupportedValue", message.to_owned(), resolver)
        }
        other => {
            return Err(Fault::unsupported(format!(
                "type {other:?} of a filter is not supported"
            )));
        }
    })
}

/// What stands for a filter that must not be skipped.
fn refusing(reason: &'static str, message: String, resolver: &mut Resolver<'_>) -> HttpFilter {
    let filter = HttpFilter::Direct(DirectResponse {
        status: 500,
        body: "".into(),
        reason: message.as_str().into(),
    });
    resolver.note(reason, message);
    filter
}

/// A field of another type would do nothing.
fn only_its_own_field(source: &Filter) -> Result<(), Fault> {
    let fields = [
        (
            "RequestHeaderModifier",
            source.request_header_modifier.is_some(),
        ),
        (
            "ResponseHeaderModifier",
            source.response_header_modifier.is_some(),
        ),
        ("RequestMirror", source.request_mirror.is_some()),
        ("RequestRedirect", source.request_redirect.is_some()),
        ("URLRewrite", source.url_rewrite.is_some()),
        ("CORS", source.cors.is_some()),
        ("ExternalAuth", source.external_auth.is_some()),
        ("ExtensionRef", source.extension_ref.is_some()),
    ];
    let other = fields
        .iter()
        .find(|(kind, is_set)| *is_set && *kind != source.kind);
    match other {
        None => Ok(()),
        Some((kind, _)) => Err(Fault::unsupported(format!(
            "filter of type {:?} has the field of type {kind}",
            source.kind
        ))),
    }
}

/// One change for each header; of equal names in one list the first counts.
fn changes(source: &HeaderModifier) -> Result<HeaderChanges, Fault> {
    let mut named: HashSet<Arc<str>> = HashSet::new();
    let mut list = |headers: &[Header]| {
        let mut own = HashSet::new();
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for header in headers {
            let name = values::header_name(&header.name)?;
            if own.insert(name.clone()) {
                pairs.push((header.name.as_str().into(), header.value.as_str().into()));
            }
        }
        claim(&mut named, own)?;
        Ok(pairs)
    };
    let (set, add) = (list(&source.set)?, list(&source.add)?);
    let removed: Result<HashSet<Arc<str>>, Fault> = source
        .remove
        .iter()
        .map(|name| values::header_name(name))
        .collect();
    claim(&mut named, removed?)?;
    Ok(HeaderChanges {
        set,
        add,
        remove: source
            .remove
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
    })
}

fn claim(named: &mut HashSet<Arc<str>>, own: HashSet<Arc<str>>) -> Result<(), Fault> {
    for name in own {
        if !named.insert(name.clone()) {
            return Err(Fault::unsupported(format!(
                "header {name} is changed in two ways by one filter"
            )));
        }
    }
    Ok(())
}

fn redirect(source: &RequestRedirect, place: &Place) -> Result<Redirect, Fault> {
    let port = source
        .port
        .map(|port| values::number("requestRedirect.port", port, 1..=65_535));
    let status = source.status_code.unwrap_or(DEFAULT_REDIRECT);
    Ok(Redirect {
        scheme: super::text(source.scheme.as_ref()),
        host: host(source.hostname.as_ref())?,
        port: port.transpose()?,
        keep_port: false,
        path: source
            .path
            .as_ref()
            .map(|path| change(path, place))
            .transpose()?,
        status: values::number("requestRedirect.statusCode", status, 300..=399)?,
    })
}

fn rewrite(source: &UrlRewrite, place: &Place) -> Result<Rewrite, Fault> {
    Ok(Rewrite {
        host: host(source.hostname.as_ref())?,
        path: source
            .path
            .as_ref()
            .map(|path| change(path, place))
            .transpose()?,
    })
}

/// A name without wildcard.
fn host(source: Option<&String>) -> Result<Option<Arc<str>>, Fault> {
    match source {
        Some(name) if !values::is_dns_name(name) => Err(Fault::unsupported(format!(
            "hostname {name:?} is no DNS name in lower case"
        ))),
        name => Ok(super::text(name)),
    }
}

fn change(source: &PathModifier, place: &Place) -> Result<PathChange, Fault> {
    let (full, prefix) = (
        source.replace_full_path.as_ref(),
        source.replace_prefix_match.as_ref(),
    );
    match (source.kind.as_str(), full, prefix) {
        ("ReplaceFullPath", Some(path), None) => Ok(PathChange::Full(path.as_str().into())),
        ("ReplacePrefixMatch", None, Some(path)) if place.replaces_prefix => {
            Ok(PathChange::Prefix(path.as_str().into()))
        }
        ("ReplacePrefixMatch", None, Some(_)) => Err(Fault::unsupported(
            "replacePrefixMatch needs exactly one match in the rule, of type PathPrefix",
        )),
        ("ReplaceFullPath" | "ReplacePrefixMatch", _, _) => Err(Fault::unsupported(format!(
            "path of type {} needs the field of that name, and no other",
            source.kind
        ))),
        (other, _, _) => Err(Fault::unsupported(format!(
            "type {other:?} of a path change is neither ReplaceFullPath nor ReplacePrefixMatch"
        ))),
    }
}

fn mirror(source: &RequestMirror, resolver: &mut Resolver<'_>) -> Result<Mirror, Fault> {
    let (numerator, denominator) = match (source.percent, source.fraction.as_ref()) {
        (Some(_), Some(_)) => {
            return Err(Fault::unsupported(
                "requestMirror: percent and fraction exclude each other",
            ));
        }
        (Some(percent), None) => (percent, DEFAULT_DENOMINATOR),
        (
            None,
            Some(Fraction {
                numerator,
                denominator,
            }),
        ) => (*numerator, denominator.unwrap_or(DEFAULT_DENOMINATOR)),
        (None, None) => (DEFAULT_DENOMINATOR, DEFAULT_DENOMINATOR),
    };
    let denominator = values::number(
        "requestMirror.fraction.denominator",
        denominator,
        1..=i64::from(i32::MAX),
    )?;
    Ok(Mirror {
        backend: resolver.backend(&source.backend_ref),
        numerator: values::number("requestMirror", numerator, 0..=i64::from(denominator))?,
        denominator,
        shadow_host: false,
    })
}

fn cors(source: &CorsSource) -> Result<Cors, Fault> {
    let lists = [
        ("allowOrigins", &source.allow_origins),
        ("allowMethods", &source.allow_methods),
        ("allowHeaders", &source.allow_headers),
    ];
    for (field, list) in lists {
        if list.len() > 1 && list.iter().any(|one| one == "*") {
            return Err(Fault::unsupported(format!(
                "cors.{field}: `*` stands for everything, so that nothing can stand beside it"
            )));
        }
    }
    let texts = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
    let origins = source.allow_origins.iter().map(|one| origin(one));
    Ok(Cors {
        allow_origins: origins.collect::<Result<_, _>>()?,
        allow_credentials: source.allow_credentials.unwrap_or(false),
        allow_methods: texts(&source.allow_methods),
        allow_headers: texts(&source.allow_headers),
        expose_headers: texts(&source.expose_headers),
        max_age_seconds: Some(values::number(
            "cors.maxAge",
            source.max_age.unwrap_or(DEFAULT_MAX_AGE),
            0..=i64::from(i32::MAX),
        )?),
        forward_unmatched: false,
    })
}

/// `*`, or scheme and host with `*` or `*.` at most at the host's start.
fn origin(text: &str) -> Result<OriginMatch, Fault> {
    if text == "*" {
        return Ok(OriginMatch::Any);
    }
    let wrong = || {
        Fault::unsupported(format!(
            "origin {text:?} is neither `*` nor of the form http(s)://host[:port], with `*.` at most at the host's start"
        ))
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    if !matches!(scheme, "http" | "https") {
        return Err(wrong());
    }
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = |host: &str| values::is_dns_name(&host.to_ascii_lowercase());
    if !port.is_none_or(is_port) {
        return Err(wrong());
    }
    match host.strip_prefix('*') {
        Some(after) if after.is_empty() || after.strip_prefix('.').is_some_and(is_host) => {
            Ok(OriginMatch::Wildcard {
                scheme: format!("{scheme}://").into(),
                suffix: rest.get(1..).unwrap_or_default().into(),
            })
        }
        None if is_host(host) => Ok(OriginMatch::Exact(text.into())),
        _ => Err(wrong()),
    }
}
