//! `karst check`: can Karst work here, and does it? Every finding names the one setting to change.
//!
//! ```text
//! cluster  API version, permissions, another mesh, PodSecurity, clocks      asked of the API server
//! nodes    kernel features, mounts, CNI chain, other programs               said by a pod on each node
//! paths    port 15008 between every two nodes                               packets between these pods
//! seals    callers that sealed services refuse                              seen by the agents
//! ```

use crate::{cluster::Cluster, output};

mod api;
mod finding;
mod mesh;
mod nodes;
mod paths;
mod seals;

pub(crate) use finding::{Finding, Verdict};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Ask the API server only; start no pods on the nodes
    #[arg(long)]
    no_pods: bool,
    /// Image of the pods that look at the nodes; the installed agent's where left out
    #[arg(long)]
    image: Option<String>,
    /// Seconds that the pods have to start and answer
    #[arg(long, default_value_t = 90)]
    timeout_seconds: u64,
    /// table or json
    #[arg(long, short, value_enum, default_value_t = output::Format::Table)]
    output: output::Format,
}

/// What can be known before anything is installed.
pub(crate) async fn before_install(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let mut findings = api::look(cluster).await?;
    findings.extend(api::seen("other-mesh", mesh::others(cluster).await));
    Ok(findings)
}

/// Runs all checks and prints what they found. Whether nothing failed.
pub(crate) async fn run(cluster: &Cluster, args: &CheckArgs) -> anyhow::Result<Verdict> {
    let mut findings = before_install(cluster).await?;
    findings.extend(api::seen("installation", mesh::installed(cluster).await));
    findings.extend(api::seen("seal", seals::look(cluster).await));
    if !args.no_pods {
        findings.extend(api::seen("node", nodes::look(cluster, args).await));
    }
    let worst = findings
        .iter()
        .map(|finding| finding.verdict)
        .max()
        .unwrap_or(Verdict::Fine);
    match args.output {
        output::Format::Json => output::json(&findings)?,
        output::Format::Table => print(&findings),
    }
    Ok(worst)
}

fn print(findings: &[Finding]) {
    for finding in findings {
        output::line(finding);
    }
    let count = |verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    };
    output::line(format!(
        "{} fine, {} warning(s), {} failure(s)",
        count(Verdict::Fine),
        count(Verdict::Warning),
        count(Verdict::Failure)
    ));
}
