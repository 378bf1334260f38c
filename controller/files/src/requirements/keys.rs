//! Labels and annotations of Istio's: unknown or misspelt ones, values without a meaning, and what is not honoured.
//!
//! Never more than a warning: a Namespace or Pod that is refused for a label would hurt more than the label.

use karst_k8s_api::honoured::{self, KeyRow, Place as Where, Verdict};

use super::place::Place;

/// Changes of one letter up to which a key counts as another one misspelt.
const TYPO_MAX: usize = 2;

/// Checks the labels and annotations of some metadata.
pub(super) fn check(metadata: &mut Place<'_>) {
    for (field, place) in [("labels", Where::Label), ("annotations", Where::Annotation)] {
        metadata.entries(field, |entry, key| {
            let value = entry.value.as_str().unwrap_or_default();
            if let Some(message) = complaint(place, key, value) {
                entry.warn(message);
            }
        });
    }
    both_ways(metadata);
}

/// Injection and enrolment at once: the author expects one of them.
fn both_ways(metadata: &mut Place<'_>) {
    let label = |name: &str| metadata.value.get("labels").and_then(|all| all.get(name));
    let ambient = label("istio.io/dataplane-mode").is_some_and(|mode| mode == "ambient");
    let injected = label("istio-injection").is_some_and(|value| value == "enabled")
        || label("sidecar.istio.io/inject").is_some_and(|value| value == "true");
    if ambient && injected {
        metadata.field("labels").warn(
            "asks for a sidecar and for ambient mode: while Istio's injector runs, pods with a sidecar stay out of the mesh; remove one of the labels"
                .to_owned(),
        );
    }
}

fn complaint(place: Where, key: &str, value: &str) -> Option<String> {
    match honoured::key_row(place, key) {
        Some(row) => known(row, value),
        None => unknown(place, key),
    }
}

fn known(row: &KeyRow, value: &str) -> Option<String> {
    let asks_for_nothing = matches!(value, "false" | "disabled" | "none");
    match row.verdict {
        Verdict::Honoured if row.values.is_empty() || row.values.contains(&value) => None,
        Verdict::Honoured => Some(format!(
            "{value:?} has no meaning, expected {}; it is read as if the key were not there",
            row.values.join(" or ")
        )),
        Verdict::NoEffect | Verdict::NotYet if asks_for_nothing => None,
        Verdict::NoEffect => Some(format!("has no effect: {}", row.note)),
        Verdict::NotYet | Verdict::Refused => Some(format!("not honoured yet: {}", row.note)),
    }
}

fn unknown(place: Where, key: &str) -> Option<String> {
    let other = match place {
        Where::Label => (Where::Annotation, "is an annotation, not a label"),
        Where::Annotation => (Where::Label, "is a label, not an annotation"),
    };
    if honoured::key_row(other.0, key).is_some() {
        return Some(format!("{}: nothing reads it here", other.1));
    }
    let meant = honoured::keys()
        .filter(|row| row.place == place)
        .map(|row| {
            (
                distance(&row.key.to_lowercase(), &key.to_lowercase()),
                row.key,
            )
        })
        .min()
        .filter(|(distance, _)| *distance <= TYPO_MAX);
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    match meant {
        Some((_, meant)) => Some(format!("nothing reads this key; {meant:?} was meant?")),
        None if domain == "istio.io" || domain.ends_with(".istio.io") => {
            Some("nothing reads this key of Istio's".to_owned())
        }
        None => None,
    }
}

/// Levenshtein distance; where the lengths differ more than matters, just that.
fn distance(a: &str, b: &str) -> usize {
    let apart = a.len().abs_diff(b.len());
    if apart > TYPO_MAX {
        return apart;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_without_a_meaning_are_told() {
        let said = |place, key: &str, value: &str| complaint(place, key, value).unwrap_or_default();
        let label = |key: &str, value: &str| said(Where::Label, key, value);
        assert_eq!(label("istio.io/dataplane-mode", "ambient"), "");
        assert!(label("istio.io/dataplane-mode", "Ambient").contains("ambient or none"));
        assert!(label("istio.io/dataplane-mod", "ambient").contains("istio.io/dataplane-mode"));
        assert!(label("istio.io/dataplaneMode", "ambient").contains("istio.io/dataplane-mode"));
        assert!(label("istio.io/whatever", "x").contains("nothing reads"));
        assert!(
            said(Where::Annotation, "istio.io/dataplane-mode", "ambient").contains("is a label")
        );
        assert!(label("istio-injection", "enabled").contains("no effect"));
        assert_eq!(label("istio-injection", "disabled"), "", "asks for nothing");
        assert_eq!(label("app", "web"), "");
        assert_eq!(label("example.org/team", "web"), "");
    }

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "abd"), 1);
        assert_eq!(distance("abc", "bc"), 1);
        assert_eq!(distance("abc", "acb"), 2);
    }
}
