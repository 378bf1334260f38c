//! Inputs for the benches, shared with the examples that print the figures of `goals.md`.

pub mod mixes;
