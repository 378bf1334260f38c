//! A directory of YAML as the source of objects: read, watched, and told to the index's owner.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use karst_files::{Directory, read_dir};
use karst_index::Event;
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::{mesh::Command, problems::Problems};

/// Between looks at the directory without word from the kernel that it changed: some file systems give none.
const RESCAN: Duration = Duration::from_secs(30);

/// The directory, and what was last read from it.
pub struct FileSource {
    path: PathBuf,
    directory: Option<Directory>,
    problems: Arc<Problems>,
}

impl FileSource {
    pub fn new(path: PathBuf, problems: Arc<Problems>) -> Self {
        Self {
            path,
            directory: Some(Directory::new()),
            problems,
        }
    }

    /// Reads the directory off this thread; what differs from the last time. What is wrong with it becomes a problem,
    /// and its objects stay.
    pub async fn scan(&mut self) -> Vec<Event> {
        let (path, mut directory) = (self.path.clone(), self.directory.take().unwrap_or_default());
        let scanned = tokio::task::spawn_blocking(move || {
            let outcome = read_dir(&path).map(|files| directory.update(files));
            (directory, outcome)
        });
        let Ok((directory, outcome)) = scanned.await else {
            tracing::error!(
                "reading the files panicked, this is a bug in Karst: starting to read from nothing"
            );
            return Vec::new();
        };
        self.directory = Some(directory);
        match outcome {
            Ok((events, problems)) => {
                self.problems.set_files(problems);
                events.into_iter().map(to_index).collect()
            }
            Err(error) => {
                self.problems.set_directory(Chain(&error).to_string());
                Vec::new()
            }
        }
    }

    /// The directory's watch; begins before the first look, so that nothing falls between.
    pub fn notices(&self) -> Notices {
        // One waiting word is enough: the scan that it causes sees everything before it.
        let (tx, changed) = mpsc::channel(1);
        let mut notices = Notices {
            watcher: None,
            tx,
            changed,
        };
        notices.watch(&self.path);
        notices
    }

    /// Tells the index's owner whatever changes.
    pub async fn follow(
        mut self,
        mut notices: Notices,
        commands: mpsc::Sender<Command>,
        shutdown: Shutdown,
    ) {
        loop {
            notices.watch(&self.path);
            tokio::select! {
                _ = notices.changed.recv() => {}
                () = tokio::time::sleep(RESCAN) => {}
                () = shutdown.cancelled() => return,
            }
            let events = self.scan().await;
            if !events.is_empty() && commands.send(Command::Objects(events)).await.is_err() {
                return;
            }
        }
    }
}

/// The kernel's word that something in the directory changed.
pub struct Notices {
    watcher: Option<notify::RecommendedWatcher>,
    tx: mpsc::Sender<()>,
    changed: mpsc::Receiver<()>,
}

impl Notices {
    fn watch(&mut self, path: &Path) {
        if self.watcher.is_none() {
            self.watcher = watcher_of(path, self.tx.clone());
        }
    }
}

fn watcher_of(path: &Path, tx: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let notice = move |event: notify::Result<notify::Event>| {
        let is_read = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !is_read {
            let _ = tx.try_send(());
        }
    };
    let watching = notify::recommended_watcher(notice).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), error = %Chain(error), "directory cannot be watched: it is read every 30 s");
        })
        .ok()
}

fn to_index(event: karst_files::Event) -> Event {
    match event {
        karst_files::Event::Applied(object) => Event::Apply(object),
        karst_files::Event::Deleted(key) => Event::Delete(key),
    }
}
