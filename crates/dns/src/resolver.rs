//! The book, kept up to date by asking.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use tokio::{
    sync::{Notify, broadcast},
    task::JoinSet,
    time::{sleep_until, timeout},
};

use crate::{
    ask::{self, AskError},
    book::{Answer, Book, Known, Limits},
};

/// Changes that a subscriber may fall behind before it is told to look at everything.
const BACKLOG: usize = 1_024;
/// Questions at once; further names wait for a place.
const QUESTIONS_MAX: usize = 64;
/// How long nothing is due at most, so that a name that is forgotten leaves.
const ROUND: Duration = Duration::from_secs(30);

/// Names and their addresses. Share it in an `Arc`.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    book: Mutex<Book>,
    /// Somebody wants a name that was not known.
    wanted: Notify,
    changes: broadcast::Sender<Arc<str>>,
    asked: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    left_out: AtomicU64,
}

/// What happened so far, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub names: usize,
    /// Names whose last question failed: their last addresses hold.
    pub failing: usize,
    pub asked: u64,
    pub failed: u64,
    /// Names that found no place.
    pub refused: u64,
    /// Addresses above the bound of one name.
    pub left_out: u64,
}

impl Resolver {
    /// `servers` are asked in order, the next where one fails.
    pub fn new(servers: Vec<SocketAddr>, limits: Limits) -> Self {
        Self {
            servers,
            book: Mutex::new(Book::new(limits)),
            wanted: Notify::new(),
            changes: broadcast::Sender::new(BACKLOG),
            asked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Names of which the addresses are kept up to date from now on, in the place of those of before.
    pub fn pin(&self, names: HashSet<Arc<str>>) {
        self.book().pin(names, Instant::now());
        self.wanted.notify_one();
    }

    /// What is known of a name now, without asking. An address stands for itself.
    pub fn look(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        match name.parse::<IpAddr>() {
            Ok(ip) => Some([ip].into()),
            Err(_) => self.book().look(name),
        }
    }

    /// The addresses of a name; waits for the first answer, at most for `patience`.
    pub async fn resolve(&self, name: &str, patience: Duration) -> Option<Arc<[IpAddr]>> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Some([ip].into());
        }
        let mut changes = self.changes();
        let known = self.book().want(name, Instant::now());
        match known {
            Known::Addresses(addresses) => return Some(addresses),
            Known::Full => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Known::Asking => self.wanted.notify_one(),
        }
        let arrival = async {
            loop {
                match changes.recv().await {
                    Ok(changed) if *changed != *name => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                    _ => {
                        if let Some(found) = self.look(name) {
                            return Some(found);
                        }
                    }
                }
            }
        };
        timeout(patience, arrival).await.unwrap_or(None)
    }

    /// Names whose addresses change from now on; a subscriber that falls behind must look at all.
    pub fn changes(&self) -> broadcast::Receiver<Arc<str>> {
        self.changes.subscribe()
    }

    pub fn counts(&self) -> Counts {
        let book = self.book();
        Counts {
            names: book.len(),
            failing: book.failing(),
            asked: self.asked.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
        }
    }

    /// Asks what is due, for ever. Spawn it once, and drop it at the end.
    pub async fn run(&self) {
        let mut questions: JoinSet<(Arc<str>, Result<Answer, AskError>)> = JoinSet::new();
        loop {
            let now = Instant::now();
            let free = QUESTIONS_MAX.saturating_sub(questions.len());
            if free > 0 {
                for name in self.book().due(now) {
                    let servers = self.servers.clone();
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    questions.spawn(async move {
                        let answer = first_answer(&servers, &name).await;
                        (name, answer)
                    });
                }
            }
            let next = self
                .book()
                .next_due()
                .map_or(now + ROUND, |due| due.min(now + ROUND));
            tokio::select! {
                () = self.wanted.notified() => {}
                () = sleep_until(next.into()), if free > 0 => {}
                Some(Ok((name, answer))) = questions.join_next() => self.take(&name, answer),
            }
        }
    }

    fn take(&self, name: &Arc<str>, answer: Result<Answer, AskError>) {
        let answer = answer.unwrap_or_else(|error| {
            self.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%name, %error, "a name could not be resolved: its last addresses hold");
            Answer::Failed
        });
        let mut book = self.book();
        if let Answer::Found { addresses, .. } = &answer {
            let left_out = book.left_out(addresses);
            if left_out > 0 {
                self.left_out.fetch_add(left_out as u64, Ordering::Relaxed);
                tracing::warn!(%name, left_out, "a name has more addresses than are used");
            }
        }
        let changed = book.answered(name, answer, Instant::now());
        drop(book);
        if changed {
            // An error only means that nobody listens.
            let _ = self.changes.send(name.clone());
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the first server says that says anything.
async fn first_answer(servers: &[SocketAddr], name: &str) -> Result<Answer, AskError> {
    let mut last = AskError::NoServer;
    for server in servers {
        match ask::addresses(*server, name).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
