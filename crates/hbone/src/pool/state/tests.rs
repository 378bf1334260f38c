//! The books of the pool under a clock that tests move by hand.

use karst_model::identity::{SpiffeId, TrustDomain};

use super::*;

const LIMITS: Limits = Limits {
    connections: 3,
    waiters: 2,
    streams_per_connection: 2,
    idle_timeout: Duration::from_secs(300),
};

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", account)
}

fn key(source: &str) -> Arc<PoolKey> {
    Arc::new(PoolKey {
        source: source.into(),
        source_identity: id("web"),
        destination: "orders".into(),
        addr: "10.0.0.1:15008".parse().unwrap(),
        accepted: [id("orders")].into(),
    })
}

fn dialed(state: &mut State, now: Instant, key: &Arc<PoolKey>) -> ConnId {
    assert!(matches!(state.acquire(key), Acquire::Dial { .. }));
    state.dialed(now, key)
}

#[test]
fn every_part_of_the_key_counts() {
    let base = PoolKey::clone(&key("a"));
    let others = [
        PoolKey {
            source: "b".into(),
            ..base.clone()
        },
        PoolKey {
            source_identity: id("other"),
            ..base.clone()
        },
        PoolKey {
            destination: "reused address".into(),
            ..base.clone()
        },
        PoolKey {
            addr: "10.0.0.2:15008".parse().unwrap(),
            ..base.clone()
        },
        PoolKey {
            accepted: [id("orders"), id("more")].into(),
            ..base.clone()
        },
    ];
    for other in others {
        let now = Instant::now();
        let mut state = State::new(LIMITS);
        let first = dialed(&mut state, now, &Arc::new(base.clone()));
        assert!(
            matches!(
                state.acquire(&Arc::new(other.clone())),
                Acquire::Dial { .. }
            ),
            "{other:?}"
        );
        assert_eq!(state.acquire(&Arc::new(base.clone())), Acquire::Use(first));
    }
}

#[test]
fn one_dial_at_a_time_and_bounded_waiters() {
    let (mut state, a, now) = (State::new(LIMITS), key("a"), Instant::now());
    assert!(matches!(state.acquire(&a), Acquire::Dial { .. }));
    assert_eq!(state.acquire(&a), Acquire::Wait);
    assert_eq!(state.acquire(&a), Acquire::Wait);
    assert_eq!(state.acquire(&a), Acquire::Refuse(Refusal::Waiters));
    state.waited(&a);
    assert_eq!(state.acquire(&a), Acquire::Wait, "a place is free again");
    let first = state.dialed(now, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    assert_eq!(state.counters().refused_waiters, 1);
    assert_eq!(state.counters().dials, 1);
}

#[test]
fn a_full_connection_makes_the_next_one_dialled() {
    let (mut state, a, now) = (State::new(LIMITS), key("a"), Instant::now());
    let first = dialed(&mut state, now, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    let second = dialed(&mut state, now, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(second));
    state.release(now, first);
    assert_eq!(
        state.acquire(&a),
        Acquire::Use(first),
        "a released place is used again"
    );
}

#[test]
fn the_peers_limit_counts_where_it_is_lower() {
    let (mut state, a, now) = (State::new(LIMITS), key("a"), Instant::now());
    let first = dialed(&mut state, now, &a);
    assert_eq!(state.set_peer_limit(first, 1), 1);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    assert!(matches!(state.acquire(&a), Acquire::Dial { .. }));
    assert_eq!(
        state.set_peer_limit(first, 1000),
        LIMITS.streams_per_connection
    );
}

#[test]
fn a_retired_connection_gets_no_streams_and_keeps_its_own() {
    let (mut state, a, now) = (State::new(LIMITS), key("a"), Instant::now());
    let first = dialed(&mut state, now, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    state.retire(first);
    assert_eq!((state.connections(), state.streams(first)), (1, 1));
    let second = dialed(&mut state, now, &a);
    assert_ne!(first, second);
    state.closed(first);
    state.release(now, first);
    assert_eq!(state.connections(), 1);
}

#[test]
fn idle_connections_leave_after_the_timeout_only() {
    let (mut state, a, start) = (State::new(LIMITS), key("a"), Instant::now());
    let first = dialed(&mut state, start, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    let late = start + LIMITS.idle_timeout * 2;
    assert!(!state.retire_if_idle(late, first), "a stream is open");
    state.release(late, first);
    assert!(!state.retire_if_idle(late + LIMITS.idle_timeout - Duration::from_nanos(1), first));
    assert!(state.retire_if_idle(late + LIMITS.idle_timeout, first));
    assert!(matches!(state.acquire(&a), Acquire::Dial { .. }));
}

#[test]
fn a_full_pool_evicts_the_longest_idle_or_refuses() {
    let (mut state, now) = (State::new(LIMITS), Instant::now());
    let first = dialed(&mut state, now + Duration::from_secs(1), &key("a"));
    let second = dialed(&mut state, now, &key("b"));
    dialed(&mut state, now + Duration::from_secs(2), &key("c"));
    assert_eq!(
        state.acquire(&key("d")),
        Acquire::Dial {
            evict: Some(second)
        }
    );
    assert_eq!(state.acquire(&key("a")), Acquire::Use(first));
    assert_eq!(state.acquire(&key("c")), state.acquire(&key("c")));
    assert_eq!(
        state.acquire(&key("e")),
        Acquire::Refuse(Refusal::Connections)
    );
    assert_eq!(state.counters().refused_connections, 1);
    state.dial_failed(&key("d"));
    assert_eq!(
        state.acquire(&key("e")),
        Acquire::Dial { evict: None },
        "a failed dial gives its place back"
    );
}

#[test]
fn nothing_is_left_when_all_is_over() {
    let (mut state, a, now) = (State::new(LIMITS), key("a"), Instant::now());
    let first = dialed(&mut state, now, &a);
    assert_eq!(state.acquire(&a), Acquire::Use(first));
    state.release(now, first);
    state.closed(first);
    assert!(matches!(state.acquire(&a), Acquire::Dial { .. }));
    assert_eq!(state.acquire(&a), Acquire::Wait);
    state.dial_failed(&a);
    state.waited(&a);
    assert_eq!(
        (
            state.entries.len(),
            state.conns.len(),
            state.dialing,
            state.waiters
        ),
        (0, 0, 0, 0)
    );
}
