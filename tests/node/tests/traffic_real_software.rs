//! Real programs through the mesh, unchanged: pgbench, redis-benchmark, wrk and iperf3 run without an error.

use karst_test_node::Lab;
use serde_json::Value;

const CLIENT: &str = "shop/client";

#[test]
fn real_programs_run_without_an_error() {
    let lab = Lab::up("tests/fixtures/software");
    wrk(&lab);
    redis(&lab);
    postgres(&lab);
    iperf(&lab);
    let through_the_tunnel = lab.agent_page("b", "/kernel").expect("the agent answers");
    assert!(
        through_the_tunnel["inbound_hbone"].as_u64() > Some(0),
        "{through_the_tunnel}"
    );
    assert_eq!(
        through_the_tunnel["inbound_plain"], 0,
        "control: nothing came as plaintext"
    );
}

fn wrk(lab: &Lab) {
    let run = [
        "wrk",
        "-t",
        "1",
        "-c",
        "20",
        "-d",
        "2s",
        "http://nginx.shop/",
    ];
    let report = lab.exec(CLIENT, &run).success();
    assert!(
        !report.contains("Socket errors") && !report.contains("Non-2xx"),
        "{report}"
    );
    assert!(report.contains("requests in"), "{report}");
}

fn redis(lab: &Lab) {
    let run = [
        "redis-benchmark",
        "-h",
        "redis.shop",
        "-n",
        "5000",
        "-c",
        "20",
        "-t",
        "set,get,lpush",
        "--csv",
    ];
    let ran = lab.exec(CLIENT, &run);
    assert!(!ran.stderr.to_lowercase().contains("error"), "{ran:?}");
    assert_eq!(
        ran.success()
            .lines()
            .filter(|line| line.starts_with('"'))
            .count(),
        4
    );
}

fn postgres(lab: &Lab) {
    let bench = |options: &[&str]| {
        let base = ["pgbench", "-h", "postgres.shop", "-U", "shop"];
        lab.exec(CLIENT, &[&base, options, &["shop"]].concat())
            .success()
    };
    bench(&["--initialize", "--quiet", "--scale", "1"]);
    // Short connections too: each transaction on a new one.
    for options in [
        &["-c", "8", "-t", "50"][..],
        &["-c", "4", "-t", "20", "--connect"],
    ] {
        let report = bench(options);
        assert!(
            report.contains("number of failed transactions: 0"),
            "{report}"
        );
    }
}

fn iperf(lab: &Lab) {
    for direction in [&[][..], &["--reverse"]] {
        let run = [
            &["iperf3", "-c", "iperf.shop", "-t", "2", "-P", "2", "--json"],
            direction,
        ]
        .concat();
        let report: Value = serde_json::from_str(&lab.exec(CLIENT, &run).success()).expect("JSON");
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        assert!(rate > Some(1e6) && report["error"].is_null(), "{report}");
    }
}
