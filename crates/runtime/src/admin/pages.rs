//! The pages that every program has: metrics, readiness, log levels, version.

use std::time::Instant;

use http::{Method, StatusCode};
use karst_telemetry::{
    logging::{LogError, LogHandle},
    metrics::{self, Registry},
};

use super::{Request, Response, Router};
use crate::{build_info::BUILD, liveness::Liveness, readiness::Readiness, supervise::Shutdown};

impl Router {
    /// `/metrics` and `/stats/prometheus`: the registry as OpenMetrics text.
    #[must_use]
    pub fn metrics(self, registry: &Registry) -> Self {
        ["/metrics", "/stats/prometheus"]
            .into_iter()
            .fold(self, |router, path| {
                let registry = registry.clone();
                router.route(Method::GET, path, "metrics, OpenMetrics text", move |_| {
                    let response = Response {
                        status: StatusCode::OK,
                        content_type: metrics::CONTENT_TYPE,
                        body: registry.encode().into(),
                    };
                    async { response }
                })
            })
    }

    /// `/healthz/ready`: 200, or 500 and the names of what is pending.
    #[must_use]
    pub fn readiness(self, readiness: Readiness) -> Self {
        self.route(
            Method::GET,
            "/healthz/ready",
            "200 when ready, else what is pending",
            move |_| {
                let pending = readiness.pending();
                async move {
                    if pending.is_empty() {
                        return Response::text("ready\n");
                    }
                    let body = format!("not ready, pending: {}\n", pending.join(", "));
                    Response::plain(StatusCode::INTERNAL_SERVER_ERROR, body)
                }
            },
        )
    }

    /// `/healthz/live`: 200, or 500 and the names of the loops that hang.
    #[must_use]
    pub fn liveness(self, liveness: Liveness) -> Self {
        self.route(
            Method::GET,
            "/healthz/live",
            "200, else which loops hang and need a restart",
            move |_| {
                let hanging = liveness.hanging(Instant::now());
                async move {
                    if hanging.is_empty() {
                        return Response::text("live\n");
                    }
                    let body = format!("hanging: {}\n", hanging.join(", "));
                    Response::plain(StatusCode::INTERNAL_SERVER_ERROR, body)
                }
            },
        )
    }

    /// `/logging`: POST `?level=info`, `?level=karst_hbone:debug` or `?reset` changes the filter; the answer names it.
    #[must_use]
    pub fn logging(self, handle: LogHandle) -> Self {
        self.route(
            Method::POST,
            "/logging",
            "?level=<level>, ?level=<target>:<level>, ?reset",
            move |request| {
                let response = change_filter(&handle, &request);
                async { response }
            },
        )
    }

    /// `/version`: which build this is.
    #[must_use]
    pub fn version(self) -> Self {
        self.route(Method::GET, "/version", "which build this is", |_| async {
            Response::json(&BUILD.json())
        })
    }

    /// `/quitquitquit`: starts the drain.
    #[must_use]
    pub fn quit(self, shutdown: Shutdown) -> Self {
        self.route(
            Method::POST,
            "/quitquitquit",
            "starts the drain",
            move |_| {
                shutdown.cancel();
                async { Response::text("draining\n") }
            },
        )
    }
}

fn change_filter(handle: &LogHandle, request: &Request) -> Response {
    let changed = match (request.parameter("reset"), request.parameter("level")) {
        (Some(_), _) => handle.reset(),
        (None, Some(level)) => set_levels(handle, level),
        (None, None) => Ok(()),
    };
    match changed {
        Ok(()) => Response::text(format!("current log filter is {}\n", handle.current())),
        Err(error) => {
            let chain = karst_telemetry::error_chain::Chain(&error);
            Response::plain(StatusCode::BAD_REQUEST, format!("{chain}\n"))
        }
    }
}

/// `info` replaces the filter; `target:level`, as Istio's tools write it, adds to it.
fn set_levels(handle: &LogHandle, level: &str) -> Result<(), LogError> {
    match level.rsplit_once(':') {
        Some((target, level)) => handle.add(&format!("{target}={level}")),
        None => handle.set(level),
    }
}
