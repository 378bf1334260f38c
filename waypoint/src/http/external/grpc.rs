//! An authorizer over gRPC: `envoy.service.auth.v3.Authorization/Check`.

use std::{collections::HashMap, time::SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Version as Spoken, header, response};
use karst_proto::{
    core::{
        Address, HeaderAppendAction, HeaderValueOption, SocketAddress, address, socket_address,
    },
    external_auth::{
        AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
        attribute_context::{HttpRequest, Peer, Request as Asked},
        check_response::HttpResponse,
    },
};
use prost::Message as _;

use super::{
    Put, Question, Unanswered,
    answer::{Changes, Denied, How, Verdict},
};
use crate::http::{RequestBody, Version, send::Outgoing};

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Compression flag and length before each message.
const PREFIX: usize = 5;

pub(super) fn question(question: &Question<'_>) -> Result<Put, http::Error> {
    let host = &question.authorizer.service.hostname;
    let uri = format!("http://{host}:{}{METHOD}", question.authorizer.port);
    let built = http::Request::builder()
        .method(http::Method::POST)
        .uri(uri)
        .version(Spoken::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    let (parts, ()) = built.body(())?.into_parts();
    let message = CheckRequest {
        attributes: Some(attributes(question)),
    };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(length as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    let body = RequestBody::Kept(vec![framed.freeze()].into_iter());
    Ok((Outgoing::new(parts, Version::Http2, false), body))
}

fn attributes(question: &Question<'_>) -> AttributeContext {
    let client = question.client;
    let principal = client.source.as_ref().map(ToString::to_string);
    AttributeContext {
        source: Some(Peer {
            address: Some(address(client.source_ip.to_string(), 0)),
            principal: principal.unwrap_or_default(),
            ..Peer::default()
        }),
        destination: Some(Peer {
            address: Some(address(
                client.destination.ip().to_string(),
                question.dialled,
            )),
            ..Peer::default()
        }),
        request: Some(Asked {
            time: Some(SystemTime::now().into()),
            http: Some(http_request(question)),
        }),
        context_extensions: HashMap::new(),
    }
}

fn address(ip: String, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip,
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        })),
    }
}

fn http_request(question: &Question<'_>) -> HttpRequest {
    let request = question.request;
    let mut headers = HashMap::new();
    for name in request
        .headers()
        .keys()
        .filter(|name| **name != header::HOST)
    {
        if let Some(value) = request.header(name.as_str()) {
            let value = String::from_utf8_lossy(&value).into_owned();
            headers.insert(name.to_string(), value);
        }
    }
    for name in [":authority", ":method", ":path", ":scheme"] {
        if let Some(value) = request.header(name) {
            headers.insert(
                name.to_owned(),
                String::from_utf8_lossy(&value).into_owned(),
            );
        }
    }
    let (mut text, mut raw) = (String::new(), Vec::new());
    if let Some(body) = question.body {
        let partial = if body.is_partial { "true" } else { "false" };
        headers.insert("x-envoy-auth-partial-body".to_owned(), partial.to_owned());
        match question
            .authorizer
            .body
            .is_some_and(|wanted| wanted.pack_as_bytes)
        {
            true => raw = body.bytes.to_vec(),
            false => text = String::from_utf8_lossy(&body.bytes).into_owned(),
        }
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let id = request.headers().get("x-request-id");
    HttpRequest {
        id: id
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        method: request.method().to_string(),
        headers,
        path: request.path_and_query().to_owned(),
        host: request.authority().to_owned(),
        scheme: request.scheme().as_str().to_owned(),
        size: length.unwrap_or(-1),
        protocol: match request.version() {
            Spoken::HTTP_2 => "HTTP/2",
            Spoken::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        }
        .to_owned(),
        body: text,
        raw_body: raw,
    }
}

pub(super) fn verdict(
    head: &response::Parts,
    body: Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<Verdict, Unanswered> {
    let garbage = |why: String| Unanswered::Garbage(why);
    let status = |headers: &HeaderMap| headers.get("grpc-status").map(HeaderValue::to_owned);
    let code = trailers.and_then(status).or_else(|| status(&head.headers));
    match code {
        _ if !head.status.is_success() => {
            return Err(garbage(format!("status {}", head.status.as_u16())));
        }
        Some(code) if code == "0" => {}
        Some(code) => return Err(garbage(format!("gRPC status {code:?}"))),
        None => return Err(garbage("no gRPC status".to_owned())),
    }
    let framed = |body: &Bytes| {
        let (prefix, message) = body.split_at_checked(PREFIX)?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        (prefix[0] == 0 && message.len() == length as usize).then(|| body.slice(PREFIX..))
    };
    let message = framed(&body).ok_or_else(|| garbage("not one plain message".to_owned()))?;
    let response = CheckResponse::decode(message).map_err(|error| garbage(error.to_string()))?;
    let code = match (&response.status, &response.http_response) {
        (Some(status), _) => status.code,
        (None, Some(HttpResponse::OkResponse(_))) => 0,
        (None, Some(HttpResponse::DeniedResponse(_))) => 7,
        (None, None) => return Err(garbage("it says neither yes nor no".to_owned())),
    };
    Ok(match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => Verdict::Allow(Box::new(changes(ok))),
        (0, _) => Verdict::Allow(Box::default()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Verdict::Deny(Box::new(denial(denied))),
        (_, _) => Verdict::Deny(Box::new(denial(DeniedHttpResponse::default()))),
    })
}

fn changes(ok: OkHttpResponse) -> Changes {
    Changes {
        remove: ok.headers_to_remove,
        headers: ok.headers.into_iter().filter_map(option).collect(),
        response: ok
            .response_headers_to_add
            .into_iter()
            .filter_map(option)
            .collect(),
        query_remove: ok.query_parameters_to_remove,
        query_set: ok
            .query_parameters_to_set
            .into_iter()
            .map(|one| (one.key, one.value))
            .collect(),
    }
}

fn denial(denied: DeniedHttpResponse) -> Denied {
    let code = denied.status.map_or(403, |status| status.code);
    Denied {
        status: u16::try_from(code).unwrap_or(403),
        headers: denied.headers.into_iter().filter_map(option).collect(),
        body: denied.body.into(),
    }
}

fn option(option: HeaderValueOption) -> Option<(String, Bytes, How)> {
    let action = option.append_action();
    let header = option.header?;
    let how = match (action, option.append) {
        (HeaderAppendAction::AddIfAbsent, _) => How::SetIfAbsent,
        (HeaderAppendAction::OverwriteIfExists, _) => How::SetIfPresent,
        (HeaderAppendAction::OverwriteIfExistsOrAdd, _) => How::Set,
        // What is not said is as if it were the older field, which means: replace.
        (HeaderAppendAction::AppendIfExistsOrAdd, Some(true)) => How::Append,
        (HeaderAppendAction::AppendIfExistsOrAdd, _) => How::Set,
    };
    let value = match header.raw_value.is_empty() {
        true => header.value.into_bytes(),
        false => header.raw_value,
    };
    Some((header.key.to_ascii_lowercase(), value.into(), how))
}
