//! Karst installed by Helm: the API server takes what the chart renders, `helm upgrade` fails nobody, and `helm uninstall`
//! leaves the pods running.

use karst_test_cluster::{Cluster, Pair, cluster::run};

const CHART: [&str; 4] = ["karst", "manifests/chart", "-n", "karst-system"];

/// Karst by Helm; by `karst install`, as the other tests want it, when dropped.
struct ByHelm<'a>(&'a Cluster);

impl<'a> ByHelm<'a> {
    fn install(cluster: &'a Cluster) -> Self {
        let this = Self(cluster);
        run(cluster.karst().args(["uninstall", "--purge"]));
        run(cluster.helm().arg("install").args(CHART).args([
            "--create-namespace",
            "--wait",
            "--timeout",
            "3m",
        ]));
        this
    }

    /// Changes what every program's pods are made of, so that each is replaced, and waits for it.
    fn upgrade(&self) {
        let cluster = self.0;
        run(cluster.helm().arg("upgrade").args(CHART).args([
            "--set",
            "agent.podAnnotations.upgraded=yes",
            "--set",
            "controller.podAnnotations.upgraded=yes",
            "--wait",
            "--timeout",
            "5m",
        ]));
        for program in ["deployment/karst-controller", "daemonset/karst-agent"] {
            let rollout = ["-n", "karst-system", "rollout", "status", program];
            run(cluster.kubectl().args(rollout));
        }
        for label in ["karst-agent", "karst-controller"] {
            let label = format!("app.kubernetes.io/name={label}");
            let pods = cluster.object(&["pods", "-n", "karst-system", "-l", &label]);
            let pods = pods["items"].as_array().expect("a list");
            let upgraded = pods
                .iter()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .all(|pod| pod["metadata"]["annotations"]["upgraded"] == "yes");
            assert!(upgraded && !pods.is_empty(), "{label} was not replaced");
        }
    }
}

impl Drop for ByHelm<'_> {
    fn drop(&mut self) {
        let helm = ["uninstall", "karst", "-n", "karst-system", "--wait"];
        let _ = self.0.helm().args(helm).output();
        for words in [&["uninstall", "--purge"][..], &["install"]] {
            let said = self.0.karst().args(words).output();
            let done = said.as_ref().is_ok_and(|said| said.status.success());
            assert!(done || std::thread::panicking(), "{said:?}");
        }
    }
}

#[test]
fn the_api_server_takes_what_helm_renders() {
    let cluster = Cluster::get();
    run(cluster.helm().args(["lint", "--strict", "manifests/chart"]));
    let mut template = cluster.helm();
    template
        .arg("template")
        .args(CHART)
        .args(["--set", "telemetry.dashboards.enabled=true"]);
    let rendered = run(&mut template).stdout;
    let rendered = String::from_utf8(rendered).expect("text");
    let refused = cluster.dry_run(&rendered);
    assert_eq!(refused, "", "what the API server does not take");
}

#[test]
fn an_upgrade_by_helm_fails_no_connection() {
    let cluster = Cluster::get();
    let helm = ByHelm::install(cluster);
    let pair = Pair::open("by-helm");
    let before = cluster.lives(pair.namespace.name());
    let load = pair.load(200);
    helm.upgrade();
    let report = load.stop(cluster);
    println!("helm upgrade: {report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert!(!pair.reaches("stranger"), "the policy does not hold");
    pair.expect_changes();
    let after = cluster.lives(pair.namespace.name());
    assert!(
        before.iter().all(|pod| after.contains(pod)),
        "pods restarted: {after:?}"
    );
}
