//! A place inside an object that is being checked: its value, its path, and where findings go.

use std::net::IpAddr;

use serde_json::Value;

use crate::{problem::Severity, read::Finding, tree::Step};

/// A value inside an object, its path, and where findings go. A field that is not there is null.
pub(super) struct Place<'a> {
    pub(super) value: &'a Value,
    pub(super) path: Vec<Step>,
    pub(super) findings: &'a mut Vec<Finding>,
}

impl Place<'_> {
    pub(super) fn field(&mut self, name: &str) -> Place<'_> {
        let mut path = self.path.clone();
        path.push(Step::Key(name.to_owned()));
        Place {
            value: self.value.get(name).unwrap_or(&Value::Null),
            path,
            findings: self.findings,
        }
    }

    pub(super) fn each(&mut self, name: &str, mut visit: impl FnMut(&mut Place<'_>)) {
        let list = self.field(name);
        for (index, value) in list.value.as_array().into_iter().flatten().enumerate() {
            let mut path = list.path.clone();
            path.push(Step::Index(index));
            visit(&mut Place {
                value,
                path,
                findings: list.findings,
            });
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.value.get(name).is_some()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value.get(name).and_then(Value::as_str)
    }

    /// The field is there and not empty.
    pub(super) fn require(&mut self, name: &str, expected: &str) {
        let empty = match self.value.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if empty {
            self.field(name)
                .report(format!("missing field `{name}`, expected {expected}"));
        }
    }

    /// The field is a port number.
    pub(super) fn port(&mut self, name: &str) {
        let message = match self.value.get(name) {
            None => format!("missing field `{name}`, expected a port from 1 to 65535"),
            Some(Value::Number(number))
                if !number.as_u64().is_some_and(|n| (1..=65535).contains(&n)) =>
            {
                format!("{number}, expected a port from 1 to 65535")
            }
            Some(_) => return,
        };
        self.field(name).report(message);
    }

    /// The field, if there is one, is an IP address.
    pub(super) fn address(&mut self, name: &str) {
        if self.has(name) {
            self.field(name).is_address();
        }
    }

    /// This value is an IP address.
    pub(super) fn is_address(&mut self) {
        if let Value::String(text) = self.value
            && text.parse::<IpAddr>().is_err()
        {
            self.report(format!("{text:?}, expected an IP address"));
        }
    }

    pub(super) fn report(&mut self, message: String) {
        self.find(Severity::Error, message);
    }

    pub(super) fn warn(&mut self, message: String) {
        self.find(Severity::Warning, message);
    }

    fn find(&mut self, severity: Severity, message: String) {
        self.findings.push(Finding {
            severity,
            path: self.path.clone(),
            message,
        });
    }

    /// Every text of a list.
    pub(super) fn texts(&mut self, name: &str, mut visit: impl FnMut(&mut Place<'_>, &str)) {
        self.each(name, |item| {
            if let Value::String(text) = item.value {
                visit(item, text);
            }
        });
    }

    /// Every value of a map.
    pub(super) fn entries(&mut self, name: &str, mut visit: impl FnMut(&mut Place<'_>, &str)) {
        let map = self.field(name);
        for (key, value) in map.value.as_object().into_iter().flatten() {
            let mut path = map.path.clone();
            path.push(Step::Key(key.clone()));
            let mut place = Place {
                value,
                path,
                findings: map.findings,
            };
            visit(&mut place, key);
        }
    }

    /// Whether the field is there and says something: an empty list or text says nothing.
    pub(super) fn says(&self, name: &str) -> bool {
        match self.value.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }
}
