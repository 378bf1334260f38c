//! Keeps `karst-cni` in the node's CNI chain: puts it there, repairs it when another plugin rewrites the chain, and takes
//! it out when Karst is removed.
//!
//! ```text
//!   inotify, every 10 s ──► ensure: executable, then conflist (aside, fsync, rename) ──► readiness, metrics
//! ```
//!
//! Level-triggered. When the agent ends, the plugin stays: new pods of the mesh then wait for the next agent instead of
//! starting outside the mesh. Only [`Installer::remove`] takes it out.

pub(crate) mod chain;
pub(crate) mod layout;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use karst_runtime::{
    readiness::{Pending, Readiness},
    supervise::Shutdown,
};
use karst_telemetry::error_chain::Chain;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::{
    config::Config,
    metrics::Metrics,
    plugin::{
        chain::{ChainError, Entry, PLUGIN},
        layout::{Layout, LayoutError, Places},
    },
};

/// The chain is looked at this often even when nothing was noticed.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// After a repair the next waits this long: another program that puts back its own version must not keep us both busy.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);
/// Ending of the file that holds a configuration as it was before us. Container runtimes do not read it.
const ORIGINAL: &str = "karst-original";
/// Namespace whose pods never wait, beside the mesh's own: without them no cluster comes up.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// Puts our plugin into the chain and takes it out.
#[derive(Clone, Debug)]
pub(crate) struct Installer {
    places: Places,
    entry: Entry,
    /// Our executable, as this container has it.
    source: PathBuf,
}

/// What [`Installer::ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ensured {
    AlreadyThere,
    /// For the first time, or again.
    PutThere,
}

/// Why the plugin is not in the chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot take the plugin", path.display())]
    Chain { path: PathBuf, source: ChainError },
    #[error(
        "cannot write {}: its directory must be mounted into the agent writable",
        path.display()
    )]
    Write { path: PathBuf, source: io::Error },
}

impl Installer {
    /// None where the configuration does not ask for it.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        if !config.install_cni {
            return None;
        }
        let beside = || {
            std::env::current_exe()
                .unwrap_or_default()
                .with_file_name(PLUGIN)
        };
        Some(Self {
            places: Places {
                host_root: config.host_root.clone(),
                conf_dir: config.cni_conf_dir.clone(),
                bin_dir: config.cni_bin_dir.clone(),
            },
            entry: Entry {
                run_dir: config.run_dir.display().to_string(),
                exclude_namespaces: vec![SYSTEM_NAMESPACE.to_owned(), config.pod_namespace.clone()],
            },
            source: config.cni_source.clone().unwrap_or_else(beside),
        })
    }

    /// Makes it so that the executable and the chain are as they should be. The executable comes first: a chain that
    /// names one that is not there starts no pod at all.
    pub(crate) fn ensure(&self) -> Result<Ensured, InstallError> {
        let Layout { conf_file, bin_dir } = self.places.find()?;
        let copied = self.ensure_executable(&bin_dir)?;
        let chained = self.ensure_chained(&conf_file)?;
        Ok(if copied || chained {
            Ensured::PutThere
        } else {
            Ensured::AlreadyThere
        })
    }

    fn ensure_executable(&self, bin_dir: &Path) -> Result<bool, InstallError> {
        let wanted = read(&self.source)?;
        let path = bin_dir.join(PLUGIN);
        let executable = |path: &Path| {
            fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o111 == 0o111)
        };
        if executable(&path) && fs::read(&path).is_ok_and(|now| now == wanted) {
            return Ok(false);
        }
        replace(&path, &wanted, 0o755)?;
        Ok(true)
    }

    fn ensure_chained(&self, conf_file: &Path) -> Result<bool, InstallError> {
        let before = read_text(conf_file)?;
        let changed = chain::with_plugin(&before, &self.entry).map_err(chaining(conf_file))?;
        let Some(after) = changed else {
            return Ok(false);
        };
        // Without our entry the file is the network plugin's own version; with one, what was kept is still right.
        let is_own_version = chain::without_plugin(&before)
            .map_err(chaining(conf_file))?
            .is_none();
        let original = original_of(conf_file);
        let mode = mode_of(conf_file);
        if is_own_version {
            replace(&original, before.as_bytes(), mode)?;
        }
        replace(
            &conf_file.with_extension("conflist"),
            after.as_bytes(),
            mode,
        )?;
        if conf_file.extension().is_some_and(|ending| ending == "conf") {
            // It would come first by name. Its text is kept in `original`.
            remove_file(conf_file)?;
        }
        Ok(true)
    }

    /// Takes the plugin out of every chain and puts back what was there before, to the byte where nobody else has
    /// changed it since; removes the executable. What is not there is no error.
    pub(crate) fn remove(&self) -> Result<(), InstallError> {
        for dir in self.places.conf_dirs() {
            for conf_file in configurations(&dir) {
                self.unchain(&conf_file)?;
            }
            for left in with_ending(&dir, |name| name.ends_with(&format!(".{ORIGINAL}"))) {
                remove_file(&left)?;
            }
        }
        // A runtime that has read the old chain may still call it: the executable goes last.
        for dir in self.places.bin_dirs() {
            remove_file(&dir.join(PLUGIN))?;
        }
        Ok(())
    }

    fn unchain(&self, conf_file: &Path) -> Result<(), InstallError> {
        let text = read_text(conf_file)?;
        // Another's broken file is none of our business.
        let Ok(Some(without)) = chain::without_plugin(&text) else {
            return Ok(());
        };
        let mode = mode_of(conf_file);
        for ending in ["conf", "conflist", "json"] {
            let own_name = conf_file.with_extension(ending);
            let Ok(original) = fs::read_to_string(original_of(&own_name)) else {
                continue;
            };
            let ours = chain::with_plugin(&original, &self.entry).ok().flatten();
            let untouched = chain::same(&original, &without)
                || ours.is_some_and(|ours| {
                    let unchained = chain::without_plugin(&ours).ok().flatten();
                    unchained.is_some_and(|unchained| chain::same(&unchained, &without))
                });
            if untouched {
                replace(&own_name, original.as_bytes(), mode)?;
                if own_name != conf_file {
                    remove_file(conf_file)?;
                }
                return Ok(());
            }
        }
        replace(conf_file, without.as_bytes(), mode)
    }

    /// Keeps it there until shutdown. Until it is there for the first time, and whenever it cannot be kept, the agent is
    /// not ready, and the name of the pending task says why.
    pub(crate) async fn keep(
        self,
        readiness: Readiness,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) {
        let (noticed, mut notices) = mpsc::channel(1);
        let mut watcher = ChainWatcher {
            noticed,
            watched: None,
        };
        let mut keeper = Keeper {
            readiness,
            metrics,
            problem: None,
            was_there: false,
        };
        loop {
            let installer = self.clone();
            let ensured = tokio::task::spawn_blocking(move || installer.ensure()).await;
            let repaired = match ensured {
                Ok(outcome) => keeper.note(outcome),
                Err(_panicked) => return,
            };
            watcher.watch(&self.places);
            let pause = if repaired {
                REPAIR_PAUSE
            } else {
                Duration::ZERO
            };
            tokio::select! {
                () = async {
                    tokio::time::sleep(pause).await;
                    tokio::select! {
                        _ = notices.recv() => {}
                        () = tokio::time::sleep(LOOK_PERIOD) => {}
                    }
                } => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// Tells others how the chain is.
struct Keeper {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    problem: Option<(String, Pending)>,
    was_there: bool,
}

impl Keeper {
    /// True if the chain was repaired.
    fn note(&mut self, outcome: Result<Ensured, InstallError>) -> bool {
        self.metrics.cni_installed.set(i64::from(outcome.is_ok()));
        match outcome {
            Ok(ensured) => {
                if let Some((_, pending)) = self.problem.take() {
                    pending.done();
                }
                let repaired = ensured == Ensured::PutThere && self.was_there;
                if repaired {
                    self.metrics.cni_repairs.inc();
                    tracing::warn!(
                        "another program had taken karst-cni out of the node's CNI chain: it is back"
                    );
                } else if ensured == Ensured::PutThere || !self.was_there {
                    tracing::info!("karst-cni is in the node's CNI chain");
                }
                self.was_there = true;
                repaired
            }
            Err(error) => {
                let text = Chain(&error).to_string();
                if self.problem.as_ref().is_none_or(|(old, _)| *old != text) {
                    tracing::error!(
                        error = text,
                        "karst-cni is not in the node's CNI chain: new pods start outside the \
                        mesh and are captured while they run"
                    );
                    let pending = self.readiness.task(format!("CNI chain: {text}"));
                    if let Some((_, old)) = self.problem.replace((text, pending)) {
                        old.done();
                    }
                }
                false
            }
        }
    }
}

/// Wakes the keeper when something changes where the chain is.
struct ChainWatcher {
    noticed: mpsc::Sender<()>,
    watched: Option<(Vec<PathBuf>, notify::RecommendedWatcher)>,
}

impl ChainWatcher {
    /// Watches the directories that exist now. Without a watch the chain is still looked at from time to time.
    fn watch(&mut self, places: &Places) {
        let dirs = [places.conf_dirs(), places.bin_dirs()].concat();
        if self
            .watched
            .as_ref()
            .is_some_and(|(watched, _)| *watched == dirs)
        {
            return;
        }
        let noticed = self.noticed.clone();
        // Reading is no change, and the keeper's own reading would wake it for ever. Full: the keeper will look anyway.
        let wake = move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = noticed.try_send(());
            }
        };
        let watching = notify::recommended_watcher(wake).and_then(|mut watcher| {
            for dir in &dirs {
                watcher.watch(dir, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watching {
            Ok(watcher) => self.watched = Some((dirs, watcher)),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the node's CNI directories: changes are noticed within 10 s")
            }
        }
    }
}

fn configurations(dir: &Path) -> Vec<PathBuf> {
    with_ending(dir, |name| {
        [".conf", ".conflist", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending))
    })
}

fn with_ending(dir: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&matches));
    named
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect()
}

/// Where a configuration's own version is kept, its name and ending included.
fn original_of(conf_file: &Path) -> PathBuf {
    let mut name = conf_file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ORIGINAL);
    conf_file.with_file_name(name)
}

fn chaining(path: &Path) -> impl FnOnce(ChainError) -> InstallError {
    let path = path.to_owned();
    |source| InstallError::Chain { path, source }
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    fs::read(path).map_err(|source| InstallError::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_text(path: &Path) -> Result<String, InstallError> {
    fs::read_to_string(path).map_err(|source| InstallError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Permission bits, 0600 where there is no such file.
fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o600, |it| it.permissions().mode() & 0o777)
}

/// Written aside, on the disk, then renamed: a container runtime reads the old file or the new one, also after a crash.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // The ending keeps container runtimes from reading it.
        let aside = dir.join(format!(".{name}.karst-new"));
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&aside)?;
        out.set_permissions(fs::Permissions::from_mode(mode))?;
        out.write_all(bytes)?;
        out.sync_all()?;
        drop(out);
        fs::rename(&aside, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| InstallError::Write {
        path: path.to_owned(),
        source,
    })
}

fn remove_file(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(InstallError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
