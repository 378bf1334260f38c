//! The controller's read API, reached through the API server: a token for the reader's service account, a port forward
//! to each replica, one HTTP request. Answers of several replicas are put together, as each agent talks to one of them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Cluster, told};

/// Audience that the controller asks for.
const AUDIENCE: &str = "karst-read";
/// The shortest life that the API server gives a token.
const TOKEN_SECONDS: i64 = 600;
/// Name of the container port of the read API, and its number where the pod names none.
const PORT: (&str, u16) = ("http-reads", 15016);
/// Longest wait for one replica.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Whose permission is used.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ReaderArgs {
    /// Service account whose permission is used; yours must be to make tokens for it
    #[arg(long, value_name = "NAMESPACE/NAME")]
    reader: Option<String>,
}

/// A way to ask the controllers.
pub(crate) struct Reads<'a> {
    cluster: &'a Cluster,
    token: String,
    replicas: Vec<Replica>,
}

/// A controller's pod.
struct Replica {
    name: String,
    port: u16,
}

impl<'a> Reads<'a> {
    /// Gets a token and finds the replicas.
    pub(crate) async fn open(cluster: &'a Cluster, args: &ReaderArgs) -> anyhow::Result<Self> {
        let own = format!("{}/karst-reader", cluster.namespace);
        let reader = args.reader.as_deref().unwrap_or(&own);
        let (namespace, name) = reader
            .split_once('/')
            .with_context(|| format!("--reader {reader}: expected NAMESPACE/NAME"))?;
        let replicas = replicas(cluster).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![AUDIENCE.to_owned()],
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(told)
            .with_context(|| format!("cannot get a token for reader {reader}"))?;
        let token = answer.status.context("the API server gave no token")?.token;
        Ok(Self {
            cluster,
            token,
            replicas,
        })
    }

    /// Items of a kind, from whichever replica answers first; for what all replicas know.
    pub(crate) async fn any(
        &self,
        kind: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let mut last = None;
        for replica in &self.replicas {
            match self.ask(replica, kind, namespace).await {
                Ok(items) => return Ok(items),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no controller is ready")))
    }

    /// Items of a kind from all replicas; for what agents tell, each to its replica.
    pub(crate) async fn all(
        &self,
        kind: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let asked = self
            .replicas
            .iter()
            .map(|replica| self.ask(replica, kind, namespace));
        let mut items = Vec::new();
        for answer in futures_util::future::join_all(asked).await {
            items.extend(answer?);
        }
        Ok(items)
    }

    /// Agents, one item for each node: what it told one replica, and what it acknowledged at another.
    pub(crate) async fn agents(&self) -> anyhow::Result<Vec<Value>> {
        Ok(by_node(self.all("agents", None).await?))
    }

    /// The answer to a question, from whichever replica answers first.
    pub(crate) async fn post(&self, kind: &str, question: &Value) -> anyhow::Result<Value> {
        let body = question.to_string();
        let mut last = None;
        for replica in &self.replicas {
            let line = format!("POST /read/v1/{kind}");
            match self.in_time(replica, &line, &body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no controller is ready")))
    }

    async fn ask(
        &self,
        replica: &Replica,
        kind: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let query = namespace
            .map(|name| format!("?namespace={name}"))
            .unwrap_or_default();
        let line = format!("GET /read/v1/{kind}{query}");
        let answer = self.in_time(replica, &line, "").await?;
        Ok(answer["items"].as_array().cloned().unwrap_or_default())
    }

    async fn in_time(&self, replica: &Replica, line: &str, body: &str) -> anyhow::Result<Value> {
        let name = &replica.name;
        let asked = tokio::time::timeout(PATIENCE, self.exchange(replica, line, body)).await;
        let Ok(answer) = asked else {
            bail!(
                "controller {name} did not answer within {} s",
                PATIENCE.as_secs()
            );
        };
        answer.with_context(|| format!("controller {name}"))
    }

    async fn exchange(&self, replica: &Replica, line: &str, body: &str) -> anyhow::Result<Value> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let mut forward = pods
            .portforward(&replica.name, &[replica.port])
            .await
            .map_err(told)
            .context("port forward (takes permission `create pods/portforward`)")?;
        let mut stream = forward
            .take_stream(replica.port)
            .context("port forward gave no stream")?;
        let request = format!(
            "{line} HTTP/1.1\r\nHost: karst\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        read_answer(&String::from_utf8_lossy(&answer))
    }
}

/// Puts items of the same node together; what an item knows fills what another does not.
fn by_node(items: Vec<Value>) -> Vec<Value> {
    let mut nodes: Vec<Value> = Vec::new();
    for item in items {
        let known = nodes.iter_mut().find(|node| node["node"] == item["node"]);
        let Some(known) = known.and_then(Value::as_object_mut) else {
            nodes.push(item);
            continue;
        };
        for (key, value) in item.as_object().into_iter().flatten() {
            let present = known.entry(key.clone()).or_insert(Value::Null);
            if present.is_null() {
                *present = value.clone();
            }
        }
    }
    // Only acknowledgements: its agent is connected and cannot be asked.
    for node in &mut nodes {
        if node["version"].is_null() && node["error"].is_null() {
            node["error"] = Value::from("the agent is connected and cannot be asked now");
        }
    }
    nodes
}

/// The JSON of a 200; else what the controller said.
fn read_answer(answer: &str) -> anyhow::Result<Value> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("it closed the connection without an answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{}", body.trim());
    }
    serde_json::from_str(body).context("its answer was cut off")
}

/// Names of the controller's ready pods.
async fn replicas(cluster: &Cluster) -> anyhow::Result<Vec<Replica>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let params = ListParams::default().labels("app.kubernetes.io/name=karst-controller");
    let pods = pods.list(&params).await.map_err(told)?;
    let is_ready = |pod: &Pod| {
        let conditions = pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        pod.metadata.deletion_timestamp.is_none()
            && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let replicas: Vec<Replica> = pods
        .items
        .into_iter()
        .filter(is_ready)
        .filter_map(|pod| {
            let port = read_port(&pod);
            let name = pod.metadata.name?;
            Some(Replica { name, port })
        })
        .collect();
    if replicas.is_empty() {
        bail!(
            "no controller is ready in namespace {}; is Karst installed there? (--namespace names another)",
            cluster.namespace
        );
    }
    Ok(replicas)
}

fn read_port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(PORT.0));
    named
        .and_then(|port| u16::try_from(port.container_port).ok())
        .unwrap_or(PORT.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_says_the_port_of_its_read_api() {
        let pod = |ports: &str| -> Pod {
            let text =
                format!(r#"{{"spec": {{"containers": [{{"name": "c", "ports": {ports}}}]}}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let named = r#"[{"name": "x", "containerPort": 1}, {"name": "http-reads", "containerPort": 19016}]"#;
        assert_eq!(read_port(&pod(named)), 19016);
        assert_eq!(read_port(&pod("[]")), 15016);
    }

    #[test]
    fn a_node_s_streams_to_two_replicas_are_one_agent() {
        use serde_json::json;
        let items = vec![
            json!({"node": "n1", "version": "1", "changesBehind": null}),
            json!({"node": "n1", "changesBehind": 0}),
            json!({"node": "n2", "changesBehind": 3}),
        ];
        let nodes = by_node(items);
        assert_eq!(
            nodes[0],
            json!({"node": "n1", "version": "1", "changesBehind": 0})
        );
        assert!(nodes[1]["error"].is_string());
    }

    #[test]
    fn refusals_are_told_in_the_controller_s_words() {
        let refused = "HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nno, because\n";
        assert_eq!(read_answer(refused).unwrap_err().to_string(), "no, because");
        let good = "HTTP/1.1 200 OK\r\n\r\n{\"items\": []}";
        assert_eq!(read_answer(good).unwrap()["items"], serde_json::json!([]));
        assert!(read_answer("").is_err());
    }
}
