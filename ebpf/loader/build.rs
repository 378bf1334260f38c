//! Embeds the kernel programs that `cargo xtask ebpf` built, or an empty stub.
//!
//! A binary with the stub fails at start-up with a message that names the command.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("karst.o");
    let built = target_dir(&out).join("bpf/karst.o");
    println!("cargo::rerun-if-changed={}", built.display());
    match fs::read(&built) {
        Ok(object) => fs::write(&out, object),
        Err(_) => {
            println!(
                "cargo::warning=no kernel programs in {}: run `cargo xtask ebpf`",
                built.display()
            );
            fs::write(&out, [])
        }
    }
    .expect("OUT_DIR is writable");
}

/// The target directory of this build: what lies above `PROFILE/build/PACKAGE/out`, and with `--target TRIPLE` one level
/// higher. The kernel programs tell which; where none were built, either will do until they are.
fn target_dir(out: &Path) -> PathBuf {
    let mut above = out
        .ancestors()
        .skip_while(|dir| dir.file_name() != Some("build".as_ref()));
    let profile = above.nth(1).expect("OUT_DIR lies in build/");
    let nearest = profile
        .parent()
        .expect("a profile lies in the target directory");
    let has_programs = |dir: &&Path| dir.join("bpf/karst.o").exists();
    let found = nearest.ancestors().take(2).find(has_programs);
    found.unwrap_or(nearest).to_path_buf()
}
