//! Peers on 15008 of a pod of the mesh, from a pod outside of it: wrong certificates, broken bytes, wrong requests. Each
//! is refused with its reason, and a client of another pod never notices.

use std::{fs, time::Duration};

use karst_test_node::{Lab, Script, eventually, script::now_us};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, date_time_ymd};

const PEER: &str = include_str!("mtls_peers.py");

/// Asks an echo server again and again; says how often it got its answer, and how often not, when asked.
const BACKGROUND: &str = r#"
import socket, sys, threading, time
good = bad = 0
def ask():
    global good, bad
    while True:
        try:
            with socket.create_connection((sys.argv[1], 9000), timeout=3) as s:
                s.sendall(b"x")
                assert s.recv(1) == b"x"
            good += 1
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
            bad += 1
        time.sleep(0.01)
threading.Thread(target=ask, daemon=True).start()
for _ in sys.stdin:
    print(good, bad, flush=True)
"#;

const US: &str = "spiffe://cluster.local/ns/plain/sa/client";

/// A certificate's content, to be spoiled.
struct Wanted {
    uris: Vec<&'static str>,
    from: i32,
    until: i32,
    /// Valid from and until, in minutes from now, in place of the years.
    minutes: Option<(i64, i64)>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            uris: vec![US],
            from: 2020,
            until: 2090,
            minutes: None,
        }
    }
}

/// Chain and key as PEM.
fn mint(issuer: &Issuer<'_, KeyPair>, wanted: &Wanted) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = wanted
        .uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().expect("ASCII")))
        .collect();
    params.not_before = date_time_ymd(wanted.from, 1, 1);
    params.not_after = date_time_ymd(wanted.until, 1, 1);
    if let Some((from, until)) = wanted.minutes {
        let now = i64::try_from(now_us() / 1_000_000).expect("centuries fit");
        let at = |minutes: i64| {
            let since_1970 = u64::try_from(now + minutes * 60).expect("past 1970");
            date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970)
        };
        (params.not_before, params.not_after) = (at(from), at(until));
    }
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let certificate = params.signed_by(&key, issuer).expect("signed");
    certificate.pem() + &key.serialize_pem()
}

/// The lab's own CA, from its state.
fn lab_issuer(lab: &Lab) -> Issuer<'static, KeyPair> {
    let path = format!("/run/karst/lab/{}/controller/authority.json", lab.name());
    let text = fs::read_to_string(path).expect("the CA keeps its state there");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let root = &state["roots"][0];
    let pem = |name: &str| root[name].as_str().expect("a PEM").to_owned();
    let key = KeyPair::from_pem(&pem("key_pem")).expect("a key");
    Issuer::from_ca_cert_pem(&pem("certificate_pem"), key).expect("a root")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct World {
    lab: Lab,
    server: String,
    peer: Script,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    fn show(&mut self, pem: &str) {
        assert_eq!(
            self.peer.ask(&format!("cert {}", hex(pem.as_bytes()))),
            "shown"
        );
    }

    fn show_good(&mut self) {
        let good = mint(&self.issuer, &Wanted::default());
        self.show(&good);
    }

    fn ask(&mut self, question: &str) -> String {
        let answer = self.peer.ask(question);
        eprintln!("{}: {answer}", &question[..question.len().min(90)]);
        answer
    }

    fn connect(&mut self, authority: &str) -> String {
        self.ask(&format!(":method=CONNECT :authority={authority}"))
    }
}

#[test]
fn wrong_peers_are_refused_and_nobody_else_notices() {
    let lab = Lab::up("tests/fixtures/pair");
    let server = lab.address("meshed", "server");
    let mut background = Script::start(&lab, "meshed/neighbour", BACKGROUND, &[&server]);
    let mut world = World {
        peer: Script::start(&lab, "plain/client", PEER, &[&server]),
        issuer: lab_issuer(&lab),
        server,
        lab,
    };
    world.show_good();
    let right = format!("{}:9000", world.server);
    assert_eq!(
        world.connect(&right),
        "status 200 hello",
        "control: a right peer is served"
    );
    certificates(&mut world, &right);
    clocks(&mut world, &right);
    world.show_good();
    requests(&mut world);
    bytes(&mut world);
    assert_eq!(
        world.connect(&right),
        "status 200 hello",
        "and still is after all of this"
    );
    let seen = background.ask("how was it");
    eprintln!("background client, answers and failures: {seen}");
    let (good, bad) = seen.split_once(' ').expect("two numbers");
    assert!(
        good.parse::<u32>().expect("a number") > 10 && bad == "0",
        "{seen}"
    );
}

/// A CA whose clock differs by five minutes dates its certificates ten minutes back: they serve at once, whichever way
/// it differs. Dated by such a clock without that care, they are refused for what they are.
fn clocks(world: &mut World, right: &str) {
    for ahead in [-5, 0, 5] {
        let pem = mint(
            &world.issuer,
            &Wanted {
                minutes: Some((ahead - 10, ahead + 1440)),
                ..Wanted::default()
            },
        );
        world.show(&pem);
        assert_eq!(
            world.connect(right),
            "status 200 hello",
            "{ahead} minutes ahead"
        );
    }
    for (minutes, reason) in [((4, 1440), "is valid only in"), ((-1440, -1), "expired")] {
        let pem = mint(
            &world.issuer,
            &Wanted {
                minutes: Some(minutes),
                ..Wanted::default()
            },
        );
        world.show(&pem);
        refused(world, right, reason);
    }
}

fn certificates(world: &mut World, right: &str) {
    let stranger = {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Issuer::new(params, KeyPair::generate().expect("a key"))
    };
    let spoil = |world: &World, wanted: Wanted| mint(&world.issuer, &wanted);
    let cases = [
        (
            spoil(
                world,
                Wanted {
                    from: 2019,
                    until: 2020,
                    ..Wanted::default()
                },
            ),
            "expired",
        ),
        (
            spoil(
                world,
                Wanted {
                    from: 2080,
                    ..Wanted::default()
                },
            ),
            "is valid only in",
        ),
        (
            spoil(
                world,
                Wanted {
                    uris: vec!["spiffe://elsewhere/ns/plain/sa/client"],
                    ..Wanted::default()
                },
            ),
            "another trust domain",
        ),
        (
            spoil(
                world,
                Wanted {
                    uris: Vec::new(),
                    ..Wanted::default()
                },
            ),
            "holds no URI name",
        ),
        (
            spoil(
                world,
                Wanted {
                    uris: vec![US, "spiffe://cluster.local/ns/meshed/sa/client"],
                    ..Wanted::default()
                },
            ),
            "holds 2 URI names",
        ),
        (mint(&stranger, &Wanted::default()), "chains to none of our"),
    ];
    for (pem, reason) in &cases {
        world.show(pem);
        refused(world, right, reason);
    }
    assert_eq!(world.ask("cert -"), "shown");
    refused(world, right, "peer sent no certificate");
}

#[track_caller]
fn refused(world: &mut World, right: &str, reason: &str) {
    let before = world.lab.agent_log("b").len();
    let answer = world.connect(right);
    assert!(
        answer.starts_with("refused") || answer.starts_with("closed"),
        "{reason}: {answer}"
    );
    eventually(&format!("the log says {reason:?}"), || {
        let log = world.lab.agent_log("b");
        log[before..]
            .lines()
            .any(|line| line.contains(reason) && line.contains("direction=inbound"))
    });
}

fn requests(world: &mut World) {
    let neighbour = world.lab.address("meshed", "neighbour");
    let server = world.server.clone();
    for (request, wanted) in [
        (":method=CONNECT".to_owned(), "status 400"),
        (
            format!(":method=CONNECT :authority={neighbour}:9000"),
            "status 400",
        ),
        (
            format!(":method=CONNECT :authority={server}:99999"),
            "status 400",
        ),
        (format!(":method=CONNECT :authority={server}"), "status 400"),
        (
            format!(":method=CONNECT :authority={server}:0"),
            "status 400",
        ),
        (
            ":method=CONNECT :authority=no.such.name:80".to_owned(),
            "status 503",
        ),
        (
            format!(":method=CONNECT :authority={server}:15008"),
            "status 503",
        ),
        (
            format!(":method=CONNECT :authority={server}:9"),
            "status 503",
        ),
        (
            format!(
                ":method=CONNECT :protocol=connect-udp :scheme=https :path=/.well-known/masque/udp/{server}/53/ :authority={server}:53"
            ),
            "reset 1",
        ),
        (
            format!(":method=CONNECT-UDP :scheme=https :path=/ :authority={server}:53"),
            "status 400",
        ),
        (
            format!(":method=GET :scheme=https :path=/ :authority={server}:9000"),
            "status 400",
        ),
    ] {
        let answer = world.ask(&request);
        assert_eq!(answer, wanted, "{request}");
    }
}

/// Bytes that are no TLS, no HTTP/2, or too much of it.
fn bytes(world: &mut World) {
    let garbage: Vec<u8> = (0..4096_u32).map(|i| (i * 7919 % 251) as u8).collect();
    let client_hello_cut_short = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let record_too_large = [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 300]].concat();
    for raw in [
        Vec::new(),
        garbage.clone(),
        client_hello_cut_short.to_vec(),
        record_too_large,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ] {
        let answer = world.ask(&format!("raw {}", hex(&raw)));
        assert!(
            answer.starts_with("closed"),
            "before the handshake: {answer}"
        );
    }
    for sent in [&garbage[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let answer = world.ask(&format!("tls {}", hex(sent)));
        assert!(
            answer.starts_with("closed") || answer.starts_with("goaway"),
            "{answer}"
        );
    }
    for (what, sent) in [
        (
            "oversized frame",
            [&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1][..], &[0; 64]].concat(),
        ),
        (
            "DATA on a stream that is not open",
            vec![0, 0, 1, 0, 0, 0, 0, 0, 9, 0x41],
        ),
        ("HEADERS on stream 0", vec![0, 0, 1, 1, 4, 0, 0, 0, 0, 0x88]),
        (
            "SETTINGS of a wrong length",
            vec![0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        ),
        (
            "WINDOW_UPDATE of nothing",
            vec![0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("broken HPACK", vec![0, 0, 2, 1, 4, 0, 0, 0, 1, 0xff, 0xff]),
        ("CONTINUATION out of place", vec![0, 0, 0, 9, 4, 0, 0, 0, 1]),
    ] {
        let answer = world.ask(&format!("frames {}", hex(&sent)));
        let ended = answer.starts_with("goaway") || answer.starts_with("closed");
        assert!(ended, "{what}: {answer}");
    }
    // The rest may still come.
    let cut_short = hex(&[0, 0, 99, 1, 4, 0, 0, 0, 1, 0x88]);
    assert_eq!(world.ask(&format!("frames {cut_short}")), "waits");
    let unknown = world.ask(&format!(
        "frames {}",
        hex(&[0, 0, 1, 0xee, 0, 0, 0, 0, 0, 1])
    ));
    assert_eq!(
        unknown, "alive",
        "frames of unknown types are ignored (RFC 9113, 5.5)"
    );
}
