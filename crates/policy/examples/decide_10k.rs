//! P10: how long a decision takes at 10,000 policies, for several mixes of them.
//!
//! `cargo run --release -p karst-policy --example decide_10k -- --output json` prints one object; `ns_p50` and
//! `ns_p99` are those of the mix `mixed`. Called by `cargo xtask bench l4`. Each sample is the mean of a batch of
//! decisions, about as many connections as fit between two readings of the clock without its cost showing.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::{hint::black_box, time::Instant};

use karst_policy::{Compiled, Connection};

#[path = "../../../benches/src/mixes.rs"]
#[expect(unreachable_pub, reason = "the benches share it as a public module")]
mod mixes;

/// Decisions in one sample.
const BATCH: usize = 16;
const SAMPLES: usize = 20_000;

struct Row {
    mix: &'static str,
    ns_p50: f64,
    ns_p99: f64,
    compile_ms: f64,
}

fn main() {
    let rows: Vec<Row> = mixes::all().iter().map(measure).collect();
    let headline = rows
        .iter()
        .find(|row| row.mix == "mixed")
        .unwrap_or(&rows[0]);
    let json = std::env::args().any(|arg| arg == "json" || arg == "--output=json");
    if json {
        let each: Vec<String> = rows.iter().map(Row::json).collect();
        println!(
            r#"{{"id":"P10","policies":{},"mix":"{}","ns_p50":{:.0},"ns_p99":{:.0},"unit":"ns","mixes":[{}]}}"#,
            mixes::POLICIES,
            headline.mix,
            headline.ns_p50,
            headline.ns_p99,
            each.join(",")
        );
        return;
    }
    println!(
        "{:<22} {:>8} {:>8} {:>12}",
        "mix", "p50 ns", "p99 ns", "compile ms"
    );
    for row in &rows {
        println!(
            "{:<22} {:>8.0} {:>8.0} {:>12.1}",
            row.mix, row.ns_p50, row.ns_p99, row.compile_ms
        );
    }
}

impl Row {
    fn json(&self) -> String {
        format!(
            r#"{{"mix":"{}","ns_p50":{:.0},"ns_p99":{:.0},"compile_ms":{:.1}}}"#,
            self.mix, self.ns_p50, self.ns_p99, self.compile_ms
        )
    }
}

fn measure(mix: &mixes::Mix) -> Row {
    let start = Instant::now();
    let compiled = Compiled::compile(mix.policies.iter().cloned(), &[]);
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut connections = mix.connections.iter().cycle();
    let samples = if mix.slow { SAMPLES / 20 } else { SAMPLES };
    let mut sample = || {
        let batch: Vec<&Connection> = connections.by_ref().take(BATCH).collect();
        let start = Instant::now();
        for connection in batch {
            black_box(compiled.decide(black_box(connection)));
        }
        start.elapsed().as_secs_f64() * 1e9 / BATCH as f64
    };
    (0..samples / 10).for_each(|_| {
        black_box(sample());
    });
    let mut times: Vec<f64> = (0..samples).map(|_| sample()).collect();
    times.sort_by(f64::total_cmp);
    Row {
        mix: mix.name,
        ns_p50: times[samples / 2],
        ns_p99: times[samples * 99 / 100],
        compile_ms,
    }
}
