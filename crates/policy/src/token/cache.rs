//! Tokens that were verified, so that the next request with one costs a look-up and not a signature.
//!
//! Two generations: what is asked for moves into the young one; when that is full it becomes the old one, and what was
//! not asked for since is forgotten. Only tokens that hold are here, so nobody fills it without being issued tokens.

use std::sync::Arc;

use hashbrown::HashMap;

use super::Verified;

/// Tokens of one generation, and bytes of their texts.
const TOKENS_MAX: usize = 2048;
const BYTES_MAX: usize = 2 << 20;
/// Longer ones are verified each time.
const LENGTH_MAX: usize = 8 << 10;

type Generation = HashMap<Box<str>, (usize, Arc<Verified>)>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    young: Generation,
    bytes: usize,
    old: Generation,
}

impl Cache {
    /// What was found out about the token under the rule of this number.
    pub(super) fn get(&mut self, rule: usize, text: &str) -> Option<Arc<Verified>> {
        let of_rule =
            |(of, verified): &(usize, Arc<Verified>)| (*of == rule).then(|| verified.clone());
        if let Some(found) = self.young.get(text) {
            return of_rule(found);
        }
        let (text, found) = self.old.remove_entry(text)?;
        let verified = of_rule(&found);
        self.insert(text, found);
        verified
    }

    pub(super) fn put(&mut self, rule: usize, text: &str, verified: Arc<Verified>) {
        if text.len() <= LENGTH_MAX {
            self.insert(text.into(), (rule, verified));
        }
    }

    fn insert(&mut self, text: Box<str>, found: (usize, Arc<Verified>)) {
        if self.young.len() >= TOKENS_MAX || self.bytes + text.len() > BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += text.len();
        self.young.insert(text, found);
    }
}

#[cfg(test)]
mod tests {
    use karst_routing::token::Token;

    use super::*;

    fn verified() -> Arc<Verified> {
        Arc::new(Verified {
            token: Arc::new(Token::new(serde_json::Map::new(), &[])),
            payload: "".into(),
            expires: None,
            not_before: None,
        })
    }

    #[test]
    fn it_stays_within_its_bounds_and_keeps_what_is_asked_for() {
        let mut cache = Cache::default();
        cache.put(1, "often", verified());
        for n in 0..20_000 {
            cache.put(0, &format!("{n:01000}"), verified());
            assert!(cache.get(1, "often").is_some(), "{n}");
            assert!(cache.young.len() <= TOKENS_MAX && cache.bytes <= BYTES_MAX);
        }
        assert!(cache.get(0, "often").is_none(), "of another rule");
        assert!(cache.get(0, &format!("{:01000}", 0)).is_none(), "forgotten");
        cache.put(0, &"x".repeat(LENGTH_MAX + 1), verified());
        assert!(cache.get(0, &"x".repeat(LENGTH_MAX + 1)).is_none());
    }
}
