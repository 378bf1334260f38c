//! `karst why`: what would happen to a connection or a request, and why; and what was denied or failed lately.

mod last;
mod offline;
mod suppose;

use std::{path::PathBuf, process::ExitCode, time::SystemTime};

use anyhow::Context as _;
use karst_path::{
    Facts,
    describe::{self, Described},
    why::{Answer, AskError, AskedRequest, Question, Verdict, answer, printable_json},
};

pub(crate) use self::offline::OfflineArgs;
use crate::{
    cluster::Cluster,
    output,
    reads::{ReaderArgs, Reads},
};

/// What the command ended with, beside 0 (it would be allowed) and 1 (nothing could be asked).
mod exit {
    /// The question is not clear: unknown or ambiguous names, or it cannot be asked so.
    pub(super) const UNCLEAR: u8 = 2;
    /// A policy would deny it.
    pub(super) const DENIED: u8 = 3;
    /// It would fail for another reason.
    pub(super) const FAILS: u8 = 4;
    /// It depends.
    pub(super) const DEPENDS: u8 = 5;
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// Who connects: [NAMESPACE/]NAME of a pod or of the Deployment that owns it, or an address
    #[arg(required_unless_present = "last")]
    source: Option<String>,
    /// What is dialled: [NAMESPACE/]NAME of a service or pod, a host name or an address, with :PORT or not
    #[arg(required_unless_present = "last")]
    destination: Option<String>,
    /// Method of a request
    #[arg(requires = "path")]
    method: Option<String>,
    /// Path of a request, with its query
    path: Option<String>,
    /// A header of the request, as `name: value`; may be given several times
    #[arg(long, value_name = "NAME: VALUE", requires = "method")]
    header: Vec<String>,
    /// File with a token (JWT) that the request carries as `Authorization: Bearer`
    #[arg(long, value_name = "FILE", requires = "method")]
    jwt: Option<PathBuf>,
    /// Proxies in front of the waypoint that it believes in X-Forwarded-For, where that is not as MeshConfig and the
    /// Gateway's annotation proxy.istio.io/config say
    #[arg(long, value_name = "NUMBER", requires = "method", value_parser = clap::value_parser!(u16).range(0..=100))]
    trusted_proxies: Option<u16>,
    /// Show what was denied or failed lately instead, of one pod ([NAMESPACE/]NAME) or of all
    #[arg(long, value_name = "POD", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["source", "from"])]
    last: Option<String>,
    /// Namespace of names without one
    #[arg(long = "in", value_name = "NAMESPACE")]
    within: Option<String>,
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
    #[command(flatten)]
    reader: ReaderArgs,
    /// text or json
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DescribeArgs {
    /// KIND/NAME: pod, service, gateway, authorizationpolicy, httproute, grpcroute, virtualservice or namespace
    object: String,
    /// Namespace of the object, where the name does not say it (KIND/NAMESPACE/NAME)
    #[arg(long = "in", value_name = "NAMESPACE")]
    within: Option<String>,
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
    #[command(flatten)]
    reader: ReaderArgs,
    /// text or json
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

impl WhyArgs {
    fn question(&self) -> anyhow::Result<Question> {
        let mut headers = Vec::new();
        for header in &self.header {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("--header {header:?}: expected `name: value`"))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        if let Some(file) = &self.jwt {
            let token = std::fs::read_to_string(file)
                .with_context(|| format!("--jwt {}", file.display()))?;
            headers.push((
                "authorization".to_owned(),
                format!("Bearer {}", token.trim()),
            ));
        }
        let request = self.method.as_ref().map(|method| AskedRequest {
            method: method.clone(),
            path: self.path.clone().unwrap_or_default(),
            headers,
        });
        Ok(Question {
            source: self.source.clone().unwrap_or_default(),
            destination: self.destination.clone().unwrap_or_default(),
            namespace: self.within.clone(),
            request,
            trusted_proxies: self.trusted_proxies,
        })
    }
}

/// Answers from the YAML of `--from`, if that is what is asked.
pub(crate) fn offline(args: &WhyArgs) -> anyhow::Result<Option<ExitCode>> {
    let Some(dir) = &args.offline.from else {
        return Ok(None);
    };
    let question = args.question()?;
    let facts = offline::facts(dir, &args.offline)?;
    Ok(Some(match answer(&facts, &question, SystemTime::now()) {
        Ok(answer) => show(&answer, args.output)?,
        Err(error) => unclear(&error),
    }))
}

/// Answers from a cluster.
pub(crate) async fn live(cluster: &Cluster, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let reads = Reads::open(cluster, &args.reader).await?;
    if let Some(pod) = &args.last {
        return last::show(&reads, pod, args.within.as_deref(), args.output).await;
    }
    let question = args.question()?;
    let value = reads.post("why", &serde_json::to_value(&question)?).await?;
    if let Some(error) = value["unclear"].as_str() {
        output::complaint(karst_path::why::printable(error));
        return Ok(ExitCode::from(exit::UNCLEAR));
    }
    let answer: Answer = serde_json::from_value(value["answer"].clone())
        .context("the controller's answer is of another version")?;
    show(&answer, args.output)
}

/// What touches an object, from the YAML of `--from`.
pub(crate) fn describe_offline(args: &DescribeArgs) -> anyhow::Result<Option<ExitCode>> {
    let Some(dir) = &args.offline.from else {
        return Ok(None);
    };
    let facts: Facts = offline::facts(dir, &args.offline)?;
    Ok(Some(
        match describe::describe(&facts, &args.object, args.within.as_deref()) {
            Ok(described) => show_described(&described, args.output)?,
            Err(error) => unclear(&error),
        },
    ))
}

/// What touches an object of a cluster.
pub(crate) async fn describe_live(
    cluster: &Cluster,
    args: &DescribeArgs,
) -> anyhow::Result<ExitCode> {
    let reads = Reads::open(cluster, &args.reader).await?;
    let asked = serde_json::json!({"object": args.object, "namespace": args.within});
    let value = reads.post("describe", &asked).await?;
    if let Some(error) = value["unclear"].as_str() {
        output::complaint(karst_path::why::printable(error));
        return Ok(ExitCode::from(exit::UNCLEAR));
    }
    let described: Described = serde_json::from_value(value["described"].clone())
        .context("the controller's answer is of another version")?;
    show_described(&described, args.output)
}

fn unclear(error: &AskError) -> ExitCode {
    let text = error.to_string();
    output::complaint(format!("karst: {}", karst_path::why::printable(&text)));
    ExitCode::from(exit::UNCLEAR)
}

fn show(answer: &Answer, format: Format) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => json(&serde_json::to_value(answer)?)?,
        Format::Text => output::text(&answer.to_string()),
    }
    Ok(match answer.verdict {
        Verdict::Allowed | Verdict::Answered => ExitCode::SUCCESS,
        Verdict::Denied => ExitCode::from(exit::DENIED),
        Verdict::Fails => ExitCode::from(exit::FAILS),
        Verdict::Depends => ExitCode::from(exit::DEPENDS),
    })
}

fn show_described(described: &Described, format: Format) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => json(&serde_json::to_value(described)?)?,
        Format::Text => output::text(&described.to_string()),
    }
    Ok(ExitCode::SUCCESS)
}

fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    output::text(&format!("{}\n", printable_json(&text)));
    Ok(())
}
