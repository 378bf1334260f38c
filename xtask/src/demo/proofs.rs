//! The proofs of the demo, in the order in which they run.
//!
//! Names of pods, files and ports are those of `examples/shop`: when the example changes, the constants here do.

mod evidence;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::IpAddr,
    process::Child,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use self::evidence::{AccessLine, Page};
use super::Proof;
use crate::{
    lab::{Lab, Listening, Pod, Processes},
    shell,
};

const SHOP: &str = "shop";
const fn in_shop(name: &'static str) -> Pod {
    Pod {
        namespace: SHOP,
        name,
    }
}
/// Who loads pages, on the other node than the front end.
pub(super) const CUSTOMER: Pod = in_shop("customer");
const FRONT: Pod = in_shop("front-0");
const ORDERS: Pod = in_shop("orders-0");
const REDIS: Pod = in_shop("redis-0");
const POSTGRES: Pod = in_shop("postgres-0");
const SHOP_PODS: [Pod; 5] = [CUSTOMER, FRONT, ORDERS, REDIS, POSTGRES];
/// A client that is never enrolled.
const PASSERBY: Pod = Pod {
    namespace: "street",
    name: "passerby",
};
/// Where front, Redis and PostgreSQL run; the link of this node to the other is where the capture listens.
const SERVERS_NODE: &str = "n1";
/// Where customer, orders and passerby run: every hop of a page crosses between the nodes.
const CALLERS_NODE: &str = "n2";

const NAMESPACE_FILE: &str = "10-namespace.yaml";
const ENROLLED_LABEL: &str = "istio.io/dataplane-mode: ambient";
const NOT_ENROLLED_LABEL: &str = "istio.io/dataplane-mode: none";
const POLICY_FILE: &str = "70-policies.yaml";
/// The edit that the comment in the policy file proposes: Redis may be reached by the front end instead of orders.
const REDIS_FOR_ORDERS: &str = "principals: [cluster.local/ns/shop/sa/orders]";
const REDIS_FOR_FRONT: &str = "principals: [cluster.local/ns/shop/sa/front]";
/// The file that the demo adds.
const STRICT_FILE: &str = "90-strict.yaml";
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

const PAGE: &str = "http://front.shop/";
/// What orders sends to PostgreSQL for each page.
const SQL: &str = "INSERT INTO orders";
const HBONE_PORT: u16 = 15008;
/// A changed policy must be in force within this time.
const POLICY_LIMIT: Duration = Duration::from_secs(1);
/// How long something may take before its proof fails.
const PATIENCE: Duration = Duration::from_secs(10);
const PAGES: u32 = 10;

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        promise: "without the mesh, who listens between the nodes can read everything (control)",
        show: plaintext_is_seen,
    },
    Proof {
        promise: "one label enrols the running pods; nothing is restarted",
        show: enrolled_live,
    },
    Proof {
        promise: "the shop works through the mesh: nginx, orders, Redis, PostgreSQL",
        show: pages_load,
    },
    Proof {
        promise: "between nodes every byte of enrolled pods travels in TLS 1.3 on port 15008",
        show: only_tls,
    },
    Proof {
        promise: "both ends of every hop know each other by SPIFFE identity",
        show: identities_logged,
    },
    Proof {
        promise: "an edited policy denies within a second, cuts the live connection and says why",
        show: policy_cuts,
    },
    Proof {
        promise: "STRICT refuses a pod that is not enrolled",
        show: strict_refuses,
    },
    Proof {
        promise: "taking the label away gives plain traffic again; nothing is restarted",
        show: released_live,
    },
];

/// What the proofs share.
pub(super) struct Stage {
    lab: Lab,
    /// Runs from before the namespace is enrolled until the shop is released: one capture for every proof.
    capture: Option<Listening>,
    /// What ran before anything was enrolled.
    processes: Vec<Processes>,
    shop_addresses: Vec<IpAddr>,
    enrolled_at: SystemTime,
    markers: u32,
}

impl Stage {
    /// The shop, running and not enrolled, and a capture between its nodes.
    pub(super) fn open(name: &str, example: &str) -> Result<Self> {
        let mut lab = Lab::prepare(name, example)?;
        lab.edit(NAMESPACE_FILE, |text| {
            text.replace(ENROLLED_LABEL, NOT_ENROLLED_LABEL)
        })?;
        lab.start()?;
        let mut stage = Self {
            capture: Some(lab.listen(SERVERS_NODE)?),
            processes: Vec::new(),
            shop_addresses: lab.addresses(SHOP)?,
            enrolled_at: SystemTime::now(),
            markers: 0,
            lab,
        };
        stage.processes = stage.running()?;
        Ok(stage)
    }

    pub(super) fn into_lab(self) -> Lab {
        self.lab
    }

    /// Puts the namespace into the mesh and waits until every agent knows it.
    pub(super) fn enrol(&mut self) -> Result<()> {
        self.label(NOT_ENROLLED_LABEL, ENROLLED_LABEL)?;
        self.lab.wait_enrolled(SHOP, true)?;
        self.enrolled_at = SystemTime::now();
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.label(ENROLLED_LABEL, NOT_ENROLLED_LABEL)?;
        self.lab.wait_enrolled(SHOP, false)
    }

    fn label(&self, from: &str, to: &str) -> Result<()> {
        self.lab.edit(NAMESPACE_FILE, |text| text.replace(from, to))
    }

    fn running(&self) -> Result<Vec<Processes>> {
        let all = SHOP_PODS.into_iter().map(|pod| {
            let processes = self.lab.processes(pod)?;
            ensure!(!processes.is_empty(), "{} runs nothing", pod.path());
            Ok(processes)
        });
        all.collect()
    }

    /// How many processes run; that they are not those from before is an error.
    fn same_processes(&self) -> Result<usize> {
        let now = self.running()?;
        for ((pod, before), now) in SHOP_PODS.iter().zip(&self.processes).zip(&now) {
            ensure!(
                before == now,
                "{} was restarted: process and start time {before:?} became {now:?}",
                pod.path()
            );
        }
        Ok(now.iter().map(Vec::len).sum())
    }

    fn page(&self, by: Pod, marker: &str) -> Result<Page> {
        Page::load(&self.lab, by, PAGE, marker)
    }

    /// Text that occurs nowhere else.
    fn marker(&mut self) -> String {
        self.markers += 1;
        format!("karst-demo-{}-{}", std::process::id(), self.markers)
    }

    fn capture(&self) -> Result<&Listening> {
        self.capture.as_ref().context("the capture has ended")
    }

    /// Waits until a text is in the capture in clear: then everything that came before it is as well.
    fn wait_captured(&self, text: &str) -> Result<()> {
        let capture = self.capture()?;
        let seen = || {
            capture
                .so_far()
                .ok()?
                .contains(text.as_bytes())
                .then_some(())
        };
        shell::wait_for(&format!("the capture holds {text:?}"), PATIENCE, seen)
    }
}

fn plaintext_is_seen(stage: &mut Stage) -> Result<String> {
    let marker = stage.marker();
    let page = stage.page(CUSTOMER, &marker)?.served()?;
    stage.wait_captured(&marker)?;
    stage.wait_captured(SQL)?;
    Ok(format!(
        "the customer loads a page: {page}\n\
         tcpdump between the nodes reads the header \"x-marker: {marker}\" and the SQL \"{SQL} ...\""
    ))
}

fn enrolled_live(stage: &mut Stage) -> Result<String> {
    let started = Instant::now();
    stage.enrol()?;
    let taken = started.elapsed().as_millis();
    let count = stage.same_processes()?;
    let mut evidence = format!(
        "{} pods enrolled, and known to both agents, {taken} ms after the edit of {NAMESPACE_FILE}\n\
         the same {count} processes run on:\n",
        SHOP_PODS.len()
    );
    for (pod, processes) in SHOP_PODS.iter().zip(&stage.processes) {
        for (pid, start) in processes {
            evidence.push_str(&format!(
                "  {:<16} process {pid}, started at tick {start}, before and after\n",
                pod.path()
            ));
        }
    }
    Ok(evidence)
}

fn pages_load(stage: &mut Stage) -> Result<String> {
    let mut evidence = String::new();
    let visits = |stage: &Stage| -> Result<u64> {
        let printed = stage.lab.exec(REDIS, &["redis-cli", "get", "visits"])?;
        Ok(printed.trim().parse()?)
    };
    let orders = |stage: &Stage| -> Result<u64> {
        let query = [
            "psql",
            "-h",
            "localhost",
            "-U",
            "shop",
            "-Atc",
            "SELECT count(*) FROM orders",
            "shop",
        ];
        let printed = stage.lab.exec(POSTGRES, &query)?;
        Ok(printed.trim().parse()?)
    };
    let before = (visits(stage)?, orders(stage)?);
    let marker = stage.marker();
    let mut seconds = Vec::new();
    for number in 1..=PAGES {
        let page = stage.page(CUSTOMER, &marker)?.served()?;
        seconds.push(page.seconds);
        if number == 1 || number == PAGES {
            evidence.push_str(&format!("page {number}: {page}\n"));
        }
    }
    let after = (visits(stage)?, orders(stage)?);
    let wanted = u64::from(PAGES);
    ensure!(
        after == (before.0 + wanted, before.1 + wanted),
        "{PAGES} pages moved (visits in Redis, orders in PostgreSQL) from {before:?} to {after:?}"
    );
    seconds.sort_by(f64::total_cmp);
    evidence.push_str(&format!(
        "{PAGES} pages, median {:.1} ms; Redis counts {PAGES} more visits, PostgreSQL holds {PAGES} more orders",
        seconds[seconds.len() / 2] * 1000.0
    ));
    Ok(evidence)
}

fn only_tls(stage: &mut Stage) -> Result<String> {
    let marker = stage.marker();
    stage.page(CUSTOMER, &marker)?.served()?;
    // Not enrolled, hence in clear: it shows that the capture still listens, and ends what is looked at.
    let control = stage.marker();
    stage.page(PASSERBY, &control)?.served()?;
    stage.wait_captured(&control)?;
    let all = stage.capture()?.so_far()?.among(&stage.shop_addresses);
    let meshed = all.within(stage.enrolled_at, SystemTime::now());
    let (bytes, tunnelled) = (meshed.bytes(), meshed.on_port(HBONE_PORT).bytes());
    ensure!(bytes > 0, "nothing was captured between pods of the shop");
    ensure!(
        bytes == tunnelled,
        "{} of {bytes} payload bytes travelled outside port {HBONE_PORT}",
        bytes - tunnelled
    );
    for secret in [&marker, SQL] {
        ensure!(
            !meshed.contains(secret.as_bytes()),
            "{secret:?} travelled in clear"
        );
    }
    let tls = all.on_port(HBONE_PORT).tls13(HBONE_PORT)?;
    ensure!(tls.connections > 0, "no TLS connection was captured");
    Ok(format!(
        "since enrolment {tunnelled} of {bytes} payload bytes between pods of the shop on port {HBONE_PORT}\n\
         all of them in {} records of {} connections whose servers chose TLS 1.3, in clear nothing but the hellos\n\
         not seen: {marker:?}, {SQL:?}\n\
         control: the same capture reads {control:?} of the passerby, who is not enrolled",
        tls.records, tls.connections
    ))
}

fn identities_logged(stage: &mut Stage) -> Result<String> {
    let hops = [
        ("customer", CALLERS_NODE, "front", SERVERS_NODE),
        ("front", SERVERS_NODE, "orders", CALLERS_NODE),
        ("orders", CALLERS_NODE, "redis", SERVERS_NODE),
        ("orders", CALLERS_NODE, "postgres", SERVERS_NODE),
    ];
    let mut evidence =
        "access logs; at each end an agent verified the other's certificate:\n".to_owned();
    for (from, from_node, to, to_node) in hops {
        let identity = |account: &str| format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}");
        let (source, destination) = (identity(from), identity(to));
        for (node, direction) in [(from_node, "outbound"), (to_node, "inbound")] {
            let what = format!("{node} logs {from} -> {to}");
            AccessLine::wait(&stage.lab, node, &what, |line| {
                line.message() == "connection complete"
                    && line.field("direction") == Some(direction)
                    && line.field("src.identity") == Some(&source)
                    && line.field("dst.identity") == Some(&destination)
            })?;
        }
        evidence.push_str(&format!(
            "  {source} -> {destination} ({from_node} outbound, {to_node} inbound)\n"
        ));
    }
    Ok(evidence)
}

fn policy_cuts(stage: &mut Stage) -> Result<String> {
    let live = Subscription::open(&stage.lab)?;
    let marker = stage.marker();
    stage.page(CUSTOMER, &marker)?.served()?;
    let stage = &*stage;
    let edited = Instant::now();
    redis_for(stage, REDIS_FOR_ORDERS, REDIS_FOR_FRONT)?;
    let denied = shell::wait_for("pages are refused", PATIENCE, || {
        let page = stage.page(CUSTOMER, &marker).ok()?;
        (page.status == 502).then(|| (edited.elapsed(), page.text))
    });
    let cut = live.wait_cut();
    let reason = AccessLine::wait(
        &stage.lab,
        SERVERS_NODE,
        "the agent logs the reason",
        |line| {
            line.field("dst.workload") == Some("redis") && line.reason().contains("policy changed")
        },
    );
    redis_for(stage, REDIS_FOR_FRONT, REDIS_FOR_ORDERS)?;
    let ((denied, page), (cut, said), reason) = (denied?, cut?, reason?);
    let cut = cut.duration_since(edited);
    ensure!(
        cut <= POLICY_LIMIT && denied <= POLICY_LIMIT,
        "live connection cut after {cut:.0?}, new ones denied after {denied:.0?}"
    );
    let allowed = || stage.page(CUSTOMER, &marker).ok()?.served().ok();
    let page_again = shell::wait_for("pages load again", PATIENCE, allowed)?;
    Ok(format!(
        "{POLICY_FILE} edited: now Redis may be reached by the front end, no longer by orders\n\
         {} ms later the open connection from orders to Redis is cut (redis-cli: {said})\n\
         {} ms later at most new ones are denied (the page: {page})\n\
         the agent says why:\n      {}\n\
         edited back, the customer loads a page: {page_again}",
        cut.as_millis(),
        denied.as_millis(),
        reason.reason()
    ))
}

/// Edits the first policy of the file, which is Redis's.
fn redis_for(stage: &Stage, from: &str, to: &str) -> Result<()> {
    stage
        .lab
        .edit(POLICY_FILE, |text| text.replacen(from, to, 1))
}

fn strict_refuses(stage: &mut Stage) -> Result<String> {
    let marker = stage.marker();
    let before = stage.page(PASSERBY, &marker)?.served()?;
    let started = Instant::now();
    stage.lab.add(STRICT_FILE, STRICT)?;
    let refused = || {
        let error = stage.page(PASSERBY, &marker).err()?;
        Some((started.elapsed().as_millis(), error))
    };
    let refused = shell::wait_for("the passerby is refused", PATIENCE, refused);
    let reason = AccessLine::wait(
        &stage.lab,
        SERVERS_NODE,
        "the agent logs the reason",
        |line| {
            line.message() == "connection failed" && line.field("src.workload") == Some("passerby")
        },
    );
    let served = stage.page(CUSTOMER, &marker).and_then(Page::served);
    stage.lab.remove(STRICT_FILE)?;
    let ((after, error), reason, served) = (refused?, reason?, served?);
    Ok(format!(
        "PERMISSIVE, the passerby loads a page in clear: {before}\n\
         STRICT, refused {after} ms after the edit at most: {error:#}\n\
         the agent says why (istio_converted_static_strict is what STRICT becomes):\n      {}\n\
         the customer, who is enrolled, is served as before: {served}",
        reason.reason()
    ))
}

fn released_live(stage: &mut Stage) -> Result<String> {
    let started = Instant::now();
    stage.release()?;
    let taken = started.elapsed().as_millis();
    let count = stage.same_processes()?;
    let marker = stage.marker();
    let page = stage.page(CUSTOMER, &marker)?.served()?;
    stage.wait_captured(&marker)?;
    if let Some(capture) = stage.capture.take() {
        capture.stop()?;
    }
    Ok(format!(
        "released {taken} ms after the edit; the same {count} processes run on\n\
         the customer loads a page: {page}\n\
         the same capture reads {marker:?} again; from its start to its end it has lost no packet"
    ))
}

/// A long-lived connection of real software: redis-cli in the pod of orders, subscribed to a channel.
struct Subscription {
    child: Child,
    /// When redis-cli gave up, and what it said.
    ended: mpsc::Receiver<(Instant, String)>,
}

impl Subscription {
    fn open(lab: &Lab) -> Result<Self> {
        let mut child = lab.spawn(ORDERS, &["redis-cli", "-h", "redis", "subscribe", "news"])?;
        let answers = child.stdout.take().context("its output is piped")?;
        let mut errors = child.stderr.take().context("its messages are piped")?;
        let mut answers = BufReader::new(answers);
        // The confirmation: subscribe, the channel, and how many channels there are.
        let mut said = String::new();
        for _ in 0..3 {
            answers.read_line(&mut said)?;
        }
        ensure!(
            said == "subscribe\nnews\n1\n",
            "redis-cli could not subscribe: {said:?}"
        );
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut said = String::new();
            let _ = answers.read_to_string(&mut said);
            let at = Instant::now();
            let _ = errors.read_to_string(&mut said);
            let _ = sender.send((at, said.trim().to_owned()));
        });
        Ok(Self { child, ended })
    }

    /// Waits until redis-cli has given up.
    fn wait_cut(&self) -> Result<(Instant, String)> {
        let ended = self.ended.recv_timeout(PATIENCE);
        ended.with_context(|| format!("the live connection was still open after {PATIENCE:?}"))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
