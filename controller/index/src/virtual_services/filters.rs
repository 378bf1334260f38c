//! What a rule does to a request and its response, and what it answers itself.

use karst_k8s_api::istio::virtual_service::{
    Abort, Body, CorsPolicy, Delay, DirectResponse as DirectSource, Fault as FaultSource,
    HeaderChanges as ChangesSource, Headers, HttpRoute, Redirect as RedirectSource, RedirectPort,
    Rewrite as RewriteSource, UnmatchedPreflights,
};
use karst_model::route::{
    Cors, DirectResponse, Fault, FaultAbort, FaultAnswer, FaultDelay, HeaderChanges, HttpFilter,
    Mirror, OriginMatch, PathChange, Redirect, Rewrite, ValueMatch,
};

use super::{Findings, World, destinations, values};
use crate::facts::Name;

/// Status of a redirect that names none.
const REDIRECT: u32 = 301;
/// What shares of mirrors are of.
const EVERYTHING: u32 = 1_000_000;
/// Names of the statuses of gRPC, by their numbers.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The filters of a rule, in the order in which Envoy applies them.
pub(super) fn of_rule(
    route: &HttpRoute,
    place: &str,
    owner: &Name,
    world: &World<'_>,
    findings: &mut Findings,
) -> Result<Vec<HttpFilter>, String> {
    let mut filters = Vec::new();
    if let Some(source) = &route.cors_policy {
        filters.push(HttpFilter::Cors(cors(
            &format!("{place}.corsPolicy"),
            source,
        )?));
    }
    if let Some(source) = &route.fault {
        let fault = fault(&format!("{place}.fault"), source, findings)?;
        filters.push(HttpFilter::Fault(fault));
    }
    if let Some(source) = &route.headers {
        filters.extend(headers(&format!("{place}.headers"), source)?);
    }
    if let Some(source) = &route.redirect {
        filters.push(HttpFilter::Redirect(redirect(
            &format!("{place}.redirect"),
            source,
        )?));
    }
    if let Some(source) = &route.direct_response {
        filters.push(HttpFilter::Direct(direct(
            &format!("{place}.directResponse"),
            source,
        )?));
    }
    if let Some(source) = &route.rewrite {
        if route.redirect.is_some() || route.direct_response.is_some() {
            return Err(format!(
                "{place}.rewrite: nothing is sent that could be rewritten"
            ));
        }
        filters.push(HttpFilter::Rewrite(rewrite(
            &format!("{place}.rewrite"),
            source,
        )?));
    }
    filters.extend(mirrors(route, place, owner, world, findings)?);
    Ok(filters)
}

/// Changes of headers; those that are taken away go first.
pub(super) fn headers(place: &str, source: &Headers) -> Result<Vec<HttpFilter>, String> {
    let mut filters = Vec::new();
    let of = [
        (
            "request",
            &source.request,
            HttpFilter::RequestHeaders as fn(HeaderChanges) -> HttpFilter,
        ),
        ("response", &source.response, HttpFilter::ResponseHeaders),
    ];
    for (field, changes, filter) in of {
        let Some(changes) = changes else {
            continue;
        };
        let (removed, put) = change(&format!("{place}.{field}"), changes)?;
        for changes in [removed, put] {
            if changes != HeaderChanges::default() {
                filters.push(filter(changes));
            }
        }
    }
    Ok(filters)
}

fn change(place: &str, source: &ChangesSource) -> Result<(HeaderChanges, HeaderChanges), String> {
    let pairs = |list: &std::collections::BTreeMap<String, String>| {
        let pairs = list.iter().map(|(name, value)| {
            let name = if name == ":authority" {
                "host"
            } else {
                name.as_str()
            };
            Ok((name.into(), literal(place, value)?.into()))
        });
        pairs.collect::<Result<Vec<_>, String>>()
    };
    let removed = HeaderChanges {
        remove: source
            .remove
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        ..HeaderChanges::default()
    };
    let put = HeaderChanges {
        set: pairs(&source.set)?,
        add: pairs(&source.add)?,
        remove: Vec::new(),
    };
    Ok((removed, put))
}

/// Envoy puts something of the request in the place of `%NAME%`; here only `%%` is known.
fn literal(place: &str, value: &str) -> Result<String, String> {
    let without = value.replace("%%", "");
    if without.matches('%').count() > 1 {
        return Err(format!(
            "{place}: {value:?} has one of Envoy's %COMMANDS%, of which none is known"
        ));
    }
    Ok(value.replace("%%", "%"))
}

fn fault(place: &str, source: &FaultSource, findings: &mut Findings) -> Result<Fault, String> {
    if source.delay.is_none() && source.abort.is_none() {
        return Err(format!("{place} has neither delay nor abort"));
    }
    let delay = source.delay.as_ref();
    let abort = source.abort.as_ref();
    Ok(Fault {
        delay: delay
            .map(|delay| delayed(&format!("{place}.delay"), delay, findings))
            .transpose()?,
        abort: abort
            .map(|abort| aborted(&format!("{place}.abort"), abort, findings))
            .transpose()?,
    })
}

fn delayed(place: &str, source: &Delay, findings: &mut Findings) -> Result<FaultDelay, String> {
    if source.exponential_delay.is_some() {
        return Err(format!("{place}.exponentialDelay is not supported"));
    }
    let fixed = source.fixed_delay.as_ref();
    let wait = values::limit(&format!("{place}.fixedDelay"), fixed)?
        .ok_or_else(|| format!("{place}.fixedDelay: a time above zero is needed"))?;
    let share = values::share(
        &format!("{place}.percentage"),
        source.percentage.as_ref(),
        source.percent.map(i64::from),
    )?;
    Ok(FaultDelay {
        wait,
        millionths: said_share(place, share, findings),
    })
}

fn aborted(place: &str, source: &Abort, findings: &mut Findings) -> Result<FaultAbort, String> {
    if source.http2_error.is_some() {
        return Err(format!("{place}.http2Error is not supported"));
    }
    let answer = match (source.http_status, &source.grpc_status) {
        (Some(_), Some(_)) => {
            return Err(format!(
                "{place}: httpStatus and grpcStatus exclude each other"
            ));
        }
        (Some(status), None) => {
            let field = format!("{place}.httpStatus");
            FaultAnswer::Http(values::status(&field, status.into(), 200..=599)?)
        }
        (None, Some(text)) => FaultAnswer::Grpc(grpc(&format!("{place}.grpcStatus"), text)?),
        (None, None) => return Err(format!("{place} has neither httpStatus nor grpcStatus")),
    };
    let share = values::share(
        &format!("{place}.percentage"),
        source.percentage.as_ref(),
        None,
    )?;
    Ok(FaultAbort {
        answer,
        millionths: said_share(place, share, findings),
    })
}

/// Without a percentage nothing happens, as Istio has it.
fn said_share(place: &str, share: Option<u32>, findings: &mut Findings) -> u32 {
    share.unwrap_or_else(|| {
        findings.idle(format!(
            "{place}.percentage is left out, so that no request is touched"
        ));
        0
    })
}

/// A status by its name or number.
fn grpc(field: &str, text: &str) -> Result<u8, String> {
    let name = text.to_ascii_uppercase();
    let named = GRPC.iter().position(|known| *known == name);
    let number = named.or_else(|| text.parse().ok().filter(|number| *number < GRPC.len()));
    number
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| format!("{field}: {text:?} is no status of gRPC"))
}

fn redirect(place: &str, source: &RedirectSource) -> Result<Redirect, String> {
    let scheme = source.scheme.as_deref().filter(|one| !one.is_empty());
    let authority = source.authority.as_deref().filter(|one| !one.is_empty());
    let (host, in_authority) = match authority.map(|text| text.rsplit_once(':')) {
        Some(Some((host, port))) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (Some(host), port.parse().ok())
        }
        Some(_) => (authority, None),
        None => (None, None),
    };
    let port = match (
        values::port(&format!("{place}.port"), source.port)?,
        source.derive_port,
    ) {
        (Some(_), Some(_)) => {
            return Err(format!("{place}: port and derivePort exclude each other"));
        }
        (Some(port), None) => Some(port),
        (None, Some(RedirectPort::FromProtocolDefault)) => Some(match scheme {
            Some("https") => 443,
            _ => 80,
        }),
        (None, Some(RedirectPort::FromRequestPort) | None) => in_authority,
    };
    let full = source.uri.as_deref().filter(|one| !one.is_empty());
    let prefix = source
        .prefix_rewrite
        .as_deref()
        .filter(|one| !one.is_empty());
    let path = match (full, prefix) {
        (Some(_), Some(_)) => {
            return Err(format!("{place}: uri and prefixRewrite exclude each other"));
        }
        (Some(full), None) => Some(PathChange::Full(full.into())),
        (None, prefix) => prefix.map(|prefix| PathChange::Prefix(prefix.into())),
    };
    if scheme.is_none() && host.is_none() && port.is_none() && path.is_none() {
        return Err(format!("{place} changes nothing: it would lead to itself"));
    }
    let code = source
        .redirect_code
        .filter(|code| *code > 0)
        .unwrap_or(REDIRECT);
    Ok(Redirect {
        scheme: scheme.map(Into::into),
        host: host.map(Into::into),
        port,
        keep_port: source.derive_port == Some(RedirectPort::FromRequestPort),
        path,
        status: values::status(&format!("{place}.redirectCode"), code.into(), 300..=399)?,
    })
}

fn direct(place: &str, source: &DirectSource) -> Result<DirectResponse, String> {
    let status = source
        .status
        .ok_or_else(|| format!("{place}.status is missing"))?;
    let body = match &source.body {
        Some(Body {
            string: Some(text), ..
        }) => text.clone(),
        Some(Body {
            bytes: Some(text), ..
        }) => base64(text)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| format!("{place}.body.bytes is no base64 of a text in UTF-8"))?,
        _ => String::new(),
    };
    Ok(DirectResponse {
        status: values::status(&format!("{place}.status"), status.into(), 200..=599)?,
        body: body.into(),
        reason: "".into(),
    })
}

/// RFC 4648 section 4, with padding or without.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

fn rewrite(place: &str, source: &RewriteSource) -> Result<Rewrite, String> {
    let uri = source.uri.as_deref().filter(|one| !one.is_empty());
    let path = match (uri, &source.uri_regex_rewrite) {
        (Some(_), Some(_)) => {
            return Err(format!(
                "{place}: uri and uriRegexRewrite exclude each other"
            ));
        }
        (Some(uri), None) => Some(PathChange::Prefix(uri.into())),
        (None, Some(regex)) => Some(PathChange::Regex {
            pattern: regex.r#match.as_deref().unwrap_or_default().into(),
            substitution: regex.rewrite.as_deref().unwrap_or_default().into(),
        }),
        (None, None) => None,
    };
    let host = source.authority.as_deref().filter(|one| !one.is_empty());
    if path.is_none() && host.is_none() {
        return Err(format!(
            "{place} has neither uri nor authority nor uriRegexRewrite"
        ));
    }
    Ok(Rewrite {
        host: host.map(Into::into),
        path,
    })
}

fn mirrors(
    route: &HttpRoute,
    place: &str,
    owner: &Name,
    world: &World<'_>,
    findings: &mut Findings,
) -> Result<Vec<HttpFilter>, String> {
    let mut mirrors = Vec::new();
    let mut add = |field: &str, to, share: Option<u32>| {
        let field = format!("{place}.{field}");
        mirrors.push(HttpFilter::Mirror(Mirror {
            backend: destinations::backend(&field, to, owner, world, findings),
            numerator: share.unwrap_or(EVERYTHING),
            denominator: EVERYTHING,
            shadow_host: true,
        }));
    };
    if let Some(to) = &route.mirror {
        if !route.mirrors.is_empty() {
            return Err(format!("{place}: mirror and mirrors exclude each other"));
        }
        let whole = route.mirror_percent.or(route.mirror_percent_snake);
        let share = values::share(
            &format!("{place}.mirrorPercentage"),
            route.mirror_percentage.as_ref(),
            whole.map(i64::from),
        )?;
        add("mirror", to, share);
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let field = format!("mirrors[{index}]");
        let share = values::share(
            &format!("{place}.{field}.percentage"),
            mirror.percentage.as_ref(),
            None,
        )?;
        add(&field, &mirror.destination, share);
    }
    Ok(mirrors)
}

fn cors(place: &str, source: &CorsPolicy) -> Result<Cors, String> {
    let mut allow_origins: Vec<OriginMatch> = Vec::new();
    for (index, origin) in source.allow_origins.iter().enumerate() {
        let field = format!("{place}.allowOrigins[{index}]");
        allow_origins.push(match values::value(&field, origin)? {
            ValueMatch::Exact(text) if &*text == "*" => OriginMatch::Any,
            ValueMatch::Exact(text) => OriginMatch::Exact(text),
            ValueMatch::Prefix(text) => OriginMatch::Prefix(text),
            ValueMatch::Regex(text) => OriginMatch::Regex(text),
            _ => return Err(format!("{field} has neither exact nor prefix nor regex")),
        });
    }
    for origin in &source.allow_origin {
        allow_origins.push(match origin.as_str() {
            "*" => OriginMatch::Any,
            exact => OriginMatch::Exact(exact.into()),
        });
    }
    let age = source.max_age.as_ref();
    let age = age
        .map(|text| values::duration(&format!("{place}.maxAge"), text))
        .transpose()?;
    let texts = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
    Ok(Cors {
        allow_origins,
        allow_credentials: source.allow_credentials.unwrap_or(false),
        allow_methods: texts(&source.allow_methods),
        allow_headers: texts(&source.allow_headers),
        expose_headers: texts(&source.expose_headers),
        max_age_seconds: age.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
        forward_unmatched: source.unmatched_preflights != Some(UnmatchedPreflights::Ignore),
    })
}
