//! The wires: a bridge on the host, a link and a namespace for each node, and the routes to pods and services.
//!
//! The host routes to pods, and to services through the first node's kube-proxy: a test on the host, and the API server
//! calling a webhook, reach both. Nodes reach each other over the bridge alone, so the host need not forward.

use std::process::Command;

use anyhow::Result;

use super::plan::{NodePlan, Plan};
use crate::shell;

/// Runs `ip` with words that are separated by single spaces.
fn ip(words: &str) -> Result<()> {
    shell::capture(Command::new("ip").args(words.split(' '))).map(drop)
}

/// Makes the bridge and gives the host its addresses there.
pub(super) fn bridge(plan: &Plan) -> Result<()> {
    let bridge = plan.prefix();
    if !shell::succeeds(Command::new("ip").args(["link", "show", &bridge])) {
        ip(&format!("link add {bridge} type bridge"))?;
    }
    for network in plan.host_networks() {
        ip(&format!(
            "addr replace {network} dev {bridge}{}",
            at_once(&network)
        ))?;
    }
    ip(&format!("link set {bridge} up"))
}

/// Without this an IPv6 address cannot be used for its first second: the kernel asks whether somebody has it.
fn at_once(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// Makes a node's namespace with its link to the bridge, its addresses, and the routes from and to it.
pub(super) fn node(plan: &Plan, node: &NodePlan) -> Result<()> {
    let (name, bridge) = (node.host_name(), plan.prefix());
    ip(&format!("netns add {name}"))?;
    ip(&format!(
        "link add {name} type veth peer name eth0 netns {name}"
    ))?;
    ip(&format!("link set {name} master {bridge} up"))?;
    ip(&format!("-n {name} link set lo up"))?;
    for network in node.networks() {
        ip(&format!(
            "-n {name} addr add {network} dev eth0{}",
            at_once(&network)
        ))?;
    }
    ip(&format!("-n {name} link set eth0 up"))?;
    for network in plan.host_networks() {
        let (host, _) = network.split_once('/').unwrap_or((&network, ""));
        ip(&format!("-n {name} route replace default via {host}"))?;
    }
    forwarding(&name)?;
    routes(plan, node)
}

fn forwarding(namespace: &str) -> Result<()> {
    let entered = format!("--net=/run/netns/{namespace}");
    let mut sysctl = Command::new("nsenter");
    sysctl.args([&entered, "sysctl", "-q", "-w"]).args([
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv6.conf.default.forwarding=1",
    ]);
    shell::capture(&mut sysctl).map(drop)
}

/// Routes to the other nodes' pods, and from the host to this node's pods and, through the first node, to services.
fn routes(plan: &Plan, node: &NodePlan) -> Result<()> {
    let nodes = plan.nodes();
    for other in nodes.iter().filter(|other| *other != node) {
        for (pods, gateway) in other.pods().iter().zip(other.addresses()) {
            ip(&format!(
                "-n {} route replace {pods} via {gateway}",
                node.host_name()
            ))?;
        }
    }
    for (pods, gateway) in node.pods().iter().zip(node.addresses()) {
        ip(&format!("route replace {pods} via {gateway}"))?;
    }
    if nodes.first() == Some(node) {
        for (services, gateway) in plan.services().iter().zip(node.addresses()) {
            ip(&format!("route replace {services} via {gateway}"))?;
        }
    }
    Ok(())
}

/// Whether a node's namespace is there.
pub(super) fn has_node(node: &NodePlan) -> bool {
    std::path::Path::new("/run/netns")
        .join(node.host_name())
        .exists()
}

/// Removes a node's namespace, and its link with it.
pub(super) fn remove_node(node: &NodePlan) -> Result<()> {
    let name = node.host_name();
    // The link's end on the host goes when the namespace does, which the kernel does later.
    shell::succeeds(Command::new("ip").args(["link", "del", &name]));
    if has_node(node) {
        ip(&format!("netns del {name}"))?;
    }
    Ok(())
}

/// Removes the bridge, and the host's routes with it.
pub(super) fn remove(plan: &Plan) -> Result<()> {
    let bridge = plan.prefix();
    if shell::succeeds(Command::new("ip").args(["link", "show", &bridge])) {
        ip(&format!("link del {bridge}"))?;
    }
    Ok(())
}
