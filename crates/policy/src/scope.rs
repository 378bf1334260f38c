//! Which policies apply to a workload. Label matching happened in the controller: a selector policy applies where the
//! workload lists its key.

use karst_model::{
    policy::{Authorization, PolicyScope},
    workload::Workload,
};

/// Whether a policy applies to connections whose destination is this workload.
pub fn applies(policy: &Authorization, workload: &Workload) -> bool {
    match policy.scope {
        PolicyScope::Global => true,
        PolicyScope::Namespace => policy.key.namespace == workload.namespace,
        PolicyScope::WorkloadSelector => workload.policies.contains(&policy.key),
    }
}

#[cfg(test)]
mod tests {
    use karst_model::policy::Action;

    use super::*;

    #[test]
    fn scope_decides_which_policies_apply() {
        let mut workload = Workload::new("orders");
        workload.namespace = "shop".into();
        workload.policies = vec!["istio-system/listed".parse().unwrap()];
        let policy = |key: &str, scope| Authorization {
            key: key.parse().unwrap(),
            scope,
            action: Action::Allow,
            dry_run: false,
            rules: vec![],
        };
        for (key, scope, expected) in [
            ("istio-system/any", PolicyScope::Global, true),
            ("shop/any", PolicyScope::Namespace, true),
            ("bank/any", PolicyScope::Namespace, false),
            ("shop/unlisted", PolicyScope::WorkloadSelector, false),
            ("istio-system/listed", PolicyScope::WorkloadSelector, true),
        ] {
            assert_eq!(
                applies(&policy(key, scope), &workload),
                expected,
                "{key} {scope:?}"
            );
        }
    }
}
