//! All files of a directory together: what objects they give, and what changed since the last look.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use karst_k8s_api::{Object, ObjectKey};

use crate::{
    MAX_FILE_BYTES, MAX_FILES,
    problem::{Problem, Severity},
    read::{Document, read},
};

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Applied(Object),
    Deleted(ObjectKey),
}

/// What was found under a file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileContent {
    Text(String),
    /// Longer than [`MAX_FILE_BYTES`]; not read.
    TooLong {
        bytes: u64,
    },
    /// Could not be read; holds the reason.
    Unreadable(String),
}

/// The directory itself cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the directory {path}")]
pub struct ReadDirError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// The objects of a directory, each in its last good version.
///
/// Rules, in this order:
/// 1. A file that is gone takes its objects with it.
/// 2. An object that a good file no longer defines is gone.
/// 3. A document that cannot be used leaves its object as it was last good. Where it cannot even be told which object
///    it means, nothing of that file is deleted. The same holds for a file that is empty, too long or unreadable:
///    most likely somebody is writing it.
/// 4. Of an object in two places the one stays that was there first; on a first look the first in order of file names.
///    Both places get a problem.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<PathBuf, File>,
    objects: HashMap<ObjectKey, Held>,
}

/// One file as it was last seen.
#[derive(Debug, Default)]
struct File {
    content: Option<FileContent>,
    problems: Vec<Problem>,
    /// Objects whose good version this file gave last, or still gives.
    defines: BTreeMap<ObjectKey, Definition>,
}

/// A good version of an object in one file.
#[derive(Debug)]
struct Definition {
    object: Arc<Object>,
    line: u64,
}

/// An object as it was last handed out.
#[derive(Debug)]
struct Held {
    file: PathBuf,
    object: Arc<Object>,
}

impl Directory {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the contents of all files of the directory (those left out are gone) and returns what changed, and every
    /// problem that there is now. Unchanged files cost one comparison.
    pub fn update(&mut self, files: BTreeMap<PathBuf, FileContent>) -> (Vec<Event>, Vec<Problem>) {
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        self.files.retain(|path, file| {
            let stays = files.contains_key(path);
            if !stays {
                touched.extend(file.defines.keys().cloned());
            }
            stays
        });
        for (path, content) in files {
            let file = self.files.entry(path.clone()).or_default();
            if file.content.as_ref() != Some(&content) {
                file.replace(&path, content, &mut touched);
            }
        }
        let events = self.settle(touched);
        (events, self.problems())
    }

    /// The objects as they were last handed out, in order of their keys.
    pub fn objects(&self) -> Vec<&Object> {
        let mut all: Vec<_> = self.objects.iter().collect();
        all.sort_by_key(|(key, _)| *key);
        all.into_iter().map(|(_, held)| &*held.object).collect()
    }

    /// Chooses the version of each touched object, and says what that changes.
    fn settle(&mut self, touched: BTreeSet<ObjectKey>) -> Vec<Event> {
        let definers = definers(&self.files, &touched);
        let mut events = Vec::new();
        for key in touched {
            let paths = definers.get(&key).map(Vec::as_slice).unwrap_or_default();
            let before = self.objects.get(&key);
            let keeper = before
                .map(|held| held.file.as_path())
                .filter(|file| paths.contains(file));
            let Some(path) = keeper.or_else(|| paths.first().copied()) else {
                if self.objects.remove(&key).is_some() {
                    events.push(Event::Deleted(key));
                }
                continue;
            };
            let Some(definition) = self.files.get(path).and_then(|file| file.defines.get(&key))
            else {
                continue;
            };
            let object = definition.object.clone();
            if before.is_none_or(|held| held.object != object) {
                events.push(Event::Applied(Object::clone(&object)));
            }
            self.objects.insert(
                key,
                Held {
                    file: path.to_owned(),
                    object,
                },
            );
        }
        events
    }

    /// Every problem of every file, and every object that two files define.
    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .files
            .values()
            .flat_map(|file| file.problems.iter().cloned())
            .collect();
        for (path, file) in &self.files {
            for (key, definition) in &file.defines {
                let Some(held) = self.objects.get(key).filter(|held| held.file != *path) else {
                    continue;
                };
                problems.push(self.clash(path, key, definition, &held.file));
            }
        }
        problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        problems
    }

    fn clash(&self, path: &Path, key: &ObjectKey, definition: &Definition, used: &Path) -> Problem {
        let line = self
            .files
            .get(used)
            .and_then(|file| file.defines.get(key))
            .map_or(0, |other| other.line);
        Problem {
            severity: Severity::Error,
            file: path.to_owned(),
            line: definition.line,
            column: 1,
            object: Some(key.clone()),
            field: String::new(),
            message: format!(
                "also defined in {}:{line}, which is used; remove one of the two",
                used.display()
            ),
        }
    }
}

impl File {
    /// Reads new content, keeping what it cannot tell.
    fn replace(&mut self, path: &Path, content: FileContent, touched: &mut BTreeSet<ObjectKey>) {
        touched.extend(self.defines.keys().cloned());
        match hold_reason(&content, !self.defines.is_empty()) {
            Some(message) => self.problems = vec![whole_file(path, message)],
            None => {
                let FileContent::Text(text) = &content else {
                    return;
                };
                let contents = read(path, text);
                self.problems = contents.problems;
                self.take(contents.documents);
            }
        }
        touched.extend(self.defines.keys().cloned());
        self.content = Some(content);
    }

    fn take(&mut self, documents: Vec<Document>) {
        let mut mentioned: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut unnamed = false;
        for document in documents {
            match document {
                Document::Good { key, object, line } => {
                    mentioned.insert(key.clone());
                    self.defines.insert(
                        key,
                        Definition {
                            object: object.into(),
                            line,
                        },
                    );
                }
                Document::Broken(key) => drop(mentioned.insert(key)),
                Document::Unnamed => unnamed = true,
            }
        }
        if !unnamed {
            self.defines.retain(|key, _| mentioned.contains(key));
        }
    }
}

/// The files that define each of these objects, in order of their names.
fn definers<'a>(
    files: &'a BTreeMap<PathBuf, File>,
    keys: &BTreeSet<ObjectKey>,
) -> HashMap<ObjectKey, Vec<&'a Path>> {
    let mut definers: HashMap<ObjectKey, Vec<&'a Path>> = HashMap::new();
    for (path, file) in files {
        for key in file.defines.keys().filter(|key| keys.contains(key)) {
            definers.entry(key.clone()).or_default().push(path);
        }
    }
    definers
}

/// Why a file's content is not looked at, so that what it gave before stays.
fn hold_reason(content: &FileContent, gave_objects: bool) -> Option<String> {
    match content {
        FileContent::Text(text) if text.len() > MAX_FILE_BYTES => Some(too_long(text.len() as u64)),
        FileContent::TooLong { bytes } => Some(too_long(*bytes)),
        FileContent::Unreadable(reason) => Some(format!("{reason}; its objects stay as they were")),
        FileContent::Text(text) if gave_objects && text.trim().is_empty() => Some(
            "the file is empty; its objects stay as they were (delete the file to delete them)"
                .to_owned(),
        ),
        FileContent::Text(_) => None,
    }
}

fn too_long(bytes: u64) -> String {
    format!(
        "{bytes} bytes, and at most {MAX_FILE_BYTES} are read: split the file; its objects stay as they were"
    )
}

fn whole_file(path: &Path, message: String) -> Problem {
    let file = path.to_owned();
    Problem {
        severity: Severity::Error,
        file,
        line: 0,
        column: 0,
        object: None,
        field: String::new(),
        message,
    }
}

/// Reads every `*.yaml`, `*.yml` and `*.json` of a directory and of its subdirectories, for [`Directory::update`].
/// Names that start with a dot are left out, so that writers can put a file aside and rename it.
///
/// # Errors
/// [`ReadDirError`] when the directory itself cannot be listed; a single file's trouble is in its [`FileContent`].
pub fn read_dir(path: &Path) -> Result<BTreeMap<PathBuf, FileContent>, ReadDirError> {
    let mut names = Vec::new();
    list(path, &mut names, 0).map_err(|source| ReadDirError {
        path: path.to_owned(),
        source,
    })?;
    names.sort();
    let mut files: BTreeMap<PathBuf, FileContent> = BTreeMap::new();
    for (count, name) in names.into_iter().enumerate() {
        let content = match count {
            0..MAX_FILES => match read_file(&name) {
                Ok(content) => content,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => FileContent::Unreadable(format!("cannot be read: {error}")),
            },
            _ => {
                FileContent::Unreadable(format!("left out: a directory may hold {MAX_FILES} files"))
            }
        };
        files.insert(name, content);
    }
    Ok(files)
}

/// Directories inside one another that are followed; symbolic links could make a circle.
const MAX_DIRECTORY_DEPTH: usize = 8;

fn list(path: &Path, names: &mut Vec<PathBuf>, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            match depth {
                0..MAX_DIRECTORY_DEPTH => list(&path, names, depth + 1)?,
                _ => {
                    return Err(io::Error::other(format!(
                        "{}: too many directories inside one another",
                        path.display()
                    )));
                }
            }
        } else if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("yaml" | "yml" | "json")
        ) {
            names.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> io::Result<FileContent> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Ok(FileContent::Unreadable("not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Ok(FileContent::TooLong {
            bytes: meta.len().max(bytes.len() as u64),
        });
    }
    Ok(String::from_utf8(bytes).map_or_else(
        |error| {
            FileContent::Unreadable(format!(
                "not UTF-8 after byte {}",
                error.utf8_error().valid_up_to()
            ))
        },
        FileContent::Text,
    ))
}

#[cfg(test)]
mod tests;
