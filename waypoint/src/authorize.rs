//! Asks `karst-policy` whether a request, or a connection that is no HTTP, may go on.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use karst_policy::{
    Connection, DryRunAllow, Verdict,
    request::{Asked, AskedConnection, External, RequestDecision, RequestPolicies},
};
use karst_routing::request::{Request, remote_ip};
use karst_telemetry::observed::{self, WouldDo};

use crate::{
    destination::Destination,
    http::{Asks, Client},
    mesh::Mesh,
    services::{Served, Slot},
};

/// Policies up to which a refusal is explained rule by rule; beyond, it costs too much for what anybody may ask for.
const EXPLAINED_MAX: usize = 16;

/// A refusal by policy, in words.
#[derive(Debug)]
pub(crate) struct Denied(pub(crate) String);

/// The client's connection, as policies see it.
pub(crate) fn connection_of(client: &Client, destination: &Destination) -> Connection {
    let ip = destination
        .dialled
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |dialled| dialled.ip());
    Connection {
        source: client.identity.clone(),
        source_ip: client.addr.ip(),
        destination: SocketAddr::new(ip, destination.port),
    }
}

/// Decides a request.
pub(crate) fn request(
    mesh: &Mesh,
    destination: &Destination,
    served: Option<&Served>,
    connection: &Connection,
    request: &Request,
) -> Result<(), Denied> {
    each(
        mesh,
        destination,
        served,
        connection,
        |policies, connection| {
            let trusted = mesh.config.trusted_proxies;
            let asked = Asked {
                request,
                connection,
                remote_ip: remote_ip(request.headers(), connection.source_ip, trusted),
                sni: None,
            };
            outcome(&policies.decide(&asked), policies, || {
                policies.explain(&asked).to_string()
            })
        },
    )
}

/// Whom CUSTOM policies have asked about a request, before it is decided.
pub(crate) fn external(
    mesh: &Mesh,
    destination: &Destination,
    served: Option<&Served>,
    connection: &Connection,
    request: &Request,
) -> Asks {
    let asks = RefCell::new(Asks::new());
    let collected = each(
        mesh,
        destination,
        served,
        connection,
        |policies, connection| {
            asks_of(mesh, policies, connection, request, &mut asks.borrow_mut());
            Ok(())
        },
    );
    debug_assert!(collected.is_ok());
    asks.into_inner()
}

/// The same for a service that a route sends the request to.
pub(crate) fn external_for_backend(
    mesh: &Mesh,
    backend: &Slot,
    port: u16,
    connection: &Connection,
    request: &Request,
) -> Asks {
    let mut connection = connection.clone();
    connection.destination.set_port(port);
    let mut asks = Asks::new();
    asks_of(
        mesh,
        &backend.load().policies,
        &connection,
        request,
        &mut asks,
    );
    asks
}

fn asks_of(
    mesh: &Mesh,
    policies: &RequestPolicies,
    connection: &Connection,
    request: &Request,
    asks: &mut Asks,
) {
    let asked = Asked {
        request,
        connection,
        remote_ip: remote_ip(
            request.headers(),
            connection.source_ip,
            mesh.config.trusted_proxies,
        ),
        sni: None,
    };
    let External { ask, dry_run } = policies.external(&asked);
    if let Some(rule) = dry_run {
        mesh.metrics.external_dry_run.inc();
        tracing::info!(target: "access", policy = %rule, "a CUSTOM policy in dry run matches");
    }
    for (authorizer, rule) in ask {
        if asks.iter().all(|(known, _)| *known != authorizer) {
            asks.push((authorizer, rule));
        }
    }
}

/// Decides a connection that is no HTTP.
pub(crate) fn connection(
    mesh: &Mesh,
    destination: &Destination,
    served: Option<&Served>,
    connection: &Connection,
    sni: Option<&str>,
) -> Result<(), Denied> {
    each(
        mesh,
        destination,
        served,
        connection,
        |policies, connection| {
            let asked = AskedConnection {
                connection,
                remote_ip: connection.source_ip,
                sni,
            };
            outcome(&policies.decide_connection(&asked), policies, || {
                policies.explain_connection(&asked).to_string()
            })
        },
    )
}

/// Decides a request for a service that a route sends it to: what protects that service holds whichever way leads there.
pub(crate) fn request_for_backend(
    mesh: &Mesh,
    backend: &Slot,
    port: u16,
    connection: &Connection,
    request: &Request,
) -> Result<(), Denied> {
    let served = backend.load();
    if served.policies.is_empty() {
        return Ok(());
    }
    let mut connection = connection.clone();
    connection.destination.set_port(port);
    let trusted = mesh.config.trusted_proxies;
    let asked = Asked {
        request,
        connection: &connection,
        remote_ip: remote_ip(request.headers(), connection.source_ip, trusted),
        sni: None,
    };
    let policies = &served.policies;
    outcome(&policies.decide(&asked), policies, || {
        policies.explain(&asked).to_string()
    })
}

/// The same for a connection that is no HTTP.
pub(crate) fn connection_for_backend(
    backend: &Slot,
    port: u16,
    connection: &Connection,
    sni: Option<&str>,
) -> Result<(), Denied> {
    let served = backend.load();
    let policies = &served.policies;
    let mut connection = connection.clone();
    connection.destination.set_port(port);
    let asked = AskedConnection {
        connection: &connection,
        remote_ip: connection.source_ip,
        sni,
    };
    outcome(&policies.decide_connection(&asked), policies, || {
        policies.explain_connection(&asked).to_string()
    })
}

/// Every set of policies that applies must allow it: those of the service, and where a workload was named those of each
/// of its services; those of the waypoint alone where it has none.
fn each(
    mesh: &Mesh,
    destination: &Destination,
    served: Option<&Served>,
    connection: &Connection,
    decide: impl Fn(&RequestPolicies, &Connection) -> Result<(), Denied>,
) -> Result<(), Denied> {
    let decide = |policies: &RequestPolicies, connection: &Connection| {
        if policies.is_empty() {
            Ok(())
        } else {
            decide(policies, connection)
        }
    };
    match served {
        Some(served) => decide(&served.policies, connection)?,
        None => decide(&mesh.services.own_policies(), connection)?,
    }
    for (slot, port) in &destination.also {
        let mut connection = connection.clone();
        connection.destination.set_port(*port);
        decide(&slot.load().policies, &connection)?;
    }
    Ok(())
}

fn outcome(
    decision: &RequestDecision,
    policies: &RequestPolicies,
    explain: impl FnOnce() -> String,
) -> Result<(), Denied> {
    if let Some(rule) = &decision.audit {
        tracing::info!(target: "access", policy = %rule, "an AUDIT policy matches");
    }
    if let Some(rule) = &decision.dry_run.deny {
        observed::dry_run(&rule.policy.to_string(), WouldDo::Deny);
    }
    match &decision.dry_run.allow {
        DryRunAllow::Silent => {}
        DryRunAllow::Matches(rule) => {
            observed::dry_run(&rule.policy.to_string(), WouldDo::Allow);
        }
        DryRunAllow::WouldDeny => observed::dry_run("*", WouldDo::Deny),
    }
    let reason = match &decision.verdict {
        Verdict::Allow => return Ok(()),
        Verdict::Deny(reason) => reason,
    };
    if policies.len() > EXPLAINED_MAX {
        return Err(Denied(reason.to_string()));
    }
    // One line, as the access log has one for each request.
    Err(Denied(explain().lines().collect::<Vec<_>>().join("; ")))
}
