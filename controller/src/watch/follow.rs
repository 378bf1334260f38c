//! Follows one kind: the thin shell around [`Feed`].

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use karst_k8s_api::Kind;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use rand::RngExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::{
    Backoff, Batch,
    feed::{Change, Feed},
    health::{Failure, WatchHealth},
    raw::Raw,
};

/// Seconds that one watch request lasts. A connection that died without a word is noticed five seconds after that.
const WATCH_SECONDS: u32 = 60;
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Changes of a list that are handed on together.
const LIST_BATCH: usize = 500;
/// Between attempts to list a kind that is not installed.
const ABSENT: Duration = Duration::from_secs(3);
/// Longest wait that the API server may ask for.
const ASKED_MAX: Duration = Duration::from_secs(20);
/// A kind is listed anew this often: whatever a watch may have lost comes right. Up to half as long again, so that kinds
/// and replicas do not come together.
const RELIST: Duration = Duration::from_secs(900);

/// One kind's watch.
pub(super) struct Follow {
    api: Api<Raw>,
    kind: Kind,
    feed: Feed,
    health: WatchHealth,
    out: mpsc::Sender<Batch>,
    pending: Vec<Change>,
    backoff: Backoff,
}

/// The index's owner has ended.
struct Gone;

impl Follow {
    pub(super) fn new(
        client: Client,
        kind: Kind,
        health: WatchHealth,
        out: mpsc::Sender<Batch>,
    ) -> Self {
        health.begin(kind);
        Self {
            api: Api::all_with(client, &resource(kind)),
            kind,
            feed: Feed::new(kind),
            health,
            out,
            pending: Vec::new(),
            backoff: Backoff::default(),
        }
    }

    /// Ends only with the program.
    pub(super) async fn run(mut self) {
        loop {
            let config = watcher::Config::default()
                .timeout(WATCH_SECONDS)
                .page_size(PAGE);
            let mut events = pin!(watcher(self.api.clone(), config));
            let until_relist = RELIST.mul_f64(1.0 + rand::rng().random::<f64>() / 2.0);
            let mut relist = pin!(tokio::time::sleep(until_relist));
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = &mut relist, if !self.feed.is_listing() => break,
                };
                let taken = match event {
                    Some(Ok(event)) => self.take(event).await,
                    Some(Err(error)) => {
                        let failed = self.failed(&error).await;
                        let is_void = is_expired_at_start(&error) || was_unreachable(&error);
                        if failed.is_ok() && is_void {
                            break;
                        }
                        failed
                    }
                    None => break,
                };
                if let Err(Gone) = taken {
                    return;
                }
            }
        }
    }

    async fn take(&mut self, event: watcher::Event<Raw>) -> Result<(), Gone> {
        self.health.seen(self.kind, &event);
        self.feed.handle(event, &mut self.pending);
        if self.feed.is_listing() && self.pending.len() < LIST_BATCH {
            return Ok(());
        }
        if !self.feed.is_listing() {
            self.backoff.reset();
            self.health
                .works(self.kind, self.feed.objects(), self.feed.unusable());
        }
        self.hand_on(self.feed.is_complete()).await
    }

    async fn hand_on(&mut self, complete: bool) -> Result<(), Gone> {
        let batch = Batch {
            kind: self.kind,
            changes: std::mem::take(&mut self.pending),
            complete,
        };
        self.out.send(batch).await.map_err(|_closed| Gone)
    }

    /// Waits. What is known stays as it is, also when the whole kind has gone: its objects were told to be deleted
    /// before, or the API server is just starting and does not know its own kinds yet.
    async fn failed(&mut self, error: &watcher::Error) -> Result<(), Gone> {
        let failure = Failure::of(error);
        self.health.fails(self.kind, &failure);
        let chance = rand::rng().random();
        if self.kind.is_defined_apart() && matches!(failure, Failure::Absent) {
            self.hand_on(true).await?;
            tokio::time::sleep(ABSENT.mul_f64(1.0 + chance / 4.0)).await;
        } else {
            let wait = self.backoff.next(chance);
            tokio::time::sleep(wait.max(failure.least_wait().min(ASKED_MAX))).await;
        }
        Ok(())
    }
}

/// Whether a watch got no answer at all. Whoever answers next may have been restored from a snapshot, and would wait for
/// versions after ours, which it has yet to give: its watches would be silent, and what is gone would never be.
fn was_unreachable(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(source) if !matches!(source, kube::Error::Api(_)))
}

/// Whether a watch was refused because its version is too old, rather than told so once it ran: only then the watcher
/// does not list anew by itself, but asks for the same version for ever.
fn is_expired_at_start(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// A watch that waits between failures, and lists anew where it would ask for a version that is too old for ever, or that
/// whoever answers next may not know.
pub(crate) fn steady<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let open = move || Box::pin(watcher(api.clone(), config.clone()).default_backoff());
    let steady = Steady {
        events: open(),
        open,
        backoff: Backoff::default(),
        is_void: false,
    };
    stream::unfold(steady, |mut steady| async move {
        let event = steady.next().await?;
        Some((event, steady))
    })
}

struct Steady<S, O> {
    events: S,
    open: O,
    /// Between a watch that came to nothing and the list after it: a server that answers lists and no watch would be
    /// asked without a rest.
    backoff: Backoff,
    /// The watch that runs asks for what it will not get.
    is_void: bool,
}

impl<S, O, K> Steady<S, O>
where
    S: Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin,
    O: Fn() -> S,
{
    async fn next(&mut self) -> Option<watcher::Result<watcher::Event<K>>> {
        if std::mem::take(&mut self.is_void) {
            let chance = rand::rng().random();
            tokio::time::sleep(self.backoff.next(chance)).await;
            self.events = (self.open)();
        }
        let event = self.events.next().await?;
        match &event {
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_)) => self.backoff.reset(),
            Ok(_) => {}
            Err(error) => self.is_void = is_expired_at_start(error) || was_unreachable(error),
        }
        Some(event)
    }
}

/// How the API server's paths name a kind, in the version that Karst reads.
fn resource(kind: Kind) -> ApiResource {
    let version = GroupVersionKind::gvk(kind.group(), kind.versions()[0], kind.name());
    ApiResource::from_gvk_with_plural(&version, kind.plural())
}
