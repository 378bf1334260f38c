//! The state machine of the election: no clock, no API server.
//!
//! Clocks of replicas differ, so nobody believes the times in the Lease: a holder counts as gone when the Lease has not
//! changed for its whole duration as *we* watched it.

use std::time::{Duration, Instant};

/// How long a holder leads without renewing.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// A holder stops this much earlier than others may take over: its last write may have been slow, and it looks at its
/// clock only between requests.
pub(super) const MARGIN: Duration = Duration::from_secs(8);

/// The Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Empty: nobody holds it.
    pub holder: String,
    /// Differs after every write.
    pub version: String,
}

/// What to do with the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Somebody else holds it.
    Wait,
    /// There is none: make it, if still nobody has.
    Create,
    /// Nobody holds it any more: take it, unless it has changed.
    Take,
    /// It is ours: say so again, unless it has changed.
    Renew,
}

/// One replica's view.
#[derive(Debug)]
pub struct Election {
    name: String,
    /// What was read last, and since when it has not changed.
    seen: Option<(Observed, Instant)>,
    /// Until when we lead.
    leads_until: Option<Instant>,
}

impl Election {
    /// `name`: differs between replicas, and between two starts of one.
    pub fn new(name: String) -> Self {
        Self {
            name,
            seen: None,
            leads_until: None,
        }
    }

    /// Takes what was read at `now`.
    pub fn handle_read(&mut self, lease: Option<Observed>, now: Instant) -> Action {
        let Some(lease) = lease else {
            self.seen = None;
            self.leads_until = None;
            return Action::Create;
        };
        let ours = lease.holder == self.name;
        if !ours {
            self.leads_until = None;
        }
        let since = match &self.seen {
            Some((before, since)) if *before == lease => *since,
            _ => now,
        };
        let free = lease.holder.is_empty() || now.duration_since(since) >= DURATION;
        self.seen = Some((lease, since));
        match (ours, free) {
            (true, _) => Action::Renew,
            (false, true) => Action::Take,
            (false, false) => Action::Wait,
        }
    }

    /// Our write, begun at `begun`, has come through.
    pub fn handle_written(&mut self, begun: Instant) {
        self.leads_until = Some(begun + (DURATION - MARGIN));
    }

    /// Our write has failed on a conflict: somebody else has written.
    pub fn handle_conflict(&mut self) {
        self.leads_until = None;
    }

    /// Whether we lead at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// Until when we lead, if nothing else is read or written.
    pub fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests;
