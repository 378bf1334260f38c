//! Header changes: set, add, remove, in this order.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use karst_model::route;

use super::Unusable;
use crate::request::Request;

/// Headers that frame a message or belong to one hop.
const OF_CONNECTION: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
];

/// Header changes with their names and values parsed.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Of a name given twice in one list the first entry counts.
    pub fn compile(changes: &route::HeaderChanges) -> Result<Self, Unusable> {
        Ok(Self {
            set: pairs(&changes.set)?,
            add: pairs(&changes.add)?,
            remove: changes
                .remove
                .iter()
                .map(|text| name(text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Changes the headers of a response.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// Changes the headers of a request. Its host can be set, and neither added to nor removed.
    pub fn apply_to_request(&self, request: &mut Request) {
        for (name, value) in &self.set {
            if *name != header::HOST {
                request.headers_mut().insert(name, value.clone());
            } else if let Ok(host) = value.to_str() {
                // What is no authority was refused when it was compiled.
                let _checked = request.set_authority(host);
            }
        }
        for (name, value) in self.add.iter().filter(|(name, _)| *name != header::HOST) {
            request.headers_mut().append(name, value.clone());
        }
        for name in self.remove.iter().filter(|name| **name != header::HOST) {
            request.headers_mut().remove(name);
        }
    }
}

fn pairs(
    list: &[(std::sync::Arc<str>, std::sync::Arc<str>)],
) -> Result<Vec<(HeaderName, HeaderValue)>, Unusable> {
    let mut pairs: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(list.len());
    for (text, value) in list {
        let name = name(text)?;
        if pairs.iter().any(|(earlier, _)| *earlier == name) {
            continue;
        }
        let parsed = HeaderValue::from_str(value).map_err(|_invalid| Unusable::HeaderValue {
            name: name.to_string(),
            value: value.to_string(),
        })?;
        if name == header::HOST {
            super::redirect::check_host(value)?;
        }
        pairs.push((name, parsed));
    }
    Ok(pairs)
}

fn name(text: &str) -> Result<HeaderName, Unusable> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_invalid| Unusable::HeaderName(text.to_owned()))?;
    if OF_CONNECTION.contains(&name) {
        return Err(Unusable::HeaderOfConnection(name.to_string()));
    }
    Ok(name)
}
