//! The control plane, on the host's network: etcd, API server, controller manager, scheduler.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{build, daemon::Daemons, pki, plan::Plan};
use crate::shell;

/// How long the API server may take until it is ready, on a loaded machine.
const READY: Duration = Duration::from_secs(120);

/// The processes, in the order of their start.
pub(super) const PROCESSES: [&str; 4] = ["etcd", "apiserver", "controller-manager", "scheduler"];

/// What the API server notes of each request: who asked for what, and what became of it.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - level: Metadata
    userGroups: [\"system:serviceaccounts:karst-system\"]
  - level: None
";

/// Starts what does not run and waits until the API server is ready.
pub(super) fn start(plan: &Plan, daemons: &Daemons) -> Result<()> {
    daemons.start("etcd", &etcd(plan))?;
    let policy = pki::folder(plan).join("audit.yaml");
    fs::write(&policy, AUDIT).with_context(|| format!("writing {}", policy.display()))?;
    daemons.start("apiserver", &apiserver(plan))?;
    let ready = || is_ready(plan).then_some(());
    shell::wait_for("the API server is ready", READY, ready)
        .with_context(|| format!("{}\n{}", daemons.said("apiserver"), daemons.said("etcd")))?;
    daemons.start("controller-manager", &controller_manager(plan))?;
    daemons.start("scheduler", &scheduler(plan))
}

/// Whether the API server answers and says that it is ready.
pub(super) fn is_ready(plan: &Plan) -> bool {
    shell::succeeds(super::kubectl(plan).args(["--request-timeout=2s", "get", "--raw", "/readyz"]))
}

fn etcd(plan: &Plan) -> Command {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(plan.etcd_port()), url(plan.etcd_port() + 1));
    let mut command = Command::new(build::program("etcd"));
    command
        .arg("--data-dir")
        .arg(plan.state().join("etcd"))
        // The cluster does not outlive the machine.
        .args(["--unsafe-no-fsync", "--log-level=warn"])
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .arg(format!("--initial-cluster=default={peer}"));
    command
}

fn apiserver(plan: &Plan) -> Command {
    let mut command = Command::new(build::program("kube-apiserver"));
    command
        .current_dir(pki::folder(plan))
        .arg(format!(
            "--etcd-servers=http://127.0.0.1:{}",
            plan.etcd_port()
        ))
        .arg(format!("--advertise-address={}", plan.host()))
        .arg(format!("--bind-address={}", plan.host()))
        .arg("--secure-port=6443")
        .arg(format!(
            "--service-cluster-ip-range={}",
            plan.services().join(",")
        ))
        .args(["--tls-cert-file=api.crt", "--tls-private-key-file=api.key"])
        .args(["--client-ca-file=ca.crt", "--token-auth-file=tokens.csv"])
        .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
        .args(["--enable-admission-plugins=NodeRestriction"])
        .args([
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
        ])
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--api-audiences=https://kubernetes.default.svc,istio-ca")
        // Webhooks are called at their pods' addresses: the host has no kube-proxy of its own.
        .arg("--enable-aggregator-routing=true")
        .arg("--kubelet-preferred-address-types=InternalIP")
        // What Karst asks for, for the test of its rights.
        .args(["--audit-policy-file=audit.yaml", "--audit-log-maxsize=500"])
        .arg("--audit-log-path")
        .arg(plan.state().join("log/audit.log"))
        .args([
            "--kubelet-client-certificate=api.crt",
            "--kubelet-client-key=api.key",
        ]);
    command
}

fn controller_manager(plan: &Plan) -> Command {
    let mut command = Command::new(build::program("kube-controller-manager"));
    command
        .current_dir(pki::folder(plan))
        .arg("--kubeconfig")
        .arg(pki::kubeconfig(plan, "controller-manager"))
        .args(["--use-service-account-credentials", "--leader-elect=false"])
        .arg(format!("--bind-address={}", plan.host()))
        .args([
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=ca.crt",
        ])
        .args([
            "--cluster-signing-cert-file=ca.crt",
            "--cluster-signing-key-file=ca.key",
        ])
        // A node that was killed is noticed soon, so that tests need not wait for 40 s.
        .args([
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
        ]);
    command
}

fn scheduler(plan: &Plan) -> Command {
    let mut command = Command::new(build::program("kube-scheduler"));
    command
        .current_dir(pki::folder(plan))
        .arg("--kubeconfig")
        .arg(pki::kubeconfig(plan, "scheduler"))
        .arg("--leader-elect=false")
        .arg(format!("--bind-address={}", plan.host()));
    command
}
