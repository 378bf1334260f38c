//! External authorizers: from `extensionProviders` of the mesh configuration to whom a waypoint asks.
//!
//! Source: Istio reference, "MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationHttpProvider" and its gRPC sibling.

use std::{sync::Arc, time::Duration};

use karst_k8s_api::istio::{
    duration::Duration as Written,
    mesh_config::{ExtensionProvider, ProviderSpec},
};
use karst_model::{
    external::{
        AuthorizerProtocol, CheckedBody, ExternalAuthorizer, HttpAuthorizer, STATUS_ON_ERROR,
        TIMEOUT,
    },
    name::ServiceKey,
    policy::StringMatch,
};
use serde_json::Value;

use crate::policies::string;

/// Most of a body that an authorizer may be sent.
const BODY_MAX: u64 = 1 << 20;

/// Reads a provider; `find` knows services by host and, where it is given, namespace. The error is for whoever wrote a
/// policy that names it.
pub(crate) fn read(
    provider: &ExtensionProvider,
    find: impl Fn(Option<&str>, &str) -> Option<ServiceKey>,
) -> Result<ExternalAuthorizer, String> {
    let (written, is_http) = match &provider.spec {
        ProviderSpec::ExtAuthzHttp(written) => (written, true),
        ProviderSpec::ExtAuthzGrpc(written) => (written, false),
        _ => return Err("it is no external authorizer".to_owned()),
    };
    let text = |field: &str| {
        written
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let host = text("service");
    let service = match host.split_once('/') {
        Some((namespace, host)) => find(Some(namespace), host),
        None => find(None, host),
    };
    let service = service.ok_or_else(|| format!("there is no service {host:?}"))?;
    let port = written.get("port").and_then(Value::as_u64).unwrap_or(0);
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("port {port} is none"))?;
    let flag = |field: &str| written.get(field).and_then(Value::as_bool).unwrap_or(false);
    Ok(ExternalAuthorizer {
        name: provider.name.as_str().into(),
        service,
        port,
        timeout: timeout(text("timeout"))?,
        fail_open: flag("failOpen"),
        status_on_error: status(text("statusOnError"))?,
        clear_route_cache: flag("clearRouteCache"),
        body: body(written.get("includeRequestBodyInCheck"))?,
        protocol: match is_http {
            true => AuthorizerProtocol::Http(http(written)?),
            false => AuthorizerProtocol::Grpc,
        },
    })
}

fn timeout(text: &str) -> Result<Duration, String> {
    if text.is_empty() {
        return Ok(TIMEOUT);
    }
    let read = Written(text.to_owned()).read();
    read.filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| format!("timeout {text:?} is none"))
}

fn status(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(STATUS_ON_ERROR);
    }
    let status = text.parse().ok();
    status
        .filter(|status| (400..600).contains(status))
        .ok_or_else(|| format!("statusOnError {text:?} is no status of a refusal (400 to 599)"))
}

fn body(written: Option<&Value>) -> Result<Option<CheckedBody>, String> {
    let Some(written) = written.filter(|written| !written.is_null()) else {
        return Ok(None);
    };
    let max = written.get("maxRequestBytes").and_then(Value::as_u64);
    let max = max.unwrap_or(0);
    if !(1..=BODY_MAX).contains(&max) {
        return Err(format!(
            "includeRequestBodyInCheck.maxRequestBytes {max} is not from 1 to {BODY_MAX}"
        ));
    }
    let flag = |field: &str| written.get(field).and_then(Value::as_bool).unwrap_or(false);
    Ok(Some(CheckedBody {
        max_bytes: max as u32,
        allow_partial: flag("allowPartialMessage"),
        pack_as_bytes: flag("packAsBytes"),
    }))
}

fn http(written: &Value) -> Result<HttpAuthorizer, String> {
    let names = |field: &str| -> Vec<StringMatch> {
        let list = written.get(field).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts
            .map(|name| string(&name.to_ascii_lowercase()))
            .collect()
    };
    let mut include = names("includeRequestHeadersInCheck");
    include.extend(names("includeHeadersInCheck"));
    let prefix = written
        .get("pathPrefix")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.contains(['?', '#'])) {
        return Err(format!("pathPrefix {prefix:?} is no path"));
    }
    let additional = written.get("includeAdditionalHeadersInCheck");
    let additional = additional.and_then(Value::as_object).into_iter().flatten();
    let additional = additional.filter_map(|(name, value)| {
        Some((
            Arc::from(name.to_ascii_lowercase()),
            Arc::from(value.as_str()?),
        ))
    });
    Ok(HttpAuthorizer {
        path_prefix: prefix.into(),
        include_headers: include,
        additional_headers: additional.collect(),
        upstream_on_allow: names("headersToUpstreamOnAllow"),
        downstream_on_allow: names("headersToDownstreamOnAllow"),
        downstream_on_deny: names("headersToDownstreamOnDeny"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn provider(spec: ProviderSpec) -> Result<ExternalAuthorizer, String> {
        let provider = ExtensionProvider {
            name: "ask".to_owned(),
            spec,
        };
        read(&provider, |namespace, host| {
            let known = host == "ask.auth.svc.cluster.local";
            known.then(|| ServiceKey {
                namespace: namespace.unwrap_or("auth").into(),
                hostname: host.into(),
            })
        })
    }

    #[test]
    fn a_provider_is_read_with_its_defaults() {
        let host = "ask.auth.svc.cluster.local";
        let grpc = json!({"service": host, "port": 9000});
        let read = provider(ProviderSpec::ExtAuthzGrpc(grpc)).unwrap();
        assert_eq!(
            (
                read.timeout,
                read.status_on_error,
                read.fail_open,
                read.body
            ),
            (TIMEOUT, 403, false, None)
        );
        let http = json!({"service": host, "port": 8000, "timeout": "0.5s", "failOpen": true, "statusOnError": "503",
            "pathPrefix": "/check/", "includeRequestHeadersInCheck": ["X-Ext-*"],
            "includeAdditionalHeadersInCheck": {"X-Mesh": "karst"}, "headersToUpstreamOnAllow": ["x-user"],
            "includeRequestBodyInCheck": {"maxRequestBytes": 4096, "allowPartialMessage": true}});
        let read = provider(ProviderSpec::ExtAuthzHttp(http)).unwrap();
        assert_eq!(read.timeout, Duration::from_millis(500));
        assert_eq!(
            (read.status_on_error, read.body.unwrap().max_bytes),
            (503, 4096)
        );
        let AuthorizerProtocol::Http(http) = read.protocol else {
            panic!("HTTP")
        };
        assert_eq!(&*http.path_prefix, "/check");
        assert_eq!(http.include_headers, [StringMatch::Prefix("x-ext-".into())]);
        assert_eq!(http.additional_headers, [("x-mesh".into(), "karst".into())]);
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let host = "ask.auth.svc.cluster.local";
        for (written, expected) in [
            (json!({"service": "gone", "port": 1}), "no service"),
            (json!({"service": host}), "port 0"),
            (
                json!({"service": host, "port": 1, "timeout": "soon"}),
                "timeout",
            ),
            (
                json!({"service": host, "port": 1, "statusOnError": "200"}),
                "statusOnError",
            ),
            (
                json!({"service": host, "port": 1, "includeRequestBodyInCheck": {"maxRequestBytes": 9_999_999}}),
                "maxRequestBytes",
            ),
            (
                json!({"service": host, "port": 1, "pathPrefix": "check"}),
                "pathPrefix",
            ),
        ] {
            let error = provider(ProviderSpec::ExtAuthzHttp(written)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(provider(ProviderSpec::Prometheus).is_err());
    }
}
