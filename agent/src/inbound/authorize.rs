//! Asks `karst-policy` about a connection, with policies compiled once per workload and again when they change.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use karst_discovery::State;
use karst_model::{name::WorkloadUid, workload::Workload};
use karst_policy::{Compiled, Connection, DryRun, DryRunAllow};
use karst_telemetry::observed::{self, WouldDo};

/// Compiled policies of the workloads on this node. Bounded by their number.
pub(crate) struct Authorizer {
    state: Arc<State>,
    compiled: RwLock<HashMap<WorkloadUid, Arc<Compiled>>>,
}

/// Why a connection is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    New,
    /// Policies have changed. What policies in dry run say was told when the connection came.
    Again,
}

impl Authorizer {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            compiled: RwLock::default(),
        }
    }

    /// Decides a connection to `destination`; Err holds the reason in words.
    pub(crate) fn check(
        &self,
        destination: &WorkloadUid,
        connection: &Connection,
        occasion: Occasion,
    ) -> Result<(), String> {
        let Some(workload) = self.state.workload(destination) else {
            return Err(format!(
                "denied: workload {destination} is not known to this node's agent, so its policies are not either"
            ));
        };
        let compiled = self.compiled(&workload);
        let decision = compiled.decide(connection);
        if occasion == Occasion::New {
            tell_dry_run(&decision.dry_run);
        }
        if decision.is_allowed() {
            Ok(())
        } else {
            let explained = compiled.explain(connection).to_string();
            // One line, as the access log has one for each connection.
            Err(explained.lines().collect::<Vec<_>>().join("; "))
        }
    }

    /// Forgets what was compiled for one workload, or for all: its policies changed.
    pub(crate) fn forget(&self, workload: Option<&WorkloadUid>) {
        let mut compiled = self
            .compiled
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match workload {
            Some(uid) => drop(compiled.remove(uid)),
            None => compiled.clear(),
        }
    }

    fn compiled(&self, workload: &Workload) -> Arc<Compiled> {
        let cached = self
            .compiled
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&workload.uid)
            .cloned();
        cached.unwrap_or_else(|| {
            let applies = self.state.policies_for(workload);
            let fresh = Arc::new(Compiled::compile(
                applies.policies.into_iter(),
                &applies.missing,
            ));
            self.compiled
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(workload.uid.clone(), fresh.clone());
            fresh
        })
    }
}

/// Counts and logs what policies in dry run would have done.
fn tell_dry_run(dry_run: &DryRun) {
    if let Some(rule) = &dry_run.deny {
        observed::dry_run(&rule.policy.to_string(), WouldDo::Deny);
    }
    match &dry_run.allow {
        DryRunAllow::Silent => {}
        DryRunAllow::Matches(rule) => {
            observed::dry_run(&rule.policy.to_string(), WouldDo::Allow);
        }
        DryRunAllow::WouldDeny => observed::dry_run("*", WouldDo::Deny),
    }
}
