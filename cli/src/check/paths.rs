//! Port 15008 between every two nodes: each node's pod dials those of the others, sends 64 kB and wants them back.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::AsyncReadExt as _;

use super::{
    Finding,
    nodes::{findings_of, pod_name},
};
use crate::cluster::told;

/// Nodes that one node dials at most: in a large cluster each dials the next ones, which still passes every node.
const DIALS_MAX: usize = 16;

/// `addresses`: of the pods, by node.
pub(super) async fn look(
    pods: &Api<Pod>,
    addresses: &BTreeMap<String, String>,
) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (index, node) in addresses.keys().enumerate() {
        let others = addresses
            .iter()
            .cycle()
            .skip(index + 1)
            .take(addresses.len() - 1);
        let others: Vec<(&String, &String)> = others.take(DIALS_MAX).collect();
        if others.is_empty() {
            continue;
        }
        let dialled = others.iter().map(|(_, address)| with_port(address));
        let dialled = dialled.collect::<Vec<_>>().join(",");
        match dial(pods, node, &dialled).await {
            Ok(said) => findings.extend(said),
            Err(error) => findings.push(Finding::failure(
                "path",
                node,
                format!("the packet test could not be run: {error:#}"),
                "let this user create pods/exec",
            )),
        }
    }
    Ok(findings
        .into_iter()
        .map(|finding| named(finding, addresses))
        .collect())
}

fn with_port(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]:15008"),
        false => format!("{address}:15008"),
    }
}

async fn dial(pods: &Api<Pod>, node: &str, dialled: &str) -> anyhow::Result<Vec<Finding>> {
    let params = AttachParams::default().stdout(true).stderr(false);
    let command = ["/karst-agent", "--dial", dialled];
    let mut process = pods
        .exec(&pod_name(node), command, &params)
        .await
        .map_err(told)?;
    let mut said = String::new();
    if let Some(mut stdout) = process.stdout() {
        stdout.read_to_string(&mut said).await?;
    }
    Ok(findings_of(&said, node))
}

/// Says which node an address is of.
fn named(mut finding: Finding, addresses: &BTreeMap<String, String>) -> Finding {
    for (node, address) in addresses {
        let target = with_port(address);
        if finding
            .message
            .split_whitespace()
            .any(|word| word.trim_end_matches(':') == target)
        {
            finding.subject = format!("{} to {node}", finding.subject);
            break;
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_by_its_two_nodes() {
        let addresses = [("n1", "10.0.1.2"), ("n2", "10.0.2.2")]
            .map(|(node, address)| (node.to_owned(), address.to_owned()))
            .into();
        let finding = Finding::failure(
            "path",
            "n1",
            "no connection to 10.0.2.2:15008: timed out",
            "",
        );
        assert_eq!(named(finding, &addresses).subject, "n1 to n2");
        assert_eq!(with_port("fd00::1"), "[fd00::1]:15008");
    }
}
