//! The election under a simulated clock and an API server that compares versions, loses answers and is away.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// The Lease in the API server.
#[derive(Default)]
struct Server {
    lease: Option<Observed>,
    writes: u64,
}

impl Server {
    /// A write that names the version that it replaces; `None` for a creation.
    fn write(&mut self, name: &str, replaces: Option<&str>) -> bool {
        if self.lease.as_ref().map(|lease| lease.version.as_str()) != replaces {
            return false;
        }
        self.writes += 1;
        self.lease = Some(Observed {
            holder: name.to_owned(),
            version: self.writes.to_string(),
        });
        true
    }
}

fn round(election: &mut Election, server: &mut Server, now: Instant) {
    let read = server.lease.clone();
    let version = read.as_ref().map(|lease| lease.version.clone());
    if election.handle_read(read, now) == Action::Wait {
        return;
    }
    let name = election.name().to_owned();
    match server.write(&name, version.as_deref()) {
        true => election.handle_written(now),
        false => election.handle_conflict(),
    }
}

#[test]
fn the_first_leads_until_it_is_silent() {
    let (start, mut server) = (Instant::now(), Server::default());
    let at = |seconds| start + Duration::from_secs(seconds);
    let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
    round(&mut a, &mut server, at(0));
    round(&mut b, &mut server, at(0));
    assert!(a.leads(at(0)) && !b.leads(at(0)));
    round(&mut a, &mut server, at(2));
    round(&mut b, &mut server, at(2));
    for seconds in (4..17).step_by(2) {
        round(&mut b, &mut server, at(seconds));
        assert!(!b.leads(at(seconds)));
    }
    assert!(!a.leads(at(12)), "it could not renew, and knows");
    round(&mut b, &mut server, at(17));
    assert!(b.leads(at(17)));
    round(&mut a, &mut server, at(18));
    assert!(!a.leads(at(18)));
}

#[test]
fn a_released_lease_is_taken_at_once_and_a_deleted_one_made_again() {
    let (now, mut server) = (Instant::now(), Server::default());
    let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
    round(&mut a, &mut server, now);
    server.lease = Some(Observed {
        holder: String::new(),
        version: "released".into(),
    });
    round(&mut b, &mut server, now);
    assert!(b.leads(now));
    server.lease = None;
    round(&mut a, &mut server, now);
    round(&mut b, &mut server, now);
    assert!(a.leads(now) && !b.leads(now));
}

/// Three replicas whose clocks run apart, whose answers get lost and who are cut off at random.
#[test]
fn there_are_never_two_leaders_and_rarely_none() {
    let start = Instant::now() + Duration::from_secs(1_000_000);
    for seed in 0..50 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut server = Server::default();
        let mut replicas: Vec<Election> = (0..3)
            .map(|number| Election::new(number.to_string()))
            .collect();
        let offsets: Vec<Duration> = (0..3)
            .map(|_| Duration::from_secs(random.random_range(0..10_000)))
            .collect();
        let mut away = [0_u32; 3];
        let mut leaderless = 0;
        for step in 0..2_000_u64 {
            let real = start + Duration::from_secs(step);
            for (number, replica) in replicas.iter_mut().enumerate() {
                let local = real - offsets[number];
                if away[number] > 0 {
                    away[number] -= 1;
                } else if random.random_ratio(1, 200) {
                    away[number] = random.random_range(1..60);
                } else if step % 2 == number as u64 % 2 {
                    let before = server.writes;
                    if random.random_ratio(1, 50) {
                        // The write comes through, its answer does not.
                        let read = server.lease.clone();
                        let version = read.as_ref().map(|lease| lease.version.clone());
                        if replica.handle_read(read, local) != Action::Wait {
                            server.write(&number.to_string(), version.as_deref());
                        }
                    } else {
                        round(replica, &mut server, local);
                    }
                    assert!(server.writes <= before + 1);
                }
            }
            let leaders = replicas
                .iter()
                .zip(&offsets)
                .filter(|(replica, offset)| replica.leads(real - **offset));
            let leaders = leaders.count();
            assert!(
                leaders <= 1,
                "seed {seed}: {leaders} leaders at step {step}"
            );
            leaderless += usize::from(leaders == 0);
        }
        assert!(
            leaderless < 800,
            "seed {seed}: without a leader for {leaderless} of 2000 s"
        );
    }
}
