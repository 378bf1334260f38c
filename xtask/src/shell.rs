//! Runs other programs: echoing them, with a deadline, or capturing what they print.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The workspace's root folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace's root")
}

/// The cargo that runs us, so that its tool chain is kept.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with its output passed through; an exit status other than 0 is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command
        .status()
        .with_context(|| format!("starting {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command and gives its standard output; failing, the error holds what it printed.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        bail!(
            "{} failed: {}\n{printed}{said}",
            line(command),
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a command ends with status 0, whatever it prints.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// How [`watch`] ended.
pub(crate) struct Watched {
    /// Whether the command ended by itself with status 0.
    pub(crate) success: bool,
    /// Whether it was ended at its deadline.
    pub(crate) overdue: bool,
}

/// Runs a command, showing each line of its output and handing it to `seen`; ends its process group at the deadline.
pub(crate) fn watch(
    command: &mut Command,
    limit: Duration,
    mut seen: impl FnMut(&str),
) -> Result<Watched> {
    println!("$ {}", line(command));
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", line(command)))?;
    let lines = lines_of(
        child
            .stdout
            .take()
            .context("the command's output is not piped")?,
    );
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                seen(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                end_group(&mut child)?;
                return Ok(Watched {
                    success: false,
                    overdue: true,
                });
            }
        }
    }
    let success = child.wait()?.success();
    Ok(Watched {
        success,
        overdue: false,
    })
}

fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output
            .read_until(b'\n', &mut bytes)
            .is_ok_and(|read| read > 0)
        {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Ends a command that was started in a process group of its own, with everything it started.
fn end_group(child: &mut Child) -> Result<()> {
    let group = format!("-{}", child.id());
    succeeds(Command::new("kill").args(["-TERM", "--", &group]));
    thread::sleep(Duration::from_secs(2));
    succeeds(Command::new("kill").args(["-KILL", "--", &group]));
    child
        .wait()
        .context("waiting for the command that was ended")?;
    Ok(())
}

/// Where an executable is found: on the path, or where cargo installs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .map(|home| home.join("bin"));
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(installed)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a command with this text as its input.
pub(crate) fn input(command: &mut Command, text: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", line(command)))?;
    let mut pipe = child.stdin.take().context("its input is piped")?;
    pipe.write_all(text.as_bytes())?;
    drop(pipe);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", line(command), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long a wait is silent, and how often it is mentioned after that.
const SILENT_WAIT: Duration = Duration::from_secs(2);

/// Polls until `ready` gives a value; the error names `what` was awaited and for how long. A long wait says so.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut mention = Instant::now() + SILENT_WAIT;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() >= mention {
            println!("    ... waiting until {what}");
            mention += SILENT_WAIT;
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_past_its_deadline_is_ended() {
        let mut command = Command::new("sleep");
        let started = Instant::now();
        let watched = watch(command.arg("60"), Duration::from_millis(50), |_| {}).unwrap();
        assert!(watched.overdue && !watched.success);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn every_line_is_seen() {
        let mut seen = Vec::new();
        let mut command = Command::new("printf");
        watch(command.arg("one\ntwo\n"), Duration::from_secs(10), |line| {
            seen.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
    }
}
