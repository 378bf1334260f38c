//! Who gets no requests for a while.

use karst_model::traffic::{Expected, HealthCheck, HealthProbe, Outlier};

use super::{Problem, all, duration_to, needed, port_from, status_from, string, text};
use crate::karst as wire;

pub(super) fn from(outlier: &wire::Outlier) -> Result<Outlier, Problem> {
    Ok(Outlier {
        consecutive_errors: outlier.consecutive_errors,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        statuses: all(&outlier.statuses, |status| status_from(*status))?,
        split_local: outlier.split_local,
        consecutive_local_errors: outlier.consecutive_local_errors,
        interval: needed(outlier.interval)?,
        base_ejection: needed(outlier.base_ejection)?,
        max_ejected_percent: outlier.max_ejected_percent,
        min_health_percent: outlier.min_health_percent,
    })
}

pub(super) fn to(outlier: &Outlier) -> wire::Outlier {
    wire::Outlier {
        consecutive_errors: outlier.consecutive_errors,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        statuses: outlier.statuses.iter().copied().map(u32::from).collect(),
        split_local: outlier.split_local,
        consecutive_local_errors: outlier.consecutive_local_errors,
        interval: Some(duration_to(outlier.interval)),
        base_ejection: Some(duration_to(outlier.base_ejection)),
        max_ejected_percent: outlier.max_ejected_percent,
        min_health_percent: outlier.min_health_percent,
    }
}

pub(super) fn check_from(check: &wire::HealthCheck) -> Result<HealthCheck, Problem> {
    use wire::health_check::Probe;
    let expected = |expected: &wire::ExpectedStatus| {
        Ok(Expected {
            first: status_from(expected.first)?,
            last: status_from(expected.last)?,
        })
    };
    let probe = match check.probe.as_ref().ok_or(Problem::Missing)? {
        Probe::Http(http) => HealthProbe::Http {
            path: http.path.as_str().into(),
            host: text(http.host.as_deref()),
            expected: all(&http.expected, expected)?,
        },
        Probe::Tcp(()) => HealthProbe::Tcp,
        Probe::Grpc(grpc) => HealthProbe::Grpc {
            service: grpc.service.as_str().into(),
        },
    };
    let port = port_from(check.port)?;
    Ok(HealthCheck {
        probe,
        interval: needed(check.interval)?,
        timeout: needed(check.timeout)?,
        unhealthy_threshold: check.unhealthy_threshold,
        healthy_threshold: check.healthy_threshold,
        port: (port != 0).then_some(port),
    })
}

pub(super) fn check_to(check: &HealthCheck) -> wire::HealthCheck {
    use wire::health_check::Probe;
    let expected = |expected: &Expected| wire::ExpectedStatus {
        first: expected.first.into(),
        last: expected.last.into(),
    };
    let probe = match &check.probe {
        HealthProbe::Http {
            path,
            host,
            expected: statuses,
        } => Probe::Http(wire::HttpProbe {
            path: path.to_string(),
            host: string(host.as_ref()),
            expected: statuses.iter().map(expected).collect(),
        }),
        HealthProbe::Tcp => Probe::Tcp(()),
        HealthProbe::Grpc { service } => Probe::Grpc(wire::GrpcProbe {
            service: service.to_string(),
        }),
    };
    wire::HealthCheck {
        probe: Some(probe),
        interval: Some(duration_to(check.interval)),
        timeout: Some(duration_to(check.timeout)),
        unhealthy_threshold: check.unhealthy_threshold,
        healthy_threshold: check.healthy_threshold,
        port: check.port.unwrap_or_default().into(),
    }
}
