//! Faults of the platform around an agent: pods that vanish while they are enrolled, addresses that change hands, a full
//! disk, no descriptors left. Others go on, and the agent is as before when the fault is over.

use std::{fs, process::Command};

use karst_test_node::{
    Lab, Script, eventually,
    script::{PROBER, now_us},
};

/// An address of node b that pods take over from each other.
const SHARED: &str = "10.244.1.77";

fn pod(name: &str, account: &str, address: Option<&str>) -> String {
    let annotations = address
        .map(|ip| format!("  annotations:\n    lab.karst.dev/ip: \"{ip}\"\n"))
        .unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: meshed\n{annotations}spec:\n  nodeName: b\n  \
         serviceAccountName: {account}\n  containers:\n    - name: echo\n      command: [karst-echo, server, --mode, \
         \"echo:9000\"]\n"
    )
}

struct World {
    lab: Lab,
    client: Script,
    server: String,
}

impl World {
    fn reach(&mut self, host: &str) -> bool {
        self.client.ask(&format!("{host} 9000 hello")) == "ok"
    }

    #[track_caller]
    fn works(&mut self, when: &str) {
        let server = self.server.clone();
        eventually(&format!("traffic {when}"), || self.reach(&server));
    }

    fn agent_pid(&self, node: &str) -> String {
        let status = self.lab.status();
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        let found = nodes.iter().find(|n| n["name"] == node).expect("the node");
        found["agent"]["pid"].to_string()
    }

    fn captured(&self, node: &str) -> String {
        let url = "http://127.0.0.1:15020/metrics";
        let page = self.lab.exec_node(node, &["curl", "-s", url]).success();
        let line = page
            .lines()
            .find(|line| line.starts_with("workload_manager_active_proxy_count"))
            .expect("the metric");
        line.to_owned()
    }
}

#[test]
fn faults_around_an_agent_cost_nobody_else() {
    let lab = Lab::up("tests/fixtures/pair");
    let mut world = World {
        client: Script::start(&lab, "meshed/client", PROBER, &[]),
        server: lab.address("meshed", "server"),
        lab,
    };
    world.works("at first");
    vanishing(&mut world);
    reused_address(&mut world);
    descriptors(&mut world);
    full_disk(&mut world);
}

/// Pods that come and go at once, so that their namespaces vanish at every step of the enrolment.
fn vanishing(world: &mut World) {
    let before = world.captured("b");
    let file = format!("{}/short.yaml", world.lab.path());
    for round in 0..15 {
        fs::write(&file, pod(&format!("short-{round}"), "server", None)).expect("writable");
        world.lab.karst(&["apply", "--wait", "0", world.lab.path()]);
        assert!(world.client.ask(&format!("{} 9000 hello", world.server)) == "ok");
    }
    world.lab.remove("short.yaml");
    let log = world.lab.agent_log("b");
    let seen = |what: &str| {
        log.lines()
            .filter(|line| line.contains(what) && line.contains("short-"))
            .count()
    };
    eprintln!(
        "pods that vanished: {} captured, {} released, {} not captured in time",
        seen("	captured	"),
        seen("	released	"),
        seen("cannot capture")
    );
    assert!(seen("short-") > 0, "the agent saw some of them");
    eventually("the agent holds what it held before", || {
        world.captured("b") == before
    });
    world.works("after pods that vanished");
}

/// The next owner of an address gets its connections, under its own identity.
fn reused_address(world: &mut World) {
    for (name, account) in [("one", "client"), ("two", "neighbour"), ("three", "server")] {
        world
            .lab
            .apply("reused.yaml", &pod(name, account, Some(SHARED)));
        let known = world.lab.agent_log("b").len();
        let ready = now_us();
        eventually(&format!("{name} answers at the shared address"), || {
            world.reach(SHARED)
        });
        eprintln!(
            "{name} answered {} ms after it was ready",
            (now_us() - ready) / 1000
        );
        let identity = format!("dst.identity=spiffe://cluster.local/ns/meshed/sa/{account}");
        eventually(&format!("the log names {account}"), || {
            let log = world.lab.agent_log("b");
            let new: Vec<_> = log[known..]
                .lines()
                .filter(|line| line.contains(SHARED) && line.contains("connection complete"))
                .collect();
            assert!(
                new.iter().all(|line| line.contains(&identity)),
                "another identity: {new:#?}"
            );
            !new.is_empty()
        });
    }
    world.lab.remove("reused.yaml");
}

/// Holds many connections open until it is told to stop.
const HOLDER: &str = r#"
import socket, sys
held = []
for _ in range(120):
    s = socket.socket()
    s.settimeout(0.2)
    try:
        s.connect((sys.argv[1], 9000))
        s.sendall(b"x")
    except OSError:
        pass
    held.append(s)
print("held", flush=True)
sys.stdin.readline()
for s in held: s.close()
print("free", flush=True)
"#;

fn descriptors(world: &mut World) {
    let pid = world.agent_pid("a");
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the agent runs")
        .count();
    let limit = |soft: usize| {
        let done = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={soft}:")])
            .status();
        assert!(done.expect("prlimit is installed").success());
    };
    limit(open + 20);
    let mut holder = Script::start(&world.lab, "meshed/neighbour", HOLDER, &[&world.server]);
    assert_eq!(holder.line(), "held");
    eventually("the agent says that descriptors ran out", || {
        let log = world.lab.agent_log("a");
        log.contains("raise the limit of open files") || log.contains("Too many open files")
    });
    assert_eq!(holder.ask("stop"), "free");
    world.works("with descriptors free again");
    limit(20_000);
    assert_eq!(world.agent_pid("a"), pid, "the same process all along");
}

/// A small disk in place of a folder; gone when dropped, so that the lab can go away after a failure too.
struct SmallDisk(String);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").args(["--lazy", &self.0]).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "{} stays mounted",
            self.0
        );
    }
}

/// The agent's own folder is full: what it does goes on, and it says so.
fn full_disk(world: &mut World) {
    let run = format!("/run/karst/lab/{}/agents/b", world.lab.name());
    let shell = |command: &str| {
        let done = Command::new("sh").args(["-c", command]).status();
        assert!(done.expect("a shell").success(), "{command}");
    };
    world.lab.karst(&["kill-agent", "b", "--hold"]).success();
    shell(&format!(
        "cp -a {run} {run}.kept && mount -t tmpfs -o size=512k karst-test {run} && cp -a {run}.kept/. {run}/"
    ));
    let disk = SmallDisk(run.clone());
    world.lab.karst(&["restart-agent", "b"]).success();
    world.works("on a small disk");
    shell(&format!("cat /dev/zero > {run}/fill 2>/dev/null || true"));
    world
        .lab
        .apply("late.yaml", &pod("late", "neighbour", None));
    let late = world.lab.address("meshed", "late");
    eventually("a pod that came while the disk was full", || {
        world.reach(&late)
    });
    world.works("on a full disk");
    let log = world.lab.agent_log("b");
    assert!(
        log.contains("No space left on device"),
        "the agent says why"
    );
    shell(&format!("rm {run}/fill"));
    world.lab.karst(&["kill-agent", "b", "--hold"]).success();
    drop(disk);
    shell(&format!("rm -rf {run}.kept"));
    world.lab.karst(&["restart-agent", "b"]).success();
    world.works("with its own folder again");
}
