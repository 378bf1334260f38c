//! What is wrong with a file, so that its author finds the place and knows what was expected.

use std::{fmt, path::PathBuf};

use karst_k8s_api::ObjectKey;

/// One thing that is wrong in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub file: PathBuf,
    /// From 1; 0 where the whole file is meant.
    pub line: u64,
    /// From 1, in characters; 0 where the whole line or file is meant.
    pub column: u64,
    /// The object that the place belongs to, as far as it could be told.
    pub object: Option<ObjectKey>,
    /// Path inside the object, for example `spec.ports[0].targetPort`; empty for the object itself.
    pub field: String,
    /// What is wrong, and what was expected instead.
    pub message: String,
}

/// Whether the object is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The object is used, without what is named.
    Warning,
    /// This version of the object is not used; its last good one stays.
    Error,
}

impl fmt::Display for Problem {
    /// `<file>:<line>:<column>: error: <object>: <field>: <message>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        for number in [self.line, self.column] {
            if number > 0 {
                write!(f, ":{number}")?;
            }
        }
        f.write_str(match self.severity {
            Severity::Warning => ": warning: ",
            Severity::Error => ": error: ",
        })?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
