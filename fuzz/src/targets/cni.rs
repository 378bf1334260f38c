//! What `karst-cni` sends to the agent's socket: any process of the node that may open it can write there.

use karst_model::cni::{Answer, Command, PROTOCOL_VERSION, Request};

use crate::Target;

/// A request line.
pub const REQUEST: Target = Target {
    name: "cni",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let line = serde_json::to_vec(&request).expect("a request that was read can be written");
        let again: Request =
            serde_json::from_slice(&line).expect("a request that was written can be read");
        assert_eq!(request, again);
    }
    let _ = serde_json::from_slice::<Answer>(bytes);
}

fn seeds() -> Vec<Vec<u8>> {
    let request = Request {
        version: PROTOCOL_VERSION,
        command: Command::Add,
        netns: "/run/netns/cni-1".to_owned(),
        pod_uid: "0c5b8a52-0d2a-4c89-9d30-3d1f6c8f7a11".to_owned(),
        pod_name: "web-1".to_owned(),
        pod_namespace: "shop".to_owned(),
        ips: vec![
            "10.0.0.5".parse().expect("an address"),
            "fd00::5".parse().expect("an address"),
        ],
        host_veth: Some("veth1".to_owned()),
    };
    let failed = Answer::failed("the agent is starting".to_owned(), true);
    vec![
        serde_json::to_vec(&request).expect("a request can be written"),
        serde_json::to_vec(&failed).expect("an answer can be written"),
        br#"{"version":99,"command":"GC","pod_uid":"","pod_name":"","pod_namespace":"","later":{}}"#.to_vec(),
    ]
}
