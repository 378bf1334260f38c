//! Which level an endpoint is of, and how requests fall to levels, against naive models.

use std::sync::Arc;

use karst_model::{
    protocol::AppProtocol,
    service::{Service, ServicePort},
    traffic::{
        Distribution, LabelPriority, LocalityBalance, LocalityPattern, LocalityWeight,
        RegionFailover, Subset,
    },
    workload::Workload,
};
use karst_routing::{
    balance::{Levels, Mode, NoEndpoint, Request, Wanted},
    priority::{Level, split},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::cases;

/// Requests given out one percent after another: each to the nearest level that still has room.
fn naive_split(levels: &[Level]) -> Vec<u32> {
    let health = |level: &Level| match level.healthy {
        0 => 0,
        healthy => (f64::from(healthy) * 140.0 / f64::from(level.total))
            .floor()
            .clamp(1.0, 100.0) as u32,
    };
    let mut shares = vec![0; levels.len()];
    let all: u32 = levels.iter().map(health).sum();
    if all == 0 {
        if let Some(first) = levels.iter().position(|level| level.total > 0) {
            shares[first] = 100;
        }
        return shares;
    }
    // What a level can take, in percent of all requests: less than all together can take is scaled up.
    let room: Vec<u32> = levels
        .iter()
        .map(|level| (f64::from(health(level)) * 100.0 / f64::from(all.min(100))).floor() as u32)
        .collect();
    for _ in 0..100 {
        let with_room = (0..levels.len()).find(|n| shares[*n] < room[*n]);
        let first = (0..levels.len()).find(|n| levels[*n].healthy > 0);
        shares[with_room.or(first).unwrap()] += 1;
    }
    shares
}

#[test]
fn requests_fall_to_levels_as_the_model_says() {
    let mut rng = SmallRng::seed_from_u64(3);
    for number in 0..cases() {
        let levels: Vec<Level> = (0..rng.random_range(1..5))
            .map(|_| {
                let total = rng.random_range(0..30);
                let healthy = match rng.random_range(0..3) {
                    0 => 0,
                    1 => total,
                    _ => rng.random_range(0..=total),
                };
                Level { healthy, total }
            })
            .collect();
        assert_eq!(
            split(&levels),
            naive_split(&levels),
            "case {number}: {levels:?}"
        );
    }
}

fn workload(name: &str, rng: &mut SmallRng) -> Workload {
    let mut workload = Workload::new(name);
    let mut one = |all: &[&str]| -> Arc<str> { all[rng.random_range(0..all.len())].into() };
    workload.locality.region = one(&["eu", "us", "asia"]);
    workload.locality.zone = one(&["a", "b"]);
    workload.locality.subzone = one(&["", "x"]);
    let labels = [
        ("rack".into(), one(&["1", "2"])),
        ("version".into(), one(&["v1", "v2"])),
    ];
    workload.labels = labels.into();
    workload.addresses = vec!["10.0.0.1".parse().unwrap()];
    workload.capacity = rng.random_range(1..4);
    workload
}

fn locality(rng: &mut SmallRng) -> LocalityBalance {
    let mut balance = LocalityBalance::default();
    if rng.random_bool(0.5) {
        balance.priority = vec![
            LabelPriority {
                label: "rack".into(),
                value: None,
            },
            LabelPriority {
                label: "version".into(),
                value: Some("v1".into()),
            },
        ];
    }
    if rng.random_bool(0.5) {
        balance.failover = vec![RegionFailover {
            from: "eu".into(),
            to: "us".into(),
        }];
    }
    if rng.random_bool(0.3) {
        balance.distribute = vec![Distribution {
            from: LocalityPattern {
                region: Some("eu".into()),
                ..LocalityPattern::default()
            },
            to: [("a", 80), ("b", 20)]
                .map(|(zone, weight)| LocalityWeight {
                    place: LocalityPattern {
                        region: Some("eu".into()),
                        zone: Some(zone.into()),
                        subzone: None,
                    },
                    weight,
                })
                .into(),
        }];
    }
    balance
}

/// A text that sorts as near comes before far.
fn naive_distance(balance: &LocalityBalance, from: &Workload, to: &Workload) -> String {
    if !balance.distribute.is_empty() && &*from.locality.region == "eu" {
        return String::new();
    }
    let mut text = String::new();
    if !balance.priority.is_empty() {
        let rack = from.label("rack") == to.label("rack");
        let version = to
            .label("version")
            .is_some_and(|version| &**version == "v1");
        text.push_str(match (rack, version) {
            (true, true) => "a",
            (true, false) => "b",
            (false, _) => "c",
        });
        if balance.failover.is_empty() {
            return text;
        }
    }
    let (here, there) = (&from.locality, &to.locality);
    let named = balance
        .failover
        .iter()
        .any(|failover| failover.from == here.region && failover.to == there.region);
    text.push_str(if here == there {
        "a"
    } else if here.region == there.region && here.zone == there.zone {
        "b"
    } else if here.region == there.region {
        "c"
    } else if named {
        "d"
    } else {
        "e"
    });
    text
}

fn survey(
    source: &Workload,
    endpoints: &[Arc<Workload>],
    wanted: Wanted<'_>,
) -> Result<Levels, NoEndpoint> {
    let mut service = Service::new("shop", "orders.shop.svc.cluster.local");
    let port = ServicePort {
        target_port: 8080,
        app_protocol: AppProtocol::Http11,
    };
    service.ports.insert(80, port);
    let request = Request {
        service: &service,
        port: 80,
        dialled: "10.96.0.1:80".parse().unwrap(),
        source,
        sticky: None,
        mode: Mode::Standard,
    };
    Levels::new(&request, endpoints, wanted)
}

#[test]
fn endpoints_are_as_near_as_the_model_says() {
    for seed in 0..cases().div_ceil(10) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let source = workload("waypoint", &mut rng);
        let endpoints: Vec<_> = (0..10)
            .map(|number| Arc::new(workload(&format!("w{number}"), &mut rng)))
            .collect();
        let balance = locality(&mut rng);
        let subset = Subset {
            name: "v2".into(),
            labels: vec![("version".into(), "v2".into())],
        };
        let subset = rng.random_bool(0.3).then_some(&subset);
        let wanted = Wanted {
            subset,
            locality: Some(&balance),
        };
        let shared = !balance.distribute.is_empty() && &*source.locality.region == "eu";
        let mut expected: Vec<(String, &str)> = endpoints
            .iter()
            .filter(|one| subset.is_none() || &**one.label("version").unwrap() == "v2")
            .filter(|one| !shared || &*one.locality.region == "eu")
            .map(|one| (naive_distance(&balance, &source, one), &*one.uid.0))
            .collect();
        expected.sort();
        let found = survey(&source, &endpoints, wanted);
        let mut named = Vec::new();
        for (number, level) in found.iter().flat_map(Levels::levels).enumerate() {
            let mut names: Vec<&str> = level.choices().iter().map(|c| &*c.workload.uid.0).collect();
            names.sort_unstable();
            named.extend(names.into_iter().map(|name| (number, name.to_owned())));
        }
        let mut distances: Vec<&String> = expected.iter().map(|(distance, _)| distance).collect();
        distances.dedup();
        let expected: Vec<(usize, String)> = expected
            .iter()
            .map(|(distance, name)| {
                let level = distances.iter().position(|one| *one == distance).unwrap();
                (level, (*name).to_owned())
            })
            .collect();
        assert_eq!(named, expected, "seed {seed}: {balance:?}");
    }
}

#[test]
fn places_get_the_shares_that_somebody_has_written_down() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut source = workload("waypoint", &mut rng);
    source.locality.region = "eu".into();
    let mut balance = LocalityBalance::default();
    while balance.distribute.is_empty() {
        balance = locality(&mut rng);
    }
    // Three small endpoints in one zone and one large one in the other: their own weights do not matter between zones.
    let endpoints: Vec<_> = [("a", 1), ("a", 1), ("a", 2), ("b", 9)]
        .iter()
        .enumerate()
        .map(|(number, (zone, capacity))| {
            let mut one = workload(&format!("w{number}"), &mut rng);
            one.locality.region = "eu".into();
            one.locality.zone = (*zone).into();
            one.capacity = *capacity;
            Arc::new(one)
        })
        .collect();
    let wanted = Wanted {
        subset: None,
        locality: Some(&balance),
    };
    let levels = survey(&source, &endpoints, wanted).unwrap();
    let level = &levels.levels()[0];
    let weights: Vec<f64> = (0..4).map(|n| f64::from(level.weight(n))).collect();
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights
        .iter()
        .map(|w| (w * 1000.0 / total).round())
        .collect();
    assert_eq!(shares, [200.0, 200.0, 400.0, 200.0]);
}
