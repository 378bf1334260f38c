//! Envoy's binary, its configuration for both roles of the tunnel, and the pods that run it.

use std::{env, fs, path::Path, path::PathBuf};

use serde_json::{Value, json};

/// Set to 1 where Envoy cannot be had.
const SKIP_VARIABLE: &str = "KARST_SKIP_ENVOY";
/// Envoy's admin interface, on loopback.
pub(crate) const ADMIN: u16 = 19000;

/// The binary; `None` only if the tests are told to do without it.
pub(crate) fn binary() -> Option<PathBuf> {
    if env::var(SKIP_VARIABLE).is_ok_and(|skip| skip == "1") {
        return None;
    }
    let libraries = karst_test_node::lab::repository().join("target/tools/envoy-venv/lib");
    let pythons = fs::read_dir(&libraries).into_iter().flatten().flatten();
    let found = pythons
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file());
    Some(found.unwrap_or_else(|| {
        panic!(
            "Envoy is missing below {}: run `cargo xtask setup`, or set {SKIP_VARIABLE}=1 to go without",
            libraries.display()
        )
    }))
}

fn tls_type(direction: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext")
}

/// Mutual TLS 1.3 with ALPN h2, own certificate `name`, and exactly `peer` at the other end.
fn tls_context(folder: &Path, name: &str, peer: &str) -> Value {
    let file = |file: String| json!({"filename": folder.join(file)});
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": file(format!("{name}.crt")),
            "private_key": file(format!("{name}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("roots.crt".to_owned()),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

fn access_log(folder: &Path, name: &str, format: &str) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": folder.join(format!("{name}.log")),
            "log_format": {"text_format_source": {"inline_string": format!("{format}\n")}},
        },
    }])
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn loopback(name: &str, ip: &str, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(ip, port)}}]}],
        },
    })
}

fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "admin": {"address": address("127.0.0.1", ADMIN)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// Envoy as the server of the tunnel: 15008, CONNECT ended there, each of `ports` to the same port on loopback.
pub(crate) fn server(folder: &Path, peer: &str, ports: &[u16]) -> Value {
    let route = |port: &u16| {
        json!({
            "match": {"connect_matcher": {}, "headers": [{"name": ":authority", "string_match": {"suffix": format!(":{port}")}}]},
            "route": {"cluster": format!("port_{port}"), "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
        })
    };
    let mut tls = json!({"require_client_certificate": true});
    tls["@type"] = tls_type("Downstream").into();
    tls["common_tls_context"] = tls_context(folder, "server", peer);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "drain_timeout": "1s",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "access_log": access_log(folder, "server", "peer=%DOWNSTREAM_PEER_URI_SAN% own=%DOWNSTREAM_LOCAL_URI_SAN% tls=%DOWNSTREAM_TLS_VERSION% method=%REQ(:METHOD)% authority=%REQ(:AUTHORITY)% path=%REQ(:PATH)% status=%RESPONSE_CODE% baggage=%REQ(BAGGAGE)% forwarded=%REQ(FORWARDED)% traceparent=%REQ(TRACEPARENT)% connection=%CONNECTION_ID%"),
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": ports.iter().map(route).collect::<Vec<_>>()}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let listener = json!({
        "name": "hbone",
        "address": address("0.0.0.0", 15008),
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    });
    let clusters: Vec<Value> = ports
        .iter()
        .map(|port| loopback(&format!("port_{port}"), "127.0.0.1", *port))
        .collect();
    bootstrap(&[listener], &clusters)
}

/// Envoy as the client of the tunnel: each of `ports` on loopback to the same port of the pod at `ip`.
pub(crate) fn client(folder: &Path, peer: &str, ip: &str, ports: &[u16]) -> Value {
    let listener = |port: &u16| {
        json!({
            "name": format!("to_{port}"),
            "address": address("127.0.0.1", *port),
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "tunnel",
                "cluster": "hbone",
                "tunneling_config": {"hostname": format!("{ip}:{port}"), "propagate_response_headers": true},
                "access_log": access_log(folder, "client", &format!("port={port} response=%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)% flags=%RESPONSE_FLAGS% peer=%UPSTREAM_PEER_URI_SAN% tls=%UPSTREAM_TLS_VERSION% end=%UPSTREAM_TRANSPORT_FAILURE_REASON%")),
            }}]}],
        })
    };
    let mut tls = json!({});
    tls["@type"] = tls_type("Upstream").into();
    tls["common_tls_context"] = tls_context(folder, "client", peer);
    let mut cluster = loopback("hbone", ip, 15008);
    cluster["transport_socket"] =
        json!({"name": "envoy.transport_sockets.tls", "typed_config": tls});
    cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
    }});
    bootstrap(&ports.iter().map(listener).collect::<Vec<_>>(), &[cluster])
}

/// A pod outside the mesh's capture that runs Envoy and, where `beside` is not empty, another program.
pub(crate) fn pod(
    name: &str,
    node: &str,
    labels: &str,
    envoy: &Path,
    config: &Path,
    beside: &str,
) -> String {
    let (envoy, config) = (envoy.display(), config.display());
    format!(
        "
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: foreign
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: foreign
  labels: {{app: {name}{labels}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
    - name: envoy
      command: [{envoy}, --config-path, {config}, --log-level, warning, --concurrency, \"2\", --use-dynamic-base-id]
{beside}"
    )
}
