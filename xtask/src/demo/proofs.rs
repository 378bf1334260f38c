//! The proofs of the demo, in the order in which they run.
//!
//! Names of pods, files and ports are those of `examples/shop`: when the example changes, the constants here do.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Proof;
use crate::{
    lab::{Lab, Pod, Processes},
    pcap::Capture,
    shell,
};

const SHOP: &str = "shop";
const OUTSIDE: &str = "outside";
/// The client inside the mesh, on the other node than the front end.
pub(super) const VISITOR: Pod = Pod {
    namespace: SHOP,
    name: "visitor",
};
const WEB: Pod = Pod {
    namespace: SHOP,
    name: "web",
};
const ORDERS: Pod = Pod {
    namespace: SHOP,
    name: "orders",
};
/// A client that is never enrolled.
const STRANGER: Pod = Pod {
    namespace: OUTSIDE,
    name: "stranger",
};
const SHOP_PODS: [Pod; 5] = [
    VISITOR,
    WEB,
    ORDERS,
    Pod {
        namespace: SHOP,
        name: "redis",
    },
    Pod {
        namespace: SHOP,
        name: "postgres",
    },
];

/// The file that holds the namespace, and its label while enrolled.
const NAMESPACE_FILE: &str = "namespace.yaml";
const ENROLLED_LABEL: &str = "istio.io/dataplane-mode: ambient";
const NOT_ENROLLED_LABEL: &str = "istio.io/dataplane-mode: none";
/// Files that the demo adds.
const DENY_FILE: &str = "zz-demo-deny.yaml";
const STRICT_FILE: &str = "zz-demo-strict.yaml";

const PAGE: &str = "http://web.shop.svc.cluster.local/";
/// The service that a page comes from through nginx, orders, Redis and PostgreSQL.
const ORDER_PAGE: &str = "http://web.shop.svc.cluster.local/orders/";
const HBONE_PORT: u16 = 15008;
/// A changed policy must be in force within this time.
const POLICY_LIMIT: Duration = Duration::from_secs(1);

const DENY_VISITOR: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: demo-deny-visitor, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from: [{source: {serviceAccounts: [shop/visitor]}}]
";
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: demo-strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

pub(super) const PROOFS: &[Proof] = &[
    Proof {
        promise: "without the mesh, the capture sees plaintext between nodes (control)",
        show: plaintext_is_seen,
    },
    Proof {
        promise: "labelling the namespace enrols its pods without restarting anything",
        show: enrolled_live,
    },
    Proof {
        promise: "the shop works: nginx, orders, Redis, PostgreSQL",
        show: pages_load,
    },
    Proof {
        promise: "between nodes every byte travels in TLS 1.3 on port 15008",
        show: only_tls,
    },
    Proof {
        promise: "both ends know each other by SPIFFE identity",
        show: identities_logged,
    },
    Proof {
        promise: "a policy denies within a second, cuts the live connection and gives its reason",
        show: policy_cuts,
    },
    Proof {
        promise: "STRICT refuses a pod that is not enrolled",
        show: strict_refuses,
    },
    Proof {
        promise: "taking the label away gives plain traffic again, without restarts",
        show: released_live,
    },
];

/// What the proofs share.
pub(super) struct Stage {
    lab: Lab,
    /// What ran before anything was enrolled.
    processes: Vec<Processes>,
    markers: u32,
}

impl Stage {
    pub(super) fn new(lab: Lab) -> Self {
        Self {
            lab,
            processes: Vec::new(),
            markers: 0,
        }
    }

    pub(super) fn into_lab(self) -> Lab {
        self.lab
    }

    /// Text that occurs nowhere else.
    fn marker(&mut self) -> String {
        self.markers += 1;
        format!("karst-demo-marker-{}-{}", std::process::id(), self.markers)
    }

    fn running(&self) -> Result<Vec<Processes>> {
        SHOP_PODS
            .into_iter()
            .map(|pod| self.lab.processes(pod))
            .collect()
    }

    /// Captures at the front end while the visitor asks for a page whose request carries `marker`.
    fn visit_captured(&self, marker: &str) -> Result<Capture> {
        let header = format!("x-marker: {marker}");
        let visit = || {
            self.lab.exec(
                VISITOR,
                &["curl", "-sf", "--max-time", "5", "-H", &header, PAGE],
            )
        };
        Ok(self.lab.capture(WEB, visit)?.0)
    }

    fn label(&self, from: &str, to: &str) -> Result<()> {
        self.lab.edit(NAMESPACE_FILE, |text| text.replace(from, to))
    }
}

fn plaintext_is_seen(stage: &mut Stage) -> Result<String> {
    // The example is enrolled as it is written; the demo begins without the mesh.
    stage.lab.wait_enrolled(SHOP, true)?;
    stage.label(ENROLLED_LABEL, NOT_ENROLLED_LABEL)?;
    stage.lab.wait_enrolled(SHOP, false)?;
    stage.processes = stage.running()?;
    let marker = stage.marker();
    let capture = stage.visit_captured(&marker)?;
    ensure!(
        capture.contains(marker.as_bytes()),
        "the marker was not seen: the capture proves nothing"
    );
    Ok(format!(
        "tcpdump at the front end's link saw {marker} in clear in {} segments",
        capture.segments.len()
    ))
}

fn enrolled_live(stage: &mut Stage) -> Result<String> {
    let started = Instant::now();
    stage.label(NOT_ENROLLED_LABEL, ENROLLED_LABEL)?;
    stage.lab.wait_enrolled(SHOP, true)?;
    let taken = started.elapsed();
    same_processes(stage)?;
    let count: usize = stage.processes.iter().map(Vec::len).sum();
    Ok(format!(
        "{} pods enrolled {:.0} ms after the edit; the same {count} processes with the same start times run on",
        SHOP_PODS.len(),
        taken.as_secs_f64() * 1000.0
    ))
}

fn same_processes(stage: &Stage) -> Result<()> {
    let now = stage.running()?;
    for ((pod, before), now) in SHOP_PODS.iter().zip(&stage.processes).zip(&now) {
        // Servers start and end workers as they like; the first process is the container.
        ensure!(
            before.first() == now.first(),
            "{} was restarted: {before:?} became {now:?}",
            pod.path()
        );
    }
    Ok(())
}

fn pages_load(stage: &mut Stage) -> Result<String> {
    let mut evidence = String::new();
    for page in [PAGE, ORDER_PAGE, ORDER_PAGE] {
        let printed = stage.lab.exec(
            VISITOR,
            &[
                "curl",
                "-sf",
                "--max-time",
                "10",
                "-w",
                "\n%{http_code} in %{time_total} s",
                page,
            ],
        )?;
        let first = printed.lines().next().unwrap_or_default();
        let last = printed.lines().last().unwrap_or_default();
        evidence.push_str(&format!("{page}: {last}: {first}\n"));
    }
    Ok(evidence)
}

fn only_tls(stage: &mut Stage) -> Result<String> {
    let marker = stage.marker();
    let capture = stage.visit_captured(&marker)?;
    ensure!(
        !capture.contains(marker.as_bytes()),
        "the marker {marker} travelled in clear"
    );
    let (all, tunnelled) = capture.bytes_on(HBONE_PORT);
    ensure!(all > 0, "nothing was captured");
    ensure!(
        all == tunnelled,
        "{} of {all} payload bytes travelled outside port {HBONE_PORT}",
        all - tunnelled
    );
    let handshakes = capture.tls13_handshakes(HBONE_PORT)?;
    Ok(format!(
        "{tunnelled} of {all} payload bytes on port {HBONE_PORT}, all in TLS records, {handshakes} handshakes chose TLS 1.3, marker not seen"
    ))
}

fn identities_logged(stage: &mut Stage) -> Result<String> {
    let identity = |pod: Pod| {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            pod.namespace, pod.name
        )
    };
    let (source, destination) = (identity(VISITOR), identity(WEB));
    let line = shell::wait_for(
        "an access-log line with both identities",
        Duration::from_secs(5),
        || {
            let log = stage.lab.agent_log().ok()?;
            let both = |line: &&str| {
                line.contains(&source)
                    && line.contains(&destination)
                    && line.contains("connection complete")
            };
            log.lines().rfind(both).map(str::to_owned)
        },
    )?;
    Ok(line.replace('\t', " "))
}

fn policy_cuts(stage: &mut Stage) -> Result<String> {
    let mut live = LiveConnection::open(&stage.lab)?;
    live.exchange().context("before the policy")?;
    let applied = Instant::now();
    stage.lab.add(DENY_FILE, DENY_VISITOR)?;
    let cut = live
        .wait_end(Duration::from_secs(10))
        .map(|()| applied.elapsed());
    let denied = shell::wait_for(
        "new connections are denied",
        Duration::from_secs(10),
        || {
            let visit = stage
                .lab
                .exec(VISITOR, &["curl", "-s", "--max-time", "2", PAGE]);
            visit.is_err().then(|| applied.elapsed())
        },
    );
    let reason = shell::wait_for(
        "the reason in the access log",
        Duration::from_secs(5),
        || {
            let log = stage.lab.agent_log().ok()?;
            log.lines()
                .rfind(|line| line.contains("demo-deny-visitor"))
                .map(str::to_owned)
        },
    );
    stage.lab.remove(DENY_FILE)?;
    let (cut, denied, reason) = (cut?, denied?, reason?);
    ensure!(
        cut <= POLICY_LIMIT && denied <= POLICY_LIMIT,
        "live connection cut after {cut:?}, new ones denied after {denied:?}"
    );
    allowed_again(stage)?;
    Ok(format!(
        "live connection cut {cut:.0?} and new ones denied at most {denied:.0?} after the edit\n{}",
        reason.replace('\t', " ")
    ))
}

fn allowed_again(stage: &Stage) -> Result<()> {
    shell::wait_for(
        "pages load once the policy is gone",
        Duration::from_secs(10),
        || {
            stage
                .lab
                .exec(VISITOR, &["curl", "-sf", "--max-time", "2", PAGE])
                .ok()
                .map(drop)
        },
    )
}

fn strict_refuses(stage: &mut Stage) -> Result<String> {
    let visit = || {
        stage.lab.exec(
            STRANGER,
            &[
                "curl",
                "-s",
                "--max-time",
                "3",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                PAGE,
            ],
        )
    };
    let before = visit().context("before STRICT, the stranger is served (control)")?;
    stage.lab.add(STRICT_FILE, STRICT)?;
    let refused = shell::wait_for("the stranger is refused", Duration::from_secs(10), || {
        visit().err()
    });
    let inside = stage
        .lab
        .exec(VISITOR, &["curl", "-sf", "--max-time", "5", PAGE]);
    stage.lab.remove(STRICT_FILE)?;
    refused?;
    inside.context("under STRICT the enrolled visitor must still be served")?;
    Ok(format!(
        "the stranger got {before} before, a closed connection under STRICT; the enrolled visitor was served throughout"
    ))
}

fn released_live(stage: &mut Stage) -> Result<String> {
    stage.label(ENROLLED_LABEL, NOT_ENROLLED_LABEL)?;
    stage.lab.wait_enrolled(SHOP, false)?;
    same_processes(stage)?;
    let marker = stage.marker();
    let capture = stage.visit_captured(&marker)?;
    ensure!(
        capture.contains(marker.as_bytes()),
        "the traffic is not plain again"
    );
    stage.label(NOT_ENROLLED_LABEL, ENROLLED_LABEL)?;
    stage.lab.wait_enrolled(SHOP, true)?;
    Ok(format!(
        "the capture saw {marker} in clear; then the namespace was enrolled again"
    ))
}

/// A keep-alive HTTP connection from the visitor to the front end, held open by a small program in the pod.
struct LiveConnection {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl LiveConnection {
    fn open(lab: &Lab) -> Result<Self> {
        let target = format!("{}:80", lab.address(WEB)?);
        // The reader runs in the foreground: when the connection ends, so does the shell.
        let script = "exec 3<>/dev/tcp/${0%:*}/${0#*:}; cat <&0 >&3 & cat <&3; kill $!";
        let mut child = lab.spawn(VISITOR, &["bash", "-c", script, &target])?;
        let answers = BufReader::new(
            child
                .stdout
                .take()
                .context("the connection's output is piped")?,
        );
        Ok(Self { child, answers })
    }

    /// One request and the first line of its answer.
    fn exchange(&mut self) -> Result<()> {
        let input = self
            .child
            .stdin
            .as_mut()
            .context("the connection's input is piped")?;
        input.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(
            line.starts_with("HTTP/1.1 "),
            "the live connection was answered {line:?}"
        );
        Ok(())
    }

    /// Waits until the connection has ended.
    fn wait_end(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let (done, ended) = std::sync::mpsc::channel();
            let answers = &mut self.answers;
            scope.spawn(move || {
                let mut rest = Vec::new();
                let _ = answers.read_to_end(&mut rest);
                let _ = done.send(());
            });
            let ended = ended.recv_timeout(limit);
            // Its input ends too, so that the program and the reader end whatever happened.
            let _ = self.child.kill();
            if ended.is_err() {
                bail!(
                    "the live connection was still open after {:?}",
                    started.elapsed()
                );
            }
            Ok(())
        })
    }
}

impl Drop for LiveConnection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
