//! What a request must be like.

use std::sync::Arc;

use karst_k8s_api::istio::virtual_service::{HttpMatch as Source, StringMatch};
use karst_model::route::{
    ClaimMatch, HeaderMatch, HttpMatch, PathMatch, QueryMatch, SourceMatch, ValueMatch,
};

use super::values;

/// What stands before the names of a claim.
const CLAIMS: &str = "@request.auth.claims";
/// Our own: the client's identity.
const PRINCIPAL: &str = "@source.principal";
/// Names that Istio ignores among headers: there are fields for them.
const IGNORED: [&str; 4] = ["uri", "scheme", "method", "authority"];

pub(super) fn one(place: &str, source: &Source) -> Result<HttpMatch, String> {
    let mut lowered = HttpMatch {
        path: path(&format!("{place}.uri"), source.uri.as_ref())?,
        ignore_path_case: source.ignore_uri_case.unwrap_or(false),
        port: values::port(&format!("{place}.port"), source.port)?,
        source: from(source.source_namespace.as_ref(), &source.source_labels),
        ..HttpMatch::default()
    };
    if let Some(method) = &source.method {
        match values::value(&format!("{place}.method"), method)? {
            ValueMatch::Exact(method) => lowered.method = Some(method),
            value => lowered.headers.push(header(":method", value)),
        }
    }
    for (name, value) in [
        (":scheme", &source.scheme),
        (":authority", &source.authority),
    ] {
        if let Some(value) = value {
            let value = values::value(&format!("{place}{}", name.replace(':', ".")), value)?;
            lowered.headers.push(header(name, value));
        }
    }
    for (name, value) in &source.headers {
        let value = values::value(&format!("{place}.headers[{name}]"), value)?;
        named(place, name, value, &mut lowered)?;
    }
    for (name, value) in &source.without_headers {
        let value = values::value(&format!("{place}.withoutHeaders[{name}]"), value)?;
        named(place, name, ValueMatch::Not(Box::new(value)), &mut lowered)?;
    }
    for (name, value) in &source.query_params {
        lowered.query.push(QueryMatch {
            name: name.as_str().into(),
            value: values::value(&format!("{place}.queryParams[{name}]"), value)?,
        });
    }
    Ok(lowered)
}

/// Who sends.
pub(super) fn from(
    namespace: Option<&String>,
    labels: &std::collections::BTreeMap<String, String>,
) -> SourceMatch {
    let namespace = namespace.filter(|one| !one.is_empty());
    SourceMatch {
        namespace: namespace.map(|one| one.as_str().into()),
        labels: labels
            .iter()
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect(),
        principal: None,
    }
}

fn path(field: &str, source: Option<&StringMatch>) -> Result<Option<PathMatch>, String> {
    let Some(source) = source else {
        return Ok(None);
    };
    Ok(match values::value(field, source)? {
        ValueMatch::Exact(text) => Some(PathMatch::Exact(text)),
        ValueMatch::Prefix(text) => Some(PathMatch::Start(text)),
        ValueMatch::Regex(text) => Some(PathMatch::Regex(text)),
        // Every request has a path.
        ValueMatch::Present | ValueMatch::Absent | ValueMatch::Not(_) => None,
    })
}

fn header(name: &str, value: ValueMatch) -> HeaderMatch {
    HeaderMatch {
        name: name.into(),
        value,
    }
}

/// A header, or what is written like one.
fn named(
    place: &str,
    name: &str,
    value: ValueMatch,
    lowered: &mut HttpMatch,
) -> Result<(), String> {
    if let Some(path) = name.strip_prefix(CLAIMS) {
        let path = claim(path).ok_or_else(|| {
            format!(
                "{place}.headers: {name:?} names no claim: write {CLAIMS}.name or {CLAIMS}[name]"
            )
        })?;
        lowered.claims.push(ClaimMatch { path, value });
        return Ok(());
    }
    if name == PRINCIPAL {
        lowered.source.principal = Some(value);
        return Ok(());
    }
    if IGNORED.contains(&name) {
        return Ok(());
    }
    let name = name.to_ascii_lowercase();
    if !name.starts_with(':') && !is_token(&name) {
        return Err(format!(
            "{place}.headers: {name:?} is not the name of a header"
        ));
    }
    // A name that is asked for twice, with and without: both hold.
    let again = lowered.headers.iter().any(|one| *one.name == *name);
    match again {
        true => Err(format!(
            "{place}: {name} is in headers and in withoutHeaders; write the second as a match of its own"
        )),
        false => {
            lowered.headers.push(header(&name, value));
            Ok(())
        }
    }
}

fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(token)
}

/// `.a.b` or `[a][b]`.
fn claim(text: &str) -> Option<Vec<Arc<str>>> {
    let names: Vec<Arc<str>> = if let Some(rest) = text.strip_prefix('.') {
        rest.split('.').map(Into::into).collect()
    } else {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.split("][").map(Into::into).collect()
    };
    let whole = !names.is_empty() && names.iter().all(|name| !name.is_empty());
    whole.then_some(names)
}
