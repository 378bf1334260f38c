//! The controller against an API server that fails as a script says: lists and watches that break off, versions that are
//! too old, too many requests, objects that cannot be read; controllers that die between two writes; two leaders; Secrets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod leaders;
mod secrets;
mod server;
mod store;
mod watches;
