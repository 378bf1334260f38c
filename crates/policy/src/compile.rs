//! The policies of one workload, ready to decide.

use std::sync::Arc;

use karst_model::{name::PolicyKey, policy::Authorization};

use crate::{
    connection::Connection,
    decision::Decision,
    explain::{self, Explanation},
};

/// All policies that apply to one workload. Immutable: a change of policies compiles a new one.
#[derive(Debug)]
pub struct Compiled {
    /// Sorted by key, so that the outcome does not depend on the order in which they came.
    policies: Vec<Arc<Authorization>>,
    missing: Vec<PolicyKey>,
}

impl Compiled {
    /// Compiles the policies that [`crate::applies`] says yes to. `missing` are keys that the workload lists and that
    /// have not been received: they deny everything until they come.
    pub fn compile(
        policies: impl Iterator<Item = Arc<Authorization>>,
        missing: &[PolicyKey],
    ) -> Self {
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            policies,
            missing: missing.to_vec(),
        }
    }

    /// Whether the connection may go on. Does not allocate when it may.
    pub fn decide(&self, connection: &Connection) -> Decision {
        self.explain(connection).decision
    }

    /// The same decision, with what every policy says about it. Takes time and memory in proportion to the policies.
    pub fn explain(&self, connection: &Connection) -> Explanation {
        explain::explain(
            self.policies.iter().map(AsRef::as_ref),
            &self.missing,
            connection,
        )
    }

    /// How many policies apply.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}
