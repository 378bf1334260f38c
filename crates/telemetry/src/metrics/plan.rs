//! What the Telemetry API changes of Istio's metrics: metrics that are off, labels that go, labels that come.

use std::sync::Arc;

use karst_model::telemetry::Metric;
use serde_json::{Map, Value as Json};

use super::text::{foreign_label, is_label_name, label};
use crate::expression::Expression;

/// Most labels that one metric may get beyond Istio's.
const ADDED_MAX: usize = 16;

/// What is known of a connection or request, for expressions; made only where one is evaluated.
pub type Attributes<'a> = &'a dyn Fn() -> Map<String, Json>;

/// The changes that hold for a scope.
#[derive(Debug, Default, PartialEq)]
pub struct MetricPlan {
    changes: Vec<(Metric, Arc<Changes>)>,
}

/// The changes of one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub disabled: bool,
    labels: Vec<(Arc<str>, Change)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Remove,
    Set(Arc<Expression>),
}

impl Changes {
    /// The metric is not counted.
    pub fn off() -> Self {
        Self {
            disabled: true,
            labels: Vec::new(),
        }
    }

    /// Drops a label; a later change of the same label wins.
    pub fn remove(&mut self, name: &Arc<str>) {
        self.change(name, Change::Remove);
    }

    /// Sets a label; whether its name may be one, and there is room.
    pub fn set(&mut self, name: &Arc<str>, value: Arc<Expression>) -> bool {
        if !is_label_name(name) || self.labels.len() >= ADDED_MAX {
            return false;
        }
        self.change(name, Change::Set(value));
        true
    }

    fn change(&mut self, name: &Arc<str>, to: Change) {
        self.labels.retain(|(other, _)| other != name);
        self.labels.push((name.clone(), to));
    }

    fn of(&self, name: &str) -> Option<&Change> {
        let mut found = self.labels.iter().filter(|(other, _)| **other == *name);
        found.next().map(|(_, change)| change)
    }
}

impl MetricPlan {
    /// Plans for the metrics that differ from Istio's own.
    pub fn new(changes: Vec<(Metric, Changes)>) -> Self {
        let mut shared: Vec<(Metric, Arc<Changes>)> = Vec::new();
        for (metric, changes) in changes {
            if changes == Changes::default() {
                continue;
            }
            let same = shared.iter().find(|(_, other)| **other == changes);
            let changes = same.map_or_else(|| Arc::new(changes.clone()), |(_, same)| same.clone());
            shared.push((metric, changes));
        }
        Self { changes: shared }
    }

    /// Whether a label depends on what a connection or request is like.
    pub fn is_fixed(&self) -> bool {
        self.changes.iter().all(|(_, changes)| {
            let mut labels = changes.labels.iter();
            labels.all(|(_, change)| *change == Change::Remove)
        })
    }

    /// All expressions of labels.
    pub fn expressions(&self) -> impl Iterator<Item = &Arc<Expression>> {
        let labels = self.changes.iter().flat_map(|(_, changes)| &changes.labels);
        labels.filter_map(|(_, change)| match change {
            Change::Set(expression) => Some(expression),
            Change::Remove => None,
        })
    }

    fn of(&self, metric: Metric) -> Option<&Arc<Changes>> {
        let mut found = self.changes.iter().filter(|(other, _)| *other == metric);
        found.next().map(|(_, changes)| changes)
    }

    /// The metrics, given with their bits, by the changes that hold for them; those that are off are left out.
    pub(super) fn groups(&self, metrics: &[(Metric, u32)]) -> Vec<(u32, Option<Arc<Changes>>)> {
        let mut groups: Vec<(u32, Option<Arc<Changes>>)> = Vec::new();
        for (metric, bit) in metrics {
            let changes = self.of(*metric);
            if changes.is_some_and(|changes| changes.disabled) {
                continue;
            }
            match groups.iter_mut().find(|(_, of)| of.as_ref() == changes) {
                Some((bits, _)) => *bits |= bit,
                None => groups.push((*bit, changes.cloned())),
            }
        }
        groups
    }
}

/// The text of a label set, in Istio's order; what is added comes last.
pub(super) fn label_text(
    base: &[(&str, &str)],
    changes: Option<&Changes>,
    attributes: Attributes<'_>,
) -> String {
    let mut out = String::with_capacity(1024);
    let Some(changes) = changes else {
        base.iter()
            .for_each(|(name, value)| label(&mut out, name, value));
        return out;
    };
    let mut known: Option<Map<String, Json>> = None;
    let mut value = |expression: &Expression| {
        let known = known.get_or_insert_with(attributes);
        expression.text_of(known).unwrap_or_default()
    };
    for (name, own) in base {
        match changes.of(name) {
            None => label(&mut out, name, own),
            Some(Change::Remove) => {}
            Some(Change::Set(expression)) => foreign_label(&mut out, name, &value(expression)),
        }
    }
    for (name, change) in &changes.labels {
        let is_new = base.iter().all(|(other, _)| **other != **name);
        if let (true, Change::Set(expression)) = (is_new, change) {
            foreign_label(&mut out, name, &value(expression));
        }
    }
    out
}

/// The same without names: whose row takes the counts of others.
pub(super) fn folded_text(base: &[(&str, &str)], changes: Option<&Changes>) -> String {
    let mut out = String::with_capacity(1024);
    for (name, own) in base {
        match changes.and_then(|changes| changes.of(name)) {
            None => label(&mut out, name, own),
            Some(Change::Remove) => {}
            Some(Change::Set(_)) => label(&mut out, name, ""),
        }
    }
    for (name, change) in changes.iter().flat_map(|changes| &changes.labels) {
        let is_new = base.iter().all(|(other, _)| **other != **name);
        if is_new && matches!(change, Change::Set(_)) {
            label(&mut out, name, "");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BASE: [(&str, &str); 3] = [("a", "1"), ("b", ""), ("c", "3")];

    fn attributes() -> Map<String, Json> {
        let all = json!({"request": {"host": "shop"}});
        all.as_object().unwrap().clone()
    }

    fn set(changes: &mut Changes, name: &str, text: &str) -> bool {
        changes.set(&name.into(), Arc::new(Expression::compile(text).unwrap()))
    }

    #[test]
    fn labels_go_and_come() {
        let mut changes = Changes::default();
        changes.remove(&"a".into());
        assert!(set(&mut changes, "c", "'three'"));
        assert!(set(&mut changes, "host", "request.host"));
        assert!(set(&mut changes, "lost", "request.nothing"));
        assert!(!set(&mut changes, "no-name", "'x'"));
        assert_eq!(
            label_text(&BASE, Some(&changes), &attributes),
            "b=\"unknown\",c=\"three\",host=\"shop\",lost=\"unknown\""
        );
        assert_eq!(
            folded_text(&BASE, Some(&changes)),
            "b=\"unknown\",c=\"unknown\",host=\"unknown\",lost=\"unknown\""
        );
    }

    #[test]
    fn metrics_with_the_same_changes_share_a_row() {
        let mut dropped = Changes::default();
        dropped.remove(&"a".into());
        let off = Changes {
            disabled: true,
            ..Changes::default()
        };
        let plan = MetricPlan::new(vec![
            (Metric::RequestCount, dropped.clone()),
            (Metric::RequestSize, dropped),
            (Metric::ResponseSize, off),
            (Metric::RequestDuration, Changes::default()),
        ]);
        let metrics = [
            (Metric::RequestCount, 1),
            (Metric::RequestDuration, 2),
            (Metric::RequestSize, 4),
            (Metric::ResponseSize, 8),
        ];
        let groups = plan.groups(&metrics);
        let bits: Vec<u32> = groups.iter().map(|(bits, _)| *bits).collect();
        assert_eq!(bits, [5, 2]);
        assert!(plan.is_fixed());
    }
}
