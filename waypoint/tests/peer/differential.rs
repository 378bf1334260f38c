//! Thousands of ways to write one request, with nginx and HAProxy as the applications: what a policy of the waypoint
//! forbids never reaches them, however it was wrapped, and nothing reaches them that they would both have refused.

mod forms;
mod reader;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream};
use karst_discovery::Update;
use karst_model::{
    policy::StringMatch,
    protocol::{AppProtocol, TunnelProtocol},
    waypoint_policy::{HeaderValues, PathPattern, RequestAction, RequestMatch},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use self::{
    forms::{EVIL, FIRST, SECRET_HEADER},
    reader::Reader,
};
use crate::{
    client::{Client, read_response, status},
    policy::policy_named,
    rig::{World, fresh_ip, local_for},
};

/// How many forms are tried at once.
const AT_ONCE: usize = 32;
/// After a whole answer: how long another one may take to begin. What was smuggled is answered at once or never.
const QUIET: Duration = Duration::from_millis(40);
/// A reader that waits for the rest of a request gives up by then.
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn nothing_is_smuggled_to_nginx() {
    differ(Reader::nginx).await;
}

#[tokio::test]
async fn nothing_is_smuggled_to_haproxy() {
    differ(Reader::haproxy).await;
}

/// What is denied: a path, and a header.
fn forbidden() -> [Update; 2] {
    let path = RequestMatch {
        paths: vec![PathPattern::Text(StringMatch::Prefix(EVIL.into()))],
        ..RequestMatch::default()
    };
    let header = RequestMatch {
        headers: vec![HeaderValues {
            name: SECRET_HEADER.into(),
            values: vec![StringMatch::Presence],
            not_values: Vec::new(),
        }],
        ..RequestMatch::default()
    };
    [("paths", path), ("headers", header)]
        .map(|(name, matches)| policy_named(name, "web", RequestAction::Deny, matches))
}

async fn differ(start: impl Fn(SocketAddr) -> Reader) {
    local_for(Duration::from_secs(240), async {
        let world = World::start(&[]).await;
        let vip = world.service("web", AppProtocol::Http11);
        let ip = fresh_ip();
        let behind = start(SocketAddr::from((ip, 8080)));
        world.add_workload("web", "web-1", ip, TunnelProtocol::None);
        world.state.apply(forbidden());
        let others = [Reader::nginx, Reader::haproxy]
            .map(|other| other(SocketAddr::from((fresh_ip(), 8080))));
        behind.is_up().await;
        for other in &others {
            other.is_up().await;
        }

        let forms = forms::all();
        let (client, others) = (&Client::new(&world), &others);
        let asked = stream::iter(&forms).map(|form| async move {
            let through = conversation(client.connect(vip).await, &form.bytes).await;
            let mut refused = true;
            for other in others {
                let plain = TcpStream::connect(other.addr).await.unwrap();
                let answer = conversation(plain, &form.bytes).await;
                refused &= status(&answer).starts_with('4') || answer.is_empty();
            }
            (through, refused)
        });
        let answers: Vec<_> = asked.buffered(AT_ONCE).collect().await;
        // What was logged is whole when a last request is.
        let last = client
            .raw(vip, "GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        assert_eq!(status(&last), "200", "{last}");
        let seen = behind.requests_until("/last").await;

        let mut wrong = Vec::new();
        for request in &seen {
            // What stands in a query is no path.
            let path = request.path.split('?').next().unwrap_or_default();
            if path.contains(EVIL) || !request.secret.is_empty() {
                wrong.push(format!("got past the policy: {request:?}"));
            }
        }
        let mut times = BTreeMap::<&str, usize>::new();
        for request in &seen {
            *times.entry(&request.path).or_default() += 1;
        }
        let (mut passed, mut lenient) = (0, Vec::new());
        for (number, (form, (through, refused))) in forms.iter().zip(&answers).enumerate() {
            let reached = times.get(&*format!("{FIRST}{number}")).copied();
            if reached.is_some_and(|times| times > 1) {
                wrong.push(format!("arrived more than once: {form:?}"));
            }
            passed += usize::from(reached.is_some());
            if reached.is_some() && *refused && !form.breaks_in_its_body {
                lenient.push(format!("{form:?}: {:?}", status(through)));
            }
        }
        println!(
            "{}: {} forms, {passed} reached it through the waypoint, {} of them both refuse",
            behind.name,
            forms.len(),
            lenient.len()
        );
        assert!(forms.len() >= 5000, "{}", forms.len());
        assert!(
            passed > 100,
            "the control: sound forms arrive, {passed} did"
        );
        assert!(wrong.is_empty(), "{} {wrong:#?}", wrong.len());
        assert!(lenient.is_empty(), "{} {lenient:#?}", lenient.len());
    })
    .await;
}

/// Sends a form and reads all that comes back: the first answer whole, then whatever follows.
async fn conversation<T: AsyncRead + AsyncWrite + Unpin>(mut io: T, form: &[u8]) -> String {
    if io.write_all(form).await.is_err() || io.flush().await.is_err() {
        return String::new();
    }
    let mut first = timeout(PATIENCE, read_response(&mut io))
        .await
        .unwrap_or_default();
    let mut more = [0; 4096];
    while let Ok(Ok(len @ 1..)) = timeout(QUIET, io.read(&mut more)).await {
        first.push_str(&String::from_utf8_lossy(&more[..len]));
    }
    first
}
