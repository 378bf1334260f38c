//! karst: the user's command line.

use std::process::ExitCode;

use clap::Parser as _;

mod args;
mod lab;
mod output;

fn main() -> ExitCode {
    match args::run(args::Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
