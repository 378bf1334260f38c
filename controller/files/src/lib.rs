//! A directory of Kubernetes YAML as objects and events: pure parsing, errors with file, line and field.
//!
//! ```text
//!   text ──documents──► one document ──tree──► values with positions ──read──► Object + Problems
//!   (a file)            (split at ---)         (YAML or JSON)                        │
//!   Directory (last good state of every object) ◄───────────────────────────────────┘ ──► Events
//! ```
//!
//! One broken document harms only itself: every other object of the file goes on, and the broken one stays as it was
//! last good. The caller brings the files' contents ([`read_dir`]) and is told what changed.

mod directory;
mod documents;
mod problem;
mod read;
mod requirements;
mod tree;

pub use directory::{Directory, Event, FileContent, ReadDirError, read_dir};
pub use problem::{Problem, Severity};
pub use read::{Complaint, check, parse};

/// Longest file that is read, in bytes. A single object of Kubernetes never passes 1.5 MiB.
pub const MAX_FILE_BYTES: usize = 8 << 20;

/// Most files of a directory that are read; further ones are reported and left out.
pub const MAX_FILES: usize = 20_000;
