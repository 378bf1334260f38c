//! HTTPS for the API server's questions. The certificate is the controller's own, renewed with it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_identity::tls::{ServingCertificate, incoming, webhook_server_config};
use karst_runtime::supervise::{Shutdown, spawn_connection};
use karst_telemetry::error_chain::Chain;
use prometheus_client::metrics::counter::Counter;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_stream::StreamExt as _;

use super::{PATH, Surroundings, review};

/// Connections at once; the API server keeps few and uses each many times. Further ones wait.
const CONNECTIONS_MAX: usize = 64;
/// Largest question: an object and its predecessor, each up to the 1.5 MiB that etcd takes, as text.
const BODY_BYTES_MAX: usize = 8 << 20;
/// How long a question may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What admission counts.
#[derive(Clone, Debug, Default)]
pub struct AdmissionMetrics {
    pub asked: Counter,
    pub refused: Counter,
    pub bad_requests: Counter,
}

impl AdmissionMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &karst_telemetry::metrics::Registry) -> Self {
        let metrics = Self::default();
        let all = [
            (
                "karst_admission_reviews",
                "Objects that the API server asked about",
                &metrics.asked,
            ),
            (
                "karst_admission_refused",
                "Objects that were refused",
                &metrics.refused,
            ),
            (
                "karst_admission_bad_requests",
                "Requests to the webhook that were no questions",
                &metrics.bad_requests,
            ),
        ];
        for (name, help, counter) in all {
            registry.register(name, help, counter.clone());
        }
        metrics
    }
}

/// Answers until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<ServingCertificate>,
    surroundings: Surroundings,
    metrics: AdmissionMetrics,
    shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = incoming(listener, webhook_server_config(certificate), &shutdown);
    while let Some(connection) = connections.next().await {
        let Ok(connection) = connection else { continue };
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (surroundings, metrics, shutdown) =
            (surroundings.clone(), metrics.clone(), shutdown.clone());
        spawn_connection("admission", async move {
            let answering = service_fn(|request| answer(request, &surroundings, &metrics));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READ_TIMEOUT)
                .serve_connection(TokioIo::new(connection), answering);
            tokio::pin!(serving);
            tokio::select! {
                ended = &mut serving => if let Err(error) = ended {
                    tracing::debug!(error = %Chain(&error), "connection of the API server ended");
                },
                () = shutdown.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    let _ = serving.await;
                }
            }
            drop(slot);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    surroundings: &Surroundings,
    metrics: &AdmissionMetrics,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        metrics.bad_requests.inc();
        return Ok(plain(StatusCode::NOT_FOUND, format!("POST {PATH}\n")));
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(READ_TIMEOUT, body).await else {
        metrics.bad_requests.inc();
        return Ok(plain(
            StatusCode::BAD_REQUEST,
            "the question is too long, or took too long\n".to_owned(),
        ));
    };
    metrics.asked.inc();
    Ok(match review(surroundings, &body.to_bytes()) {
        Ok(answer) => {
            if answer["response"]["allowed"] == false {
                metrics.refused.inc();
            }
            let mut response = Response::new(Full::from(answer.to_string()));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(error) => {
            metrics.bad_requests.inc();
            plain(StatusCode::BAD_REQUEST, format!("{}\n", Chain(&error)))
        }
    })
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
