//! `karst.v1.Route`.
//!
//! Only Karst's controller sends routes, so a route with anything that this version does not know is refused as a whole:
//! a match without a part that it had would take more than its author wrote. The last good form of the route stays.

use std::{sync::Arc, time::Duration};

use karst_model::{
    name::ServiceKey,
    route::{
        Attachment, Backend, ClaimMatch, Clients, ConnectionMatch, Cors, DirectResponse, Fault,
        FaultAbort, FaultAnswer, FaultDelay, HeaderChanges, HeaderMatch, HostMatch, HttpFilter,
        HttpMatch, HttpRule, Mirror, OriginMatch, PathChange, PathMatch, QueryMatch, Redirect,
        RetryPolicy, Rewrite, Route, RouteKey, RouteKind, RouteRules, SourceMatch, TcpRule,
        Timeouts, TlsRule, ValueMatch, WeightedBackend,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    address::port_from,
    error::decode,
    policy::{block_from, block_to},
    traffic::{session_from, session_to},
    workload::indexed,
};
use crate::{karst as wire, security};

/// Reads a resource of type Route.
pub fn decode_route(bytes: &[u8], interner: &mut Interner) -> Result<Route, ConvertError> {
    let message: wire::Route = decode("karst.v1.Route", bytes)?;
    // What the decoder has dropped is missing from the length.
    if message.encoded_len() != bytes.len() {
        return Err(Problem::UnknownField.at("route"));
    }
    let kind = kind_from(message.kind)?;
    for (field, text) in [("namespace", &message.namespace), ("name", &message.name)] {
        if text.is_empty() {
            return Err(Problem::Missing.at(field));
        }
    }
    let rules = message
        .rules
        .ok_or_else(|| Problem::Missing.at("rules"))
        .and_then(|rules| rules_from(&rules, interner))?;
    Ok(Route {
        key: RouteKey {
            kind,
            namespace: interner.get(&message.namespace),
            name: message.name.as_str().into(),
        },
        created: message.created,
        attachments: indexed("attachments", &message.attachments, |a| {
            attachment_from(a, interner)
        })?,
        rules,
    })
}

fn kind_from(kind: i32) -> Result<RouteKind, ConvertError> {
    match wire::RouteKind::try_from(kind) {
        Ok(wire::RouteKind::GrpcRoute) => Ok(RouteKind::GrpcRoute),
        Ok(wire::RouteKind::HttpRoute) => Ok(RouteKind::HttpRoute),
        Ok(wire::RouteKind::TlsRoute) => Ok(RouteKind::TlsRoute),
        Ok(wire::RouteKind::TcpRoute) => Ok(RouteKind::TcpRoute),
        Ok(wire::RouteKind::VirtualService) => Ok(RouteKind::VirtualService),
        Ok(wire::RouteKind::VirtualServiceTls) => Ok(RouteKind::VirtualServiceTls),
        Ok(wire::RouteKind::VirtualServiceTcp) => Ok(RouteKind::VirtualServiceTcp),
        Ok(wire::RouteKind::Unspecified) | Err(_) => Err(Problem::UnknownValue(kind).at("kind")),
    }
}

fn attachment_from(a: &wire::Attachment, interner: &mut Interner) -> Result<Attachment, Problem> {
    let port = port_from(a.port)?;
    let clients = match a.client_namespace.as_str() {
        "" => Clients::All,
        namespace => Clients::Namespace(interner.get(namespace)),
    };
    Ok(Attachment {
        service: service_from(&a.service, interner)?,
        port: (port != 0).then_some(port),
        clients,
    })
}

fn service_from(name: &str, interner: &mut Interner) -> Result<ServiceKey, Problem> {
    let key: ServiceKey = name.parse()?;
    Ok(ServiceKey {
        namespace: interner.get(&key.namespace),
        hostname: interner.get(&key.hostname),
    })
}

fn rules_from(
    rules: &wire::route::Rules,
    interner: &mut Interner,
) -> Result<RouteRules, ConvertError> {
    use wire::route::Rules;
    Ok(match rules {
        Rules::Http(http) => RouteRules::Http(indexed("rules", &http.rules, |rule| {
            http_rule_from(rule, interner)
        })?),
        Rules::Tls(tls) => RouteRules::Tls(indexed("rules", &tls.rules, |rule| {
            Ok(TlsRule {
                name: text(rule.name.as_deref()),
                hosts: all(&rule.hosts, host_from)?,
                matches: all(&rule.matches, connection_from)?,
                backends: all(&rule.backends, |b| weighted_from(b, interner))?,
            })
        })?),
        Rules::Tcp(tcp) => RouteRules::Tcp(indexed("rules", &tcp.rules, |rule| {
            Ok(TcpRule {
                name: text(rule.name.as_deref()),
                matches: all(&rule.matches, connection_from)?,
                backends: all(&rule.backends, |b| weighted_from(b, interner))?,
            })
        })?),
    })
}

fn connection_from(m: &wire::ConnectionMatch) -> Result<ConnectionMatch, Problem> {
    let block = |address: &security::Address| {
        block_from(address.clone()).map_err(|_wrong| Problem::Range(format!("{address:?}")))
    };
    Ok(ConnectionMatch {
        hosts: all(&m.hosts, host_from)?,
        port: m.port.map(port_from).transpose()?,
        destinations: all(&m.destinations, block)?,
        client: m.client.as_ref().map(block).transpose()?,
        source: source_from(m.source.as_ref())?,
    })
}

fn http_rule_from(rule: &wire::HttpRule, interner: &mut Interner) -> Result<HttpRule, Problem> {
    Ok(HttpRule {
        name: text(rule.name.as_deref()),
        matches: all(&rule.matches, match_from)?,
        filters: all(&rule.filters, |f| filter_from(f, interner))?,
        backends: all(&rule.backends, |b| weighted_from(b, interner))?,
        timeouts: Timeouts {
            request: rule.request_timeout.map(duration_from).transpose()?,
            backend_request: rule
                .backend_request_timeout
                .map(duration_from)
                .transpose()?,
        },
        retry: rule.retry.as_ref().map(retry_from).transpose()?,
        session: rule.session.as_ref().map(session_from).transpose()?,
    })
}

fn match_from(m: &wire::HttpMatch) -> Result<HttpMatch, Problem> {
    Ok(HttpMatch {
        hosts: all(&m.hosts, host_from)?,
        path: m.path.as_ref().map(path_from).transpose()?,
        method: text(m.method.as_deref()),
        headers: all(&m.headers, |named| {
            Ok(HeaderMatch {
                name: named.name.as_str().into(),
                value: value_from(named)?,
            })
        })?,
        query: all(&m.query, |named| {
            Ok(QueryMatch {
                name: named.name.as_str().into(),
                value: value_from(named)?,
            })
        })?,
        ignore_path_case: m.ignore_path_case,
        port: m.port.map(port_from).transpose()?,
        source: source_from(m.source.as_ref())?,
        claims: all(&m.claims, |claim| {
            Ok(ClaimMatch {
                path: texts(&claim.path),
                value: value_from(claim.value.as_ref().ok_or(Problem::Missing)?)?,
            })
        })?,
    })
}

fn source_from(source: Option<&wire::SourceMatch>) -> Result<SourceMatch, Problem> {
    let Some(source) = source else {
        return Ok(SourceMatch::default());
    };
    Ok(SourceMatch {
        namespace: text(source.namespace.as_deref()),
        labels: pairs_from(&source.labels),
        principal: source.principal.as_ref().map(value_from).transpose()?,
    })
}

fn host_from(host: &wire::HostMatch) -> Result<HostMatch, Problem> {
    use wire::host_match::Kind;
    Ok(match host.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Exact(text) => HostMatch::Exact(text.as_str().into()),
        Kind::Suffix(text) => HostMatch::Suffix(text.as_str().into()),
    })
}

fn path_from(path: &wire::PathMatch) -> Result<PathMatch, Problem> {
    use wire::path_match::Kind;
    Ok(match path.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Exact(text) => PathMatch::Exact(text.as_str().into()),
        Kind::Prefix(text) => PathMatch::Prefix(text.as_str().into()),
        Kind::Regex(text) => PathMatch::Regex(text.as_str().into()),
        Kind::Start(text) => PathMatch::Start(text.as_str().into()),
    })
}

fn value_from(named: &wire::NamedMatch) -> Result<ValueMatch, Problem> {
    use wire::named_match::Value;
    Ok(match named.value.as_ref().ok_or(Problem::Missing)? {
        Value::Exact(text) => ValueMatch::Exact(text.as_str().into()),
        Value::Regex(text) => ValueMatch::Regex(text.as_str().into()),
        Value::Prefix(text) => ValueMatch::Prefix(text.as_str().into()),
        Value::Present(()) => ValueMatch::Present,
        Value::Absent(()) => ValueMatch::Absent,
        // The decoder of messages bounds how deep they nest.
        Value::Not(inner) => ValueMatch::Not(Box::new(value_from(inner)?)),
    })
}

fn filter_from(filter: &wire::HttpFilter, interner: &mut Interner) -> Result<HttpFilter, Problem> {
    use wire::http_filter::Kind;
    Ok(match filter.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::RequestHeaders(changes) => HttpFilter::RequestHeaders(changes_from(changes)),
        Kind::ResponseHeaders(changes) => HttpFilter::ResponseHeaders(changes_from(changes)),
        Kind::Redirect(redirect) => HttpFilter::Redirect(redirect_from(redirect)?),
        Kind::Rewrite(rewrite) => HttpFilter::Rewrite(Rewrite {
            host: text(rewrite.host.as_deref()),
            path: rewrite.path.as_ref().map(change_from).transpose()?,
        }),
        Kind::Mirror(mirror) => HttpFilter::Mirror(mirror_from(mirror, interner)?),
        Kind::Cors(cors) => HttpFilter::Cors(cors_from(cors)?),
        Kind::Direct(direct) => HttpFilter::Direct(DirectResponse {
            status: status_from(direct.status)?,
            body: direct.body.as_str().into(),
            reason: direct.reason.as_str().into(),
        }),
        Kind::Fault(fault) => HttpFilter::Fault(fault_from(fault)?),
    })
}

fn fault_from(fault: &wire::Fault) -> Result<Fault, Problem> {
    use wire::fault_abort::Answer;
    let share = |millionths: u32| match millionths <= 1_000_000 {
        true => Ok(millionths),
        false => Err(Problem::Unsupported("a share of more than everything")),
    };
    let delay = |delay: &wire::FaultDelay| -> Result<FaultDelay, Problem> {
        Ok(FaultDelay {
            wait: duration_from(delay.wait.ok_or(Problem::Missing)?)?,
            millionths: share(delay.millionths)?,
        })
    };
    let abort = |abort: &wire::FaultAbort| -> Result<FaultAbort, Problem> {
        let answer = match abort.answer.as_ref().ok_or(Problem::Missing)? {
            Answer::HttpStatus(status) => FaultAnswer::Http(status_from(*status)?),
            Answer::GrpcStatus(status) => FaultAnswer::Grpc(grpc_status_from(*status)?),
        };
        Ok(FaultAbort {
            answer,
            millionths: share(abort.millionths)?,
        })
    };
    Ok(Fault {
        delay: fault.delay.as_ref().map(delay).transpose()?,
        abort: fault.abort.as_ref().map(abort).transpose()?,
    })
}

fn pairs_from(list: &[wire::Header]) -> Vec<(Arc<str>, Arc<str>)> {
    list.iter()
        .map(|header| (header.name.as_str().into(), header.value.as_str().into()))
        .collect()
}

fn changes_from(changes: &wire::HeaderChanges) -> HeaderChanges {
    HeaderChanges {
        set: pairs_from(&changes.set),
        add: pairs_from(&changes.add),
        remove: texts(&changes.remove),
    }
}

fn redirect_from(redirect: &wire::Redirect) -> Result<Redirect, Problem> {
    Ok(Redirect {
        scheme: text(redirect.scheme.as_deref()),
        host: text(redirect.host.as_deref()),
        port: redirect.port.map(port_from).transpose()?,
        keep_port: redirect.keep_port,
        path: redirect.path.as_ref().map(change_from).transpose()?,
        status: status_from(redirect.status)?,
    })
}

fn change_from(change: &wire::PathChange) -> Result<PathChange, Problem> {
    use wire::path_change::Kind;
    Ok(match change.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Full(path) => PathChange::Full(path.as_str().into()),
        Kind::Prefix(path) => PathChange::Prefix(path.as_str().into()),
        Kind::Regex(change) => PathChange::Regex {
            pattern: change.pattern.as_str().into(),
            substitution: change.substitution.as_str().into(),
        },
    })
}

fn mirror_from(mirror: &wire::Mirror, interner: &mut Interner) -> Result<Mirror, Problem> {
    if mirror.denominator == 0 || mirror.numerator > mirror.denominator {
        return Err(Problem::Unsupported("a share of more than everything"));
    }
    Ok(Mirror {
        backend: backend_from(mirror.backend.as_ref(), interner)?,
        numerator: mirror.numerator,
        denominator: mirror.denominator,
        shadow_host: mirror.shadow_host,
    })
}

fn cors_from(cors: &wire::Cors) -> Result<Cors, Problem> {
    Ok(Cors {
        allow_origins: all(&cors.allow_origins, origin_from)?,
        allow_credentials: cors.allow_credentials,
        allow_methods: texts(&cors.allow_methods),
        allow_headers: texts(&cors.allow_headers),
        expose_headers: texts(&cors.expose_headers),
        max_age_seconds: cors.max_age_seconds,
        forward_unmatched: cors.forward_unmatched,
    })
}

fn origin_from(origin: &wire::OriginMatch) -> Result<OriginMatch, Problem> {
    use wire::origin_match::Kind;
    Ok(match origin.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::Any(()) => OriginMatch::Any,
        Kind::Exact(text) => OriginMatch::Exact(text.as_str().into()),
        Kind::Wildcard(wildcard) => OriginMatch::Wildcard {
            scheme: wildcard.scheme.as_str().into(),
            suffix: wildcard.suffix.as_str().into(),
        },
        Kind::Prefix(text) => OriginMatch::Prefix(text.as_str().into()),
        Kind::Regex(text) => OriginMatch::Regex(text.as_str().into()),
    })
}

fn weighted_from(
    weighted: &wire::WeightedBackend,
    interner: &mut Interner,
) -> Result<WeightedBackend, Problem> {
    Ok(WeightedBackend {
        backend: backend_from(weighted.backend.as_ref(), interner)?,
        weight: weighted.weight,
        filters: all(&weighted.filters, |f| filter_from(f, interner))?,
    })
}

fn backend_from(
    backend: Option<&wire::Backend>,
    interner: &mut Interner,
) -> Result<Backend, Problem> {
    use wire::backend::Kind;
    let kind = backend.and_then(|backend| backend.kind.as_ref());
    Ok(match kind.ok_or(Problem::Missing)? {
        Kind::Service(service) => Backend::Service {
            service: service_from(&service.service, interner)?,
            port: port_from(service.port)?,
            subset: text(service.subset.as_deref()),
        },
        Kind::Invalid(reason) => Backend::Invalid(reason.as_str().into()),
    })
}

fn retry_from(retry: &wire::RetryPolicy) -> Result<RetryPolicy, Problem> {
    Ok(RetryPolicy {
        attempts: retry.attempts,
        statuses: all(&retry.statuses, |status| status_from(*status))?,
        backoff: retry.backoff.map(duration_from).transpose()?,
        on_connection_failure: retry.on_connection_failure,
        on_server_error: retry.on_server_error,
        grpc_statuses: all(&retry.grpc_statuses, |status| grpc_status_from(*status))?,
        remote_localities: retry.remote_localities,
        avoid_previous: retry.avoid_previous,
    })
}

fn grpc_status_from(status: u32) -> Result<u8, Problem> {
    u8::try_from(status)
        .ok()
        .filter(|status| *status <= 16)
        .ok_or(Problem::Unsupported("a status of gRPC above 16"))
}

pub(super) fn duration_from(duration: prost_types::Duration) -> Result<Duration, Problem> {
    Duration::try_from(duration).map_err(|_out_of_range| Problem::Duration)
}

pub(super) fn status_from(status: u32) -> Result<u16, Problem> {
    u16::try_from(status)
        .ok()
        .filter(|status| (100..1000).contains(status))
        .ok_or(Problem::Status(status))
}

fn all<T, U>(
    items: &[T],
    convert: impl FnMut(&T) -> Result<U, Problem>,
) -> Result<Vec<U>, Problem> {
    items.iter().map(convert).collect()
}

fn text(value: Option<&str>) -> Option<Arc<str>> {
    value.map(Into::into)
}

fn texts(values: &[String]) -> Vec<Arc<str>> {
    values.iter().map(|value| value.as_str().into()).collect()
}

/// The resource of a route.
pub fn route_to(route: &Route) -> wire::Route {
    let kind = match route.key.kind {
        RouteKind::GrpcRoute => wire::RouteKind::GrpcRoute,
        RouteKind::HttpRoute => wire::RouteKind::HttpRoute,
        RouteKind::TlsRoute => wire::RouteKind::TlsRoute,
        RouteKind::TcpRoute => wire::RouteKind::TcpRoute,
        RouteKind::VirtualService => wire::RouteKind::VirtualService,
        RouteKind::VirtualServiceTls => wire::RouteKind::VirtualServiceTls,
        RouteKind::VirtualServiceTcp => wire::RouteKind::VirtualServiceTcp,
    };
    wire::Route {
        kind: kind.into(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        created: route.created,
        attachments: route.attachments.iter().map(attachment_to).collect(),
        rules: Some(rules_to(&route.rules)),
    }
}

fn attachment_to(a: &Attachment) -> wire::Attachment {
    wire::Attachment {
        service: a.service.to_string(),
        port: a.port.unwrap_or_default().into(),
        client_namespace: match &a.clients {
            Clients::All => String::new(),
            Clients::Namespace(namespace) => namespace.to_string(),
        },
    }
}

fn rules_to(rules: &RouteRules) -> wire::route::Rules {
    use wire::route::Rules;
    match rules {
        RouteRules::Http(rules) => Rules::Http(wire::HttpRules {
            rules: rules.iter().map(http_rule_to).collect(),
        }),
        RouteRules::Tls(rules) => Rules::Tls(wire::TlsRules {
            rules: rules.iter().map(tls_rule_to).collect(),
        }),
        RouteRules::Tcp(rules) => Rules::Tcp(wire::TcpRules {
            rules: rules.iter().map(tcp_rule_to).collect(),
        }),
    }
}

fn tls_rule_to(rule: &TlsRule) -> wire::TlsRule {
    wire::TlsRule {
        name: string(rule.name.as_ref()),
        hosts: rule.hosts.iter().map(host_to).collect(),
        matches: rule.matches.iter().map(connection_to).collect(),
        backends: rule.backends.iter().map(weighted_to).collect(),
    }
}

fn tcp_rule_to(rule: &TcpRule) -> wire::TcpRule {
    wire::TcpRule {
        name: string(rule.name.as_ref()),
        matches: rule.matches.iter().map(connection_to).collect(),
        backends: rule.backends.iter().map(weighted_to).collect(),
    }
}

fn connection_to(m: &ConnectionMatch) -> wire::ConnectionMatch {
    wire::ConnectionMatch {
        hosts: m.hosts.iter().map(host_to).collect(),
        port: m.port.map(Into::into),
        destinations: m
            .destinations
            .iter()
            .map(|block| block_to(*block))
            .collect(),
        client: m.client.map(block_to),
        source: source_to(&m.source),
    }
}

/// Nothing for one that takes everybody.
fn source_to(source: &SourceMatch) -> Option<wire::SourceMatch> {
    (*source != SourceMatch::default()).then(|| wire::SourceMatch {
        namespace: string(source.namespace.as_ref()),
        labels: pairs_to(&source.labels),
        principal: source.principal.as_ref().map(|value| named_to("", value)),
    })
}

fn http_rule_to(rule: &HttpRule) -> wire::HttpRule {
    wire::HttpRule {
        name: string(rule.name.as_ref()),
        matches: rule.matches.iter().map(match_to).collect(),
        filters: rule.filters.iter().map(filter_to).collect(),
        backends: rule.backends.iter().map(weighted_to).collect(),
        request_timeout: rule.timeouts.request.map(duration_to),
        backend_request_timeout: rule.timeouts.backend_request.map(duration_to),
        retry: rule.retry.as_ref().map(|retry| wire::RetryPolicy {
            attempts: retry.attempts,
            statuses: retry.statuses.iter().map(|s| u32::from(*s)).collect(),
            backoff: retry.backoff.map(duration_to),
            on_connection_failure: retry.on_connection_failure,
            on_server_error: retry.on_server_error,
            grpc_statuses: retry.grpc_statuses.iter().map(|s| u32::from(*s)).collect(),
            remote_localities: retry.remote_localities,
            avoid_previous: retry.avoid_previous,
        }),
        session: rule.session.as_ref().map(session_to),
    }
}

fn match_to(m: &HttpMatch) -> wire::HttpMatch {
    let header = |header: &HeaderMatch| named_to(&header.name, &header.value);
    let query = |query: &QueryMatch| named_to(&query.name, &query.value);
    wire::HttpMatch {
        hosts: m.hosts.iter().map(host_to).collect(),
        path: m.path.as_ref().map(path_to),
        method: string(m.method.as_ref()),
        headers: m.headers.iter().map(header).collect(),
        query: m.query.iter().map(query).collect(),
        ignore_path_case: m.ignore_path_case,
        port: m.port.map(Into::into),
        source: source_to(&m.source),
        claims: m.claims.iter().map(claim_to).collect(),
    }
}

fn claim_to(claim: &ClaimMatch) -> wire::ClaimMatch {
    wire::ClaimMatch {
        path: strings(&claim.path),
        value: Some(named_to("", &claim.value)),
    }
}

fn host_to(host: &HostMatch) -> wire::HostMatch {
    use wire::host_match::Kind;
    let kind = match host {
        HostMatch::Exact(text) => Kind::Exact(text.to_string()),
        HostMatch::Suffix(text) => Kind::Suffix(text.to_string()),
    };
    wire::HostMatch { kind: Some(kind) }
}

fn path_to(path: &PathMatch) -> wire::PathMatch {
    use wire::path_match::Kind;
    let kind = match path {
        PathMatch::Exact(text) => Kind::Exact(text.to_string()),
        PathMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        PathMatch::Regex(text) => Kind::Regex(text.to_string()),
        PathMatch::Start(text) => Kind::Start(text.to_string()),
    };
    wire::PathMatch { kind: Some(kind) }
}

fn named_to(name: &str, value: &ValueMatch) -> wire::NamedMatch {
    use wire::named_match::Value;
    let value = match value {
        ValueMatch::Exact(text) => Value::Exact(text.to_string()),
        ValueMatch::Regex(text) => Value::Regex(text.to_string()),
        ValueMatch::Prefix(text) => Value::Prefix(text.to_string()),
        ValueMatch::Present => Value::Present(()),
        ValueMatch::Absent => Value::Absent(()),
        ValueMatch::Not(inner) => Value::Not(Box::new(named_to("", inner))),
    };
    wire::NamedMatch {
        name: name.to_owned(),
        value: Some(value),
    }
}

fn filter_to(filter: &HttpFilter) -> wire::HttpFilter {
    use wire::http_filter::Kind;
    let kind = match filter {
        HttpFilter::RequestHeaders(changes) => Kind::RequestHeaders(changes_to(changes)),
        HttpFilter::ResponseHeaders(changes) => Kind::ResponseHeaders(changes_to(changes)),
        HttpFilter::Redirect(redirect) => Kind::Redirect(wire::Redirect {
            scheme: string(redirect.scheme.as_ref()),
            host: string(redirect.host.as_ref()),
            port: redirect.port.map(Into::into),
            keep_port: redirect.keep_port,
            path: redirect.path.as_ref().map(change_to),
            status: redirect.status.into(),
        }),
        HttpFilter::Rewrite(rewrite) => Kind::Rewrite(wire::Rewrite {
            host: string(rewrite.host.as_ref()),
            path: rewrite.path.as_ref().map(change_to),
        }),
        HttpFilter::Mirror(mirror) => Kind::Mirror(wire::Mirror {
            backend: Some(backend_to(&mirror.backend)),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
            shadow_host: mirror.shadow_host,
        }),
        HttpFilter::Cors(cors) => Kind::Cors(cors_to(cors)),
        HttpFilter::Direct(direct) => Kind::Direct(wire::DirectResponse {
            status: direct.status.into(),
            body: direct.body.to_string(),
            reason: direct.reason.to_string(),
        }),
        HttpFilter::Fault(fault) => Kind::Fault(fault_to(fault)),
    };
    wire::HttpFilter { kind: Some(kind) }
}

fn fault_to(fault: &Fault) -> wire::Fault {
    use wire::fault_abort::Answer;
    wire::Fault {
        delay: fault.delay.as_ref().map(|delay| wire::FaultDelay {
            wait: Some(duration_to(delay.wait)),
            millionths: delay.millionths,
        }),
        abort: fault.abort.as_ref().map(|abort| wire::FaultAbort {
            answer: Some(match abort.answer {
                FaultAnswer::Http(status) => Answer::HttpStatus(status.into()),
                FaultAnswer::Grpc(status) => Answer::GrpcStatus(status.into()),
            }),
            millionths: abort.millionths,
        }),
    }
}

fn pairs_to(list: &[(Arc<str>, Arc<str>)]) -> Vec<wire::Header> {
    list.iter()
        .map(|(name, value)| wire::Header {
            name: name.to_string(),
            value: value.to_string(),
        })
        .collect()
}

fn changes_to(changes: &HeaderChanges) -> wire::HeaderChanges {
    wire::HeaderChanges {
        set: pairs_to(&changes.set),
        add: pairs_to(&changes.add),
        remove: strings(&changes.remove),
    }
}

fn change_to(change: &PathChange) -> wire::PathChange {
    use wire::path_change::Kind;
    let kind = match change {
        PathChange::Full(path) => Kind::Full(path.to_string()),
        PathChange::Prefix(path) => Kind::Prefix(path.to_string()),
        PathChange::Regex {
            pattern,
            substitution,
        } => Kind::Regex(wire::RegexChange {
            pattern: pattern.to_string(),
            substitution: substitution.to_string(),
        }),
    };
    wire::PathChange { kind: Some(kind) }
}

fn cors_to(cors: &Cors) -> wire::Cors {
    wire::Cors {
        allow_origins: cors.allow_origins.iter().map(origin_to).collect(),
        allow_credentials: cors.allow_credentials,
        allow_methods: strings(&cors.allow_methods),
        allow_headers: strings(&cors.allow_headers),
        expose_headers: strings(&cors.expose_headers),
        max_age_seconds: cors.max_age_seconds,
        forward_unmatched: cors.forward_unmatched,
    }
}

fn origin_to(origin: &OriginMatch) -> wire::OriginMatch {
    use wire::origin_match::Kind;
    let kind = match origin {
        OriginMatch::Any => Kind::Any(()),
        OriginMatch::Exact(text) => Kind::Exact(text.to_string()),
        OriginMatch::Wildcard { scheme, suffix } => Kind::Wildcard(wire::WildcardOrigin {
            scheme: scheme.to_string(),
            suffix: suffix.to_string(),
        }),
        OriginMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        OriginMatch::Regex(text) => Kind::Regex(text.to_string()),
    };
    wire::OriginMatch { kind: Some(kind) }
}

fn weighted_to(weighted: &WeightedBackend) -> wire::WeightedBackend {
    wire::WeightedBackend {
        backend: Some(backend_to(&weighted.backend)),
        weight: weighted.weight,
        filters: weighted.filters.iter().map(filter_to).collect(),
    }
}

fn backend_to(backend: &Backend) -> wire::Backend {
    use wire::backend::Kind;
    let kind = match backend {
        Backend::Service {
            service,
            port,
            subset,
        } => Kind::Service(wire::ServiceBackend {
            service: service.to_string(),
            port: (*port).into(),
            subset: string(subset.as_ref()),
        }),
        Backend::Invalid(reason) => Kind::Invalid(reason.to_string()),
    };
    wire::Backend { kind: Some(kind) }
}

/// Durations of the model come from the API, which bounds them far below what the wire can hold.
pub(super) fn duration_to(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

fn string(value: Option<&Arc<str>>) -> Option<String> {
    value.map(ToString::to_string)
}

fn strings(values: &[Arc<str>]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}
