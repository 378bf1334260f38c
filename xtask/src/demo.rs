//! `demo`: starts the shop on two nodes of this machine and proves, with evidence, what the mesh promises.
//!
//! Each proof is a function that gives its evidence or says what it saw instead. They run in order, since each starts
//! from the state that the one before left: first without the mesh, then enrolled, then with policies, then released.

mod proofs;

use std::time::Instant;

use anyhow::{Result, bail};

use self::proofs::{PROOFS, Stage};
use crate::{
    lab::Lab,
    release,
    setup::{self, Group},
};

/// The lab's name.
const NAME: &str = "demo";
const EXAMPLE: &str = "examples/shop";

/// What `demo` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the shop running, enrolled, and say what to try next.
    #[arg(long)]
    keep: bool,
    /// Use target/release as it is.
    #[arg(long)]
    no_build: bool,
}

/// A promise and how it is shown.
struct Proof {
    /// The promise, as a sentence.
    promise: &'static str,
    /// Shows it, and gives the evidence.
    show: fn(&mut Stage) -> Result<String>,
}

/// `cargo xtask demo`.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Group::Build, Group::Ebpf, Group::Lab, Group::Demo])?;
    if !args.no_build {
        release::run()?;
    }
    let started = Instant::now();
    println!("demo: starting two nodes, the controller and the shop");
    let mut stage = Stage::new(Lab::up(NAME, EXAMPLE, args.keep)?);
    let mut held = PROOFS
        .iter()
        .filter(|proof| holds(proof, &mut stage))
        .count();
    let mut all = PROOFS.len();
    if args.keep {
        leave(stage.into_lab());
    } else {
        all += 1;
        held += usize::from(cleaned(stage.into_lab()));
    }
    println!("\ndemo: took {:.1} s", started.elapsed().as_secs_f64());
    println!("demo: {held} of {all} proofs hold");
    if held < all {
        bail!("not every proof holds");
    }
    Ok(())
}

fn holds(proof: &Proof, stage: &mut Stage) -> bool {
    let started = Instant::now();
    let shown = (proof.show)(stage);
    let taken = started.elapsed().as_secs_f64();
    say(proof.promise, taken, &shown);
    shown.is_ok()
}

fn say(promise: &str, taken: f64, shown: &Result<String>) {
    match shown {
        Ok(evidence) => {
            println!("\n[holds] {promise} ({taken:.1} s)");
            evidence.lines().for_each(|line| println!("    {line}"));
        }
        Err(error) => println!("\n[FAILS] {promise} ({taken:.1} s)\n    {error:#}"),
    }
}

fn cleaned(lab: Lab) -> bool {
    let started = Instant::now();
    let shown = lab.down().and_then(|left| match left.as_slice() {
        [] => Ok("no namespace, pin, cgroup or state of the lab is left".to_owned()),
        left => bail!("left behind: {}", left.join(", ")),
    });
    say(
        "taking the lab down leaves nothing behind",
        started.elapsed().as_secs_f64(),
        &shown,
    );
    shown.is_ok()
}

fn leave(lab: Lab) {
    let folder = lab.keep();
    let folder = folder.display();
    println!(
        "\nThe shop is still running. Its YAML is in {folder}: edit it, then\n\
         \x20   target/release/karst lab apply {folder} --name {NAME}\n\
         Look at it:\n\
         \x20   target/release/karst lab status --name {NAME}\n\
         \x20   target/release/karst lab exec {visitor} --name {NAME} -- curl -s http://web.shop.svc.cluster.local/\n\
         Take it down:\n\
         \x20   target/release/karst lab down --name {NAME}",
        visitor = proofs::VISITOR.path(),
    );
}
