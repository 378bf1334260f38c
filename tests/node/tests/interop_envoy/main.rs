//! Real Envoy at the other end of the tunnel, as server and as client: what Istio's gateways and waypoints are.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests stand outside of test functions; a skipped test says so"
)]

mod certificates;
mod envoy;

use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    path::Path,
};

use karst_test_node::{Lab, eventually, until};
use serde_json::Value;
use tempfile::TempDir;

use self::certificates::{authority, identity, issue};

/// Ports of karst-echo: echo, count, source, fin.
const PORTS: [u16; 4] = [9000, 9004, 9005, 9006];
const LARGE: &str = "16777216";
const ECHO: &str = "    - name: echo
      command: [karst-echo, server, --port, \"8080\", --mode, \"echo:9000\", --mode, \"count:9004\", --mode, \"source:9005\", --mode, \"fin:9006\"]
      readinessProbe:
        tcpSocket:
          port: 8080
";

/// A lab with Envoy in two pods of a namespace that is not enrolled.
struct Foreign {
    lab: Lab,
    folder: TempDir,
}

impl Foreign {
    fn up(binary: &Path) -> Self {
        let lab = Lab::up("tests/fixtures/pair");
        // Pods have a /tmp of their own.
        let folder = TempDir::with_prefix_in("karst-envoy-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let authority = authority(lab.name());
        for name in ["server", "client"] {
            let id = identity("foreign", &format!("envoy-{name}"));
            issue(&authority, &id, folder.path(), name);
        }
        let peer = |account| identity("meshed", account).to_string();
        let server = envoy::server(folder.path(), &peer("client"), &PORTS);
        let target = lab.address("meshed", "server");
        let client = envoy::client(folder.path(), &peer("server"), &target, &PORTS);
        let mut yaml = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: foreign\n".to_owned();
        for (name, config, node, labels, beside) in [
            (
                "server",
                server,
                "b",
                ", networking.istio.io/tunnel: http",
                ECHO,
            ),
            ("client", client, "a", "", ""),
        ] {
            let path = folder.path().join(format!("{name}.json"));
            fs::write(&path, config.to_string()).unwrap();
            let pod = format!("envoy-{name}");
            yaml += &envoy::pod(&pod, node, labels, binary, &path, beside);
        }
        lab.apply("foreign.yaml", &yaml);
        let foreign = Self { lab, folder };
        foreign.wait_ready();
        foreign
    }

    fn wait_ready(&self) {
        for pod in ["foreign/envoy-server", "foreign/envoy-client"] {
            eventually(&format!("Envoy of {pod} is ready"), || {
                self.admin(pod, "GET", "/ready").contains("LIVE")
            });
        }
        eventually(
            "both agents know Envoy's pod as a server of the tunnel",
            || {
                ["a", "b"].iter().all(|node| {
                    let seen = self.lab.enrolled_as_seen_by(node);
                    seen.is_some_and(|seen| seen.contains(&"foreign/envoy-server".to_owned()))
                })
            },
        );
    }

    /// A page of an Envoy's admin interface.
    fn admin(&self, pod: &str, method: &str, page: &str) -> String {
        let url = format!("http://127.0.0.1:{}{page}", envoy::ADMIN);
        self.lab
            .exec(pod, &["curl", "-s", "--max-time", "5", "-X", method, &url])
            .stdout
    }

    /// Lines of an Envoy's access log.
    fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join(format!("{name}.log")));
        text.unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// One connection by karst-echo; its account of every byte.
    fn tcp(&self, pod: &str, target: &str, options: &[&str]) -> Value {
        let command = [&["karst-echo", "tcp", target][..], options].concat();
        let ran = self.lab.exec(pod, &command);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"))
    }

    /// Bytes and their ends through the tunnel, from a pod to ports at an address.
    fn carries_everything(&self, pod: &str, ip: &str) {
        let at = |port: u16| format!("{ip}:{port}");
        let echoed = self.tcp(pod, &at(9000), &["--send", LARGE]);
        assert_eq!(echoed["received"].to_string(), LARGE, "{echoed}");
        assert_eq!(echoed["received_checksum"], echoed["sent_checksum"]);
        assert_eq!(echoed["end"], "fin", "{echoed}");

        let counted = self.tcp(pod, &at(9004), &["--send", LARGE, "--show"]);
        let expected = format!("{LARGE} {}", echoed["sent_checksum"].as_str().unwrap());
        assert!(
            counted.to_string().contains(&expected),
            "the server answers after our half close with what it got: {counted}"
        );

        let sourced = self.tcp(pod, &at(9005), &["--text", &format!("{LARGE}\n")]);
        assert_eq!(sourced["received"].to_string(), LARGE, "{sourced}");
        assert_eq!(sourced["received_checksum"], echoed["sent_checksum"]);

        let half = self.tcp(pod, &at(9006), &["--send", "100000", "--show"]);
        assert!(half.to_string().contains("220 karst-echo"), "{half}");
        assert_eq!(half["end"], "fin", "{half}");
    }

    /// An open connection that has echoed a line, in the hands of a process.
    fn open(&self, pod: &str, target: &str) -> std::process::Child {
        let (ip, port) = target.rsplit_once(':').unwrap();
        let script = format!(
            "exec 3<>/dev/tcp/{ip}/{port}; while read l; do echo $l >&3; read -t 10 r <&3 || exit 1; echo $r; done"
        );
        self.lab.spawn(pod, &["bash", "-c", &script])
    }
}

/// What Envoy said is lost with the lab.
impl Drop for Foreign {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for pod in ["foreign/envoy-server", "foreign/envoy-client"] {
            let said = self.lab.karst(&["logs", pod]);
            let lines: Vec<&str> = said.stdout.lines().rev().take(15).collect();
            eprintln!("{pod}, newest first: {}\n{}", said.stderr, lines.join("\n"));
        }
        eprintln!(
            "{}\n{}",
            self.log("server").join("\n"),
            self.log("client").join("\n")
        );
    }
}

/// Sends a line over [`Foreign::open`]'s connection and reads its echo; `None` when the connection has ended.
fn exchange(
    child: &mut std::process::Child,
    answers: &mut impl BufRead,
    line: &str,
) -> Option<String> {
    writeln!(child.stdin.as_mut().unwrap(), "{line}").ok()?;
    let mut answer = String::new();
    answers.read_line(&mut answer).ok()?;
    (!answer.is_empty()).then(|| answer.trim().to_owned())
}

#[test]
fn envoy_is_a_server_and_a_client_of_the_tunnel() {
    let Some(binary) = envoy::binary() else {
        eprintln!("skipped: KARST_SKIP_ENVOY=1");
        return;
    };
    let foreign = Foreign::up(&binary);
    karst_reaches_envoy(&foreign);
    envoy_verifies_us(&foreign);
    envoy_goes_away(&foreign);
    envoy_reaches_karst(&foreign);
    policy_refuses_envoy(&foreign);
    agent_drains(&foreign);
}

/// Our client side: headers, identities, bytes.
fn karst_reaches_envoy(foreign: &Foreign) {
    let ip = foreign.lab.address("foreign", "envoy-server");
    foreign.carries_everything("meshed/client", &ip);
    let line = until("Envoy logs the connection", || {
        foreign
            .log("server")
            .into_iter()
            .find(|line| line.contains(":9000 "))
    });
    let client = foreign.lab.address("meshed", "client");
    for part in [
        "peer=spiffe://cluster.local/ns/meshed/sa/client ".to_owned(),
        "own=spiffe://cluster.local/ns/foreign/sa/envoy-server ".to_owned(),
        "tls=TLSv1.3 method=CONNECT ".to_owned(),
        format!("authority={ip}:9000 path=- status=200 "),
        "baggage=k8s.cluster.name=".to_owned(),
        format!("forwarded=for=\"{client}:"),
        "traceparent=00-".to_owned(),
    ] {
        assert!(line.contains(&part), "no {part:?} in {line}");
    }
    let outbound = until("our access log has the connection", || {
        let log = foreign.lab.agent_log("a");
        let found = log
            .lines()
            .find(|line| line.contains("direction=outbound") && line.contains("sa/envoy-server"));
        found.map(str::to_owned)
    });
    assert!(outbound.contains("sa/client"), "{outbound}");
}

/// Another identity of ours is refused by Envoy in the handshake, and no byte arrives.
fn envoy_verifies_us(foreign: &Foreign) {
    let ip = foreign.lab.address("foreign", "envoy-server");
    // Not by its log, which it writes later.
    let requests = || {
        let page = "/stats?filter=http.hbone.downstream_rq_total";
        foreign.admin("foreign/envoy-server", "GET", page)
    };
    let before = requests();
    assert!(before.contains("downstream_rq_total: "), "{before}");
    let refused = foreign.tcp("meshed/neighbour", &format!("{ip}:9000"), &["--send", "5"]);
    assert_eq!(refused["received"], 0, "{refused}");
    let stats = foreign.admin(
        "foreign/envoy-server",
        "GET",
        "/stats?filter=ssl.fail_verify_san",
    );
    assert!(!stats.contains("fail_verify_san: 0"), "{stats}");
    assert_eq!(requests(), before, "no request has come");
}

/// Envoy's GOAWAY: what is open goes on, what is new takes another connection.
fn envoy_goes_away(foreign: &Foreign) {
    let ip = foreign.lab.address("foreign", "envoy-server");
    let target = format!("{ip}:9000");
    let mut held = foreign.open("meshed/client", &target);
    let mut answers = BufReader::new(held.stdout.take().unwrap());
    assert_eq!(
        exchange(&mut held, &mut answers, "before").as_deref(),
        Some("before")
    );
    foreign.admin("foreign/envoy-server", "POST", "/healthcheck/fail");
    for n in 0..5 {
        let new = foreign.tcp("meshed/client", &target, &["--send", "1000"]);
        assert_eq!(new["received"], 1000, "connection {n} after GOAWAY: {new}");
    }
    assert_eq!(
        exchange(&mut held, &mut answers, "after").as_deref(),
        Some("after"),
        "an open stream outlives GOAWAY"
    );
    drop(held.stdin.take());
    held.wait().unwrap();
    let goaways = foreign.admin(
        "foreign/envoy-server",
        "GET",
        "/stats?filter=http.hbone.downstream_cx_drain_close",
    );
    assert!(
        !goaways.contains("drain_close: 0"),
        "Envoy did send GOAWAY: {goaways}"
    );
    foreign.admin("foreign/envoy-server", "POST", "/healthcheck/ok");
}

/// Our server side: Envoy's CONNECT, its certificate, bytes.
fn envoy_reaches_karst(foreign: &Foreign) {
    foreign.carries_everything("foreign/envoy-client", "127.0.0.1");
    let line = until("Envoy logs the tunnel", || {
        foreign
            .log("client")
            .into_iter()
            .find(|line| line.starts_with("port=9000 "))
    });
    assert!(
        line.contains("peer=spiffe://cluster.local/ns/meshed/sa/server tls=TLSv1.3"),
        "{line}"
    );
    let inbound = until("our access log has Envoy's identity", || {
        let log = foreign.lab.agent_log("b");
        let found = log.lines().find(|line| {
            line.contains("direction=inbound") && line.contains("ns/foreign/sa/envoy-client")
        });
        found.map(str::to_owned)
    });
    assert!(inbound.contains("sa/server"), "{inbound}");
}

/// A policy that names Envoy's identity is enforced: 401, and only there.
fn policy_refuses_envoy(foreign: &Foreign) {
    foreign.lab.apply(
        "policy.yaml",
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-envoy
  namespace: meshed
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/foreign/sa/envoy-client]}}]
      to: [{operation: {ports: [\"9004\"]}}]
",
    );
    let send = || foreign.tcp("foreign/envoy-client", "127.0.0.1:9004", &["--send", "5"]);
    eventually("the policy is in force", || send()["received"] == 0);
    eventually("Envoy logs that it got 401", || {
        let lines = foreign.log("client");
        let refused = |line: &String| {
            line.starts_with("port=9004 ") && line.contains(r#""key":":status","value":"401""#)
        };
        lines.iter().any(refused)
    });
    let other = foreign.tcp("foreign/envoy-client", "127.0.0.1:9000", &["--send", "5"]);
    assert_eq!(other["received"], 5, "{other}");
    foreign.lab.remove("policy.yaml");
    eventually("without the policy it gets through", || {
        send()["received"] != 0
    });
}

/// Our GOAWAY: the agent at the server's node restarts; Envoy is told, and goes on with the next one. Then the same with
/// ours as the client.
fn agent_drains(foreign: &Foreign) {
    let told = || {
        let page = "/stats?filter=cluster.hbone.upstream_cx_close_notify";
        let page = foreign.admin("foreign/envoy-client", "GET", page);
        let count = page.rsplit(' ').next().unwrap_or_default();
        count
            .trim()
            .parse::<u32>()
            .unwrap_or_else(|_| panic!("{page}"))
    };
    let gets_through = || {
        let sent = foreign.tcp(
            "foreign/envoy-client",
            "127.0.0.1:9000",
            &["--send", "1000"],
        );
        sent["received"] == 1000
    };
    assert!(gets_through());
    let before = told();
    foreign.lab.karst(&["restart-agent", "b"]).success();
    eventually("Envoy gets a GOAWAY", || told() > before);
    eventually(
        "Envoy gets through to the agent that has come back",
        gets_through,
    );
    foreign.carries_everything("foreign/envoy-client", "127.0.0.1");
    let ip = foreign.lab.address("foreign", "envoy-server");
    let ended = foreign.lab.agent("a");
    foreign.lab.karst(&["restart-agent", "a"]).success();
    eventually("there is another agent", || {
        let now = foreign.lab.running_agent("a");
        now.is_some_and(|now| now != ended)
    });
    eventually(
        "our client gets through to Envoy after its agent's restart",
        || {
            let sent = foreign.tcp("meshed/client", &format!("{ip}:9000"), &["--send", "1000"]);
            sent["received"] == 1000
        },
    );
}
