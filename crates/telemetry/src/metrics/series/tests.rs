//! Label sets that come, idle and leave: sums stay exact, bounds hold.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[derive(Debug, Default)]
struct One(AtomicU64);

impl Values for One {
    const LINES: usize = 1;

    fn absorb(&self, other: &Self) {
        self.0
            .fetch_add(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn mark(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const METRIC: CounterOf<One> = CounterOf {
    bit: 1,
    name: "m",
    help: "M",
    value: |one| one.0.load(Ordering::Relaxed),
};

fn party(name: &str) -> Party {
    ("ns".into(), name.into())
}

fn row(series: &Series<One>, name: &str, now: Instant) -> Arc<Row<One>> {
    let labels = format!("w=\"{name}\"");
    let wanted = Wanted {
        labels: &labels,
        folded: &|| "w=\"unknown\"".to_owned(),
        metrics: 1,
        parties: [Some(party(name)), None],
    };
    series.row(&wanted, now)
}

fn count(series: &Series<One>, name: &str, now: Instant) {
    row(series, name, now)
        .values
        .0
        .fetch_add(1, Ordering::Relaxed);
}

fn text(series: &Series<One>) -> String {
    let mut out = Lines::default();
    write_counter(&series.rows(), &METRIC, &mut out);
    out.0
}

fn total(series: &Series<One>) -> u64 {
    series.rows().iter().map(|row| row.values.mark()).sum()
}

fn bounds() -> Bounds {
    Bounds {
        sets: 4,
        bytes: 1 << 20,
        idle: Duration::from_secs(10),
        gone: Duration::from_secs(2),
    }
}

#[test]
fn an_idle_row_hands_its_counts_on() {
    let (series, start) = (Series::new(bounds()), Instant::now());
    count(&series, "a", start);
    count(&series, "b", start);
    series.sweep(start);
    count(&series, "b", start + Duration::from_secs(9));
    series.sweep(start + Duration::from_secs(12));
    let text = text(&series);
    assert!(!text.contains("w=\"a\""), "{text}");
    assert!(text.contains("m_total{w=\"unknown\"} 1\n"), "{text}");
    assert!(text.contains("m_total{w=\"b\"} 2\n"), "{text}");
    assert_eq!((series.counts().sets, series.counts().folded), (1, 1));
}

#[test]
fn a_row_that_somebody_holds_stays() {
    let (series, start) = (Series::new(bounds()), Instant::now());
    let held = row(&series, "a", start);
    series.retire(&|one| *one != party("a"), start);
    series.sweep(start + Duration::from_secs(100));
    held.values.0.fetch_add(3, Ordering::Relaxed);
    assert!(text(&series).contains("m_total{w=\"a\"} 3\n"));
    drop(held);
    series.sweep(start + Duration::from_secs(101));
    assert!(text(&series).contains("m_total{w=\"unknown\"} 3\n"));
}

#[test]
fn the_rows_of_a_workload_that_is_gone_leave_sooner() {
    let (series, start) = (Series::new(bounds()), Instant::now());
    count(&series, "a", start);
    series.retire(&|one| *one != party("a"), start);
    series.sweep(start + Duration::from_secs(1));
    assert!(text(&series).contains("w=\"a\""));
    series.sweep(start + Duration::from_secs(2));
    assert!(!text(&series).contains("w=\"a\""));
    count(&series, "a", start + Duration::from_secs(3));
    assert!(text(&series).contains("m_total{w=\"a\"} 1\n"), "it is back");
}

#[test]
fn past_the_bound_everything_counts_in_one_row() {
    let (series, start) = (Series::new(bounds()), Instant::now());
    for index in 0..9 {
        count(&series, &format!("w{index}"), start);
    }
    assert_eq!((series.counts().sets, series.counts().overflowed), (4, 5));
    assert!(text(&series).contains("m_total{w=\"unknown\"} 5\n"));
    assert_eq!(total(&series), 9);
}

/// Against a plain sum, under everything that can happen to rows.
#[test]
fn the_sum_is_exact_and_never_falls() {
    let series = Series::new(Bounds {
        sets: 50,
        bytes: 400,
        ..bounds()
    });
    let (start, mut counted, mut shown, mut seed) = (Instant::now(), 0, 0, 7u64);
    let mut held = Vec::new();
    for step in 0..20_000u64 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let now = start + Duration::from_millis(step * 10);
        let name = format!("w{}", (seed >> 33) % 300);
        match (seed >> 20) % 16 {
            0 => series.retire(&|one| *one != party(&name), now),
            1 => series.sweep(now),
            2 => held.push(row(&series, &name, now)),
            3 => held.clear(),
            4 => held.iter().for_each(|row| {
                row.values.0.fetch_add(1, Ordering::Relaxed);
                counted += 1;
            }),
            _ => {
                count(&series, &name, now);
                counted += 1;
            }
        }
        let sum = total(&series);
        assert_eq!(sum, counted, "step {step}");
        assert!(sum >= shown);
        shown = sum;
    }
    assert!(series.counts().folded > 100 && series.counts().overflowed > 10);
}
