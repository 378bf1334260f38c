//! karst: the user's command line.

use std::process::ExitCode;

use clap::Parser as _;

mod args;
mod chart;
mod check;
mod cluster;
mod enroll;
mod install;
mod lab;
mod output;
mod reads;
#[cfg(test)]
mod reference;
mod release;
mod show;
mod split;
mod uninstall;
mod version;
mod waypoint;
mod why;

fn main() -> ExitCode {
    match args::run(args::Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
