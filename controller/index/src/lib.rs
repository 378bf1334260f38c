//! Pure index from Kubernetes objects to the model.

mod conditions;
mod config;
mod delta;
mod event;
mod index;

pub use conditions::{Condition, ConditionType, ObjectConditions};
pub use config::IndexConfig;
pub use delta::{Changes, Delta, ExternalName, NodeChange};
pub use event::Event;
pub use index::{Index, Stats};
