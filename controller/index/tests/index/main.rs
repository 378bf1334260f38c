//! The index from outside: objects as YAML in, the model out.

mod enrolment;
mod entries;
mod order;
mod policies;
mod services;
mod world;
