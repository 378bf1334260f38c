//! Tells the controller which pods are captured, so that it publishes them as reachable through HBONE only then.
//!
//! Level-triggered: a stream begins with everything that is captured; after that, differences.

use std::{collections::BTreeMap, time::Duration};

use karst_link::Link;
use karst_model::{enrollment::PodCapture, name::PodUid};
use karst_proto::karst::{PodReport, ReportRequest, reports_client::ReportsClient};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::capture::{CapturedPods, CapturedWatch};

/// First and longest pause between streams.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(15));

/// Reports until shutdown, over as many streams as it takes.
pub(crate) async fn run(link: Link, mut captured: CapturedWatch, shutdown: Shutdown) {
    let mut pause = BACKOFF.0;
    loop {
        tokio::select! {
            ended = stream(&link, &mut captured) => match ended {
                Ok(()) => pause = BACKOFF.0,
                Err(error) => tracing::debug!(error = %Chain(&error), "the report stream ended"),
            },
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
            () = shutdown.cancelled() => return,
        }
    }
}

async fn stream(link: &Link, captured: &mut CapturedWatch) -> Result<(), tonic::Status> {
    let (requests, outgoing) = mpsc::channel(4);
    let mut reported = BTreeMap::new();
    let mut sequence = 0;
    let whole = |pods: &CapturedPods| request(&mut sequence, &mut reported, pods);
    let known = captured.wait_for(Option::is_some).await;
    let Some(first) = known.ok().and_then(|pods| pods.as_ref().map(whole)) else {
        return Ok(());
    };
    requests
        .try_send(ReportRequest {
            complete: true,
            ..first
        })
        .map_err(|_full| tonic::Status::internal("report queue"))?;
    let mut followed = link.followed();
    let channel = followed
        .wait_for(Option::is_some)
        .await
        .map(|channel| channel.clone());
    let Ok(Some(channel)) = channel else {
        return Ok(());
    };
    let mut client = ReportsClient::new(channel);
    let mut responses = client
        .report(link.authorized(ReceiverStream::new(outgoing)))
        .await?
        .into_inner();
    loop {
        tokio::select! {
            // Discovery has come to another controller, or to the same one again: so do reports.
            _ = followed.changed() => return Ok(()),
            changed = captured.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let Some(next) = captured
                    .borrow_and_update()
                    .as_ref()
                    .map(|pods| request(&mut sequence, &mut reported, pods))
                else {
                    return Ok(());
                };
                if !next.pods.is_empty() && requests.send(next).await.is_err() {
                    return Ok(());
                }
            }
            response = responses.message() => match response? {
                Some(response) if !response.unknown_pods.is_empty() => {
                    tracing::debug!(pods = ?response.unknown_pods, "the controller does not know these pods on this node yet");
                }
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// What changed since the last report.
fn request(
    sequence: &mut u64,
    reported: &mut BTreeMap<PodUid, PodCapture>,
    captured: &CapturedPods,
) -> ReportRequest {
    *sequence += 1;
    let now: BTreeMap<PodUid, PodCapture> = captured
        .iter()
        .map(|(uid, held)| (uid.clone(), held.capture))
        .collect();
    let gone = reported.keys().filter(|uid| !now.contains_key(*uid));
    let gone = gone.map(|uid| PodReport {
        pod_uid: uid.to_string(),
        captured: false,
        ..PodReport::default()
    });
    let new = now
        .iter()
        .filter(|(uid, capture)| reported.get(*uid) != Some(capture))
        .map(|(uid, capture)| PodReport {
            pod_uid: uid.to_string(),
            captured: true,
            generation: capture.generation.0,
            plaintext_open: capture.plaintext_open,
        });
    let pods = gone.chain(new).collect();
    *reported = now;
    ReportRequest {
        sequence: *sequence,
        complete: false,
        pods,
    }
}
