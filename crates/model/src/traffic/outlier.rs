//! Who gets no requests for a while: endpoints that answer badly, and endpoints that fail a check.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// Ejection by what endpoints answer. A threshold that is `None` ejects nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlier {
    /// So many answers in a row with a status of 500 or above, or one of `statuses`. Without `split_local`, failures to
    /// reach the endpoint count too.
    pub consecutive_errors: Option<u32>,
    /// The same for 502, 503 and 504.
    pub consecutive_gateway_errors: Option<u32>,
    /// Statuses below 500 that count as errors as well.
    pub statuses: Vec<u16>,
    /// Failures to reach the endpoint (connect, reset, timeout) count apart.
    pub split_local: bool,
    /// With `split_local`.
    pub consecutive_local_errors: Option<u32>,
    /// How often it is looked whether an ejected endpoint may come back.
    pub interval: Duration,
    /// An endpoint is ejected for this times the number of its ejections.
    pub base_ejection: Duration,
    /// Of all endpoints, rounded down; one may always be ejected where there are two or more.
    pub max_ejected_percent: u32,
    /// While fewer than this are healthy, nobody is ejected and those who are get requests like everybody.
    pub min_health_percent: u32,
}

impl Default for Outlier {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            consecutive_errors: Some(5),
            consecutive_gateway_errors: None,
            statuses: Vec::new(),
            split_local: false,
            consecutive_local_errors: Some(5),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejected_percent: 10,
            min_health_percent: 0,
        }
    }
}

/// Active checks of each endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub probe: HealthProbe,
    /// Between two checks of an endpoint.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Failures in a row after which an endpoint gets nothing more.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it does again.
    pub healthy_threshold: u32,
    /// `None`: the port of the requests.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthProbe {
    Http {
        path: Arc<str>,
        /// `None`: the service's.
        host: Option<Arc<str>>,
        /// Empty: 200 to 399.
        expected: Vec<Expected>,
    },
    Tcp,
    /// `grpc.health.v1.Health/Check` of this service; empty: the server as a whole.
    Grpc {
        service: Arc<str>,
    },
}

/// Statuses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub first: u16,
    pub last: u16,
}
