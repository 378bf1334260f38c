//! Decisions at 10,000 policies, one bench per mix: `cargo bench -p karst-benches --bench policy`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use karst_benches::mixes;
use karst_policy::Compiled;

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide_10k");
    for mix in mixes::all() {
        let compiled = Compiled::compile(mix.policies.iter().cloned(), &[]);
        let mut connections = mix.connections.iter().cycle();
        group.bench_function(mix.name, |bencher| {
            bencher.iter(|| {
                connections
                    .next()
                    .map(|connection| compiled.decide(black_box(connection)))
            })
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
