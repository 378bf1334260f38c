//! The harness of the node rung: a lab of the shipped binaries, driven through `karst lab` as a user would.
//!
//! ```text
//!   test ──► Lab::up(fixture) ──► karst lab up ──► controller, agents, pods
//!        ──► exec, edit, apply, status, agent pages, capture ──► what a user and an observer on the wire see
//!        ──► drop ──► karst lab down
//! ```
//!
//! Nothing here reaches into the product: what a test knows it has read from a command or from the wire.

pub mod capture;
pub mod lab;
pub mod load;
pub mod recording;
pub mod script;
pub mod wait;

pub use capture::Capture;
pub use lab::{Lab, Ran};
pub use load::Load;
pub use recording::Recording;
pub use script::Script;
pub use wait::{eventually, until};
