//! `--node-check` and `--dial`: what a node says of itself to `karst check`, which runs both in a pod on each node.
//!
//! Findings go to standard output, one JSON object a line, in the words that `karst check` prints. Nothing is changed.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use karst_ebpf_loader::{others, probe};
use serde_json::{Value, json};

use crate::{config::Config, plugin::layout::Places};

/// Port of HBONE: what must get through between nodes.
const PORT: u16 = 15008;
/// Sent and wanted back: many packets of full size both ways.
const PAYLOAD: usize = 64 * 1024;
/// Longest wait for each step of a dial.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at the node, then answers dials.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    // Bound first: whoever reads the findings may dial at once.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .or_else(|_no_v6| TcpListener::bind(("0.0.0.0", PORT)))
        .with_context(|| format!("cannot listen on port {PORT}"))?;
    kernel();
    mounts(config);
    chain(config);
    neighbours();
    say("done", Verdict::Fine, String::new(), "");
    for stream in listener.incoming() {
        // A dial that breaks off is its dialler's to tell.
        let _broken_off = stream.and_then(answer);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Verdict {
    Fine,
    Warning,
    Failure,
}

#[expect(clippy::print_stdout, reason = "the flag asks for it")]
fn say(check: &str, verdict: Verdict, message: String, fix: &str) {
    let verdict = match verdict {
        Verdict::Fine => "fine",
        Verdict::Warning => "warning",
        Verdict::Failure => "failure",
    };
    let finding: Value =
        json!({"check": check, "verdict": verdict, "message": message, "fix": fix});
    println!("{finding}");
}

/// Every kernel feature, tried.
fn kernel() {
    let features = probe::self_test();
    let failed: Vec<String> = features
        .iter()
        .filter_map(|feature| {
            Some(format!(
                "{}: {}",
                feature.name,
                feature.result.as_ref().err()?
            ))
        })
        .collect();
    match failed.is_empty() {
        true => say(
            "kernel-features",
            Verdict::Fine,
            format!("{} tried and working", features.len()),
            "",
        ),
        false => say(
            "kernel-features",
            Verdict::Failure,
            failed.join("; "),
            "a kernel with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, 5.15 or newer; and agents with the privileges of the chart",
        ),
    }
}

/// The file systems that the agent stands on.
fn mounts(config: &Config) {
    match karst_netns::cgroup2_root() {
        Ok(root) => say(
            "cgroup-v2",
            Verdict::Fine,
            format!("mounted at {}", root.display()),
            "",
        ),
        Err(error) => say(
            "cgroup-v2",
            Verdict::Failure,
            format!("no cgroup v2 hierarchy is mounted: {error}"),
            "boot the node with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup/unified",
        ),
    }
    let bpf = config
        .pin_dir
        .parent()
        .unwrap_or_else(|| Path::new("/sys/fs/bpf"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match is_bpffs(&mounts, bpf) {
        true => say(
            "bpffs",
            Verdict::Fine,
            format!("mounted at {}", bpf.display()),
            "",
        ),
        false => say(
            "bpffs",
            Verdict::Failure,
            format!(
                "{} is no bpf file system: programs would end with the agent",
                bpf.display()
            ),
            "mount it on the node at boot: `bpf /sys/fs/bpf bpf defaults 0 0` in /etc/fstab",
        ),
    }
}

/// Whether the last mount at `path` is of type bpf. In `mountinfo` the mount point is the fifth field, the type follows
/// a lone dash.
fn is_bpffs(mountinfo: &str, path: &Path) -> bool {
    let mut here = mountinfo
        .lines()
        .filter(|line| line.split(' ').nth(4).map(Path::new) == Some(path));
    let kind = |line: &str| Some(line.split_once(" - ")?.1.split(' ').next()? == "bpf");
    here.next_back().and_then(kind).unwrap_or(false)
}

/// The CNI chain: found, writable, ours in it once installed.
fn chain(config: &Config) {
    let places = Places {
        host_root: config.host_root.clone(),
        conf_dir: config.cni_conf_dir.clone(),
        bin_dir: config.cni_bin_dir.clone(),
    };
    let layout = match places.find() {
        Ok(layout) => layout,
        Err(error) => {
            return say(
                "cni",
                Verdict::Failure,
                karst_telemetry::error_chain::Chain(&error).to_string(),
                "values agent.cni.confDir and agent.cni.binDir: where this node's container runtime reads them",
            );
        }
    };
    let dirs = [
        layout.conf_file.parent().unwrap_or_else(|| Path::new("/")),
        &layout.bin_dir,
    ];
    for dir in dirs {
        if let Err(error) = writable(dir) {
            return say(
                "cni",
                Verdict::Failure,
                format!("{} cannot be written: {error}", dir.display()),
                "mount the directory read-write on the node, or name another by agent.cni.confDir and agent.cni.binDir",
            );
        }
    }
    let text = fs::read_to_string(&layout.conf_file).unwrap_or_default();
    let names = plugins(&text);
    let file = layout.conf_file.display();
    let message = format!("{file}: {}", names.join(", "));
    match names.last().is_some_and(|name| name == "karst-cni") {
        true => say("cni", Verdict::Fine, message, ""),
        false if names.iter().any(|name| name == "karst-cni") => say(
            "cni",
            Verdict::Warning,
            format!(
                "{message}: another plugin runs after karst-cni and may change what was captured"
            ),
            "let the agent put itself last again: restart the agent of this node",
        ),
        false => say(
            "cni",
            Verdict::Fine,
            format!("{message}; karst-cni is not in the chain (not installed here)"),
            "",
        ),
    }
}

/// Types of the plugins of a configuration, in order.
fn plugins(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).unwrap_or_default();
    let one = [list.clone()];
    let plugins = list["plugins"]
        .as_array()
        .map_or(one.as_slice(), Vec::as_slice);
    plugins
        .iter()
        .filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned()))
        .collect()
}

fn writable(dir: &Path) -> io::Result<()> {
    let probe = dir.join(".karst-check");
    fs::write(&probe, b"")?;
    fs::remove_file(probe)
}

/// Other programs on hooks of our kinds.
fn neighbours() {
    match others() {
        Ok(found) if found.is_empty() => say(
            "other-programs",
            Verdict::Fine,
            "none on the same hooks".to_owned(),
            "",
        ),
        Ok(found) => {
            let found: Vec<String> = found
                .iter()
                .map(|(name, kind)| format!("{name} ({kind})"))
                .collect();
            say(
                "other-programs",
                Verdict::Warning,
                format!(
                    "other parties' programs on the same kinds of hook: {}",
                    found.join(", ")
                ),
                "a socket-level load balancer must leave pods alone; with Cilium: socketLB.hostNamespaceOnly=true",
            );
        }
        Err(error) => say(
            "other-programs",
            Verdict::Warning,
            format!("cannot be listed: {error}"),
            "run the agent with CAP_SYS_ADMIN",
        ),
    }
}

/// Gives back what was sent.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut payload = vec![0; PAYLOAD];
    stream.read_exact(&mut payload)?;
    stream.write_all(&payload)
}

/// Dials each address, and says what got through.
pub(crate) fn dial(addrs: &[SocketAddr]) -> anyhow::Result<()> {
    for addr in addrs {
        match exchange(*addr) {
            Ok(()) => say("path", Verdict::Fine, format!("{addr} answers"), ""),
            Err(Broken::Closed(error)) => say(
                "path",
                Verdict::Failure,
                format!("no connection to {addr}: {error}"),
                "let TCP port 15008 pass between the pods of all nodes: NetworkPolicies, security groups, the nodes' firewalls (nft, iptables); where replies take another way than requests, net.ipv4.conf.all.rp_filter=2",
            ),
            Err(Broken::Stuck(error)) => say(
                "path",
                Verdict::Failure,
                format!("{addr} accepts, but {PAYLOAD} bytes do not come back: {error}"),
                "lower the MTU of the pod network: packets of full size are lost on the way",
            ),
        }
    }
    Ok(())
}

/// How far a dial came.
enum Broken {
    Closed(io::Error),
    Stuck(io::Error),
}

fn exchange(addr: SocketAddr) -> Result<(), Broken> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(Broken::Closed)?;
    let mut there_and_back = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&vec![7; PAYLOAD])?;
        let mut back = vec![0; PAYLOAD];
        stream.read_exact(&mut back)
    };
    there_and_back().map_err(Broken::Stuck)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_counts() {
        let one = "36 35 0:30 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700";
        let other = "37 35 0:31 / /sys/fs/bpf rw - tmpfs tmpfs rw";
        let path = Path::new("/sys/fs/bpf");
        assert!(is_bpffs(one, path));
        assert!(!is_bpffs(&format!("{one}\n{other}"), path));
        assert!(!is_bpffs("", path));
        assert!(!is_bpffs(one, Path::new("/sys/fs/other")));
    }

    #[test]
    fn plugins_of_a_list_and_of_a_single_configuration() {
        assert_eq!(
            plugins(r#"{"plugins": [{"type": "ptp"}, {"type": "karst-cni"}]}"#),
            ["ptp", "karst-cni"]
        );
        assert_eq!(plugins(r#"{"type": "bridge"}"#), ["bridge"]);
        assert!(plugins("not json").is_empty());
    }

    #[test]
    fn what_goes_out_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || answer(listener.accept().unwrap().0).unwrap());
        assert!(exchange(addr).is_ok());
        server.join().unwrap();
        assert!(matches!(exchange(addr), Err(Broken::Closed(_))));
    }
}
