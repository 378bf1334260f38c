//! Single values of DestinationRules: what is out of range is left at its default, and named.

use std::{sync::Arc, time::Duration};

use karst_k8s_api::istio::duration::Duration as Text;

/// Longest span that a rule may name: beyond a day a timeout is a mistake.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What is wrong with a value, at its place below `spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleFault {
    /// `trafficPolicy.outlierDetection.interval`.
    pub(crate) field: String,
    /// What is wrong, and what holds instead.
    pub(crate) message: String,
}

/// Collects what is wrong below one field.
pub(super) struct Place<'a> {
    pub(super) path: String,
    pub(super) faults: &'a mut Vec<RuleFault>,
}

impl Place<'_> {
    pub(super) fn below(&mut self, field: &str) -> Place<'_> {
        Place {
            path: format!("{}.{field}", self.path),
            faults: self.faults,
        }
    }

    pub(super) fn fault(&mut self, field: &str, message: impl Into<String>) {
        let field = match field.is_empty() {
            true => self.path.clone(),
            false => format!("{}.{field}", self.path),
        };
        self.faults.push(RuleFault {
            field,
            message: message.into(),
        });
    }

    /// A span of at least one millisecond and at most a day.
    pub(super) fn duration(&mut self, field: &str, text: Option<&Text>) -> Option<Duration> {
        self.duration_from(field, text, Duration::from_millis(1))
    }

    /// The same, from `least` on.
    pub(super) fn duration_from(
        &mut self,
        field: &str,
        text: Option<&Text>,
        least: Duration,
    ) -> Option<Duration> {
        let text = text?;
        let span = text.read().filter(|span| (least..=LONGEST).contains(span));
        if span.is_none() {
            let message = format!(
                "{:?} is out of range: expected {least:?} to 24h; it holds as if left out",
                text.0
            );
            self.fault(field, message);
        }
        span
    }

    /// A number that may not be negative; 0 stands for no limit.
    pub(super) fn limit(&mut self, field: &str, value: Option<i32>) -> Option<u32> {
        let value = value?;
        let limit = u32::try_from(value);
        if limit.is_err() {
            self.fault(field, format!("{value} is negative: there is no limit"));
        }
        limit.ok().filter(|limit| *limit != 0)
    }

    /// Whole percent.
    pub(super) fn percent(&mut self, field: &str, value: Option<i32>) -> Option<u32> {
        let value = value?;
        let percent = u32::try_from(value).ok().filter(|percent| *percent <= 100);
        if percent.is_none() {
            self.fault(
                field,
                format!("{value} is no percentage from 0 to 100; it holds as if left out"),
            );
        }
        percent
    }

    /// A share in percent, as its exact value times `unit`.
    pub(super) fn share(&mut self, field: &str, value: Option<f64>, unit: f64) -> Option<u32> {
        let value = value?;
        if (0.0..=100.0).contains(&value) {
            return Some((value * unit).round() as u32);
        }
        self.fault(
            field,
            format!("{value} is no percentage from 0 to 100; it holds as if left out"),
        );
        None
    }
}

pub(super) fn text(value: Option<&String>) -> Option<Arc<str>> {
    value
        .filter(|value| !value.is_empty())
        .map(|value| value.as_str().into())
}
