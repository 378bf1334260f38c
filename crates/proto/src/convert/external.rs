//! `karst.v1.ExternalAuthorizer`, the part of a request policy that says who is asked.

use karst_model::{
    external::{AuthorizerProtocol, CheckedBody, ExternalAuthorizer, HttpAuthorizer},
    policy::StringMatch,
};

use super::{
    Interner, Problem,
    policy::{all, string_from, string_to},
    route::{duration_from, duration_to, status_from},
};
use crate::{karst as wire, security};

/// A provider that cannot be read is none: what the policy matches is denied.
pub(super) fn authorizer_from(
    message: wire::ExternalAuthorizer,
    interner: &mut Interner,
) -> Result<ExternalAuthorizer, Problem> {
    use wire::external_authorizer::Protocol;
    let protocol = match message.protocol.ok_or(Problem::Missing)? {
        Protocol::Grpc(_) => AuthorizerProtocol::Grpc,
        Protocol::Http(http) => AuthorizerProtocol::Http(http_from(http, interner)?),
    };
    Ok(ExternalAuthorizer {
        name: interner.get(&message.name),
        service: message.service.parse()?,
        port: u16::try_from(message.port).map_err(|_large| Problem::Port(message.port))?,
        timeout: duration_from(message.timeout.ok_or(Problem::Missing)?)?,
        fail_open: message.fail_open,
        status_on_error: status_from(message.status_on_error)?,
        clear_route_cache: message.clear_route_cache,
        body: message.body.map(|body| CheckedBody {
            max_bytes: body.max_bytes,
            allow_partial: body.allow_partial,
            pack_as_bytes: body.pack_as_bytes,
        }),
        protocol,
    })
}

fn http_from(
    http: wire::HttpAuthorizer,
    interner: &mut Interner,
) -> Result<HttpAuthorizer, Problem> {
    let mut strings = |list: Vec<security::StringMatch>| -> Result<Vec<StringMatch>, Problem> {
        all(list, |text| string_from(text, interner)).map_err(|_unreadable| Problem::UnknownField)
    };
    Ok(HttpAuthorizer {
        path_prefix: http.path_prefix.into(),
        include_headers: strings(http.include_headers)?,
        upstream_on_allow: strings(http.upstream_on_allow)?,
        downstream_on_allow: strings(http.downstream_on_allow)?,
        downstream_on_deny: strings(http.downstream_on_deny)?,
        additional_headers: http
            .additional_headers
            .into_iter()
            .map(|header| (header.name.into(), header.value.into()))
            .collect(),
    })
}

pub(super) fn authorizer_to(authorizer: &ExternalAuthorizer) -> wire::ExternalAuthorizer {
    use wire::external_authorizer::Protocol;
    wire::ExternalAuthorizer {
        name: authorizer.name.to_string(),
        service: authorizer.service.to_string(),
        port: authorizer.port.into(),
        timeout: Some(duration_to(authorizer.timeout)),
        fail_open: authorizer.fail_open,
        status_on_error: authorizer.status_on_error.into(),
        clear_route_cache: authorizer.clear_route_cache,
        body: authorizer.body.map(body_to),
        protocol: Some(match &authorizer.protocol {
            AuthorizerProtocol::Grpc => Protocol::Grpc(()),
            AuthorizerProtocol::Http(http) => Protocol::Http(http_to(http)),
        }),
    }
}

fn body_to(body: CheckedBody) -> wire::CheckedBody {
    wire::CheckedBody {
        max_bytes: body.max_bytes,
        allow_partial: body.allow_partial,
        pack_as_bytes: body.pack_as_bytes,
    }
}

fn http_to(http: &HttpAuthorizer) -> wire::HttpAuthorizer {
    let strings = |list: &[StringMatch]| list.iter().map(string_to).collect();
    wire::HttpAuthorizer {
        path_prefix: http.path_prefix.to_string(),
        include_headers: strings(&http.include_headers),
        upstream_on_allow: strings(&http.upstream_on_allow),
        downstream_on_allow: strings(&http.downstream_on_allow),
        downstream_on_deny: strings(&http.downstream_on_deny),
        additional_headers: http
            .additional_headers
            .iter()
            .map(|(name, value)| wire::Header {
                name: name.to_string(),
                value: value.to_string(),
            })
            .collect(),
    }
}
