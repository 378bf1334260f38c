//! Files that only their owner may read, written so that a crash or a full disk leaves the old one whole.
//!
//! Used for keys of workloads (on a tmpfs) and for the state of the CA (on a disk).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Names of unfinished writes end so; old ones are removed by [`prepare_dir`].
const UNFINISHED: &str = ".unfinished";
/// No write takes this long: an unfinished file that old was left by a crash, a younger one may be somebody's.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

/// A private file or folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    #[error("{} belongs to user {owner}, not to us ({us}): give it to us, or name another folder", path.display())]
    Owner { path: PathBuf, owner: u32, us: u32 },
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("making the private folder {} failed", path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("writing {} failed, the former content is kept", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("reading {} failed", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes `dir` with mode 0700, or takes access from others; removes what an earlier crash left unfinished.
pub fn prepare_dir(dir: &Path) -> Result<(), PrivateFileError> {
    let failed = |source| PrivateFileError::Prepare {
        path: dir.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(failed)?;
    let meta = fs::symlink_metadata(dir).map_err(failed)?;
    if !meta.is_dir() {
        return Err(PrivateFileError::NotAFolder(dir.to_owned()));
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return Err(PrivateFileError::Owner {
            path: dir.to_owned(),
            owner: meta.uid(),
            us,
        });
    }
    if meta.mode() & 0o777 != DIR_MODE {
        fs::set_permissions(dir, fs::Permissions::from_mode(DIR_MODE)).map_err(failed)?;
    }
    remove_unfinished(dir).map_err(failed)
}

fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let age = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .map(|at| at.elapsed().unwrap_or_default());
        let old = age.is_ok_and(|age| age >= UNFINISHED_AGE);
        if old && entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces `path` by `content`, mode 0600. After an error the former file is still there, whole.
pub fn write(path: &Path, content: &[u8]) -> Result<(), PrivateFileError> {
    let unfinished = unfinished_name(path);
    let done =
        create(&unfinished).and_then(|file| fill_and_rename(file, content, &unfinished, path));
    done.map_err(|source| {
        let _may_not_exist = fs::remove_file(&unfinished);
        PrivateFileError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

/// Writes `path` unless it exists, and returns what it holds then: of two processes that start at once, one wins and
/// both go on with its content.
pub fn create_once(path: &Path, content: &[u8]) -> Result<Vec<u8>, PrivateFileError> {
    let unfinished = unfinished_name(path);
    let done = create(&unfinished).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        match fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => sync_parent(path),
        }
    });
    let _may_not_exist = fs::remove_file(&unfinished);
    done.map_err(|source| PrivateFileError::Write {
        path: path.to_owned(),
        source,
    })?;
    fs::read(path).map_err(|source| PrivateFileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Different for each process, since `karst-controller token` may run beside the controller.
fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{UNFINISHED}", std::process::id()));
    name.into()
}

/// The content, or `None` where there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, PrivateFileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PrivateFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(FILE_MODE);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)
        }
        opened => opened,
    }
}

/// The file's bytes, then the folder's entry, are on disk before this returns.
fn fill_and_rename(mut file: File, content: &[u8], from: &Path, to: &Path) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(from, to)?;
    sync_parent(to)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        prepare_dir(&dir).unwrap();
        let file = dir.join("a");
        write(&file, b"one").unwrap();
        write(&file, b"two").unwrap();
        assert_eq!(read(&file).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(read(&dir.join("b")).unwrap(), None);
    }

    #[test]
    fn a_folder_open_to_others_is_closed_and_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (left, young) = (
            dir.path().join("a.unfinished"),
            dir.path().join("b.unfinished"),
        );
        fs::write(&left, "x").unwrap();
        fs::write(&young, "x").unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        File::options()
            .write(true)
            .open(&left)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        prepare_dir(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert!(!left.exists());
        assert!(young.exists());
    }

    #[test]
    fn the_first_of_two_creators_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        assert_eq!(create_once(&file, b"first").unwrap(), b"first");
        assert_eq!(create_once(&file, b"second").unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        write(&file, b"old").unwrap();
        // Every write to this device fails with "no space left".
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error =
            fill_and_rename(full, b"new", &dir.path().join("a.unfinished"), &file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&file).unwrap().unwrap(), b"old");
    }
}
