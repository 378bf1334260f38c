//! The book under a clock of its own: what holds after which answers, and a random history against a plain reference.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn found(last: &[u8], ttl: u64) -> Answer {
    Answer::Found {
        addresses: last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect(),
        ttl: Duration::from_secs(ttl),
    }
}

fn shown(book: &Book, name: &str) -> Option<Vec<u8>> {
    let addresses = book.look(name)?;
    let last = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    Some(addresses.iter().map(last).collect())
}

#[test]
fn a_time_to_live_is_kept_to_within_bounds() {
    let start = Instant::now();
    let mut book = Book::new(Limits::default());
    assert_eq!(book.want("a", start), Known::Asking);
    for (ttl, expected) in [(0, 5), (60, 60), (86_400, 300)] {
        let now = book.next_due().unwrap();
        assert_eq!(book.due(now), ["a".into()]);
        assert!(book.due(now).is_empty(), "one question at a time");
        book.answered("a", found(&[1], ttl), now);
        assert_eq!(book.next_due(), Some(now + SECOND * expected), "ttl {ttl}");
    }
}

#[test]
fn failures_keep_the_last_addresses_and_pause_longer_each_time() {
    let mut now = Instant::now();
    let mut book = Book::new(Limits::default());
    book.want("a", now);
    book.due(now);
    assert!(book.answered("a", found(&[2, 1, 2], 5), now));
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        now = book.next_due().unwrap();
        book.due(now);
        assert!(!book.answered("a", Answer::Failed, now));
        assert_eq!(book.next_due(), Some(now + SECOND * pause));
        assert_eq!(shown(&book, "a"), Some(vec![1, 2]));
    }
    assert_eq!(book.failing(), 1);
}

#[test]
fn a_name_that_flaps_keeps_its_addresses_and_one_that_is_gone_loses_them() {
    let start = Instant::now();
    let mut book = Book::new(Limits::default());
    book.want("a", start);
    book.answered("a", found(&[1], 5), start);
    assert!(!book.answered("a", Answer::Empty, start + SECOND * 10));
    assert!(!book.answered("a", Answer::Empty, start + SECOND * 69));
    assert_eq!(shown(&book, "a"), Some(vec![1]));
    assert!(!book.answered("a", found(&[1], 5), start + SECOND * 70));
    assert!(
        !book.answered("a", Answer::Empty, start + SECOND * 80),
        "a new grace"
    );
    assert!(book.answered("a", Answer::Empty, start + SECOND * 140));
    assert_eq!(shown(&book, "a"), Some(vec![]));
    // A name that never had any is known to have none at once.
    book.want("b", start);
    assert!(book.answered("b", Answer::Empty, start));
    assert_eq!(shown(&book, "b"), Some(vec![]));
}

#[test]
fn names_and_addresses_are_bounded() {
    let now = Instant::now();
    let mut book = Book::new(Limits {
        names: 2,
        addresses: 3,
        ..Limits::default()
    });
    book.want("a", now);
    book.want("b", now);
    assert_eq!(book.want("c", now), Known::Full);
    let Answer::Found { addresses, .. } = found(&(0..200).collect::<Vec<u8>>(), 5) else {
        panic!()
    };
    assert_eq!(book.left_out(&addresses), 197);
    book.answered(
        "a",
        Answer::Found {
            addresses,
            ttl: SECOND,
        },
        now,
    );
    assert_eq!(shown(&book, "a"), Some(vec![0, 1, 2]));
    // What nobody wants makes room; what is pinned does not.
    book.pin(["b".into()].into(), now);
    book.due(now + SECOND * 601);
    assert_eq!(shown(&book, "a"), None);
    assert_eq!(book.want("b", now), Known::Asking);
    assert_eq!(book.want("c", now), Known::Asking);
}

/// What holds of one name, written the long way: from its whole history.
fn reference(history: &[(Instant, Answer)], grace: Duration) -> Option<Vec<u8>> {
    let mut held: Option<Vec<u8>> = None;
    for (index, (at, answer)) in history.iter().enumerate() {
        match answer {
            Answer::Found { addresses, .. } => {
                let mut all: Vec<u8> = addresses
                    .iter()
                    .map(|ip| match ip {
                        IpAddr::V4(ip) => ip.octets()[3],
                        IpAddr::V6(_) => 0,
                    })
                    .collect();
                all.sort_unstable();
                all.dedup();
                held = Some(all);
            }
            Answer::Failed => {}
            Answer::Empty => {
                let since = history[..=index]
                    .iter()
                    .rev()
                    .take_while(|(_, one)| !matches!(one, Answer::Found { .. }));
                let first = since
                    .filter(|(_, one)| *one == Answer::Empty)
                    .last()
                    .map(|(at, _)| *at)
                    .unwrap();
                if held.is_none() || *at - first >= grace {
                    held = Some(Vec::new());
                }
            }
        }
    }
    held
}

#[test]
fn random_histories_agree_with_the_reference() {
    let mut rng = SmallRng::seed_from_u64(6);
    let limits = Limits::default();
    for _ in 0..20_000 {
        let mut now = Instant::now();
        let mut book = Book::new(limits);
        book.want("a", now);
        let mut history = Vec::new();
        for _ in 0..rng.random_range(1..12) {
            now += SECOND * rng.random_range(0..40);
            let answer = match rng.random_range(0..3) {
                0 => Answer::Empty,
                1 => Answer::Failed,
                _ => found(
                    &[rng.random_range(0..3), rng.random_range(0..3)],
                    rng.random_range(0..400),
                ),
            };
            let before = shown(&book, "a");
            let changed = book.answered("a", answer.clone(), now);
            history.push((now, answer));
            let after = shown(&book, "a");
            assert_eq!(
                after,
                reference(&history, limits.empty_grace),
                "{history:?}"
            );
            assert_eq!(changed, before != after);
            let due = book.next_due().unwrap();
            assert!(due > now && due <= now + limits.ttl.1);
        }
    }
}
