//! Where the tokens of a request are.

use http::{HeaderName, HeaderValue, header};
use karst_model::token::TokenSource;
use karst_routing::request::Request;

use super::{Rejected, TOKEN_MAX, TOKENS_MAX};

/// Every token at these places, in their order. Bytes that are no text are no token either, and are refused as one.
pub(super) fn tokens(sources: &[TokenSource], request: &Request) -> Result<Vec<String>, Rejected> {
    let mut found = Vec::new();
    for source in sources {
        match source {
            TokenSource::Header { name, prefix } => {
                let lines = request.headers().get_all(&**name).iter();
                for token in lines.filter_map(|line| after(prefix, line.as_bytes())) {
                    take(token, &mut found)?;
                }
            }
            TokenSource::Param(name) => {
                for (key, value) in request.query_params() {
                    if *key == *name.as_bytes() {
                        take(&value, &mut found)?;
                    }
                }
            }
            TokenSource::Cookie(name) => {
                for (key, value) in request
                    .headers()
                    .get_all(header::COOKIE)
                    .iter()
                    .flat_map(|line| cookies(line.as_bytes()))
                {
                    if key == name.as_bytes() {
                        take(value, &mut found)?;
                    }
                }
            }
        }
    }
    Ok(found)
}

fn take(token: &[u8], found: &mut Vec<String>) -> Result<(), Rejected> {
    if token.len() > TOKEN_MAX || found.len() == TOKENS_MAX {
        return Err(Rejected::TooLarge);
    }
    let text = std::str::from_utf8(token).map_err(|_bytes| Rejected::Malformed)?;
    found.push(text.to_owned());
    Ok(())
}

/// What follows the prefix, whose letters may be large or small: schemes of authorization are the same either way (RFC
/// 9110, section 11.1).
fn after<'a>(prefix: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let (start, token) = value.split_at_checked(prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix.as_bytes())
        .then(|| token.trim_ascii())
}

fn cookies(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|byte| *byte == b';').filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        let quoted = value
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""));
        Some((pair[..equals].trim_ascii(), quoted.unwrap_or(value)))
    })
}

/// The query with `name=(hidden)` for each parameter that one of the sources names; `None` if there is none.
pub(super) fn without_tokens<'a>(
    sources: impl Iterator<Item = &'a TokenSource>,
    query: &str,
) -> Option<String> {
    let params: Vec<&str> = sources
        .filter_map(|source| match source {
            TokenSource::Param(name) => Some(&**name),
            TokenSource::Header { .. } | TokenSource::Cookie(_) => None,
        })
        .collect();
    let is_token = |param: &str| {
        let name = param.split('=').next().unwrap_or_default();
        params.contains(&name) || (name.contains('%') && !params.is_empty())
    };
    query.split('&').any(is_token).then(|| {
        let shown = query.split('&').map(|param| match is_token(param) {
            true => format!("{}=(hidden)", param.split('=').next().unwrap_or_default()),
            false => param.to_owned(),
        });
        shown.collect::<Vec<_>>().join("&")
    })
}

/// Takes what is at these places out of the request.
pub(super) fn remove(sources: &[TokenSource], request: &mut Request) {
    for source in sources {
        match source {
            TokenSource::Header { name, prefix } => {
                let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
                    continue;
                };
                retain(request, &name, |line| match after(prefix, line) {
                    Some(_) => None,
                    None => Some(line.to_vec()),
                });
            }
            TokenSource::Param(name) => {
                // What is left of a query that could be read can be written.
                let _ = request.retain_query(|key| *key != *name.as_bytes());
            }
            TokenSource::Cookie(name) => retain(request, &header::COOKIE, |line| {
                let others = line.split(|byte| *byte == b';').filter(|pair| {
                    let key = pair.split(|byte| *byte == b'=').next();
                    key.is_none_or(|key| key.trim_ascii() != name.as_bytes())
                });
                let others: Vec<&[u8]> = others.map(<[u8]>::trim_ascii).collect();
                (!others.is_empty()).then(|| others.join(&b"; "[..]))
            }),
        }
    }
}

/// Replaces the lines of a header by what `keep` leaves of each.
fn retain(request: &mut Request, name: &HeaderName, keep: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let headers = request.headers_mut();
    let lines = headers.get_all(name).iter();
    let kept: Vec<HeaderValue> = lines
        .filter_map(|line| HeaderValue::from_bytes(&keep(line.as_bytes())?).ok())
        .collect();
    headers.remove(name);
    for line in kept {
        headers.append(name, line);
    }
}
