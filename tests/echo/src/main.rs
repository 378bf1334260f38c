//! Server and client that tests and examples run.

fn main() {}
