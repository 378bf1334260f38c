//! `sessionPersistence` of a rule: requests of one session stay with one endpoint. Source: Gateway API v1.6,
//! `SessionPersistence` (GEP-1619).

use karst_model::traffic::{SessionKind, SessionPersistence};
use serde::Deserialize;

use super::{Fault, values::duration};

/// Name of the cookie or header where the route gives none.
const DEFAULT_NAME: &str = "karst-session";
/// Longest name that the API takes.
const NAME_MAX: usize = 128;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Source {
    session_name: Option<String>,
    absolute_timeout: Option<String>,
    idle_timeout: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    cookie_config: Option<CookieConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct CookieConfig {
    lifetime_type: Option<String>,
}

/// What a rule asks for, if it asks for anything.
pub(super) fn persistence(
    source: Option<&serde_json::Value>,
) -> Result<Option<SessionPersistence>, Fault> {
    let Some(source) = source else {
        return Ok(None);
    };
    let source = Source::deserialize(source)
        .map_err(|error| Fault::unsupported(format!("sessionPersistence: {error}")))?;
    let kind = kind(&source)?;
    let name = source.session_name.as_deref().unwrap_or(DEFAULT_NAME);
    let timeout = |field: &str, text: Option<&String>| {
        let read = text.map(|text| duration(&format!("sessionPersistence.{field}"), text));
        // Zero stands for no limit.
        Ok(read.transpose()?.filter(|time| !time.is_zero()))
    };
    let absolute_timeout = timeout("absoluteTimeout", source.absolute_timeout.as_ref())?;
    if kind == (SessionKind::Cookie { permanent: true }) && absolute_timeout.is_none() {
        return Err(Fault::unsupported(
            "sessionPersistence: a permanent cookie needs an absoluteTimeout",
        ));
    }
    Ok(Some(SessionPersistence {
        name: checked_name(name, kind)?.into(),
        kind,
        absolute_timeout,
        idle_timeout: timeout("idleTimeout", source.idle_timeout.as_ref())?,
    }))
}

fn kind(source: &Source) -> Result<SessionKind, Fault> {
    let lifetime = source.cookie_config.as_ref();
    let lifetime = lifetime.and_then(|cookie| cookie.lifetime_type.as_deref());
    match (source.kind.as_deref(), lifetime) {
        (Some("Header"), None) => Ok(SessionKind::Header),
        (Some("Header"), Some(_)) => Err(Fault::unsupported(
            "sessionPersistence: cookieConfig is for type Cookie",
        )),
        (None | Some("Cookie"), None | Some("Session")) => {
            Ok(SessionKind::Cookie { permanent: false })
        }
        (None | Some("Cookie"), Some("Permanent")) => Ok(SessionKind::Cookie { permanent: true }),
        (None | Some("Cookie"), Some(other)) => Err(Fault::unsupported(format!(
            "sessionPersistence: lifetimeType {other:?} is neither Session nor Permanent"
        ))),
        (Some(other), _) => Err(Fault::unsupported(format!(
            "sessionPersistence: type {other:?} is neither Cookie nor Header"
        ))),
    }
}

/// A token of RFC 9110, in lower case for a header.
fn checked_name(name: &str, kind: SessionKind) -> Result<String, Fault> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(token) {
        return Err(Fault::unsupported(format!(
            "sessionPersistence: {name:?} cannot be the name of a cookie or header"
        )));
    }
    Ok(match kind {
        SessionKind::Cookie { .. } => name.to_owned(),
        SessionKind::Header => name.to_ascii_lowercase(),
    })
}
