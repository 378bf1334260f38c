//! Namespaces, veths and routes.
//!
//! ```text
//!   pod eth0 ─veth─ node (routes, one /32 per pod) eth0 ─veth─ bridge in the fabric namespace ─ other nodes, controller
//! ```
//!
//! Every packet of a pod is routed by its node, also between pods of one node, so that service translation there sees
//! both directions. The gateway is the same link-local address on every veth, as routed CNI plugins do it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use karst_netns::Netns;

use crate::{
    LabError,
    addressing::{CLUSTER_DNS, CONTROLLER, NodeAddresses},
    command,
    names::{LabName, netns_path},
};

/// The gateways that pods see.
const GATEWAY: (&str, &str) = ("169.254.1.1", "fe80::1");

/// A pod's place in the network.
#[derive(Clone, Debug)]
pub(crate) struct PodNetwork {
    /// Name of the pod's namespace.
    pub(crate) netns: String,
    /// Name of the node's namespace.
    pub(crate) node_netns: String,
    /// The veth's end in the node's namespace.
    pub(crate) host_veth: String,
    /// None where pods have IPv6 alone.
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Ipv6Addr,
}

impl PodNetwork {
    /// Its addresses, first the one that names it.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain([self.v6.into()]).collect()
    }

    /// The one that names it.
    pub(crate) fn primary(&self) -> IpAddr {
        self.v4.map_or_else(|| self.v6.into(), IpAddr::from)
    }
}

fn add_namespace(name: &str) -> Result<(), LabError> {
    command::run("ip", &["netns", "add", name], "").map(drop)
}

/// Deletes a named namespace; nothing there is fine. It lives on while a process is in it.
pub(crate) fn delete_namespace(name: &str) -> Result<(), LabError> {
    if netns_path(name).exists() {
        command::run("ip", &["netns", "delete", name], "").map(drop)
    } else {
        Ok(())
    }
}

/// Runs `ip` commands, one per line, in a namespace.
fn batch(netns: &str, lines: &[String]) -> Result<(), LabError> {
    command::run(
        "ip",
        &["-n", netns, "-batch", "-"],
        &(lines.join("\n") + "\n"),
    )
    .map(drop)
}

/// Opens a named namespace.
pub(crate) fn open(name: &str) -> Result<Netns, LabError> {
    Netns::open(netns_path(name)).map_err(LabError::io(format!("opening network namespace {name}")))
}

/// Runs `f` on this thread inside a named namespace.
pub(crate) fn inside<T>(name: &str, f: impl FnOnce() -> T) -> Result<T, LabError> {
    open(name)?
        .run(f)
        .map_err(LabError::io(format!("entering network namespace {name}")))
}

/// Sets `/proc/sys/net/...` of a namespace. A missing entry (no IPv6 in this kernel) is left out.
fn sysctls(netns: &str, settings: &[(&str, &str)]) -> Result<(), LabError> {
    inside(netns, || {
        for (name, value) in settings {
            match std::fs::write(format!("/proc/sys/net/{name}"), value) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(LabError::Io {
                        doing: format!("setting {name} in {netns}"),
                        source: error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    })?
}

/// Makes the namespace with the bridge between nodes; the controller runs in it.
pub(crate) fn create_fabric(lab: &LabName, mtu: u32) -> Result<(), LabError> {
    let fabric = lab.fabric();
    add_namespace(&fabric)?;
    sysctls(
        &fabric,
        &[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
        ],
    )?;
    batch(
        &fabric,
        &[
            "link set lo up".to_owned(),
            format!("link add br0 mtu {mtu} type bridge"),
            "link set br0 up".to_owned(),
            format!("addr add {}/24 dev br0", CONTROLLER.0),
            format!("addr add {}/64 dev br0 nodad", CONTROLLER.1),
        ],
    )
}

/// Makes a node's namespace and its link to the fabric.
pub(crate) fn create_node(
    lab: &LabName,
    node: &str,
    addresses: &NodeAddresses,
    mtu: u32,
) -> Result<(), LabError> {
    let (name, fabric) = (lab.node(node), lab.fabric());
    add_namespace(&name)?;
    sysctls(
        &name,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ],
    )?;
    let (v4, v6) = addresses.node();
    let port = format!("n{}", v4.octets()[3]);
    batch(
        &fabric,
        &[
            format!("link add {port} mtu {mtu} type veth peer name eth0 netns {name} mtu {mtu}"),
            format!("link set {port} master br0 up"),
        ],
    )?;
    batch(
        &name,
        &[
            "link set lo up".to_owned(),
            format!("addr add {}/32 dev lo", CLUSTER_DNS.0),
            format!("addr add {}/128 dev lo nodad", CLUSTER_DNS.1),
            "link set eth0 up".to_owned(),
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            format!("route add default via {} dev eth0", CONTROLLER.0),
            format!("route add ::/0 via {} dev eth0", CONTROLLER.1),
        ],
    )
}

/// Tells `node` (and the fabric, so that the controller reaches pods) where the pods of `other` are.
pub(crate) fn route_to_node(
    lab: &LabName,
    node: Option<&str>,
    other: &NodeAddresses,
) -> Result<(), LabError> {
    let (via, cidrs) = (other.node(), other.pod_cidrs());
    let (name, device) =
        node.map_or_else(|| (lab.fabric(), "br0"), |node| (lab.node(node), "eth0"));
    batch(
        &name,
        &[
            format!("route replace {} via {} dev {device}", cidrs.0, via.0),
            format!("route replace {} via {} dev {device}", cidrs.1, via.1),
        ],
    )
}

/// Makes a pod's namespace with its veth, addresses and routes.
pub(crate) fn create_pod(pod: &PodNetwork, mtu: u32) -> Result<(), LabError> {
    add_namespace(&pod.netns)?;
    sysctls(
        &pod.netns,
        &[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/ip_unprivileged_port_start", "0"),
            ("ipv4/ping_group_range", "0 2147483647"),
        ],
    )?;
    let PodNetwork {
        netns,
        node_netns,
        host_veth,
        v4,
        v6,
    } = pod;
    let mut at_node = vec![
        format!("link add {host_veth} mtu {mtu} type veth peer name eth0 netns {netns} mtu {mtu}"),
        format!("addr add {}/64 dev {host_veth} nodad", GATEWAY.1),
        format!("link set {host_veth} up"),
        format!("route replace {v6}/128 dev {host_veth}"),
    ];
    let mut at_pod = vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {v6}/128 dev eth0 nodad"),
        format!("route add ::/0 via {} dev eth0", GATEWAY.1),
    ];
    if let Some(v4) = v4 {
        at_node.extend([
            format!("addr add {}/32 dev {host_veth} scope link", GATEWAY.0),
            format!("route replace {v4}/32 dev {host_veth}"),
        ]);
        at_pod.extend([
            format!("addr add {v4}/32 dev eth0"),
            format!("route add {}/32 dev eth0 scope link", GATEWAY.0),
            format!("route add default via {} dev eth0", GATEWAY.0),
        ]);
    }
    batch(node_netns, &at_node)?;
    batch(netns, &at_pod)
}

/// Removes a pod's veth and namespace.
pub(crate) fn delete_pod(pod: &PodNetwork) -> Result<(), LabError> {
    // The veth first: the namespace itself may live on for a while in a socket that is still closing.
    if let Err(error) = batch(&pod.node_netns, &[format!("link del {}", pod.host_veth)]) {
        tracing::debug!(pod = pod.netns, "veth was gone: {error}");
    }
    delete_namespace(&pod.netns)
}
