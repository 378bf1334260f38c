//! `karst.v1.ServiceTraffic`.
//!
//! As with routes, one with anything that this version does not know is refused as a whole, and the last good form stays.

mod balance;
mod outlier;
mod tls;

use std::{sync::Arc, time::Duration};

use karst_model::{
    name::ServiceKey,
    traffic::{
        Connections, Http2Upgrade, RetryBudget, Scope, ServiceTraffic, SessionKind,
        SessionPersistence, Subset, TcpKeepalive, TrafficPolicy,
    },
};
use prost::Message as _;

pub(super) use self::tls::{from as tls_from, to as tls_to};
use super::{
    ConvertError, Interner, Problem, address::port_from, error::decode, workload::indexed,
};
use crate::karst as wire;

/// Reads a resource of type ServiceTraffic.
pub fn decode_service_traffic(
    bytes: &[u8],
    interner: &mut Interner,
) -> Result<ServiceTraffic, ConvertError> {
    let message: wire::ServiceTraffic = decode("karst.v1.ServiceTraffic", bytes)?;
    // What the decoder has dropped is missing from the length.
    if message.encoded_len() != bytes.len() {
        return Err(Problem::UnknownField.at("traffic"));
    }
    let key: ServiceKey = message
        .service
        .parse()
        .map_err(|error| Problem::from(error).at("service"))?;
    let subset = |subset: &wire::Subset| {
        Ok(Subset {
            name: interner.get(&subset.name),
            labels: subset
                .labels
                .iter()
                .map(|label| (interner.get(&label.name), interner.get(&label.value)))
                .collect(),
        })
    };
    Ok(ServiceTraffic {
        subsets: indexed("subsets", &message.subsets, subset)?,
        service: ServiceKey {
            namespace: interner.get(&key.namespace),
            hostname: interner.get(&key.hostname),
        },
        scopes: indexed("scopes", &message.scopes, scope_from)?,
        sources: message
            .sources
            .iter()
            .map(|text| text.as_str().into())
            .collect(),
    })
}

fn scope_from(scope: &wire::TrafficScope) -> Result<Scope, Problem> {
    let port = port_from(scope.port)?;
    Ok(Scope {
        port: (port != 0).then_some(port),
        subset: text(scope.subset.as_deref()),
        policy: policy_from(scope.policy.as_ref().ok_or(Problem::Missing)?)?,
    })
}

fn policy_from(policy: &wire::TrafficPolicy) -> Result<TrafficPolicy, Problem> {
    let balance = policy.balance.as_ref().map(balance::from);
    let connections = policy.connections.as_ref().map(connections_from);
    Ok(TrafficPolicy {
        balance: balance.transpose()?.unwrap_or_default(),
        connections: connections.transpose()?.unwrap_or_default(),
        outlier: policy.outlier.as_ref().map(outlier::from).transpose()?,
        retry_budget: policy.retry_budget.map(|budget| RetryBudget {
            share_ppm: budget.share_ppm,
            min_concurrent: budget.min_concurrent,
        }),
        tls: policy.tls.as_ref().map(tls::from).transpose()?,
        health_check: policy
            .health_check
            .as_ref()
            .map(outlier::check_from)
            .transpose()?,
        session: policy.session.as_ref().map(session_from).transpose()?,
    })
}

fn connections_from(limits: &wire::ConnectionLimits) -> Result<Connections, Problem> {
    let upgrade = match limits.upgrade() {
        wire::Http2Upgrade::UpgradeDefault => Http2Upgrade::Default,
        wire::Http2Upgrade::UpgradeAlways => Http2Upgrade::Upgrade,
        wire::Http2Upgrade::UpgradeNever => Http2Upgrade::Never,
    };
    let keepalive = |keepalive: &wire::TcpKeepalive| {
        Ok::<_, Problem>(TcpKeepalive {
            time: maybe(keepalive.time)?,
            interval: maybe(keepalive.interval)?,
            probes: keepalive.probes,
        })
    };
    Ok(Connections {
        max: limits.max,
        connect_timeout: maybe(limits.connect_timeout)?,
        keepalive: limits.keepalive.as_ref().map(keepalive).transpose()?,
        tcp_idle_timeout: maybe(limits.tcp_idle_timeout)?,
        max_age: maybe(limits.max_age)?,
        max_pending: limits.max_pending,
        max_requests: limits.max_requests,
        max_requests_per_connection: limits.max_requests_per_connection,
        max_retries: limits.max_retries,
        idle_timeout: maybe(limits.idle_timeout)?,
        upgrade,
        max_streams: limits.max_streams,
    })
}

pub(super) fn session_from(
    session: &wire::SessionPersistence,
) -> Result<SessionPersistence, Problem> {
    use wire::session_persistence::Kind;
    let kind = match session.kind.as_ref().ok_or(Problem::Missing)? {
        Kind::CookiePermanent(permanent) => SessionKind::Cookie {
            permanent: *permanent,
        },
        Kind::Header(()) => SessionKind::Header,
    };
    Ok(SessionPersistence {
        name: session.name.as_str().into(),
        kind,
        absolute_timeout: maybe(session.absolute_timeout)?,
        idle_timeout: maybe(session.idle_timeout)?,
    })
}

/// The resource of a service's traffic.
pub fn service_traffic_to(traffic: &ServiceTraffic) -> wire::ServiceTraffic {
    let subset = |subset: &Subset| wire::Subset {
        name: subset.name.to_string(),
        labels: subset
            .labels
            .iter()
            .map(|(name, value)| wire::Label {
                name: name.to_string(),
                value: value.to_string(),
            })
            .collect(),
    };
    let scope = |scope: &Scope| wire::TrafficScope {
        port: scope.port.unwrap_or_default().into(),
        subset: string(scope.subset.as_ref()),
        policy: Some(policy_to(&scope.policy)),
    };
    wire::ServiceTraffic {
        service: traffic.service.to_string(),
        scopes: traffic.scopes.iter().map(scope).collect(),
        subsets: traffic.subsets.iter().map(subset).collect(),
        sources: traffic.sources.iter().map(ToString::to_string).collect(),
    }
}

fn policy_to(policy: &TrafficPolicy) -> wire::TrafficPolicy {
    wire::TrafficPolicy {
        balance: Some(balance::to(&policy.balance)),
        connections: Some(connections_to(&policy.connections)),
        outlier: policy.outlier.as_ref().map(outlier::to),
        retry_budget: policy.retry_budget.map(|budget| wire::RetryBudget {
            share_ppm: budget.share_ppm,
            min_concurrent: budget.min_concurrent,
        }),
        tls: policy.tls.as_ref().map(tls::to),
        health_check: policy.health_check.as_ref().map(outlier::check_to),
        session: policy.session.as_ref().map(session_to),
    }
}

fn connections_to(limits: &Connections) -> wire::ConnectionLimits {
    let upgrade = match limits.upgrade {
        Http2Upgrade::Default => wire::Http2Upgrade::UpgradeDefault,
        Http2Upgrade::Upgrade => wire::Http2Upgrade::UpgradeAlways,
        Http2Upgrade::Never => wire::Http2Upgrade::UpgradeNever,
    };
    wire::ConnectionLimits {
        max: limits.max,
        connect_timeout: limits.connect_timeout.map(duration_to),
        keepalive: limits.keepalive.map(|keepalive| wire::TcpKeepalive {
            time: keepalive.time.map(duration_to),
            interval: keepalive.interval.map(duration_to),
            probes: keepalive.probes,
        }),
        tcp_idle_timeout: limits.tcp_idle_timeout.map(duration_to),
        max_age: limits.max_age.map(duration_to),
        max_pending: limits.max_pending,
        max_requests: limits.max_requests,
        max_requests_per_connection: limits.max_requests_per_connection,
        max_retries: limits.max_retries,
        idle_timeout: limits.idle_timeout.map(duration_to),
        upgrade: upgrade.into(),
        max_streams: limits.max_streams,
    }
}

pub(super) fn session_to(session: &SessionPersistence) -> wire::SessionPersistence {
    use wire::session_persistence::Kind;
    let kind = match session.kind {
        SessionKind::Cookie { permanent } => Kind::CookiePermanent(permanent),
        SessionKind::Header => Kind::Header(()),
    };
    wire::SessionPersistence {
        name: session.name.to_string(),
        kind: Some(kind),
        absolute_timeout: session.absolute_timeout.map(duration_to),
        idle_timeout: session.idle_timeout.map(duration_to),
    }
}

fn maybe(duration: Option<prost_types::Duration>) -> Result<Option<Duration>, Problem> {
    duration
        .map(|duration| Duration::try_from(duration).map_err(|_out_of_range| Problem::Duration))
        .transpose()
}

fn needed(duration: Option<prost_types::Duration>) -> Result<Duration, Problem> {
    maybe(duration)?.ok_or(Problem::Missing)
}

fn duration_to(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

fn status_from(status: u32) -> Result<u16, Problem> {
    u16::try_from(status)
        .ok()
        .filter(|status| (100..1000).contains(status))
        .ok_or(Problem::Status(status))
}

fn all<T, U>(
    items: &[T],
    convert: impl FnMut(&T) -> Result<U, Problem>,
) -> Result<Vec<U>, Problem> {
    items.iter().map(convert).collect()
}

fn text(value: Option<&str>) -> Option<Arc<str>> {
    value.map(Into::into)
}

fn string(value: Option<&Arc<str>>) -> Option<String> {
    value.map(ToString::to_string)
}

#[cfg(test)]
mod tests;
