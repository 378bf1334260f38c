//! Which namespaces lack the trust bundle, and when to write it there: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Between two writes to one namespace. Somebody else who keeps a ConfigMap of the same name (another control plane)
/// must not make a storm with us.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, after many writes in a row that somebody has undone, or that failed.
const LONGEST: Duration = Duration::from_secs(60);
/// A namespace where the bundle has stayed for this long begins anew with short pauses.
const CALM: Duration = Duration::from_secs(120);

/// What is there, and what should be.
#[derive(Debug)]
pub(super) struct Bundles {
    pem: String,
    namespaces: BTreeMap<String, Space>,
    /// ConfigMaps by namespace, with what they hold.
    found: BTreeMap<String, String>,
    /// Names in a list that is coming in.
    listed_namespaces: Option<BTreeSet<String>>,
    listed_maps: Option<BTreeSet<String>>,
    /// Whether both have been listed once.
    namespaces_known: bool,
    maps_known: bool,
}

#[derive(Debug, Default)]
struct Space {
    terminating: bool,
    last: Option<Instant>,
    /// Writes that did not last.
    repeated: u32,
}

impl Space {
    fn next(&self) -> Option<Instant> {
        let pause = PAUSE.saturating_mul(1 << self.repeated.min(10));
        self.last.map(|last| last + pause.min(LONGEST))
    }
}

impl Bundles {
    pub(super) fn new(pem: String) -> Self {
        Self {
            pem,
            namespaces: BTreeMap::new(),
            found: BTreeMap::new(),
            listed_namespaces: None,
            listed_maps: None,
            namespaces_known: false,
            maps_known: false,
        }
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn set_pem(&mut self, pem: String) {
        self.pem = pem;
    }

    pub(super) fn begin_namespaces(&mut self) {
        self.listed_namespaces = Some(BTreeSet::new());
    }

    pub(super) fn end_namespaces(&mut self) {
        if let Some(listed) = self.listed_namespaces.take() {
            self.namespaces.retain(|name, _| listed.contains(name));
        }
        self.namespaces_known = true;
    }

    pub(super) fn namespace(&mut self, name: String, terminating: bool) {
        if let Some(listed) = &mut self.listed_namespaces {
            listed.insert(name.clone());
        }
        self.namespaces.entry(name).or_default().terminating = terminating;
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub(super) fn begin_maps(&mut self) {
        self.listed_maps = Some(BTreeSet::new());
    }

    pub(super) fn end_maps(&mut self) {
        if let Some(listed) = self.listed_maps.take() {
            self.found.retain(|namespace, _| listed.contains(namespace));
        }
        self.maps_known = true;
    }

    pub(super) fn found(&mut self, namespace: String, pem: String) {
        if let Some(listed) = &mut self.listed_maps {
            listed.insert(namespace.clone());
        }
        self.found.insert(namespace, pem);
    }

    pub(super) fn missing(&mut self, namespace: &str) {
        self.found.remove(namespace);
    }

    /// The namespaces to write to now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<String> = self
            .lacking()
            .filter(|(_, space)| space.next().is_none_or(|next| next <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &due {
            let Some(space) = self.namespaces.get_mut(name) else {
                continue;
            };
            let calm = space
                .last
                .is_none_or(|last| now.duration_since(last) >= CALM);
            space.repeated = if calm { 0 } else { space.repeated + 1 };
            space.last = Some(now);
        }
        due
    }

    /// How long until something is due that is not yet.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let next = self.lacking().filter_map(|(_, space)| space.next()).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    /// A write has come through; its echo by the watch may come later.
    pub(super) fn written(&mut self, namespace: &str, pem: &str) {
        self.found.insert(namespace.to_owned(), pem.to_owned());
    }

    /// A write has failed.
    pub(super) fn failed(&mut self, namespace: &str) {
        if let Some(space) = self.namespaces.get_mut(namespace) {
            space.repeated += 1;
        }
    }

    fn lacking(&self) -> impl Iterator<Item = (&String, &Space)> {
        let known = self.namespaces_known && self.maps_known;
        self.namespaces
            .iter()
            .filter(move |_| known)
            .filter(|(name, space)| {
                !space.terminating && self.found.get(*name).is_none_or(|pem| *pem != self.pem)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(namespaces: &[&str]) -> Bundles {
        let mut bundles = Bundles::new("root".to_owned());
        bundles.begin_namespaces();
        for name in namespaces {
            bundles.namespace((*name).to_owned(), false);
        }
        bundles.end_namespaces();
        bundles
    }

    #[test]
    fn every_namespace_gets_it_once_both_lists_are_there() {
        let (mut bundles, now) = (world(&["a", "b", "c"]), Instant::now());
        bundles.namespace("going".to_owned(), true);
        assert!(bundles.due(now).is_empty(), "maps are not listed yet");
        bundles.begin_maps();
        bundles.found("a".to_owned(), "root".to_owned());
        bundles.found("b".to_owned(), "older".to_owned());
        bundles.end_maps();
        assert_eq!(bundles.due(now), ["b", "c"]);
        bundles.written("b", "root");
        bundles.written("c", "root");
        assert!(bundles.due(now + PAUSE).is_empty());
        assert_eq!(bundles.wait(now), None);
    }

    #[test]
    fn what_is_edited_or_deleted_is_repaired_and_a_new_root_goes_everywhere() {
        let (mut bundles, now) = (world(&["a", "b"]), Instant::now());
        bundles.begin_maps();
        bundles.end_maps();
        assert_eq!(bundles.due(now), ["a", "b"]);
        bundles.written("a", "root");
        bundles.written("b", "root");
        bundles.missing("a");
        bundles.found("b".to_owned(), "edited".to_owned());
        assert!(bundles.due(now).is_empty(), "a moment later");
        assert_eq!(bundles.wait(now), Some(PAUSE));
        assert_eq!(bundles.due(now + PAUSE), ["a", "b"]);
        bundles.written("a", "root");
        bundles.written("b", "root");
        bundles.set_pem("root, next".to_owned());
        assert_eq!(bundles.due(now + CALM * 2), ["a", "b"]);
        bundles.forget("a");
        assert!(bundles.due(now + CALM * 4).contains(&"b".to_owned()));
    }

    #[test]
    fn somebody_who_undoes_it_each_time_is_answered_ever_more_slowly() {
        let (mut bundles, start) = (world(&["a"]), Instant::now());
        bundles.begin_maps();
        bundles.end_maps();
        let mut writes = 0;
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            if !bundles.due(now).is_empty() {
                writes += 1;
                bundles.written("a", "root");
                bundles.found("a".to_owned(), "another control plane's".to_owned());
            }
        }
        assert!((10..20).contains(&writes), "{writes} writes in ten minutes");
    }
}
