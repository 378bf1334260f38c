//! The only entrance: set up, check, test, demo, bench.

fn main() {}
