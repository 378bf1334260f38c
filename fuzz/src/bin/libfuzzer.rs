//! The targets under libFuzzer, guided by coverage; built by `cargo xtask fuzz` where there is a nightly tool chain.
//! `KARST_FUZZ_TARGET` names the target.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: std::sync::LazyLock<&karst_fuzz::Target> = std::sync::LazyLock::new(|| {
        let name = std::env::var("KARST_FUZZ_TARGET").expect("KARST_FUZZ_TARGET names the target");
        karst_fuzz::target(&name).expect("KARST_FUZZ_TARGET is the name of a target")
    });
    (TARGET.run)(bytes);
});

#[cfg(not(fuzzing))]
fn main() {
    // Without instrumentation there is nothing to guide by: `karst-fuzz run` is the way then.
    std::process::exit(2);
}
