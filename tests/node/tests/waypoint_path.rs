//! The way through a waypoint: routes take requests, weights move under load, and a sealed service lets nobody around.

use std::fs;

use karst_test_node::{Lab, Load, eventually, until};

const MESH: &str = "mesh.yaml";
const ROUTE: &str = "route.yaml";
/// Requests of one look at who answers.
const LOOK: &str = "20";

/// The fixture, with every pod of namespace shop known everywhere as being in the mesh, and the waypoint in the path.
fn up() -> Lab {
    let lab = Lab::start("tests/fixtures/waypoint");
    let wanted = ["shop/client", "shop/orders-v1", "shop/orders-v2"];
    for node in ["a", "b"] {
        eventually(&format!("agent of {node} knows {wanted:?}"), || {
            let seen = lab.enrolled_as_seen_by(node);
            seen.is_some_and(|seen| seen == wanted)
        });
        wait_bound(&lab, node, true);
    }
    lab
}

/// Until a node's agent knows whether service orders has a waypoint.
fn wait_bound(lab: &Lab, node: &str, bound: bool) {
    eventually(&format!("agent of {node} knows bound {bound}"), || {
        let Some(dump) = lab.agent_page(node, "/config_dump") else {
            return false;
        };
        let services = dump["services"].as_array().cloned().unwrap_or_default();
        let orders = services.iter().find(|service| service["name"] == "orders");
        orders.is_some_and(|orders| orders["waypoint"].is_null() != bound)
    });
}

/// Until a node's agent knows whether the pods of orders are sealed.
fn wait_sealed(lab: &Lab, node: &str, sealed: bool) {
    eventually(&format!("agent of {node} knows sealed {sealed}"), || {
        let Some(dump) = lab.agent_page(node, "/config_dump") else {
            return false;
        };
        let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
        let orders = workloads
            .iter()
            .find(|workload| workload["name"] == "orders-v1");
        orders.is_some_and(|orders| {
            let ports = orders["sealed"].as_array();
            ports.is_some_and(|ports| !ports.is_empty()) == sealed
        })
    });
}

/// Calls from a pod; the versions that answered, or nothing where a call failed.
fn calls(lab: &Lab, from: &str, url: &str, more: &[&str]) -> Option<Vec<String>> {
    let mut command = vec!["karst-echo", "client", url, "--timeout", "5"];
    command.extend(more);
    let ran = lab.exec(from, &command);
    if !ran.ok() {
        eprintln!("{from} {command:?}: {}", ran.stderr.trim());
    }
    ran.ok().then(|| versions(&ran.stdout))
}

fn versions(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split_once("Hostname="));
    names.map(|(_, name)| name.to_owned()).collect()
}

fn only(versions: &Option<Vec<String>>, version: &str) -> bool {
    versions
        .as_ref()
        .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one == version))
}

fn waypoint_log(lab: &Lab) -> String {
    let path = format!(
        "/run/karst/lab/{}/logs/shop.waypoint-0.waypoint.log",
        lab.name()
    );
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_request_takes_the_version_that_its_header_asks_for() {
    let lab = up();
    let of = |more: &[&str]| calls(&lab, "shop/client", "http://orders.shop", more);
    eventually("everybody gets v1", || {
        only(&of(&["--count", LOOK]), "orders-v1")
    });
    let tester = ["-H", "x-user:tester", "--count", LOOK];
    assert!(only(&of(&tester), "orders-v2"), "{:?}", of(&tester));
    // What is sent to a pod's own address is no request to the service: no route takes it.
    let direct = format!("http://{}:8080", lab.address("shop", "orders-v1"));
    let asked = calls(&lab, "shop/client", &direct, &["-H", "x-user:tester"]);
    assert!(only(&asked, "orders-v1"), "{asked:?}");
    // Outside of the mesh there is no waypoint.
    let outside = calls(&lab, "plain/outside", "http://orders.shop", &tester);
    let outside = outside.expect("the service is not sealed");
    assert!(outside.iter().any(|one| one == "orders-v1"), "{outside:?}");
}

#[test]
fn weights_change_under_load_and_nobody_fails() {
    let lab = up();
    eventually("everybody gets v1", || {
        let answered = calls(
            &lab,
            "shop/client",
            "http://orders.shop",
            &["--count", LOOK],
        );
        only(&answered, "orders-v1")
    });
    // Each request on a connection of its own.
    let closing = ["-H", "connection:close", "--connections", "4"];
    let words = [&["requests", "http://orders.shop"], &closing[..]].concat();
    let load = Load::start(&lab, "shop/client", &words);
    let mut before = (100, 0);
    for (v1, v2) in [(90, 10), (50, 50), (0, 100)] {
        let weights = |(v1, v2): (u32, u32)| {
            format!(
                "- {{name: orders-v1, port: 80, weight: {v1}}}\n        - {{name: orders-v2, port: 80, weight: {v2}}}"
            )
        };
        lab.edit(ROUTE, &weights(before), &weights((v1, v2)));
        before = (v1, v2);
        // Another caller sees the step before the next one is taken.
        eventually(&format!("{v1}/{v2} is in force"), || {
            let answered = calls(
                &lab,
                "shop/client",
                "http://orders.shop",
                &["--count", "40"],
            );
            let answered = answered.expect("no call fails");
            let new = answered.iter().filter(|one| *one == "orders-v2").count();
            // Of 40 with the weights of the step before, hardly ever as many (one look in 2,600).
            match v2 {
                100 => new == 40,
                50 => (12..40).contains(&new),
                _ => (1..40).contains(&new),
            }
        });
    }
    let report = load.stop(&lab);
    eprintln!("{report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(report["statuses"]["200"], report["requests"], "{report}");
    for version in ["orders-v1", "orders-v2"] {
        assert!(
            report["answered_by"][version].as_u64() > Some(0),
            "{report}"
        );
    }
}

#[test]
fn a_sealed_service_is_reached_through_its_waypoint_only() {
    let lab = up();
    let pod = lab.address("shop", "orders-v1");
    let by_pod = format!("http://{pod}:8080");
    let ways = [
        "http://orders.shop",
        by_pod.as_str(),
        "http://orders-headless.shop:8080",
    ];
    lab.edit(
        MESH,
        "metadata: {name: orders, namespace: shop}",
        "metadata: {name: orders, namespace: shop, annotations: {karst.dev/seal: \"true\"}}",
    );
    for node in ["a", "b"] {
        wait_sealed(&lab, node, true);
    }
    for way in ways {
        let answered = calls(&lab, "shop/client", way, &[]);
        assert!(answered.is_some(), "{way} goes through the waypoint");
    }
    // The waypoint has seen what went to the pod itself.
    until("the waypoint's log names the pod's address", || {
        waypoint_log(&lab)
            .contains(&format!("authority={pod}:8080"))
            .then_some(())
    });
    for way in ways {
        assert_eq!(calls(&lab, "plain/outside", way, &[]), None, "{way}");
    }
    assert!(
        lab.agent_log("b").contains("policy shop/karst-seal-orders"),
        "the refusal names its policy"
    );

    // Nobody gets around a waypoint that is gone; bound it stays.
    lab.edit(
        MESH,
        "karst.dev/replicas: \"1\"",
        "karst.dev/replicas: \"0\"",
    );
    until("the client's agent says that no replica is ready", || {
        for way in ways {
            let answered = calls(&lab, "shop/client", way, &[]);
            assert_eq!(
                answered,
                None,
                "{way}: {}\n{}",
                lab.agent_log("a"),
                waypoint_log(&lab)
            );
        }
        let log = lab.agent_log("a");
        log.contains("must be reached through its waypoint shop/waypoint")
            .then_some(())
    });
    lab.edit(
        MESH,
        "karst.dev/replicas: \"0\"",
        "karst.dev/replicas: \"2\"",
    );
    eventually("two new replicas serve", || {
        ways.iter()
            .all(|way| calls(&lab, "shop/client", way, &[]).is_some())
    });
}

/// DELETE is denied by a policy of the service.
const NO_DELETE: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {methods: [DELETE]}}]}]
";

#[test]
fn what_a_policy_by_request_denies_cannot_be_reached_around_it() {
    let lab = up();
    let pod = lab.address("shop", "orders-v1");
    let ways = [
        "http://orders.shop".to_owned(),
        format!("http://{pod}:8080"),
        "http://orders-headless.shop:8080".to_owned(),
    ];
    lab.apply("policy.yaml", NO_DELETE);
    for node in ["a", "b"] {
        wait_sealed(&lab, node, true);
    }
    let status = |from: &str, way: &str, method: &str| {
        let command = [
            "karst-echo",
            "client",
            way,
            "--timeout",
            "5",
            "--method",
            method,
        ];
        let text = lab.exec(from, &command).stdout;
        let codes = text
            .lines()
            .filter_map(|line| line.split_once("StatusCode="));
        codes.map(|(_, code)| code.to_owned()).next()
    };
    for way in &ways {
        until(&format!("DELETE {way} is denied"), || {
            (status("shop/client", way, "DELETE").as_deref() == Some("403")).then_some(())
        });
        let got = status("shop/client", way, "GET");
        assert_eq!(got.as_deref(), Some("200"), "GET {way}");
        for method in ["GET", "DELETE"] {
            let outside = status("plain/outside", way, method);
            assert_eq!(outside, None, "{method} {way} from outside of the mesh");
        }
    }
    assert!(
        waypoint_log(&lab).contains("shop/no-delete"),
        "the waypoint's log names the policy"
    );
    assert!(lab.agent_log("b").contains("policy shop/karst-seal-orders"));
    lab.edit(
        MESH,
        "karst.dev/replicas: \"1\"",
        "karst.dev/replicas: \"0\"",
    );
    for way in &ways {
        for method in ["GET", "DELETE"] {
            let around = status("shop/client", way, method);
            assert_eq!(around, None, "{method} {way} without a waypoint");
        }
    }
    // Without the policy there is no seal; without a replica the service's address is still refused.
    lab.remove("policy.yaml");
    for node in ["a", "b"] {
        wait_sealed(&lab, node, false);
    }
    assert_eq!(status("shop/client", &ways[0], "GET"), None);
    assert_eq!(
        status("shop/client", &ways[1], "GET").as_deref(),
        Some("200")
    );
}

#[test]
fn a_waypoint_that_crashes_comes_back_and_is_not_gone_around() {
    let lab = up();
    let pids = lab.pod("shop", "waypoint-0")["pids"].clone();
    let pid = pids[0].as_u64().expect("a process").to_string();
    let look = ["--timeout", "5", "--count", LOOK, "http://orders.shop"];
    let look = [&["karst-echo", "client"], &look[..]].concat();
    assert!(lab.exec_node("a", &["kill", "-9", &pid]).ok());
    eventually("it serves again", || {
        let ran = lab.exec("shop/client", &look);
        // An answer is one of the route's: without the waypoint both versions would answer.
        let around = versions(&ran.stdout).contains(&"orders-v2".to_owned());
        assert!(!around, "around the waypoint: {}", ran.stdout);
        ran.ok()
    });
}
