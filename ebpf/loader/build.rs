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

/// The target directory of this build: what lies above `PROFILE/build/PACKAGE/out`.
fn target_dir(out: &Path) -> PathBuf {
    let mut above = out
        .ancestors()
        .skip_while(|dir| dir.file_name() != Some("build".as_ref()));
    let profile = above.nth(1).expect("OUT_DIR lies in build/");
    let target = profile
        .parent()
        .expect("a profile lies in the target directory");
    // With `--target TRIPLE` there is one more level.
    if target.join("CACHEDIR.TAG").exists() {
        target
    } else {
        target.parent().unwrap_or(target)
    }
    .to_path_buf()
}
