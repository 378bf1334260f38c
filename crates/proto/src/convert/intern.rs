//! Shares equal strings, so that 100,000 workloads hold one copy of their namespace and not 100,000.

use std::{collections::HashSet, sync::Arc};

/// A pool of strings that repeat between resources. Strings that nothing else holds are dropped as it grows.
#[derive(Debug)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    sweep_at: usize,
}

/// Size below which looking for unused strings is not worth it.
const SWEEP_MIN: usize = 1024;

impl Default for Interner {
    fn default() -> Self {
        Self {
            strings: HashSet::new(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl Interner {
    /// The shared copy of `text`.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return shared.clone();
        }
        if self.strings.len() >= self.sweep_at {
            self.strings.retain(|s| Arc::strong_count(s) > 1);
            self.sweep_at = (self.strings.len() * 2).max(SWEEP_MIN);
        }
        let shared: Arc<str> = text.into();
        self.strings.insert(shared.clone());
        shared
    }

    /// [`Self::get`], with `default` in place of an empty string.
    pub(super) fn or(&mut self, text: &str, default: &str) -> Arc<str> {
        self.get(if text.is_empty() { default } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_and_unused_ones_go() {
        let mut interner = Interner::default();
        let kept = interner.get("kept");
        for n in 0..10 * SWEEP_MIN {
            interner.get(&n.to_string());
        }
        assert!(Arc::ptr_eq(&kept, &interner.get("kept")));
        assert!(interner.strings.len() <= SWEEP_MIN);
    }
}
