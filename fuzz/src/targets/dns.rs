//! DNS messages from pods, and from the resolver that the agent forwards to.

use std::net::IpAddr;

use hickory_proto::op::Message;

use self::answer::{Names, Outcome, SearchDomains};
use crate::Target;

// The agent is a program, not a library: the file is compiled here a second time.
#[path = "../../../agent/src/dns/answer.rs"]
mod answer;

/// A DNS message.
pub const MESSAGE: Target = Target {
    name: "dns",
    run,
    seeds,
};

/// No answer over UDP may be larger than this.
const UDP_BYTES_MAX: usize = 1232;

/// Knows every name that begins with `w`.
struct SomeNames;

impl Names for SomeNames {
    fn lookup(&self, host: &str) -> Option<Vec<IpAddr>> {
        host.starts_with('w')
            .then(|| vec![[10, 0, 0, 1].into(), [0; 16].into()])
    }
}

fn run(bytes: &[u8]) {
    let Ok(query) = Message::from_vec(bytes) else {
        return;
    };
    let search = SearchDomains::new("shop", "cluster.local");
    if let Outcome::Answer(response) = answer::answer(&query, &SomeNames, &search)
        && let Some(bytes) = answer::encode_udp(&query, &response)
    {
        assert!(
            bytes.len() <= UDP_BYTES_MAX,
            "an answer of {} bytes",
            bytes.len()
        );
        Message::from_vec(&bytes).expect("an answer that was written can be read");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let head = |questions: u8| vec![0x12, 0x34, 0x01, 0x00, 0, questions, 0, 0, 0, 0, 0, 0];
    let question = |name: &[u8], kind: u8| [name, &[0, kind, 0, 1]].concat();
    let web = b"\x03web\x04shop\x03svc\x07cluster\x05local\0";
    let looped = b"\xc0\x0c";
    vec![
        [head(1), question(web, 1)].concat(),
        [head(1), question(web, 28)].concat(),
        [head(1), question(looped, 1)].concat(),
        [head(2), question(web, 1), question(web, 28)].concat(),
        [
            vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1],
            question(web, 1),
            b"\0\0\x29\x04\xd0\0\0\0\0\0\0".to_vec(),
        ]
        .concat(),
    ]
}
