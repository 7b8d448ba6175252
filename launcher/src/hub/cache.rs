//! The cache that huggingface_hub, transformers and others share, in its layout:
//!
//! ```text
//! models--owner--name/refs/main                     the commit that `main` was when it was last asked for
//!                     snapshots/COMMIT/config.json  a link to ../../blobs/ETAG
//!                     blobs/ETAG                    a whole file; ETAG.incomplete is a part of one
//!                     .no_exist/COMMIT/NAME         the commit has no such file
//!                     .files/COMMIT                 of data: the names of all files of the commit; ours alone
//! .locks/models--owner--name/ETAG.lock              held (flock) by whoever downloads the blob
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::names::{RepoId, is_commit};

/// Names of all files of commits.
const FILES: &str = ".files";

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
        self.write(&self.root.join("refs").join(revision), commit, commit)
    }

    /// Writes a small file that has to do with a commit. Readers see the old text or the new one, never a part.
    fn write(&self, path: &Path, commit: &str, text: &str) -> Result<(), HubError> {
        let partial = folder_of(path)?.join(format!(".{commit}.{}.partial", std::process::id()));
        let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
        written.map_err(HubError::disk("write", path))
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

    /// The names of all files of a commit, where they were asked for once; they are ours alone.
    pub(super) fn files(&self, commit: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.root.join(FILES).join(commit)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Remembers the names of all files of a commit.
    pub(super) fn remember_files(&self, commit: &str, names: &[String]) -> Result<(), HubError> {
        if self.files(commit).as_deref() == Some(names) {
            return Ok(());
        }
        let text = serde_json::to_string(names).unwrap_or_default();
        self.write(&self.root.join(FILES).join(commit), commit, &text)
    }

    /// The names of the files of a commit that are there.
    pub(super) fn present(&self, commit: &str) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.snapshot(commit), "", &mut names);
        names
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

/// Adds the files of a folder and of those inside to `names`; `above` is the folder's own name, with a slash behind it.
fn list(folder: &Path, above: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{above}{name}");
        // Files are links to blobs, folders are folders.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), &format!("{name}/"), names);
        } else if entry.path().is_file() {
            names.push(name);
        }
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
        let mut names = cache.present(&commit);
        names.sort();
        assert_eq!(names, ["config.json", "deep/er/x.json"]);
        assert_eq!(cache.files(&commit), None);
        cache.remember_files(&commit, &names).unwrap();
        assert_eq!(cache.files(&commit), Some(names));
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
