//! Sessions that stay with an endpoint (Gateway API, `sessionPersistence`): what a client carries, and how long it counts.
//!
//! A token names the endpoint by a number that every waypoint gives it, the moment when the session began and that of its
//! last request. It is no secret and proves nothing: all that it can do is choose among endpoints that the client may be
//! sent to anyway.

use std::time::Duration;

use karst_model::traffic::SessionPersistence;

/// What a client carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// See [`crate::hash::hash_of`] of the endpoint's name.
    pub endpoint: u64,
    /// Seconds since the epoch.
    pub began: u64,
    pub used: u64,
}

/// Seconds by which clocks of waypoints may differ.
const SKEW_SECONDS: u64 = 60;

impl Session {
    pub fn begin(endpoint: u64, now: u64) -> Self {
        Self {
            endpoint,
            began: now,
            used: now,
        }
    }

    /// What [`Self::text`] has written; `None` for anything else.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('.');
        let mut number = || {
            let part = parts.next()?;
            let plain = part.len() <= 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let (endpoint, began, used) = (number()?, number()?, number()?);
        parts.next().is_none().then_some(Self {
            endpoint,
            began,
            used,
        })
    }

    pub fn text(&self) -> String {
        format!("{:016x}.{:x}.{:x}", self.endpoint, self.began, self.used)
    }

    /// Whether it still counts: neither too old, nor idle for too long, nor from the future.
    pub fn is_valid(&self, policy: &SessionPersistence, now: u64) -> bool {
        let within = |since: u64, limit: Option<Duration>| {
            limit.is_none_or(|limit| now.saturating_sub(since) < limit.as_secs().max(1))
        };
        self.began <= self.used
            && self.used <= now.saturating_add(SKEW_SECONDS)
            && within(self.began, policy.absolute_timeout)
            && within(self.used, policy.idle_timeout)
    }

    /// The session after a request at this endpoint, where the client has to be told: it is another endpoint, or the time
    /// of its last request counts.
    pub fn after(
        before: Option<Self>,
        endpoint: u64,
        policy: &SessionPersistence,
        now: u64,
    ) -> Option<Self> {
        match before {
            Some(before) if before.endpoint == endpoint => {
                let later = policy.idle_timeout.is_some() && now > before.used;
                later.then_some(Self {
                    used: now,
                    ..before
                })
            }
            // The session goes on elsewhere, and is no younger for that.
            Some(before) => Some(Self {
                endpoint,
                used: now,
                ..before
            }),
            None => Some(Self::begin(endpoint, now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use karst_model::traffic::SessionKind;

    use super::*;

    fn policy(absolute: Option<u64>, idle: Option<u64>) -> SessionPersistence {
        SessionPersistence {
            name: "s".into(),
            kind: SessionKind::Header,
            absolute_timeout: absolute.map(Duration::from_secs),
            idle_timeout: idle.map(Duration::from_secs),
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let session = Session {
            endpoint: 0xfeed_0000_0000_0001,
            began: 1_700_000_000,
            used: 1_700_000_009,
        };
        assert_eq!(Session::read(&session.text()), Some(session));
        for wrong in [
            "",
            "a",
            "a.b",
            "a.b.c.d",
            "g.1.2",
            "+1.1.2",
            "1.1.-2",
            "11111111111111111.1.2",
        ] {
            assert_eq!(Session::read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn it_ends_by_age_and_by_idleness() {
        let session = Session {
            endpoint: 1,
            began: 1_000,
            used: 1_050,
        };
        assert!(session.is_valid(&policy(None, None), 1_000_000));
        assert!(session.is_valid(&policy(Some(100), None), 1_099));
        assert!(!session.is_valid(&policy(Some(100), None), 1_100));
        assert!(session.is_valid(&policy(None, Some(10)), 1_059));
        assert!(!session.is_valid(&policy(None, Some(10)), 1_060));
        assert!(
            !Session {
                used: 5_000,
                ..session
            }
            .is_valid(&policy(None, Some(10)), 1_100)
        );
    }

    #[test]
    fn a_client_is_told_only_what_is_new() {
        let begun = Session::begin(1, 100);
        let plain = policy(Some(1_000), None);
        assert_eq!(Session::after(None, 1, &plain, 100), Some(begun));
        assert_eq!(Session::after(Some(begun), 1, &plain, 500), None);
        let idle = policy(None, Some(60));
        let used = Session::after(Some(begun), 1, &idle, 130).unwrap();
        assert_eq!((used.began, used.used), (100, 130));
        let moved = Session::after(Some(begun), 2, &plain, 500).unwrap();
        assert_eq!(
            (moved.endpoint, moved.began),
            (2, 100),
            "no younger elsewhere"
        );
    }
}
