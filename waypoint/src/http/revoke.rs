//! Requests that go on while policy changes: each is decided again after every change of its service, on the head that it
//! was admitted with and as of the time that it came, and ends where it is not allowed any more. A request that policy does
//! not touch notices nothing. External authorizers are not asked again.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use hashbrown::HashMap;
use karst_routing::request::Request;
use karst_runtime::supervise;
use karst_telemetry::metrics::http::RequestFlag;
use tokio::{sync::watch, task::AbortHandle};

use super::{
    Conversation,
    authenticate::{authenticate, verify},
    phases::{authorize, denied, identify, normalise},
    refusal::Refusal,
    send::Outgoing,
    target::Target,
};
use crate::{
    authorize::request_for_backend,
    services::{Served, Slot},
};

/// The requests of one connection that wait for something: at most as many as the connection may have in flight.
#[derive(Default)]
pub(super) struct Ongoing {
    /// Counts the changes.
    changes: Cell<u64>,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Waker>>,
    follower: OnceCell<AbortHandle>,
}

impl Ongoing {
    /// Listens to `changes` for as long as there are requests, which may outlive the HTTP connection that they came on.
    pub(super) fn follow(self: &Rc<Self>, mut changes: watch::Receiver<u64>) {
        let ongoing = Rc::downgrade(self);
        let following = supervise::spawn_local_connection("changes of a service", async move {
            while changes.changed().await.is_ok() {
                match ongoing.upgrade() {
                    Some(ongoing) => ongoing.changed(),
                    None => return,
                }
            }
        });
        let following = following.abort_handle();
        if let Err(second) = self.follower.set(following) {
            second.abort();
        }
    }

    /// Tells every waiting request that its service has changed.
    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    /// The changes so far: taken before a request is decided.
    pub(super) fn changes(&self) -> u64 {
        self.changes.get()
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
    }
}

/// Another service that the request's route leads to, whose policies hold as well.
pub(super) struct Elsewhere {
    slot: Arc<Slot>,
    port: u16,
    /// The head as that service was asked about it, where tokens decide: they do not all go out.
    head: Option<Box<Request>>,
}

impl Elsewhere {
    pub(super) fn of(
        conversation: &Conversation,
        served: Option<&Served>,
        target: &Target<'_>,
        request: &Request,
    ) -> Option<Box<Self>> {
        let Target::Port {
            other: Some((slot, port)),
            ..
        } = target
        else {
            return None;
        };
        let tokens = believes(conversation, served) || !slot.load().tokens.is_empty();
        Some(Box::new(Self {
            slot: slot.clone(),
            port: *port,
            head: tokens.then(|| Box::new(request.clone())),
        }))
    }
}

/// Whether tokens are asked for: what is passed on of them is not what came.
pub(super) fn believes(conversation: &Conversation, served: Option<&Served>) -> bool {
    let own = || !conversation.worker.mesh.services.own_tokens().is_empty();
    !conversation.destination.also.is_empty()
        || served.map_or_else(own, |served| !served.tokens.is_empty())
}

/// A request that was admitted.
pub(super) struct Admitted {
    /// The head that policy decided on, where something changed it since.
    came: Option<Box<Request>>,
    sent: Rc<Outgoing>,
    elsewhere: Option<Box<Elsewhere>>,
    since: Instant,
    /// The changes when it was decided.
    seen: u64,
    number: u64,
    ongoing: Rc<Ongoing>,
}

impl Admitted {
    /// `came`: the head that policy decided on, where it is not the one that goes out. `at`: when the request came, and the
    /// changes at that time.
    pub(super) fn new(
        conversation: &Conversation,
        (came, sent): (Option<Box<Request>>, Rc<Outgoing>),
        elsewhere: Option<Box<Elsewhere>>,
        at: (Instant, u64),
    ) -> Box<Self> {
        let ongoing = conversation.ongoing.clone();
        let number = ongoing.next.get();
        ongoing.next.set(number + 1);
        Box::new(Self {
            came,
            sent,
            elsewhere,
            since: at.0,
            seen: at.1,
            number,
            ongoing,
        })
    }

    /// Ready when policy does not allow the request any more.
    pub(super) fn poll_revoked(
        &mut self,
        conversation: &Conversation,
        cx: &Context<'_>,
    ) -> Poll<Refusal> {
        let changes = self.ongoing.changes();
        if std::mem::replace(&mut self.seen, changes) != changes
            && let Err(refusal) = self.decide(conversation)
        {
            conversation.worker.mesh.metrics.revoked.inc();
            return Poll::Ready(told(refusal));
        }
        self.wait(cx);
        Poll::Pending
    }

    /// Whether policy still allows it, as everything is now.
    fn decide(&self, conversation: &Conversation) -> Result<(), Refusal> {
        let age = self.since.elapsed();
        let slot = conversation.destination.slot.as_ref();
        let served = slot.map(|slot| slot.load().clone());
        let served = served.as_deref();
        let client = identify(conversation);
        let mut request = match &self.came {
            Some(came) => (**came).clone(),
            None => normalise(conversation, self.sent.head())?,
        };
        authenticate(conversation, served, &mut request, age)?;
        authorize(conversation, served, &client, &request)?;
        let Some(elsewhere) = &self.elsewhere else {
            return Ok(());
        };
        let (mesh, slot) = (&conversation.worker.mesh, &elsewhere.slot);
        let request = match &elsewhere.head {
            Some(head) => {
                let mut request = (**head).clone();
                verify(mesh, &slot.load().tokens, &mut request, age)?;
                request
            }
            None => normalise(conversation, self.sent.head())?,
        };
        request_for_backend(mesh, slot, elsewhere.port, &client, &request).map_err(denied)
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.ongoing.waiting.borrow_mut();
        match waiting.get_mut(&self.number) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                waiting.insert(self.number, cx.waker().clone());
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.ongoing.waiting.borrow_mut().remove(&self.number);
    }
}

/// The same, said of a request that was allowed once.
fn told(mut refusal: Refusal) -> Refusal {
    refusal.cause = format!("{}; closed because policy changed", refusal.cause).into();
    if refusal.flag == RequestFlag::None {
        refusal.flag = RequestFlag::Unauthorized;
    }
    refusal
}
