//! Copies of requests for other backends, whose answers nobody waits for. Bounded: a copy too many is dropped and
//! counted, never queued.

use std::{cell::Cell, future::poll_fn, pin::Pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use hyper::body::Body as _;
use karst_model::protocol::AppProtocol;
use karst_runtime::supervise;
use tokio::time::{Instant, timeout_at};

use super::{Conversation, RequestBody, Version, answer::Answer, body::ClientBody, send::Outgoing};
use crate::services::{Ask, Port};

/// Copies under way at once on one thread.
const UNDER_WAY_MAX: usize = 256;
/// How long a copy may take.
const TIMEOUT: Duration = Duration::from_secs(15);

thread_local! {
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// A copy that waits for its body.
pub(crate) struct MirrorCopy {
    outgoing: Outgoing,
    port: Arc<Port>,
    subset: Option<Arc<str>>,
}

impl MirrorCopy {
    pub(super) fn new(outgoing: &Outgoing, port: Arc<Port>, subset: Option<Arc<str>>) -> Self {
        let outgoing = match port.app_protocol {
            AppProtocol::Http2 | AppProtocol::Grpc => outgoing.speaking(Version::Http2),
            AppProtocol::Http11 => outgoing.speaking(Version::Http1),
            _ => outgoing.clone(),
        };
        Self {
            outgoing,
            port,
            subset,
        }
    }
}

/// One of the copies under way.
struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        UNDER_WAY.with(|count| {
            (count.get() < UNDER_WAY_MAX).then(|| {
                count.set(count.get() + 1);
                Self
            })
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        UNDER_WAY.with(|count| count.set(count.get() - 1));
    }
}

/// Sends copies whose body is complete; others cannot be sent any more.
pub(super) fn send_all(
    conversation: &Rc<Conversation>,
    copies: Vec<MirrorCopy>,
    body: &ClientBody,
) {
    for copy in copies {
        let Some((slot, body)) = Slot::take().zip(body.copy()) else {
            conversation.worker.mesh.metrics.mirrors_dropped.inc();
            continue;
        };
        let conversation = conversation.clone();
        supervise::spawn_local_connection("mirrored request", async move {
            let _slot = slot;
            send(&conversation, &copy, body).await;
        });
    }
}

async fn send(conversation: &Rc<Conversation>, copy: &MirrorCopy, body: RequestBody) {
    let ask = Ask::default();
    let chosen = copy.port.cluster(copy.subset.as_ref()).and_then(|cluster| {
        let member = cluster.choose(&ask, &mut rand::rng())?;
        Ok((cluster, member))
    });
    let Ok((cluster, member)) = chosen else {
        conversation.worker.mesh.metrics.mirrors_dropped.inc();
        return;
    };
    let until = Instant::now() + TIMEOUT;
    let sent = copy
        .outgoing
        .send(
            conversation,
            (&member.endpoint, Some(cluster)),
            (body, None),
            Some(until),
        )
        .await;
    if let Ok(response) = sent {
        let mut answer = Answer::new(response.into_body(), None, None);
        let drained = poll_fn(|cx| {
            loop {
                match Pin::new(&mut answer).poll_frame(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        // A copy that takes longer is cut.
        let _drained_or_late = timeout_at(until, drained).await;
    }
}
