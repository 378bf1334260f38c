//! The index itself.

use crate::{config::IndexConfig, delta::Delta, event::Event};

/// Turns events into changes of the model.
#[derive(Debug)]
pub struct Index {
    config: IndexConfig,
}

/// How much the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    pub node_workloads: usize,
}

impl Index {
    pub fn new(config: IndexConfig) -> Self {
        Self { config }
    }

    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// Takes one event; returns what it changes.
    pub fn handle(&mut self, event: Event) -> Delta {
        self.handle_all([event])
    }

    /// Takes many events at once; returns what they change together.
    pub fn handle_all(&mut self, _events: impl IntoIterator<Item = Event>) -> Delta {
        Delta::default()
    }

    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
