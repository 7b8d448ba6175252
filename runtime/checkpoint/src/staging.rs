//! A folder that comes into being whole or not at all.

use crate::disk::{Rename, list, rename_with, sync_directory, sync_tree, unique_suffix};
use crate::error::{CheckpointError, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const PARTIAL: &str = ".partial-";
const REPLACED: &str = ".replaced-";

/// A folder under a temporary name beside its final one (`model.partial-…` for `model`). Dropped without
/// [`commit`](StagingDirectory::commit), it is removed with all that is in it.
#[derive(Debug)]
pub struct StagingDirectory {
    path: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl StagingDirectory {
    /// Creates the temporary folder beside `target`, whose parent must exist.
    pub fn create(target: &Path) -> Result<Self> {
        let path = beside(target, PARTIAL)?;
        fs::create_dir(&path).map_err(CheckpointError::io("create", &path))?;
        Ok(StagingDirectory { path, target: target.to_owned(), committed: false })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs all files to disk and gives the folder its final name. With `replace`, what stands there changes places with it
    /// in one step and is removed afterwards.
    ///
    /// # Errors
    /// If something stands there and `replace` is false. The temporary folder is removed on any error.
    pub fn commit(mut self, replace: bool) -> Result<PathBuf> {
        sync_tree(&self.path)?;
        match rename_new(&self.path, &self.target) {
            Ok(()) => {}
            Err(error) if already_exists(&error) && replace => self.exchange()?,
            Err(error) if already_exists(&error) => {
                return Err(CheckpointError::Exists {
                    path: self.target.clone(),
                    hint: "move it away, or choose another folder",
                });
            }
            Err(error) => return Err(CheckpointError::io("put in place", &self.target)(error)),
        }
        self.committed = true;
        sync_directory(parent(&self.target))?;
        Ok(self.target.clone())
    }

    /// Removes what killed attempts at the same target left. Call it when nobody writes there; gives what was removed. If a
    /// kill fell between the two renames of a replacement, the folder that was to be replaced gets its name back.
    pub fn remove_leftovers(target: &Path) -> Result<Vec<PathBuf>> {
        let name = file_name(target)?;
        let mut removed = Vec::new();
        let folder = parent(target);
        if !folder.exists() {
            return Ok(removed);
        }
        for path in list(folder)? {
            let Some(other) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let Some(suffix) = name.to_str().and_then(|name| other.strip_prefix(name)) else {
                continue;
            };
            if suffix.starts_with(REPLACED) && !target.exists() {
                fs::rename(&path, target).map_err(CheckpointError::io("restore", target))?;
            } else if suffix.starts_with(PARTIAL) || suffix.starts_with(REPLACED) {
                fs::remove_dir_all(&path).map_err(CheckpointError::io("delete", &path))?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    fn exchange(&mut self) -> Result<()> {
        let replaced = beside(&self.target, REPLACED)?;
        match rename_with(&self.path, &self.target, Rename::Exchange) {
            Ok(()) => {
                // From here on the temporary name holds the old folder.
                self.committed = true;
                sync_directory(parent(&self.target))?;
                return remove_any(&self.path);
            }
            Err(error) if unsupported(&error) => {}
            Err(error) => return Err(CheckpointError::io("replace", &self.target)(error)),
        }
        fs::rename(&self.target, &replaced).map_err(CheckpointError::io("replace", &self.target))?;
        if let Err(error) = fs::rename(&self.path, &self.target) {
            // Back as it was; if that fails too, `remove_leftovers` does it.
            let _ = fs::rename(&replaced, &self.target);
            return Err(CheckpointError::io("put in place", &self.target)(error));
        }
        self.committed = true;
        sync_directory(parent(&self.target))?;
        remove_any(&replaced)
    }
}

impl Drop for StagingDirectory {
    fn drop(&mut self) {
        if !self.committed {
            // A folder that stays is found by `remove_leftovers`.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match rename_with(from, to, Rename::NoReplace) {
        Err(error) if unsupported(&error) => match fs::symlink_metadata(to) {
            Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        other => other,
    }
}

fn unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

fn already_exists(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AlreadyExists
}

fn remove_any(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(CheckpointError::io("delete", path))?;
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(CheckpointError::io("delete", path))
}

fn beside(target: &Path, middle: &str) -> Result<PathBuf> {
    let mut name: OsString = file_name(target)?.to_owned();
    name.push(middle);
    name.push(unique_suffix());
    Ok(parent(target).join(name))
}

fn file_name(target: &Path) -> Result<&std::ffi::OsStr> {
    target.file_name().ok_or_else(|| {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it has no name of its own");
        CheckpointError::io("create a folder for", target)(reason)
    })
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(target: &Path, content: &str) -> StagingDirectory {
        let staging = StagingDirectory::create(target).unwrap();
        fs::create_dir(staging.path().join("deeper")).unwrap();
        fs::write(staging.path().join("deeper/config.json"), content).unwrap();
        staging
    }

    fn names(folder: &Path) -> Vec<String> {
        let paths = list(folder).unwrap();
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn it_appears_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let staging = stage(&target, "new");
        assert!(!target.exists());
        assert_eq!(staging.commit(false).unwrap(), target);
        assert_eq!(fs::read(target.join("deeper/config.json")).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["model"]);
    }

    #[test]
    fn dropped_it_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(stage(&folder.path().join("model"), "new"));
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn what_stands_there_is_replaced_only_on_demand() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        stage(&target, "old").commit(false).unwrap();
        let error = stage(&target, "new").commit(false).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
        assert_eq!(fs::read(target.join("deeper/config.json")).unwrap(), b"old");
        stage(&target, "new").commit(true).unwrap();
        assert_eq!(fs::read(target.join("deeper/config.json")).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["model"]);
        // An empty folder is not passed over silently either.
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(stage(&empty, "new").commit(false).is_err());
    }

    #[test]
    fn leftovers_of_killed_attempts_go() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        fs::create_dir(folder.path().join("model.partial-1")).unwrap();
        fs::create_dir(folder.path().join("model.replaced-1")).unwrap();
        fs::create_dir(folder.path().join("modelling")).unwrap();
        assert_eq!(StagingDirectory::remove_leftovers(&target).unwrap(), [folder.path().join("model.partial-1")]);
        assert_eq!(names(folder.path()), ["model", "modelling"]);
    }
}
