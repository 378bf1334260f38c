//! Istio's tasks of traffic management, each written from its description: routing by request, injecting faults, shifting
//! traffic. Two versions of a service are subsets of it, and a VirtualService is edited while the mesh runs.

use std::time::{Duration, Instant};

use karst_test_node::{Lab, eventually};

const ROUTING: &str = "routing.yaml";
const URL: &str = "http://reviews.shop";

fn service(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: shop}}
spec:
  hosts: [reviews]
  http:
{http}
"
    )
}

const REST_TO_V1: &str = "    - route:
        - destination: {host: reviews, subset: v1}";

/// Who answered, or nothing where a call failed.
fn calls(lab: &Lab, more: &[&str]) -> Option<Vec<String>> {
    let mut command = vec!["karst-echo", "client", URL, "--timeout", "10"];
    command.extend(more);
    let ran = lab.exec("shop/client", &command);
    let names = ran
        .stdout
        .lines()
        .filter_map(|line| line.split_once("Hostname="));
    let names: Vec<String> = names.map(|(_, name)| name.to_owned()).collect();
    ran.ok().then_some(names)
}

fn only(lab: &Lab, more: &[&str], version: &str) -> bool {
    let answered = calls(lab, &[more, &["--count", "20"]].concat());
    answered.is_some_and(|all| all.len() == 20 && all.iter().all(|one| one == version))
}

#[test]
fn istios_tasks_of_traffic_management() {
    let lab = Lab::start("tests/fixtures/virtual_services");

    // Request routing: everybody gets the first version, then one user the second.
    eventually("everybody gets v1", || only(&lab, &[], "reviews-v1"));
    let jason = "    - match:
        - headers:
            end-user: {exact: jason}
      route:
        - destination: {host: reviews, subset: v2}";
    lab.apply(ROUTING, &service(&format!("{jason}\n{REST_TO_V1}")));
    let as_jason = ["-H", "end-user:jason"];
    eventually("jason gets v2", || only(&lab, &as_jason, "reviews-v2"));
    assert!(only(&lab, &[], "reviews-v1"), "the others stay");

    // Fault injection: jason waits, then jason gets an error, and nobody else does.
    let delayed = "    - match:
        - headers:
            end-user: {exact: jason}
      fault:
        delay:
          percentage: {value: 100.0}
          fixedDelay: 2s
      route:
        - destination: {host: reviews, subset: v1}";
    lab.apply(ROUTING, &service(&format!("{delayed}\n{REST_TO_V1}")));
    eventually("jason waits", || {
        let began = Instant::now();
        calls(&lab, &as_jason).is_some() && began.elapsed() >= Duration::from_secs(2)
    });
    let began = Instant::now();
    assert!(calls(&lab, &[]).is_some());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "nobody else waits"
    );
    let aborted = delayed
        .replace("delay:", "abort:")
        .replace("fixedDelay: 2s", "httpStatus: 500");
    lab.apply(ROUTING, &service(&format!("{aborted}\n{REST_TO_V1}")));
    eventually("jason gets an error", || {
        let ran = lab.exec(
            "shop/client",
            &["karst-echo", "client", URL, "-H", as_jason[1]],
        );
        format!("{}{}", ran.stdout, ran.stderr).contains("StatusCode=500")
    });
    assert!(
        only(&lab, &[], "reviews-v1"),
        "the others get their answers"
    );

    // Traffic shifting: all to one, half and half, all to the other.
    let shares = |v1: u32, v2: u32| {
        service(&format!(
            "    - route:
        - destination: {{host: reviews, subset: v1}}
          weight: {v1}
        - destination: {{host: reviews, subset: v2}}
          weight: {v2}"
        ))
    };
    lab.apply(ROUTING, &shares(50, 50));
    eventually("half and half", || {
        let answered = calls(&lab, &["--count", "200"]).unwrap_or_default();
        let new = answered.iter().filter(|one| *one == "reviews-v2").count();
        answered.len() == 200 && (70..=130).contains(&new)
    });
    lab.apply(ROUTING, &shares(0, 100));
    eventually("all to v2", || only(&lab, &[], "reviews-v2"));
}
