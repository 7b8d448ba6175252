//! Whether a launch is at work in a run folder: the lock that it holds tells.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Whether a launch holds the run's lock.
pub(crate) fn is_held(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Whether a process has this very file open: the number in it may be that of another host.
pub(crate) fn holds(pid: u32, lock: &Path) -> bool {
    let Ok(lock) = lock.canonicalize() else { return false };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut paths = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    paths.any(|path: PathBuf| path == lock)
}
