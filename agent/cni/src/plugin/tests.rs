//! Calls as runtimes of several ages make them, with an agent that answers, refuses, or is not there.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    thread::JoinHandle,
};

use karst_model::cni::{KNOWN_NAMESPACES_FILE, KnownNamespaces};
use serde_json::Value;

use super::*;

fn env(command: &str, namespace: &str) -> Environment {
    let args =
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1");
    let all = [
        ("CNI_COMMAND", command),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", &args),
    ];
    all.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect()
}

fn config(version: &str, run_dir: &Path) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "karst-cni", "runDir": run_dir, "agentWaitSeconds": 0, "later": {"unknown": [1]},
        "prevResult": {
            "cniVersion": version,
            "interfaces": [{"name": "cni0"}, {"name": "veth1", "sandbox": ""}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 2, "version": "4"}, {"address": "10.1.0.1/24", "interface": 0}, {"address": "fd00::2/64"}],
        },
    })
}

fn call(command: &str, namespace: &str, config: &Value) -> Result<String, CniError> {
    run(&env(command, namespace), config.to_string().as_bytes())
}

/// An agent that answers one call and gives back what it was asked.
fn agent(dir: &Path, answer: &str) -> JoinHandle<Request> {
    let listener = UnixListener::bind(agent::socket(dir)).unwrap();
    let answer = answer.to_owned();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

fn code(result: Result<String, CniError>) -> u32 {
    let error = result.unwrap_err();
    let json: Value = serde_json::from_str(&error.to_json()).unwrap();
    assert_eq!(json["code"], error.code());
    error.code()
}

#[test]
fn add_hands_on_the_previous_result_in_every_version() {
    for version in VERSIONS {
        let dir = tempfile::tempdir().unwrap();
        let asked = agent(dir.path(), "{\"ok\":true}\n");
        let config = config(version, dir.path());
        let result: Value = serde_json::from_str(&call("ADD", "shop", &config).unwrap()).unwrap();
        assert_eq!(result, config["prevResult"]);
        let asked = asked.join().unwrap();
        assert_eq!(
            asked.ips,
            [
                "10.1.0.2".parse::<std::net::IpAddr>().unwrap(),
                "fd00::2".parse().unwrap()
            ]
        );
        assert_eq!(asked.host_veth.as_deref(), Some("veth1"));
        assert_eq!(
            (asked.command, asked.pod_uid.as_str()),
            (Command::Add, "u1")
        );
    }
}

#[test]
fn unknown_versions_and_garbage_are_refused_with_the_codes_of_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["2.0.0", "1.2.0", "0.2.0", ""] {
        assert_eq!(
            code(call("ADD", "shop", &config(version, dir.path()))),
            1,
            "{version:?}"
        );
    }
    assert_eq!(code(run(&env("ADD", "shop"), b"\xff{")), 6);
    assert_eq!(code(run(&env("ADD", "shop"), b"[]")), 6);
    assert_eq!(code(run(&env("EAT", "shop"), b"{}")), 4);
    assert_eq!(code(run(&Environment::default(), b"")), 4);
    assert_eq!(
        code(call("ADD", "shop", &json!({"cniVersion": "1.0.0"}))),
        7
    );
    let mut wrong = config("1.0.0", dir.path());
    wrong["prevResult"]["ips"][0]["address"] = json!("nonsense");
    assert_eq!(code(call("ADD", "shop", &wrong)), 7);
    let deep = "[".repeat(100_000);
    assert_eq!(code(run(&env("ADD", "shop"), deep.as_bytes())), 6);
}

#[test]
fn version_is_answered_whatever_is_asked() {
    let answer: Value =
        serde_json::from_str(&run(&env("VERSION", ""), b"{\"cniVersion\":\"9.9.9\"}").unwrap())
            .unwrap();
    assert_eq!(answer["supportedVersions"], json!(VERSIONS));
}

#[test]
fn without_an_agent_only_pods_known_to_be_outside_the_mesh_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config("1.0.0", dir.path());
    assert_eq!(code(call("ADD", "shop", &config)), 11);
    let known = KnownNamespaces {
        version: PROTOCOL_VERSION,
        not_enrolled: vec!["street".to_owned()],
    };
    std::fs::write(
        dir.path().join(KNOWN_NAMESPACES_FILE),
        serde_json::to_vec(&known).unwrap(),
    )
    .unwrap();
    assert!(call("ADD", "street", &config).is_ok());
    assert_eq!(code(call("ADD", "shop", &config)), 11);
    assert!(call("ADD", "kube-system", &config).is_ok());
    std::fs::write(dir.path().join(KNOWN_NAMESPACES_FILE), "{\"version\":").unwrap();
    assert_eq!(code(call("ADD", "street", &config)), 11);
    assert!(
        call("DEL", "shop", &config).is_ok(),
        "the end of a pod never waits for an agent"
    );
    assert_eq!(code(call("STATUS", "", &config)), 11);
}

#[test]
fn a_refusal_says_whether_to_try_again() {
    for (answer, expected) in [
        ("{\"ok\":false,\"error\":\"later\",\"retry\":true}\n", 11),
        ("{\"ok\":false,\"error\":\"never\"}\n", 100),
        ("garbage\n", 11),
        ("", 11),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let asked = agent(dir.path(), answer);
        assert_eq!(
            code(call("ADD", "shop", &config("1.1.0", dir.path()))),
            expected,
            "{answer:?}"
        );
        asked.join().unwrap();
    }
}

#[test]
fn a_pod_of_the_mesh_waits_for_an_agent_that_is_being_replaced_and_no_other_pod_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("1.0.0", dir.path());
    config["agentWaitSeconds"] = 60.into();
    let known = KnownNamespaces {
        version: PROTOCOL_VERSION,
        not_enrolled: vec!["plain".to_owned()],
    };
    let file = dir.path().join(KNOWN_NAMESPACES_FILE);
    std::fs::write(file, serde_json::to_vec(&known).unwrap()).unwrap();
    call("ADD", "plain", &config).unwrap();
    call("DEL", "shop", &config).unwrap();

    let starting = {
        let config = config.clone();
        std::thread::spawn(move || call("ADD", "shop", &config))
    };
    let listener = UnixListener::bind(agent::socket(dir.path())).unwrap();
    // The first connection may be the look whether somebody is there.
    while !starting.is_finished() {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        if !line.is_empty() {
            stream.write_all(b"{\"ok\":true}\n").unwrap();
            break;
        }
    }
    starting.join().unwrap().unwrap();
}
