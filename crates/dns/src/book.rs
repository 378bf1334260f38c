//! Which addresses stand behind names now, and which name is to be asked for when. Pure.
//!
//! A name is asked for again when its answer has expired, within bounds: a TTL of 0 does not make a storm, one of a day
//! does not hide a move. A failure keeps what was known and is tried again with growing pauses; an empty answer keeps it
//! for a grace, since names flap. What nobody wants any more is forgotten.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};

/// Bounds of the book.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names at once; further ones are refused and counted.
    pub names: usize,
    /// Addresses of one name; further ones are left out and counted.
    pub addresses: usize,
    /// An answer holds at least and at most so long, whatever its TTL says.
    pub ttl: (Duration, Duration),
    /// Pauses after failures: the first, and the longest.
    pub retry: (Duration, Duration),
    /// So long the last addresses hold although the name has none now.
    pub empty_grace: Duration,
    /// A name that nobody pinned is forgotten when nobody has wanted it for this long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 4_096,
            addresses: 512,
            ttl: (Duration::from_secs(5), Duration::from_secs(300)),
            retry: (Duration::from_secs(1), Duration::from_secs(30)),
            empty_grace: Duration::from_secs(60),
            idle: Duration::from_secs(600),
        }
    }
}

/// What a resolver said about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Found {
        addresses: Vec<IpAddr>,
        ttl: Duration,
    },
    /// The name does not exist, or has no address.
    Empty,
    /// There was no answer, or one that says nothing.
    Failed,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// In order, each once; may be empty.
    Addresses(Arc<[IpAddr]>),
    /// Nobody has answered yet.
    Asking,
    /// The book is full.
    Full,
}

/// All names.
#[derive(Debug)]
pub struct Book {
    limits: Limits,
    names: HashMap<Arc<str>, Entry>,
    /// Wanted for as long as nobody says otherwise.
    pinned: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    /// `None`: never answered.
    addresses: Option<Arc<[IpAddr]>>,
    /// When it is asked for next; `None` while somebody asks.
    due: Option<Instant>,
    failures: u32,
    /// Since when its answers are empty.
    empty_since: Option<Instant>,
    wanted: Instant,
}

impl Book {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            names: HashMap::new(),
            pinned: HashSet::new(),
        }
    }

    /// These names are wanted from now on, and no others of before.
    pub fn pin(&mut self, names: HashSet<Arc<str>>, now: Instant) {
        self.pinned = names;
        let pinned: Vec<Arc<str>> = self.pinned.iter().cloned().collect();
        for name in pinned {
            self.want(&name, now);
        }
    }

    /// What is known of a name, which is asked for from now on.
    pub fn want(&mut self, name: &str, now: Instant) -> Known {
        if let Some(entry) = self.names.get_mut(name) {
            entry.wanted = now;
            return match &entry.addresses {
                Some(addresses) => Known::Addresses(addresses.clone()),
                None => Known::Asking,
            };
        }
        if self.names.len() >= self.limits.names {
            return Known::Full;
        }
        let entry = Entry {
            addresses: None,
            due: Some(now),
            failures: 0,
            empty_since: None,
            wanted: now,
        };
        self.names.insert(name.into(), entry);
        Known::Asking
    }

    /// What is known of a name, without wanting it.
    pub fn look(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        self.names.get(name)?.addresses.clone()
    }

    /// The names to ask for now; each must be [answered](Self::answered).
    pub fn due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let (pinned, idle) = (&self.pinned, self.limits.idle);
        self.names.retain(|name, entry| {
            let used = now.saturating_duration_since(entry.wanted) < idle;
            used || pinned.contains(name) || entry.due.is_none()
        });
        let due = self.names.iter_mut();
        let due = due.filter(|(_, entry)| entry.due.is_some_and(|due| due <= now));
        due.map(|(name, entry)| {
            entry.due = None;
            name.clone()
        })
        .collect()
    }

    /// When [`Self::due`] has something next.
    pub fn next_due(&self) -> Option<Instant> {
        self.names.values().filter_map(|entry| entry.due).min()
    }

    /// Takes an answer; whether the addresses are others now, or there is one at all for the first time.
    pub fn answered(&mut self, name: &str, answer: Answer, now: Instant) -> bool {
        let limits = self.limits;
        let Some(entry) = self.names.get_mut(name) else {
            return false;
        };
        let (least, most) = limits.ttl;
        match answer {
            Answer::Found { addresses, ttl } => {
                (entry.failures, entry.empty_since) = (0, None);
                entry.due = Some(now + ttl.clamp(least, most));
                entry.put(bounded(addresses, limits.addresses))
            }
            Answer::Empty => {
                entry.failures = 0;
                entry.due = Some(now + least);
                let since = *entry.empty_since.get_or_insert(now);
                let over = now.saturating_duration_since(since) >= limits.empty_grace;
                let nothing = entry.addresses.is_none();
                (nothing || over) && entry.put(Vec::new())
            }
            Answer::Failed => {
                let (first, longest) = limits.retry;
                let pause = first.saturating_mul(1 << entry.failures.min(16));
                entry.failures = entry.failures.saturating_add(1);
                entry.due = Some(now + pause.min(longest));
                false
            }
        }
    }

    /// Addresses of an answer that are left out.
    pub fn left_out(&self, addresses: &[IpAddr]) -> usize {
        addresses.len().saturating_sub(self.limits.addresses)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names whose last question failed.
    pub fn failing(&self) -> usize {
        self.names
            .values()
            .filter(|entry| entry.failures > 0)
            .count()
    }
}

impl Entry {
    fn put(&mut self, addresses: Vec<IpAddr>) -> bool {
        let same = self.addresses.as_deref() == Some(&addresses[..]);
        if !same {
            self.addresses = Some(addresses.into());
        }
        !same
    }
}

/// In order and each once, so that an answer in another order is the same answer.
fn bounded(mut addresses: Vec<IpAddr>, most: usize) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(most);
    addresses
}

#[cfg(test)]
mod tests;
