//! An authorizer over HTTP: the request's method and path with some of its headers; 200 allows, 5xx is no answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header, response};
use karst_model::{external::HttpAuthorizer, policy::StringMatch};

use super::{
    Put, Question, Unanswered,
    answer::{Changes, Denied, How, Verdict},
};
use crate::http::{RequestBody, Version, send::Outgoing};

/// Headers of a request that every question has; host, method, path and length come by themselves.
const ALWAYS: [HeaderName; 1] = [header::AUTHORIZATION];

pub(super) fn question(
    question: &Question<'_>,
    http: &HttpAuthorizer,
    version: Version,
) -> Result<Put, http::Error> {
    let request = question.request;
    let path = format!("{}{}", http.path_prefix, request.path_and_query());
    let built = http::Request::builder().method(request.method()).uri(path);
    let (mut parts, ()) = built.body(())?.into_parts();
    let headers = &mut parts.headers;
    for (name, value) in request.headers() {
        if ALWAYS.contains(name) || listed(&http.include_headers, name) {
            headers.append(name, value.clone());
        }
    }
    for (name, value) in &http.additional_headers {
        headers.insert(
            HeaderName::try_from(&**name)?,
            HeaderValue::try_from(&**value)?,
        );
    }
    let unsendable = [
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::EXPECT,
        header::TE,
        header::TRAILER,
    ];
    unsendable
        .iter()
        .for_each(|name| drop(headers.remove(name)));
    headers.insert(header::HOST, HeaderValue::try_from(request.authority())?);
    let bytes = question
        .body
        .map(|body| body.bytes.clone())
        .unwrap_or_default();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    if let Some(body) = question.body {
        partial(headers, body.is_partial);
    }
    let body = match bytes.is_empty() {
        true => RequestBody::Empty,
        false => RequestBody::Kept(vec![bytes].into_iter()),
    };
    let outgoing = Outgoing::new(parts, Version::Http1, false);
    let outgoing = match version {
        Version::Http1 => outgoing,
        Version::Http2 => outgoing.speaking(Version::Http2),
    };
    Ok((outgoing, body))
}

fn partial(headers: &mut HeaderMap, is_partial: bool) {
    let value = if is_partial { "true" } else { "false" };
    headers.insert(
        HeaderName::from_static("x-envoy-auth-partial-body"),
        HeaderValue::from_static(value),
    );
}

pub(super) fn verdict(
    http: &HttpAuthorizer,
    head: &response::Parts,
    body: Bytes,
) -> Result<Verdict, Unanswered> {
    let picked = |lists: &dyn Fn(&HeaderName) -> bool, how| -> Vec<(String, Bytes, How)> {
        let headers = head.headers.iter().filter(|(name, _)| lists(name));
        headers
            .map(|(name, value)| {
                (
                    name.to_string(),
                    Bytes::copy_from_slice(value.as_bytes()),
                    how,
                )
            })
            .collect()
    };
    let status = head.status.as_u16();
    if status == 200 {
        return Ok(Verdict::Allow(Box::new(Changes {
            headers: picked(&|name| listed(&http.upstream_on_allow, name), How::Set),
            response: picked(&|name| listed(&http.downstream_on_allow, name), How::Append),
            ..Changes::default()
        })));
    }
    if !(300..500).contains(&status) {
        return Err(Unanswered::Garbage(format!("status {status}")));
    }
    let to_client = |name: &HeaderName| match http.downstream_on_deny.is_empty() {
        true => true,
        // What the client needs to understand the body, and to follow.
        false => {
            [
                header::CONTENT_TYPE,
                header::LOCATION,
                header::WWW_AUTHENTICATE,
            ]
            .contains(name)
                || listed(&http.downstream_on_deny, name)
        }
    };
    Ok(Verdict::Deny(Box::new(Denied {
        status,
        headers: picked(&to_client, How::Append),
        body,
    })))
}

/// Whether one of the matches, which are in lower case, takes the name.
fn listed(list: &[StringMatch], name: &HeaderName) -> bool {
    let name = name.as_str();
    list.iter().any(|one| match one {
        StringMatch::Exact(text) => name == &**text,
        StringMatch::Prefix(text) => name.starts_with(&**text),
        StringMatch::Suffix(text) => name.ends_with(&**text),
        StringMatch::Presence => true,
    })
}
