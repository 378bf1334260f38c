//! Answers about tokens that are remembered for a short while, by hash: pure.
//!
//! A node's agent opens several streams and asks for many certificates with one token; each need not cost a question.
//! The price is that a revoked token is believed for up to a minute.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use karst_ca::{AuthError, Caller};
use sha2::{Digest as _, Sha256};

/// Longest time that an answer counts.
const GOOD: Duration = Duration::from_secs(60);
/// The same for a refusal: a token may be used before every API server knows its key.
const REFUSED: Duration = Duration::from_secs(5);
/// Answers that are remembered; when they are as many, all that have ended are dropped, and after that the whole.
const ANSWERS_MAX: usize = 20_000;

/// SHA-256 of a token: the token itself is not kept.
pub(super) fn digest(bearer: &str) -> [u8; 32] {
    Sha256::digest(bearer.as_bytes()).into()
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Reviewed {
    answers: HashMap<[u8; 32], (Instant, Result<Caller, AuthError>)>,
}

impl Reviewed {
    /// The answer, if it still counts.
    pub(super) fn find(
        &mut self,
        key: &[u8; 32],
        now: Instant,
    ) -> Option<Result<Caller, AuthError>> {
        let (until, answer) = self.answers.get(key)?;
        (now < *until).then(|| answer.clone())
    }

    /// Remembers an answer about a token that has `left` to live.
    pub(super) fn remember(
        &mut self,
        key: [u8; 32],
        answer: Result<Caller, AuthError>,
        left: Duration,
        now: Instant,
    ) {
        let counts = match &answer {
            Ok(_) => GOOD.min(left),
            Err(_) => REFUSED,
        };
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.retain(|_, (until, _)| now < *until);
        }
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.clear();
        }
        self.answers.insert(key, (now + counts, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Result<Caller, AuthError> {
        Ok(Caller {
            node: "n1".to_owned(),
            namespace: "karst-system".to_owned(),
            service_account: "karst-agent".to_owned(),
            pod_uid: None,
            key_id: String::new(),
        })
    }

    #[test]
    fn answers_count_for_a_minute_and_never_longer_than_the_token() {
        let (mut reviewed, start) = (Reviewed::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let (long, short, bad) = (digest("long"), digest("short"), digest("bad"));
        reviewed.remember(long, caller(), Duration::from_secs(3600), start);
        reviewed.remember(short, caller(), Duration::from_secs(10), start);
        reviewed.remember(
            bad,
            Err(AuthError::Unbound),
            Duration::from_secs(3600),
            start,
        );
        let known = |reviewed: &mut Reviewed, key, at| reviewed.find(key, at).is_some();
        assert!(known(&mut reviewed, &long, after(59)) && !known(&mut reviewed, &long, after(60)));
        assert!(known(&mut reviewed, &short, after(9)) && !known(&mut reviewed, &short, after(10)));
        assert!(known(&mut reviewed, &bad, after(4)) && !known(&mut reviewed, &bad, after(5)));
        assert!(!known(&mut reviewed, &digest("other"), start));
    }

    #[test]
    fn they_do_not_grow_without_bound() {
        let (mut reviewed, now) = (Reviewed::default(), Instant::now());
        for number in 0..ANSWERS_MAX + 5 {
            let key = digest(&number.to_string());
            reviewed.remember(key, caller(), Duration::from_secs(3600), now);
        }
        assert!(reviewed.answers.len() <= ANSWERS_MAX);
    }
}
