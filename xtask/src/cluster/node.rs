//! A node: namespaces of its own with a real containerd, kubelet and kube-proxy inside.
//!
//! ```text
//!   host                     node (mount, process, network and host-name namespaces)
//!   setsid nsenter unshare ──► pause (process 1: reaps; when it is killed, everything goes)
//!   setsid nsenter sh      ──► containerd, kubelet, kube-proxy, each started again when it ends
//!   target/cluster/0/n1/*  ──► /var/lib/{kubelet,containerd,cni}, /etc/cni/net.d, /opt/cni/bin, /var/log
//!                              /run, /sys/fs/bpf, /proc: its own, new at every boot
//! ```
//!
//! Killing process 1 is what pulling the plug is on a machine: no process says goodbye, what was in memory is gone, the
//! disk stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use super::{
    build, cgroup,
    daemon::{self, Daemons, Process},
    kubectl, network, pki,
    plan::{NodePlan, Plan},
};
use crate::shell;

/// How long containerd may take until it answers.
const CONTAINERD: Duration = Duration::from_secs(60);
/// How long a node may take from its start until Kubernetes calls it ready.
const READY: Duration = Duration::from_secs(120);
/// How long process 1 may take to be there.
const FIRST_PROCESS: Duration = Duration::from_secs(20);

/// The node's disk: folders below its own, and where they are seen inside.
const DISK: [(&str, &str); 6] = [
    ("cni-conf", "/etc/cni/net.d"),
    ("cni-bin", "/opt/cni/bin"),
    ("cni-state", "/var/lib/cni"),
    ("kubelet", "/var/lib/kubelet"),
    ("containerd", "/var/lib/containerd"),
    ("log", "/var/log"),
];

/// Where distributions put the standard CNI plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// What runs in a node besides process 1.
const SERVICES: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// A node and what is needed to work on it.
pub(crate) struct Node<'a> {
    cluster: &'a Plan,
    plan: NodePlan,
    daemons: &'a Daemons,
}

impl<'a> Node<'a> {
    pub(super) fn all(cluster: &'a Plan, daemons: &'a Daemons) -> Vec<Self> {
        let nodes = cluster.nodes().into_iter();
        nodes
            .map(|plan| Node {
                cluster,
                plan,
                daemons,
            })
            .collect()
    }

    /// Its name in Kubernetes.
    pub(super) fn name(&self) -> String {
        self.plan.name()
    }

    fn init_name(&self) -> String {
        format!("{}-init", self.name())
    }

    /// Process 1, as the host sees it, while the node runs.
    pub(super) fn init(&self) -> Option<Process> {
        self.daemons.find(&self.init_name())
    }

    /// Starts what does not run.
    pub(super) fn boot(&self) -> Result<()> {
        if self.init().is_none() {
            self.clear()?;
            self.install()?;
            network::node(self.cluster, &self.plan)?;
            cgroup::make(&self.plan)?;
            self.start_init()?;
            self.mount()?;
        }
        self.service("containerd", &self.containerd())?;
        self.wait_for_containerd()?;
        self.service("kubelet", &self.kubelet())?;
        self.service("kube-proxy", &self.kube_proxy())
    }

    /// Ends everything at once, and with it what a machine without power forgets.
    pub(super) fn kill(&self) -> Result<()> {
        if let Some(init) = self.init() {
            init.kill()?;
        }
        self.clear()
    }

    /// Removes what a node that does not run has left in the host's kernel.
    fn clear(&self) -> Result<()> {
        let name = self.name();
        for service in SERVICES {
            self.daemons.kill(&format!("{name}-{service}"))?;
        }
        self.daemons.kill(&self.init_name())?;
        self.daemons.kill(&format!("{name}-unshare"))?;
        cgroup::remove(&self.plan)?;
        network::remove_node(&self.plan)
    }

    /// Fills the node's disk; what is there stays, as the mesh's entry in the CNI chain must.
    fn install(&self) -> Result<()> {
        let disk = self.plan.disk();
        for (folder, seen) in DISK {
            fs::create_dir_all(disk.join(folder))?;
            mount_point(Path::new(seen))?;
        }
        fs::create_dir_all(disk.join("kubelet/static"))?;
        plugins(&disk.join("cni-bin"))?;
        let conflist = disk.join("cni-conf/10-ptp.conflist");
        if !conflist.exists() {
            fs::write(conflist, self.conflist()?)?;
        }
        fs::write(disk.join("containerd.toml"), CONTAINERD_CONFIG)?;
        fs::write(disk.join("kubelet.yaml"), self.kubelet_config())?;
        Ok(())
    }

    fn conflist(&self) -> Result<String> {
        let ranges = self.plan.pods().into_iter();
        let ranges: Vec<_> = ranges
            .map(|subnet| serde_json::json!([{ "subnet": subnet }]))
            .collect();
        let routes = self.plan.pods().into_iter().map(|pods| {
            let all = if pods.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            };
            serde_json::json!({ "dst": all })
        });
        let ipam = serde_json::json!({
            "type": "host-local",
            // In memory: a node that boots knows of no pod.
            "dataDir": "/run/cni-ipam",
            "ranges": ranges,
            "routes": routes.collect::<Vec<_>>(),
        });
        let list = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "cluster",
            "plugins": [
                { "type": "ptp", "ipMasq": false, "ipam": ipam },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        Ok(serde_json::to_string_pretty(&list)?)
    }

    fn kubelet_config(&self) -> String {
        KUBELET_CONFIG
            .replace(
                "@CA@",
                &pki::folder(self.cluster)
                    .join("ca.crt")
                    .display()
                    .to_string(),
            )
            .replace("@CGROUP@", &cgroup::pods(&self.plan))
            .replace("@DNS@", &self.cluster.dns().to_string())
    }

    /// Process 1 writes down its number as the host knows it: its own view begins with the next mount of /proc.
    fn start_init(&self) -> Result<()> {
        let number = self.daemons.log(&self.init_name()).with_extension("pid");
        let _ = fs::remove_file(&number);
        let script = r#"read -r pid rest </proc/self/stat && echo "$pid" >"$0.new" && mv "$0.new" "$0" &&
            hostname "$2" && exec "$1""#;
        let mut start = Command::new("nsenter");
        start
            .arg(format!("--net=/run/netns/{}", self.plan.host_name()))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork"])
            // Private first: where the host's mounts are shared, ours would appear there.
            .args(["--propagation", "private", "sh", "-c", script])
            .arg(&number)
            .arg(build::program("pause"))
            .arg(self.name());
        let starter = format!("{}-unshare", self.name());
        self.daemons.start(&starter, &start)?;
        let init = shell::wait_for("the node's process 1 is there", FIRST_PROCESS, || {
            let pid = fs::read_to_string(&number).ok()?;
            Process::of(pid.trim().parse().ok()?)
        });
        let init = init.with_context(|| self.daemons.said(&starter))?;
        self.daemons.remember(&self.init_name(), init)
    }

    /// Gives the node its own view: shared inside, since pods may ask for mounts to be propagated.
    fn mount(&self) -> Result<()> {
        let disk = self.plan.disk();
        let mut script = String::from(
            "set -e\n\
             mount --make-rshared /\n\
             mount -t proc proc /proc\n\
             mount -t tmpfs -o mode=755 run /run\n\
             mkdir -p /run/netns /run/lock /run/containerd\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             cat /proc/sys/kernel/random/uuid >/run/boot_id\n\
             mount --bind /run/boot_id /proc/sys/kernel/random/boot_id\n",
        );
        for (folder, seen) in DISK {
            // Not in one group with the host's tree, or what is mounted below would be seen there as well.
            let from = disk.join(folder);
            script += &format!("mount --bind '{}' {seen}\n", from.display());
            script += &format!("mount --make-private {seen}\nmount --make-shared {seen}\n");
        }
        let mut command = self.enter()?;
        command.args(["sh", "-c", &script]);
        shell::capture(&mut command).map(drop)
    }

    /// A command that runs what is added to it inside the node.
    pub(super) fn enter(&self) -> Result<Command> {
        let Some(init) = self.init() else {
            bail!(
                "node {} does not run: `cargo xtask cluster reboot {}` starts it",
                self.name(),
                self.name()
            );
        };
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &init.pid.to_string()])
            .args(["--mount", "--net", "--pid", "--uts", "--"])
            .args([
                "env",
                &format!("PATH={}", path()),
                "CONTAINERD_NAMESPACE=k8s.io",
            ]);
        Ok(command)
    }

    /// Runs a service in the node as systemd does: in a group of its own where `group` names one, and again when it ends.
    fn service(&self, name: &str, command: &Command) -> Result<()> {
        let mut start = self.enter()?;
        let group = match name {
            "kubelet" => cgroup::kubelet(&self.plan)?.join("cgroup.procs"),
            _ => PathBuf::from("/dev/null"),
        };
        let again =
            r#"echo 0 >"$0"; while :; do "$@"; echo "ended with $?: started again"; sleep 1; done"#;
        start
            .args(["sh", "-c", again])
            .arg(group)
            .arg(command.get_program())
            .args(command.get_args());
        self.daemons
            .start(&format!("{}-{name}", self.name()), &start)
    }

    fn containerd(&self) -> Command {
        let mut command = Command::new("containerd");
        command
            .arg("-c")
            .arg(self.plan.disk().join("containerd.toml"));
        command
    }

    fn wait_for_containerd(&self) -> Result<()> {
        let answers = || {
            let mut version = self.enter().ok()?;
            shell::succeeds(version.args(["ctr", "version"])).then_some(())
        };
        shell::wait_for("containerd answers", CONTAINERD, answers)
            .with_context(|| self.daemons.said(&format!("{}-containerd", self.name())))
    }

    fn kubelet(&self) -> Command {
        let mut command = Command::new("kubelet");
        command
            .arg("--kubeconfig")
            .arg(pki::kubeconfig(self.cluster, &self.name()))
            .arg("--config")
            .arg(self.plan.disk().join("kubelet.yaml"))
            .arg(format!("--hostname-override={}", self.name()))
            .arg(format!("--node-ip={}", self.plan.addresses().join(",")));
        command
    }

    fn kube_proxy(&self) -> Command {
        let mut command = Command::new("kube-proxy");
        command
            .arg("--kubeconfig")
            .arg(pki::kubeconfig(self.cluster, "proxy"))
            .arg("--proxy-mode=nftables")
            .arg(format!("--hostname-override={}", self.name()))
            .arg(format!("--cluster-cidr={}", self.cluster.pods().join(",")))
            // These are settings of the whole machine.
            .args([
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
            ])
            .arg("--conntrack-tcp-timeout-close-wait=0");
        command
    }

    /// Imports archives into the node's containerd, those that changed since the last time.
    pub(super) fn import(&self, archives: &[PathBuf]) -> Result<()> {
        let records = self.plan.disk().join("images");
        fs::create_dir_all(&records)?;
        for archive in archives {
            let name = archive.file_name().context("an archive has a name")?;
            let record = records.join(name);
            if modified(&record) > modified(archive) {
                continue;
            }
            let mut import = self.enter()?;
            import
                .args(["ctr", "images", "import", "--local"])
                .arg(archive);
            shell::capture(&mut import)?;
            fs::write(record, "")?;
        }
        Ok(())
    }

    /// Waits until Kubernetes calls this boot of the node ready, not the one before.
    pub(super) fn wait_until_ready(&self) -> Result<()> {
        let mut read = self.enter()?;
        let boot = shell::capture(read.args(["cat", "/run/boot_id"]))?;
        let name = self.name();
        let fields =
            "jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=='Ready')].status}";
        let wanted = format!("{} True", boot.trim());
        let ready = || {
            let mut get = kubectl(self.cluster);
            let said = shell::capture(get.args(["get", "node", &name, "-o", fields])).ok()?;
            (said == wanted).then_some(())
        };
        shell::wait_for(&format!("node {name} is ready"), READY, ready)
            .with_context(|| self.daemons.said(&format!("{name}-kubelet")))
    }
}

/// Where programs are found inside a node: the cluster's own first.
fn path() -> String {
    let bin = build::folder();
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        bin.display()
    )
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

/// Copies the standard plugins that are not there.
fn plugins(to: &Path) -> Result<()> {
    let from = PLUGINS
        .iter()
        .map(Path::new)
        .find(|folder| folder.join("ptp").is_file())
        .context("the CNI plugins are missing: `cargo xtask setup` installs them")?;
    for plugin in fs::read_dir(from)?.flatten() {
        let to = to.join(plugin.file_name());
        if !to.exists() {
            fs::copy(plugin.path(), to)?;
        }
    }
    Ok(())
}

/// Where the folders are noted that were made on the host to have something to mount on.
fn made_folders() -> PathBuf {
    shell::root().join("target/cluster/mount-points")
}

/// Makes a folder of the host, and notes which folders that took.
fn mount_point(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut made = fs::read_to_string(made_folders()).unwrap_or_default();
    for folder in &missing {
        made += &format!("{}\n", folder.display());
    }
    fs::write(made_folders(), made)?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Removes the folders that were made on the host, unless something else has put files there.
pub(super) fn remove_mount_points() {
    let made = fs::read_to_string(made_folders()).unwrap_or_default();
    let mut folders: Vec<&str> = made.lines().collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(folder.len()));
    for folder in folders {
        let _ = fs::remove_dir(folder);
    }
    let _ = fs::remove_file(made_folders());
}

/// The end of a service's log, for `status`.
pub(super) fn log_end(daemons: &Daemons, name: &str) -> String {
    daemon::last_lines(&daemons.log(name))
}

/// `restrict_oom_score_adj`: a container's own start must not need CAP_SYS_RESOURCE, which machines may lack.
const CONTAINERD_CONFIG: &str = r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "karst.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = false
"#;

const KUBELET_CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: @CA@}, webhook: {enabled: true}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: @CGROUP@
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [@DNS@]
staticPodPath: /var/lib/kubelet/static
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
localStorageCapacityIsolation: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%}
enforceNodeAllocatable: []
maxPods: 200
# How soon a pod sees a ConfigMap that was changed.
syncFrequency: 10s
registryPullQPS: 0
";
