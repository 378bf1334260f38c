//! Policy on the running mesh: who may, how fast an edit takes hold, what the log says, and what a broken file does.

use std::fs;

use karst_test_node::{
    Lab, Script, eventually,
    script::{PROBER, now_us},
    until,
};

/// Edits whose time to the cut is measured.
const EDITS: usize = 40;

/// A policy of namespace meshed for the server: `body` is the rest of its spec, indented by two.
fn policy(body: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: limits\n  namespace: meshed\n\
         spec:\n  selector:\n    matchLabels:\n      app: server\n{body}"
    )
}

fn peer_authentication(body: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: modes\n  namespace: meshed\n\
         spec:\n  selector:\n    matchLabels:\n      app: server\n{body}"
    )
}

const DENY_9000: &str =
    "  action: DENY\n  rules:\n    - to:\n        - operation:\n            ports: [\"9000\"]\n";
const DENY_1: &str =
    "  action: DENY\n  rules:\n    - to:\n        - operation:\n            ports: [\"1\"]\n";

/// One program for each kind of caller: in the mesh with its own identity, with another, and outside of it.
struct Callers {
    server: String,
    client: Script,
    neighbour: Script,
    plain: Script,
}

/// Who may reach port 9000, and who port 9001 at the same time (as letters c, n and p).
#[derive(Debug, PartialEq, Eq)]
struct Reach {
    on_9000: String,
    on_9001: String,
}

impl Callers {
    fn new(lab: &Lab) -> Self {
        let start = |pod| Script::start(lab, pod, PROBER, &[]);
        Self {
            server: lab.address("meshed", "server"),
            client: start("meshed/client"),
            neighbour: start("meshed/neighbour"),
            plain: start("plain/client"),
        }
    }

    fn who(&mut self, port: u16, reached: fn(&str) -> bool) -> String {
        let question = format!("{} {port} hello", self.server);
        let callers = [
            ('c', &mut self.client),
            ('n', &mut self.neighbour),
            ('p', &mut self.plain),
        ];
        callers
            .into_iter()
            .filter_map(|(name, caller)| reached(&caller.ask(&question)).then_some(name))
            .collect()
    }

    fn reach(&mut self) -> Reach {
        Reach {
            on_9000: self.who(9000, |answer| answer == "ok"),
            // This port speaks first, so that an orderly end means that it was reached.
            on_9001: self.who(9001, |answer| answer == "ended"),
        }
    }

    #[track_caller]
    fn expect(&mut self, what: &str, on_9000: &str, on_9001: &str) {
        let wanted = Reach {
            on_9000: on_9000.to_owned(),
            on_9001: on_9001.to_owned(),
        };
        let mut last = None;
        within_a_second(|| {
            let seen = self.reach();
            let holds = seen == wanted;
            last = Some(seen);
            holds
        });
        assert_eq!(last.as_ref(), Some(&wanted), "{what}");
    }
}

/// An edit takes hold for new connections within a second of being applied.
fn within_a_second(mut holds: impl FnMut() -> bool) {
    let start = now_us();
    while !holds() && now_us() - start < 1_000_000 {}
}

#[test]
fn policy_on_the_running_mesh() {
    let lab = Lab::up("tests/fixtures/pair");
    let mut callers = Callers::new(&lab);
    callers.expect("without policy everybody may", "cnp", "cnp");
    rules(&lab, &mut callers);
    modes(&lab, &mut callers);
    reasons(&lab, &mut callers);
    broken_file(&lab, &mut callers);
    cuts(&lab);
}

fn rules(lab: &Lab, callers: &mut Callers) {
    let from = |action: &str, source: &str| {
        policy(&format!(
            "  action: {action}\n  rules:\n    - from:\n        - source:\n            {source}\n"
        ))
    };
    let client = "cluster.local/ns/meshed/sa/client";
    let plain = lab.address("plain", "client");
    let cases = [
        ("ALLOW", format!("principals: [\"{client}\"]"), "c"),
        ("DENY", format!("principals: [\"{client}\"]"), "np"),
        ("ALLOW", format!("notPrincipals: [\"{client}\"]"), "np"),
        ("ALLOW", "namespaces: [meshed]".to_owned(), "cn"),
        ("DENY", "namespaces: [meshed]".to_owned(), "p"),
        (
            "ALLOW",
            "serviceAccounts: [meshed/neighbour]".to_owned(),
            "n",
        ),
        ("DENY", "serviceAccounts: [neighbour]".to_owned(), "cp"),
        ("ALLOW", format!("ipBlocks: [\"{plain}\"]"), "p"),
        ("DENY", format!("ipBlocks: [\"{plain}/32\"]"), "cn"),
        ("ALLOW", format!("notIpBlocks: [\"{plain}\"]"), "cn"),
    ];
    for (action, source, may) in cases {
        lab.apply("policy.yaml", &from(action, &source));
        callers.expect(&format!("{action} {source}"), may, may);
    }
    lab.apply("policy.yaml", &policy(DENY_9000));
    callers.expect("DENY of one port", "", "cnp");
    lab.apply("policy.yaml", &policy(&DENY_9000.replace("DENY", "ALLOW")));
    callers.expect("ALLOW of one port", "cnp", "");
    lab.remove("policy.yaml");
    callers.expect("no policy again", "cnp", "cnp");
}

fn modes(lab: &Lab, callers: &mut Callers) {
    lab.apply(
        "modes.yaml",
        &peer_authentication("  mtls:\n    mode: STRICT\n"),
    );
    callers.expect("STRICT refuses callers outside the mesh", "cn", "cn");
    lab.apply(
        "modes.yaml",
        &peer_authentication(
            "  mtls:\n    mode: STRICT\n  portLevelMtls:\n    9000:\n      mode: PERMISSIVE\n",
        ),
    );
    callers.expect("STRICT but for one port", "cnp", "cn");
    lab.apply(
        "modes.yaml",
        &peer_authentication(
            "  mtls:\n    mode: PERMISSIVE\n  portLevelMtls:\n    9000:\n      mode: STRICT\n",
        ),
    );
    callers.expect("PERMISSIVE but for one port", "cn", "cnp");
    lab.apply(
        "modes.yaml",
        &peer_authentication("  mtls:\n    mode: PERMISSIVE\n"),
    );
    callers.expect("PERMISSIVE", "cnp", "cnp");
    lab.remove("modes.yaml");
}

/// The access log of the denying node names the policy and what the caller lacked.
fn reasons(lab: &Lab, callers: &mut Callers) {
    lab.apply(
        "policy.yaml",
        &policy("  action: ALLOW\n  rules:\n    - from:\n        - source:\n            principals: [\"cluster.local/ns/meshed/sa/client\"]\n"),
    );
    callers.expect("ALLOW of the client alone", "c", "c");
    let log = lab.agent_log("b");
    let denial = |caller: &str| {
        log.lines()
            .rev()
            .find(|line| line.contains("denied") && line.contains(caller))
            .unwrap_or_else(|| panic!("no denial of {caller} in the log"))
    };
    let of_neighbour = denial("src.identity=spiffe://cluster.local/ns/meshed/sa/neighbour");
    eprintln!("{of_neighbour}");
    for word in ["meshed/limits", "sa/client", "direction=inbound"] {
        assert!(of_neighbour.contains(word), "{word}: {of_neighbour}");
    }
    let of_plain = denial("src.namespace=plain");
    eprintln!("{of_plain}");
    assert!(of_plain.contains("meshed/limits"), "{of_plain}");
}

/// A file that breaks keeps what held before, is reported with its place, and harms no other object.
fn broken_file(lab: &Lab, callers: &mut Callers) {
    let good = policy(DENY_9000);
    lab.apply("policy.yaml", &good);
    callers.expect("before the file breaks", "", "cnp");
    let path = format!("{}/policy.yaml", lab.path());
    for (bad, place, field) in [
        (
            good.replace("DENY", "DENIED"),
            "policy.yaml:10",
            "spec.action",
        ),
        (good.replace("ports:", "prots:"), "policy.yaml:14", "prots"),
        (good.replace("  action", "\taction"), "policy.yaml:9", "tab"),
    ] {
        fs::write(&path, &bad).expect("the lab's folder is writable");
        let applied = lab.karst(&["apply", lab.path()]);
        let said = format!("{}{}", applied.stdout, applied.stderr);
        eprintln!("{}", said.lines().next().unwrap_or_default());
        assert!(!applied.ok(), "a broken file is no success: {said}");
        assert!(
            said.contains(place) && said.contains(field),
            "{place} {field}: {said}"
        );
        callers.expect("the last good state stays", "", "cnp");
    }
    // The controller itself, which watches the resolved objects, reads a broken one in the same way.
    let object = format!(
        "/run/karst/lab/{}/objects/authorizationpolicy.meshed.limits.yaml",
        lab.name()
    );
    let resolved = fs::read_to_string(&object).expect("the lab resolved the policy");
    fs::write(&object, good.replace("DENY", "DENIED")).expect("root may write");
    eventually("the controller reports file, line and field", || {
        let log = lab.controller_log();
        log.lines().any(|line| {
            line.contains("authorizationpolicy.meshed.limits.yaml:10")
                && line.contains("spec.action")
        })
    });
    callers.expect("the controller keeps the last good state", "", "cnp");
    fs::write(&object, resolved).expect("root may write");
    lab.remove("policy.yaml");
    callers.expect("after the file is gone", "cnp", "cnp");
}

/// Connects again and again; says when a connection stands and when it ends, in microseconds since 1970.
const LIVE: &str = r#"
import socket, sys, time
host = sys.argv[1]
while True:
    try:
        s = socket.create_connection((host, 9000), timeout=20)
        s.sendall(b"x")
        if s.recv(1) != b"x": continue
    except OSError:
        time.sleep(0.005)
        continue
    print("open", flush=True)
    try:
        end = "fin" if s.recv(1) == b"" else "bytes"
    except OSError as error:
        end = type(error).__name__
    print("end", time.time_ns() // 1000, end, flush=True)
"#;

/// The time of day of a log line, in microseconds.
fn time_of_day_us(line: &str) -> Option<u64> {
    let clock = line.get(11..26)?;
    let number = |at: std::ops::Range<usize>| clock.get(at)?.parse::<u64>().ok();
    let seconds = number(0..2)? * 3600 + number(3..5)? * 60 + number(6..8)?;
    Some(seconds * 1_000_000 + number(9..15)?)
}

/// When the controller's log says that a policy was published, each time.
fn published_at(lab: &Lab) -> Vec<u64> {
    let log = lab.controller_log();
    let lines = log.lines().filter(|line| line.contains("published"));
    lines
        .filter(|line| line.contains("policies=1"))
        .filter_map(time_of_day_us)
        .collect()
}

/// When the change after the first `before` was published. Its line may come after what it has brought about: it is written
/// when everybody has been told.
fn next_published(lab: &Lab, before: usize) -> u64 {
    until("the controller logs what it publishes", || {
        published_at(lab).get(before).copied()
    })
}

/// How long from an edit until a live connection is cut: from the write of the file, and from its publication.
fn cuts(lab: &Lab) {
    let before = published_at(lab).len();
    lab.apply("policy.yaml", &policy(DENY_1));
    next_published(lab, before);
    let live = Script::start(
        lab,
        "meshed/client",
        LIVE,
        &[&lab.address("meshed", "server")],
    );
    let (mut from_write, mut from_publish) = (Vec::new(), Vec::new());
    for _ in 0..EDITS {
        assert_eq!(live.line(), "open");
        let before = published_at(lab).len();
        let written = now_us();
        lab.apply("policy.yaml", &policy(DENY_9000));
        let end = live.line();
        let cut: u64 = end
            .split(' ')
            .nth(1)
            .and_then(|at| at.parse().ok())
            .unwrap_or_else(|| panic!("a cut: {end}"));
        assert!(
            end.ends_with("ConnectionResetError"),
            "a cut is a reset: {end}"
        );
        from_write.push(cut - written);
        let published = next_published(lab, before);
        let day = 86_400_000_000;
        let since = (cut % day + day - published) % day;
        // Cut before the line was written: no time at all.
        from_publish.push(if since > day / 2 { 0 } else { since });
        lab.apply("policy.yaml", &policy(DENY_1));
        // Told apart from the next edit's.
        next_published(lab, before + 1);
    }
    let log = lab.agent_log("b");
    assert!(
        log.lines()
            .any(|line| line.contains("closed because policy changed") && line.contains("limits")),
        "the log says why connections were cut"
    );
    for (from, mut times) in [("file write", from_write), ("publish", from_publish)] {
        times.sort_unstable();
        let (p50, p99) = (times[EDITS / 2], times[EDITS - 1]);
        eprintln!("cut after {from}: p50 {p50} us, p99 (the slowest of {EDITS}) {p99} us");
        let limit = if from == "publish" {
            250_000
        } else {
            1_000_000
        };
        assert!(p99 <= limit, "cut after {from}: {p99} us");
    }
}
