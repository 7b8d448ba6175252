//! The cache that huggingface_hub, transformers and others share, in its layout:
//!
//! ```text
//! models--owner--name/refs/main                     the commit that `main` was when it was last asked for
//!                     snapshots/COMMIT/config.json  a link to ../../blobs/ETAG
//!                     blobs/ETAG                    a whole file; ETAG.incomplete is a part of one
//!                     .no_exist/COMMIT/NAME         the commit has no such file
//! .locks/models--owner--name/ETAG.lock              held (flock) by whoever downloads the blob
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::names::{RepoId, is_commit};

/// One repository's part of the cache. Names that are given to it have been looked at by [`super::names`].
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, id: &RepoId) -> RepoCache {
        RepoCache { root: cache.join(id.folder()), locks: cache.join(".locks").join(id.folder()) }
    }

    /// Where the repository's files are kept.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a commit, which looks like a model folder.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The part of a blob that has arrived.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether a commit's file is there, whole.
    pub(super) fn has(&self, commit: &str, name: &str) -> bool {
        self.snapshot(commit).join(name).is_file()
    }

    /// The commit that a branch or tag was when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit a branch or tag is.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let folder = folder_of(&path)?;
        // Readers see the old commit or the new one, never a part.
        let partial = folder.join(format!(".{commit}.{}.partial", std::process::id()));
        let written = fs::write(&partial, commit).and_then(|()| fs::rename(&partial, &path));
        written.map_err(HubError::disk("write", &path))
    }

    /// Whether it is known that a commit has no such file.
    pub(super) fn is_known_missing(&self, commit: &str, name: &str) -> bool {
        self.root.join(".no_exist").join(commit).join(name).exists()
    }

    /// Remembers that a commit has no such file, so that nobody asks again.
    pub(super) fn remember_missing(&self, commit: &str, name: &str) -> Result<(), HubError> {
        let path = self.root.join(".no_exist").join(commit).join(name);
        folder_of(&path)?;
        fs::write(&path, "").map_err(HubError::disk("write", &path))
    }

    /// Waits until nobody else downloads a blob, and keeps others from it while the file is held. `wait` is told once when
    /// somebody does.
    pub(super) fn lock(&self, etag: &str, wait: impl FnOnce()) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        folder_of(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(HubError::disk("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock().map_err(HubError::disk("lock", &path))?;
                Ok(file)
            }
            // Some network file systems have no locks; what is downloaded twice is not wrong.
            Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Makes a whole blob a file of a commit.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(name);
        let folder = folder_of(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        // A link that leads nowhere is replaced in one go, so that nobody sees the file gone.
        let partial = folder.join(format!(".{etag}.{}.link", std::process::id()));
        let _ = fs::remove_file(&partial);
        let linked = std::os::unix::fs::symlink(&target, &partial).and_then(|()| fs::rename(&partial, &path));
        linked.map_err(HubError::disk("make", &path))
    }
}

/// The folder that a file lies in, made if it is not there.
pub(super) fn folder_of(path: &Path) -> Result<&Path, HubError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(HubError::disk("make", folder))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_huggingface_hub() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), &RepoId::parse("a/b").unwrap());
        let commit = "0123456789".repeat(4);
        assert_eq!(cache.commit_of("main"), None);
        cache.remember("main", &commit).unwrap();
        cache.remember("refs/pr/1", &commit).unwrap();
        cache.remember(&commit, &commit).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join("models--a--b").join(name)).unwrap();
        assert_eq!((read("refs/main"), read("refs/refs/pr/1")), (commit.clone(), commit.clone()));
        assert!(!folder.path().join("models--a--b/refs").join(&commit).exists());
        assert_eq!(cache.commit_of("main"), Some(commit.clone()));
        fs::create_dir_all(cache.blob("")).unwrap();
        fs::write(cache.blob("e1"), "one").unwrap();
        for name in ["config.json", "deep/er/x.json"] {
            assert!(!cache.has(&commit, name));
            cache.link(&commit, name, "e0").unwrap();
            assert!(!cache.has(&commit, name), "the blob is not there");
            cache.link(&commit, name, "e1").unwrap();
            assert!(cache.has(&commit, name));
        }
        let link = fs::read_link(cache.snapshot(&commit).join("config.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs/e1"));
        assert!(!cache.is_known_missing(&commit, "x"));
        cache.remember_missing(&commit, "x").unwrap();
        assert!(cache.is_known_missing(&commit, "x"));
        // What is no commit is not followed.
        fs::write(folder.path().join("models--a--b/refs/main"), "../../elsewhere").unwrap();
        assert_eq!(cache.commit_of("main"), None);
    }

    #[test]
    fn two_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), &RepoId::parse("a/b").unwrap());
        let held = cache.lock("e1", || panic!("nobody holds it")).unwrap();
        let other = cache.clone();
        let (told, hears) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || other.lock("e1", || told.send(()).unwrap()).map(|_| ()));
        hears.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap().unwrap();
        assert!(folder.path().join(".locks/models--a--b/e1.lock").exists());
    }
}
