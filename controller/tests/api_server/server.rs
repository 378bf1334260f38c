//! An API server as far as a controller sees one: objects with versions, lists in one page, watches with bookmarks,
//! creation, replacement by version, merging patches. A script says where it fails, and everything that was asked is
//! remembered.
//!
//! HTTP/1.1 is written by hand: answers must be able to end in the middle of a word.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use karst_runtime::supervise::spawn_connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::store::{Refusal, Store, Target};

/// Nothing that is waited for takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request, and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    /// Who asks, by bearer token.
    pub(crate) by: String,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Asked {
    pub(crate) fn watches(&self, plural: &str) -> bool {
        self.reads(plural) && self.query.contains_key("watch")
    }

    pub(crate) fn lists(&self, plural: &str) -> bool {
        self.reads(plural) && !self.query.contains_key("watch")
    }

    fn reads(&self, plural: &str) -> bool {
        self.method == "GET" && self.path.rsplit('/').next() == Some(plural)
    }

    /// Whether it changes an object that is no sign of life.
    pub(crate) fn writes(&self) -> bool {
        let life = ["/leases", "/karst-followers", "reviews"];
        let is_new = self.body["metadata"]["name"] == "karst-followers";
        self.method != "GET" && !is_new && !life.iter().any(|word| self.path.contains(word))
    }
}

/// What happens instead of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// This status with these header lines and body.
    Answer(u16, &'static str, String),
    /// The request is done, but nobody is told: the connection stays, silent.
    DoAndSaySilence,
    /// The connection ends without one.
    HangUp,
    /// A watch that says this and ends, in order or cut.
    Watch { says: String, cut: bool },
}

type Matches = Box<dyn Fn(&Asked) -> bool + Send>;

struct Rule {
    matches: Matches,
    times: usize,
    act: Act,
}

#[derive(Default)]
struct Inner {
    store: Store,
    rules: Vec<Rule>,
    asked: Vec<Asked>,
}

/// The server. Clones share it.
#[derive(Clone)]
pub(crate) struct ApiServer {
    inner: Arc<Mutex<Inner>>,
    /// Steps with every change and request.
    steps: watch::Sender<u64>,
    /// Counts the ends of all watches.
    ends: watch::Sender<u64>,
    pub(crate) address: SocketAddr,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            inner: Arc::default(),
            steps: watch::Sender::new(0),
            ends: watch::Sender::new(0),
            address: listener.local_addr().unwrap(),
        };
        let accepting = server.clone();
        spawn_connection("api server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let one = accepting.clone();
                spawn_connection("api server", async move {
                    // The other end may go at any time.
                    let _ = one.connection(stream).await;
                });
            }
        });
        server
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn step(&self) {
        self.steps.send_modify(|step| *step += 1);
    }

    /// `path` is that of the object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.lock().store.put(&Target::of(path), object);
        self.step();
    }

    pub(crate) fn delete(&self, path: &str) {
        self.lock().store.delete(&Target::of(path));
        self.step();
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().store.get(&Target::of(path)).cloned()
    }

    /// Objects of a collection in all namespaces.
    pub(crate) fn all(&self, path: &str) -> Vec<Value> {
        self.lock().store.list(&Target::of(path), |_| true)
    }

    pub(crate) fn version(&self) -> u64 {
        self.lock().store.version()
    }

    /// Forgets what has changed so far: whoever missed it must list.
    pub(crate) fn compact(&self) {
        self.lock().store.compact();
    }

    /// All that there is now.
    pub(crate) fn snapshot(&self) -> Store {
        self.lock().store.clone()
    }

    /// Puts a snapshot in the place of what there is; nobody is told.
    pub(crate) fn restore(&self, snapshot: Store) {
        self.lock().store = snapshot;
    }

    pub(crate) fn end_watches(&self) {
        self.ends.send_modify(|end| *end += 1);
    }

    /// The next `times` requests that match fare like this.
    pub(crate) fn script(
        &self,
        times: usize,
        act: Act,
        matches: impl Fn(&Asked) -> bool + Send + 'static,
    ) {
        let matches = Box::new(matches);
        self.lock().rules.push(Rule {
            matches,
            times,
            act,
        });
    }

    pub(crate) fn asked(&self, matches: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let inner = self.lock();
        inner
            .asked
            .iter()
            .filter(|one| matches(one))
            .cloned()
            .collect()
    }

    /// Waits until it is so.
    pub(crate) async fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let mut steps = self.steps.subscribe();
        let waiting = async {
            while !so(self) {
                steps.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "waited in vain: {what}");
    }

    async fn connection(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(asked) = read(&mut stream).await? {
            let ends = self.ends.subscribe();
            let act = self.note(&asked);
            match act {
                Some(Act::Answer(code, headers, body)) => {
                    answer(&mut stream, code, headers, &body).await?;
                }
                Some(Act::HangUp) => return Ok(()),
                Some(Act::DoAndSaySilence) => {
                    let _ = self.answer(&asked);
                    return std::future::pending().await;
                }
                Some(Act::Watch { says, cut }) => {
                    begin(&mut stream).await?;
                    chunk(&mut stream, &says).await?;
                    if cut {
                        return Ok(());
                    }
                    stream.write_all(b"0\r\n\r\n").await?;
                }
                None if asked.query.contains_key("watch") => {
                    self.watch(&mut stream, &asked, ends).await?;
                }
                None => {
                    let (code, body) = self.answer(&asked);
                    answer(&mut stream, code, "", &body.to_string()).await?;
                }
            }
        }
        Ok(())
    }

    /// Remembers the request; what the script has for it.
    fn note(&self, asked: &Asked) -> Option<Act> {
        let mut inner = self.lock();
        inner.asked.push(asked.clone());
        let rule = inner
            .rules
            .iter_mut()
            .find(|rule| rule.times > 0 && (rule.matches)(asked));
        let act = rule.map(|rule| {
            rule.times -= 1;
            rule.act.clone()
        });
        drop(inner);
        self.step();
        act
    }

    fn answer(&self, asked: &Asked) -> (u16, Value) {
        let target = Target::of(&asked.path);
        let store = &mut self.lock().store;
        let answered = match (asked.method.as_str(), target.name.is_empty()) {
            ("GET", true) => Ok(store.page(&target, |object| selected(object, &asked.query))),
            ("GET", false) => store.get(&target).cloned().ok_or(Refusal::NotFound),
            ("POST", _) => store.create(&target, asked.body.clone()),
            ("PUT", _) => store.replace(&target, asked.body.clone()),
            ("PATCH", _) => store.patch(&target, &asked.body),
            _ => Err(Refusal::NotFound),
        };
        self.step();
        answered.map_or_else(|refusal| refusal.answer(), |object| (200, object))
    }

    /// `ends` began before anybody could know of the watch: who ends all watches ends this one too.
    async fn watch(
        &self,
        stream: &mut BufReader<TcpStream>,
        asked: &Asked,
        mut ends: watch::Receiver<u64>,
    ) -> std::io::Result<()> {
        let target = Target::of(&asked.path);
        let mut steps = self.steps.subscribe();
        let mut at: u64 = asked.query["resourceVersion"].parse().unwrap();
        begin(stream).await?;
        loop {
            let news = self.lock().store.since(&target, at);
            let Some(news) = news else {
                chunk(stream, &too_old()).await?;
                return stream.write_all(b"0\r\n\r\n").await;
            };
            for (version, kind, object) in news {
                at = version;
                if selected(&object, &asked.query) {
                    chunk(stream, &event(kind, &object)).await?;
                }
            }
            tokio::select! {
                changed = steps.changed() => changed.unwrap(),
                ended = ends.changed() => {
                    ended.unwrap();
                    return stream.write_all(b"0\r\n\r\n").await;
                }
            }
        }
    }
}

/// A line of a watch.
pub(crate) fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// How a watch says that it cannot go on from a version.
fn too_old() -> String {
    event("ERROR", &expired())
}

pub(crate) fn expired() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version"})
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let holds = |selector: &str, fields: bool| {
        selector
            .split(',')
            .filter(|one| !one.is_empty())
            .all(|one| {
                let (name, wanted) = one.split_once('=').unwrap();
                let found = match fields {
                    true => object.pointer(&format!("/{}", name.replace('.', "/"))),
                    false => object
                        .pointer("/metadata/labels")
                        .and_then(|labels| labels.get(name)),
                };
                found.and_then(Value::as_str) == Some(wanted)
            })
    };
    let selector = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    holds(selector("labelSelector"), false) && holds(selector("fieldSelector"), true)
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) = (
        words.next().unwrap().to_owned(),
        words.next().unwrap().to_owned(),
    );
    let (mut length, mut by) = (0, String::new());
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => by = value.trim_start_matches("Bearer ").to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let plain = |text: &str| {
        text.replace("%3D", "=")
            .replace("%2F", "/")
            .replace("%2C", ",")
    };
    Ok(Some(Asked {
        method,
        path: path.to_owned(),
        query: query
            .map(|(name, value)| (name.to_owned(), plain(value)))
            .collect(),
        by,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        at: Instant::now(),
    }))
}

async fn answer(
    stream: &mut BufReader<TcpStream>,
    code: u16,
    headers: &str,
    body: &str,
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

async fn begin(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await
}

async fn chunk(stream: &mut BufReader<TcpStream>, text: &str) -> std::io::Result<()> {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    stream.write_all(chunk.as_bytes()).await
}
