//! The decisions of a client's agent, and what `why` says of them and of all that follows.

mod draw;
mod random;
mod waypoints;
