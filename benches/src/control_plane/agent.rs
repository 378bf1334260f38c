//! The place of an agent: a real stream that follows the whole mesh, keeps what it was given the version of, and tells
//! when a name came.

use std::{collections::HashMap, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use karst_proto::{
    core::Node,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    type_url,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, transport::Channel};

const KINDS: [&str; 3] = [
    type_url::ADDRESS,
    type_url::AUTHORIZATION,
    type_url::NODE_WORKLOAD,
];
const MAX_RESPONSE_BYTES: usize = 200 << 20;

/// One response came.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) kind: String,
    pub(crate) names: Vec<String>,
}

/// Names and versions that it holds, by kind.
type Held = HashMap<String, HashMap<String, String>>;

pub(crate) struct Agent {
    node: String,
    bearer: Arc<str>,
    held: Held,
}

/// An agent's open stream.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Agent {
    pub(crate) fn new(node: String, bearer: String) -> Self {
        Self {
            node,
            bearer: bearer.into(),
            held: Held::new(),
        }
    }

    /// Subscribes to everything, saying what it holds.
    pub(crate) async fn open(&self, channel: Channel) -> Result<Stream> {
        let (requests, outgoing) = mpsc::channel(64);
        for kind in KINDS {
            requests
                .send(DeltaDiscoveryRequest {
                    node: Some(Node {
                        id: self.node.clone(),
                        ..Node::default()
                    }),
                    type_url: kind.to_owned(),
                    initial_resource_versions: self.held.get(kind).cloned().unwrap_or_default(),
                    ..DeltaDiscoveryRequest::default()
                })
                .await?;
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        let bearer = format!("Bearer {}", self.bearer).parse()?;
        request.metadata_mut().insert("authorization", bearer);
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE_BYTES)
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Stream {
            requests,
            responses,
        })
    }

    /// Takes one response and acknowledges it.
    pub(crate) async fn next(&mut self, stream: &mut Stream) -> Result<Heard> {
        let response = stream
            .responses
            .message()
            .await?
            .context("the controller closed the stream")?;
        let at = Instant::now();
        let held = self.held.entry(response.type_url.clone()).or_default();
        let names: Vec<String> = response
            .resources
            .iter()
            .map(|resource| resource.name.clone())
            .collect();
        for resource in response.resources {
            held.insert(resource.name, resource.version);
        }
        for name in &response.removed_resources {
            held.remove(name);
        }
        stream
            .requests
            .send(DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            })
            .await?;
        Ok(Heard {
            at,
            kind: response.type_url,
            names,
        })
    }

    pub(crate) fn holds(&self) -> usize {
        self.held.values().map(HashMap::len).sum()
    }

    /// Reads until each kind has been answered once; how many resources that brought.
    pub(crate) async fn catch_up(&mut self, stream: &mut Stream) -> Result<usize> {
        let mut open: Vec<&str> = KINDS.to_vec();
        let mut resources = 0;
        while !open.is_empty() {
            let heard = self.next(stream).await?;
            open.retain(|kind| *kind != heard.kind);
            resources += heard.names.len();
        }
        Ok(resources)
    }
}
