//! Rules of a GRPCRoute, as rules of HTTP: a gRPC method is the path `/<service>/<method>`.

use karst_k8s_api::gateway::{
    GrpcRouteSpec,
    grpc_route::{GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule},
};
use karst_model::route::{HttpMatch, HttpRule, PathMatch, RouteRules, Timeouts};

use super::{
    Fault, HOSTNAMES, Rules,
    backends::Resolver,
    check_names, each_rule,
    filters::{self, Dialect, Place},
    http, sessions, text, values,
};

/// One part of a path, for a method match that leaves one out.
const ANY_PART: &str = "[^/]+";

pub(super) fn rules(spec: &GrpcRouteSpec, resolver: &mut Resolver<'_>) -> Rules {
    let mut names = check_names(spec.rules.iter().map(|rule| rule.name.as_ref())).into_iter();
    let (rules, faults) = each_rule(&spec.rules, |source| match names.next().flatten() {
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

fn rule(source: &GrpcRouteRule, resolver: &mut Resolver<'_>) -> Result<HttpRule, Fault> {
    let default = [GrpcRouteMatch::default()];
    let sources = match source.matches.is_empty() {
        true => &default[..],
        false => &source.matches,
    };
    let place = Place {
        dialect: Dialect::Grpc,
        replaces_prefix: false,
    };
    Ok(HttpRule {
        name: text(source.name.as_ref()),
        matches: sources.iter().map(one_match).collect::<Result<_, _>>()?,
        filters: filters::lower(&source.filters, &place, resolver)?,
        backends: resolver.weighted(&source.backend_refs, |resolver, backend| {
            filters::lower(&backend.filters, &place, resolver)
        })?,
        timeouts: Timeouts::default(),
        retry: None,
        session: sessions::persistence(source.session_persistence.as_ref())?,
    })
}

fn one_match(source: &GrpcRouteMatch) -> Result<HttpMatch, Fault> {
    let path = match &source.method {
        None => PathMatch::Prefix("/".into()),
        Some(method) => path(method)?,
    };
    Ok(HttpMatch {
        path: Some(path),
        headers: http::headers(&source.headers)?,
        ..HttpMatch::default()
    })
}

fn path(source: &GrpcMethodMatch) -> Result<PathMatch, Fault> {
    let given = |part: Option<&String>| part.filter(|text| !text.is_empty()).cloned();
    let (service, method) = (
        given(source.service.as_ref()),
        given(source.method.as_ref()),
    );
    if service.is_none() && method.is_none() {
        return Err(Fault::unsupported(
            "a method match names neither a service nor a method",
        ));
    }
    match source.kind.as_deref().unwrap_or("Exact") {
        "Exact" => exact(service, method),
        "RegularExpression" => {
            // The parts are read on their own first: together they could mean something else.
            for part in [&service, &method].into_iter().flatten() {
                values::regex(part)?;
            }
            let part = |part: Option<String>| {
                part.map_or_else(|| ANY_PART.to_owned(), |text| format!("(?:{text})"))
            };
            values::regex(&format!("/{}/{}", part(service), part(method))).map(PathMatch::Regex)
        }
        other => Err(Fault::unsupported(format!(
            "type {other:?} of a method match is neither Exact nor RegularExpression"
        ))),
    }
}

fn exact(service: Option<String>, method: Option<String>) -> Result<PathMatch, Fault> {
    if let Some(bad) = service.iter().find(|name| !name.split('.').all(is_word)) {
        return Err(Fault::unsupported(format!(
            "{bad:?} is not the name of a gRPC service"
        )));
    }
    if let Some(bad) = method.iter().find(|name| !is_word(name)) {
        return Err(Fault::unsupported(format!(
            "{bad:?} is not the name of a gRPC method"
        )));
    }
    match (service, method) {
        (Some(service), Some(method)) => {
            Ok(PathMatch::Exact(format!("/{service}/{method}").into()))
        }
        (Some(service), None) => Ok(PathMatch::Prefix(format!("/{service}").into())),
        (None, method) => {
            let method = method.unwrap_or_default();
            values::regex(&format!("/{ANY_PART}/{method}")).map(PathMatch::Regex)
        }
    }
}

/// A part of a name in protobuf.
fn is_word(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    bytes.next().is_some_and(first) && bytes.all(|byte| first(byte) || byte.is_ascii_digit())
}
