//! Runs the system's programs (`ip`, `nft`), with errors that show what they said.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::LabError;

/// Debian's package that holds a program.
fn package(program: &str) -> &'static str {
    match program {
        "ip" => "iproute2",
        "nft" => "nftables",
        "nsenter" | "unshare" => "util-linux",
        _ => "that holds it",
    }
}

/// Runs to the end with `input` on standard input; output on success, all it said on failure.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
    let missing = |source| LabError::Missing {
        program: program.to_owned(),
        package: package(program),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early closes its input; its own message says more than "broken pipe".
        let _told_by_exit = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(LabError::io(format!("waiting for {program}")))?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let command = format!("{program} {}", args.join(" "));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&stderr),
        String::from_utf8_lossy(&stdout)
    );
    Err(LabError::Command {
        command,
        output: said.trim().to_owned(),
    })
}
