//! One target per parser of bytes that a peer, a pod or a person writes.
//!
//! ```text
//!   corpus/<target>/* ──► mutate ──► target(bytes)     `karst-fuzz run` on the pinned tool chain
//!   corpus/<target>/* ──► libFuzzer ──► target(bytes)  `libfuzzer`, guided by coverage, on a nightly
//! ```
//!
//! A target may refuse its input as it likes; it must not panic, hang, or accept what it cannot give back.

pub mod mutate;
pub mod targets;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Feeds one input to the parser; panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs that the parser accepts, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The longest input that is tried, in bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::hbone::REQUEST,
    targets::hbone::FRAMES,
    targets::dns::MESSAGE,
    targets::cni::REQUEST,
    targets::discovery::RESOURCE,
    targets::identity::CERTIFICATE,
    targets::identity::JOIN_TOKEN,
    targets::proxy_protocol::HEADER,
    targets::yaml::FILE,
    targets::routing::PATH,
    targets::routing::HEAD,
    targets::routing::ROUTES,
    targets::token::TOKEN,
    targets::waypoint::FIRST_BYTES,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_takes_them() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            seeds.iter().for_each(|seed| (target.run)(seed));
        }
    }
}
