//! Rotation under a simulated clock: single rules, then random lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::UNIX_EPOCH,
};

use karst_model::identity::TrustDomain;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const BACKDATE: Duration = Duration::from_secs(600);

fn start() -> SystemTime {
    UNIX_EPOCH + 20_000 * DAY
}

fn id(name: usize) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", &format!("sa{name}"))
}

fn rotation() -> Rotation {
    Rotation::new(RotationConfig::default(), 1)
}

fn validity(now: SystemTime, life: Duration) -> Validity {
    Validity {
        not_before: now - BACKDATE,
        not_after: now + life,
    }
}

#[test]
fn renewal_is_at_half_life_less_jitter() {
    for seed in 0..100 {
        let (mut rotation, now) = (Rotation::new(RotationConfig::default(), seed), start());
        rotation.handle_require(now, &id(0)).unwrap();
        assert_eq!(rotation.poll_requests(now), [id(0)]);
        assert!(rotation.handle_issued(now, &id(0), validity(now, DAY)));
        let due = rotation
            .poll_timeout()
            .unwrap()
            .duration_since(now)
            .unwrap();
        let half = (DAY + BACKDATE) / 2 - BACKDATE;
        assert!(
            due <= half && due >= half - (DAY + BACKDATE) / 20 - SECOND,
            "{due:?}"
        );
    }
}

#[test]
fn a_short_life_that_began_in_the_past_is_not_renewed_in_a_loop() {
    let (mut rotation, now) = (rotation(), start());
    rotation.handle_require(now, &id(0)).unwrap();
    rotation.poll_requests(now);
    rotation.handle_issued(now, &id(0), validity(now, 60 * SECOND));
    let due = rotation
        .poll_timeout()
        .unwrap()
        .duration_since(now)
        .unwrap();
    assert!(due >= 20 * SECOND && due <= 30 * SECOND, "{due:?}");
}

#[test]
fn pauses_double_up_to_the_most_and_a_success_forgets_them() {
    let (mut rotation, mut now) = (rotation(), start());
    rotation.handle_require(now, &id(0)).unwrap();
    let mut expected = 0.5;
    for _ in 0..40 {
        assert_eq!(rotation.poll_requests(now), [id(0)]);
        rotation.handle_failed(now, &id(0));
        let pause = rotation
            .poll_timeout()
            .unwrap()
            .duration_since(now)
            .unwrap();
        let (least, most) = (expected * 0.799, (expected * 1.201_f64).min(150.0));
        assert!(
            (least..=most).contains(&pause.as_secs_f64()),
            "{pause:?} after {expected}"
        );
        assert!(rotation.poll_requests(now + pause / 2).is_empty());
        now += pause;
        expected = (expected * 2.0).min(150.0);
    }
    rotation.poll_requests(now);
    rotation.handle_issued(now, &id(0), validity(now, HOUR));
    now += 2 * HOUR;
    rotation.poll_requests(now);
    rotation.handle_failed(now, &id(0));
    assert!(rotation.poll_timeout().unwrap() < now + SECOND);
}

#[test]
fn who_waits_goes_first_and_renewals_last() {
    let now = start();
    let mut rotation = Rotation::new(
        RotationConfig {
            concurrent_max: 1,
            ..RotationConfig::default()
        },
        1,
    );
    (0..3).for_each(|n| rotation.handle_require(now, &id(n)).unwrap());
    rotation.handle_restored(
        now,
        &id(0),
        Validity {
            not_before: now - DAY,
            not_after: now + HOUR,
        },
    );
    rotation.handle_awaited(&id(2));
    let mut order = Vec::new();
    for _ in 0..3 {
        let [next] = &rotation.poll_requests(now)[..] else {
            panic!("one at a time")
        };
        order.push(next.clone());
        rotation.handle_issued(now, next, validity(now, DAY));
    }
    assert_eq!(order, [id(2), id(1), id(0)]);
}

#[test]
fn a_return_during_a_request_gets_its_answer_and_no_second_request() {
    let (mut rotation, now) = (rotation(), start());
    rotation.handle_require(now, &id(0)).unwrap();
    assert_eq!(rotation.poll_requests(now), [id(0)]);
    assert_eq!(rotation.handle_release(&id(0)), Released::Dropped);
    rotation.handle_require(now, &id(0)).unwrap();
    assert!(rotation.poll_requests(now).is_empty());
    assert!(rotation.handle_issued(now, &id(0), validity(now, DAY)));
    assert_eq!(rotation.in_flight(), 0);
}

#[test]
fn an_answer_for_nobody_is_dropped_and_frees_its_place() {
    let (mut rotation, now) = (rotation(), start());
    rotation.handle_require(now, &id(0)).unwrap();
    rotation.poll_requests(now);
    rotation.handle_release(&id(0));
    assert!(!rotation.handle_issued(now, &id(0), validity(now, DAY)));
    assert_eq!((rotation.in_flight(), rotation.plan(&id(0))), (0, None));
    assert_eq!(rotation.handle_release(&id(0)), Released::Unknown);
}

#[test]
fn more_identities_than_the_bound_are_refused() {
    let mut rotation = Rotation::new(
        RotationConfig {
            identities_max: 2,
            ..RotationConfig::default()
        },
        1,
    );
    rotation.handle_require(start(), &id(0)).unwrap();
    rotation.handle_require(start(), &id(1)).unwrap();
    assert_eq!(
        rotation.handle_require(start(), &id(2)),
        Err(TooMany { identities_max: 2 })
    );
    rotation.handle_require(start(), &id(1)).unwrap();
}

#[test]
fn a_clock_set_back_does_not_stop_retries() {
    let (mut rotation, now) = (rotation(), start());
    rotation.handle_require(now, &id(0)).unwrap();
    rotation.poll_requests(now);
    rotation.handle_failed(now, &id(0));
    assert_eq!(rotation.poll_requests(now - DAY), [id(0)]);
}

/// What the outside world holds, kept apart from the machine under test.
#[derive(Default)]
struct World {
    references: BTreeMap<SpiffeId, usize>,
    in_flight: BTreeSet<SpiffeId>,
    held: BTreeMap<SpiffeId, Validity>,
    /// Refused by the CA since their last certificate: these may end.
    excused: BTreeSet<SpiffeId>,
    ca_down: bool,
}

impl World {
    fn poll(&mut self, rotation: &mut Rotation, now: SystemTime) {
        for id in rotation.poll_requests(now) {
            assert!(self.in_flight.insert(id.clone()), "two requests for {id}");
        }
        assert!(self.in_flight.len() <= 8, "more than 8 in flight");
        assert_eq!(self.in_flight.len(), rotation.in_flight());
    }

    fn answer(&mut self, rotation: &mut Rotation, now: SystemTime, id: &SpiffeId, life: Duration) {
        self.in_flight.remove(id);
        if self.ca_down {
            self.excused.insert(id.clone());
            return rotation.handle_failed(now, id);
        }
        let validity = validity(now, life);
        let wanted = self.references.contains_key(id);
        assert_eq!(rotation.handle_issued(now, id, validity), wanted);
        if wanted {
            let former = self.held.insert(id.clone(), validity);
            let excused = self.excused.remove(id);
            assert!(
                excused || former.is_none_or(|former| now < former.not_after),
                "asked too late for {id}"
            );
        }
    }

    fn release(&mut self, rotation: &mut Rotation, id: &SpiffeId) {
        let Some(references) = self.references.get_mut(id) else {
            return;
        };
        *references -= 1;
        let gone = *references == 0;
        assert_eq!(rotation.handle_release(id) == Released::Dropped, gone);
        if gone {
            self.references.remove(id);
            self.held.remove(id);
        }
    }
}

/// One random life: identities come and go, the CA is up or down, answers come in any order, time jumps. While the CA
/// is up every held certificate is renewed before it ends, and at the end everything wanted is held and fresh.
fn live(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rotation = Rotation::new(RotationConfig::default(), seed);
    let (mut world, mut now) = (World::default(), start());
    let life = Duration::from_secs(rng.random_range(3600..90_000));
    for _ in 0..rng.random_range(20..60) {
        let who = id(rng.random_range(0..20));
        match rng.random_range(0..6) {
            0 | 1 => {
                rotation.handle_require(now, &who).unwrap();
                *world.references.entry(who).or_default() += 1;
            }
            2 => world.release(&mut rotation, &who),
            3 => rotation.handle_awaited(&who),
            4 => world.ca_down = rng.random_bool(0.3),
            _ => {
                let some = world.in_flight.iter().nth(rng.random_range(0..8)).cloned();
                if let Some(id) = some {
                    world.answer(&mut rotation, now, &id, life);
                }
            }
        }
        world.poll(&mut rotation, now);
        if rng.random_bool(0.3) {
            // Long outages are rare: each costs hundreds of steps.
            let share = if world.ca_down && rng.random_bool(0.95) {
                0.01
            } else {
                0.4
            };
            let end = now + life.mul_f64(rng.random_range(0.0..share));
            now = run_until(&mut rotation, &mut world, now, end, life);
        }
    }
    world.ca_down = false;
    now = run_until(&mut rotation, &mut world, now, now + 3 * life, life);
    assert!(
        world
            .references
            .keys()
            .all(|id| world.held.contains_key(id)),
        "somebody got nothing, seed {seed}"
    );
    assert!(
        world
            .held
            .values()
            .all(|held| held.not_after > now + life / 4),
        "not renewed in time, seed {seed}"
    );
}

/// Lets time pass as the shell does: sleeps until the machine's own time-out, and answers every request at once.
fn run_until(
    rotation: &mut Rotation,
    world: &mut World,
    mut now: SystemTime,
    end: SystemTime,
    life: Duration,
) -> SystemTime {
    loop {
        world.poll(rotation, now);
        for id in world.in_flight.clone() {
            world.answer(rotation, now, &id, life);
        }
        match rotation.poll_timeout() {
            Some(due) if due <= end => now = now.max(due),
            _ => return end,
        }
    }
}

#[test]
fn ten_thousand_random_lives() {
    (0..10_000).for_each(live);
}
