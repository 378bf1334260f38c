//! Services as pods of the mesh meet them: which endpoint a connection reaches, which names there are, and what stays
//! outside.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use karst_test_node::{Lab, Ran, eventually};

const CLIENT: &str = "shop/client";

/// The pods that answered `count` new connections to `host`; panics if one fails.
#[track_caller]
fn reached_from(lab: &Lab, pod: &str, host: &str, count: u32) -> BTreeSet<String> {
    let url = format!("http://{host}/");
    let ran = lab.exec(
        pod,
        &["karst-echo", "client", "--count", &count.to_string(), &url],
    );
    let output = ran.success();
    let names = output
        .lines()
        .filter_map(|line| line.split_once("Hostname="));
    names.map(|(_, name)| name.to_owned()).collect()
}

#[track_caller]
fn reached(lab: &Lab, host: &str) -> BTreeSet<String> {
    reached_from(lab, CLIENT, host, 40)
}

fn pods<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// `getent DATABASE NAME` in the client, with the resolver's options.
fn look_up(lab: &Lab, database: &str, name: &str, options: &str) -> Ran {
    let options = format!("RES_OPTIONS={options}");
    lab.exec(CLIENT, &["env", &options, "getent", database, name])
}

fn counter(lab: &Lab, node: &str, name: &str) -> u64 {
    let page = lab.agent_page(node, "/kernel").expect("the agent answers");
    page[name].as_u64().expect("a counter")
}

#[test]
fn services_of_every_kind() {
    let lab = Lab::up("tests/fixtures/services");
    endpoints(&lab);
    readiness(&lab);
    not_ready(&lab);
    by_hand(&lab);
    names(&lab);
    entries(&lab);
    excluded(&lab);
    outside(&lab);
}

fn endpoints(lab: &Lab) {
    eventually("all endpoints take connections", || {
        reached(lab, "web") == pods(["web-1", "web-2", "web-3"])
    });
    assert_eq!(
        reached(lab, "local.shop"),
        pods(["web-1"]),
        "the client's node"
    );
    assert_eq!(
        reached(lab, "near.shop"),
        pods(["web-1"]),
        "the client's zone"
    );
    assert_eq!(
        reached(lab, "sticky.shop").len(),
        1,
        "one endpoint per client"
    );
    let headless = reached(lab, "headless.shop:8080");
    assert!(!headless.is_empty() && headless.is_subset(&pods(["web-1", "web-2", "web-3"])));
}

/// An endpoint that is not ready gets no new connection within a second; near falls back to the other zone.
fn readiness(lab: &Lab) {
    lab.exec("shop/web-1", &["touch", "/mnt/state/unready"])
        .success();
    eventually("web-1 is not ready", || {
        lab.pod("shop", "web-1")["ready"] == false
    });
    let since = Instant::now();
    // So many calls that one which is still told of it is hardly ever (1 in 10 million) not among them.
    while reached(lab, "web").contains("web-1") {
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "still reached after a second"
        );
    }
    assert_eq!(reached(lab, "web"), pods(["web-2", "web-3"]));
    assert_eq!(
        reached(lab, "near"),
        pods(["web-2", "web-3"]),
        "no endpoint in the zone"
    );
    let none = lab.exec(
        CLIENT,
        &[
            "karst-echo",
            "tcp",
            "local.shop:80",
            "--finish",
            "keep-open",
        ],
    );
    assert!(
        none.success().contains("\"end\":\"reset\""),
        "no endpoint on the node"
    );
    lab.exec("shop/web-1", &["rm", "/mnt/state/unready"])
        .success();
    eventually("web-1 is reached again", || {
        reached(lab, "web").contains("web-1")
    });
}

fn not_ready(lab: &Lab) {
    lab.exec("shop/never", &["touch", "/mnt/state/unready"])
        .success();
    eventually("no agent counts on the pod", || {
        let none = [
            "karst-echo",
            "tcp",
            "waits.shop:80",
            "--text",
            "x",
            "--timeout",
            "1",
        ];
        lab.exec(CLIENT, &none).stdout.contains("\"end\":\"reset\"")
    });
    assert_eq!(
        reached(lab, "never.shop"),
        pods(["never"]),
        "publishNotReadyAddresses"
    );
    let none = lab.exec(
        CLIENT,
        &[
            "karst-echo",
            "tcp",
            "waits.shop:80",
            "--finish",
            "keep-open",
        ],
    );
    assert!(
        none.success().contains("\"end\":\"reset\""),
        "no ready endpoint"
    );
    lab.exec("shop/never", &["rm", "/mnt/state/unready"])
        .success();
    eventually("the pod is ready again", || {
        lab.pod("shop", "never")["ready"] == true
    });
}

/// A service without a selector, whose endpoints somebody else writes: one inside the mesh and one outside.
fn by_hand(lab: &Lab) {
    let (inside, outside) = (lab.address("shop", "web-2"), lab.address("plain", "server"));
    lab.apply(
        "slice.yaml",
        &format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: by-hand-1, namespace: shop, \
            labels: {{kubernetes.io/service-name: by-hand}}}}, addressType: IPv4, \
            ports: [{{name: http, port: 8080}}], \
            endpoints: [{{addresses: [{inside}]}}, {{addresses: [{outside}]}}]}}\n"
        ),
    );
    let vip = vip(lab, "by-hand");
    eventually("both addresses are reached", || {
        let url = format!("http://{vip}/");
        let ran = lab.exec(CLIENT, &["karst-echo", "client", "--count", "30", &url]);
        ran.stdout.contains("Hostname=web-2") && ran.stdout.contains("Hostname=server")
    });
}

fn vip(lab: &Lab, name: &str) -> String {
    let status = lab.status();
    let services = status["services"].as_array().expect("services");
    let one = services
        .iter()
        .find(|one| one["name"] == name)
        .expect("it is there");
    one["addresses"][0].as_str().expect("an address").to_owned()
}

/// Names of services in both families, over UDP and TCP, with and without search domains.
fn names(lab: &Lab) {
    let vip = vip(lab, "web");
    for options in ["attempts:2", "use-vc"] {
        for name in [
            "web",
            "web.shop",
            "web.shop.svc",
            "web.shop.svc.cluster.local",
            "WEB.shop.svc.cluster.local.",
        ] {
            let v4 = look_up(lab, "ahostsv4", name, options).success();
            assert!(v4.contains(&vip), "{name} {options}: {v4}");
            let v6 = look_up(lab, "ahostsv6", name, options).success();
            assert!(v6.contains("fd00:"), "{name} {options}: {v6}");
        }
        let headless = look_up(lab, "ahostsv4", "headless.shop", options).success();
        for pod in ["web-1", "web-2", "web-3"] {
            assert!(
                headless.contains(&lab.address("shop", pod)),
                "{pod}: {headless}"
            );
        }
        let alias = look_up(lab, "ahostsv4", "outside.shop", options).success();
        assert!(alias.contains(&vip), "ExternalName: {alias}");
        // Known to cluster DNS alone, and to nobody: NXDOMAIN is an answer, not a time-out.
        for unknown in ["nobody.shop.svc.cluster.local.", "nobody.example.org."] {
            let since = Instant::now();
            let ran = look_up(lab, "ahostsv4", unknown, options);
            assert_eq!(ran.code, Some(2), "{unknown} {options}: {ran:?}");
            assert!(
                since.elapsed() < Duration::from_secs(2),
                "{unknown}: not at once"
            );
        }
    }
    assert_eq!(
        reached(lab, "outside"),
        reached(lab, "web"),
        "through the alias"
    );
}

/// A ServiceEntry with a static endpoint outside the mesh, by its own host name.
fn entries(lab: &Lab) {
    let endpoint = lab.address("plain", "server");
    lab.apply(
        "entry.yaml",
        &format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: api, namespace: shop}}, \
            spec: {{hosts: [api.example.com], addresses: [10.99.0.1], location: MESH_EXTERNAL, resolution: STATIC, \
            ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], \
            endpoints: [{{address: {endpoint}}}]}}}}\n"
        ),
    );
    eventually("the entry has a name", || {
        let found = look_up(lab, "ahostsv4", "api.example.com", "attempts:2");
        found.stdout.contains("10.99.0.1")
    });
    assert_eq!(reached(lab, "api.example.com"), pods(["server"]));
}

/// Ports that a pod's annotations exclude go around the agent, and only those.
fn excluded(lab: &Lab) {
    let (web, open) = (lab.address("shop", "web-2"), lab.address("shop", "open"));
    let before = counter(lab, "a", "captured");
    let target = format!("{web}:8080");
    assert_eq!(reached_from(lab, "shop/ports", &target, 5), pods(["web-2"]));
    assert_eq!(
        counter(lab, "a", "captured"),
        before,
        "an excluded port was captured"
    );
    assert!(!reached_from(lab, "shop/ports", "web.shop", 5).is_empty());
    assert!(
        counter(lab, "a", "captured") >= before + 5,
        "other ports are captured"
    );

    let before = counter(lab, "b", "inbound_plain");
    let target = format!("{open}:8080");
    assert_eq!(
        reached_from(lab, "plain/client", &target, 5),
        pods(["open"])
    );
    assert_eq!(
        counter(lab, "b", "inbound_plain"),
        before,
        "an excluded inbound port"
    );
    let target = format!("{web}:8080");
    assert_eq!(
        reached_from(lab, "plain/client", &target, 5),
        pods(["web-2"])
    );
    assert!(counter(lab, "b", "inbound_plain") >= before + 5, "control");
}

/// A pod outside the mesh by its address, and an address of nobody: the agent has no part in it.
fn outside(lab: &Lab) {
    let server = lab.address("plain", "server");
    let before = (
        counter(lab, "a", "captured"),
        lab.agent_log("a").lines().count(),
    );
    assert_eq!(reached(lab, &format!("{server}:8080")), pods(["server"]));
    let nobody = lab.exec(
        CLIENT,
        &["karst-echo", "tcp", "192.0.2.7:80", "--timeout", "1"],
    );
    assert!(nobody.success().contains("\"received\":0"));
    let after = (
        counter(lab, "a", "captured"),
        lab.agent_log("a").lines().count(),
    );
    assert_eq!(
        after, before,
        "the agent took part in a connection outside the mesh"
    );
}
