//! `demo`: starts the shop on two nodes of this machine and proves, with evidence, what the mesh promises.
//!
//! Each proof is a function that gives its evidence or says what it saw instead. They run in order, since each starts
//! from the state that the one before left: first without the mesh, then enrolled, then with policies, then released.

mod print;
mod proofs;

use std::{
    path::{Display, Path},
    time::Instant,
};

use anyhow::{Result, bail, ensure};

use self::proofs::{PROOFS, Stage};
use crate::{
    lab::{self, Lab},
    release,
    setup::{self, Group},
    shell,
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
    /// Use the binaries as they are.
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
    require_machine()?;
    setup::ensure(&[Group::Build, Group::Ebpf, Group::Lab, Group::Demo])?;
    if !args.no_build {
        release::run()?;
    }
    let started = Instant::now();
    println!(
        "demo: two nodes, the controller, an agent on each node and the shop; not enrolled yet"
    );
    let mut stage = Stage::open(NAME, EXAMPLE)?;
    let mut score = Score::default();
    for proof in PROOFS {
        score.add(proof.promise, || (proof.show)(&mut stage));
    }
    if args.keep {
        stage.enrol()?;
        leave(stage.into_lab());
    } else {
        let lab = stage.into_lab();
        score.add("taking the lab down leaves nothing behind", || cleaned(lab));
    }
    score.close(started)
}

/// What no package can bring.
fn require_machine() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let root = user.is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"));
    ensure!(
        root,
        "the demo makes network namespaces and loads kernel programs: run it as root"
    );
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this kernel has no type information (/sys/kernel/btf/vmlinux): it was built without CONFIG_DEBUG_INFO_BTF"
    );
    Ok(())
}

/// How many proofs were tried, and how many hold.
#[derive(Default)]
struct Score {
    tried: usize,
    held: usize,
}

impl Score {
    fn add(&mut self, promise: &str, show: impl FnOnce() -> Result<String>) {
        self.tried += 1;
        print::promise(self.tried, promise);
        let started = Instant::now();
        let shown = show();
        print::outcome(started.elapsed(), &shown);
        self.held += usize::from(shown.is_ok());
    }

    /// The last line. An exit status of 0 needs every proof.
    fn close(&self, started: Instant) -> Result<()> {
        let Self { tried, held } = self;
        println!("\ndemo: took {:.1} s", started.elapsed().as_secs_f64());
        println!("demo: {held} of {tried} proofs hold");
        if held < tried {
            // The line above is the last one, and says it all.
            std::process::exit(1);
        }
        Ok(())
    }
}

fn cleaned(lab: Lab) -> Result<String> {
    let left = lab.down()?;
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    Ok(
        "no network namespace, pinned program or map, cgroup, process or file of the lab is left"
            .to_owned(),
    )
}

/// A path as it is typed in the clone.
fn short(path: &Path) -> Display<'_> {
    path.strip_prefix(shell::root()).unwrap_or(path).display()
}

fn leave(lab: Lab) {
    let folder = lab.keep();
    let karst = lab::karst();
    let (folder, karst) = (short(&folder), short(&karst));
    let visitor = proofs::CUSTOMER.path();
    println!(
        "\nThe shop is still running, enrolled. Load a page:\n\
         \x20   {karst} lab exec --name {NAME} {visitor} -- curl -s http://front.shop/\n\
         See what there is, and who talks to whom:\n\
         \x20   {karst} lab status --name {NAME}\n\
         \x20   {karst} lab logs --name {NAME} agent/n1\n\
         Its YAML is in {folder}: edit a policy, then\n\
         \x20   {karst} lab apply --name {NAME} {folder}\n\
         Take it down:\n\
         \x20   {karst} lab down --name {NAME}"
    );
}
