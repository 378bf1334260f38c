//! karst-cni: the last plugin of a node's CNI chain. A pod starts only when the agent has captured it.
//!
//! ```text
//!   container runtime ──env, JSON──► call ──► plugin ──one line──► agent (cni.sock)
//!                     ◄──prevResult or error JSON──┘
//! ```
//!
//! Stateless: all it knows comes with the call, from the agent, or from the file that the agent left.

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

mod agent;
mod call;
mod error;
mod plugin;

use crate::{call::Environment, error::CniError};

/// Longest configuration on standard input; real ones have a few kilobytes.
const INPUT_LIMIT: u64 = 1 << 20;

fn main() -> ExitCode {
    let (output, code) =
        match read_input().and_then(|input| plugin::run(&Environment::of_process(), &input)) {
            Ok(output) => (output, ExitCode::SUCCESS),
            Err(error) => (error.to_json(), ExitCode::FAILURE),
        };
    let printed = io::stdout().write_all(output.as_bytes());
    if printed.is_ok() {
        code
    } else {
        ExitCode::FAILURE
    }
}

fn read_input() -> Result<Vec<u8>, CniError> {
    let mut input = Vec::new();
    io::stdin()
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut input)
        .map_err(CniError::Input)?;
    if input.len() as u64 > INPUT_LIMIT {
        return Err(CniError::TooLong { limit: INPUT_LIMIT });
    }
    Ok(input)
}
