//! Free space, syncing, and names that may not leave their folder.

use crate::error::{CheckpointError, Result};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Refuses if fewer than `bytes` are free for an ordinary user on the disk of this folder (or, while it does not exist, of
/// its nearest ancestor that does).
pub fn ensure_room(directory: &Path, bytes: u64) -> Result<()> {
    let available = available_bytes(directory)?;
    if available < bytes {
        return Err(CheckpointError::NoRoom { path: directory.to_owned(), needed: bytes, available });
    }
    Ok(())
}

/// How many bytes an ordinary user may still write on the disk of this folder (see [`ensure_room`]).
pub fn available_bytes(directory: &Path) -> Result<u64> {
    let absolute = std::path::absolute(directory).map_err(CheckpointError::io("find", directory))?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let name = c_path(existing)?;
    // SAFETY: statvfs is a plain C struct for which all zeros is a value.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte and `answer` is a statvfs that outlives the call.
    if unsafe { libc::statvfs(name.as_ptr(), &mut answer) } != 0 {
        return Err(CheckpointError::io("ask for the free space of", existing)(std::io::Error::last_os_error()));
    }
    Ok((answer.f_bavail as u64).saturating_mul(answer.f_frsize as u64))
}

/// True for a name that stands for a file in its own folder: not empty, no separator, not `.` or `..`, no zero byte.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Makes what was written into a folder (names, not contents) last over a power cut.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|file| file.sync_all());
    match synced {
        // Some network file systems do not sync folders and say so.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS)) => Ok(()),
        other => other.map_err(CheckpointError::io("sync", directory)),
    }
}

/// Lets the system begin to write a range of a file to disk, so that less is left for the sync at the end. That one tells of
/// errors; this is a wish.
pub(crate) fn begin_to_sync(file: &File, position: u64, bytes: u64) {
    // SAFETY: the descriptor is open for the length of the call, which takes numbers only.
    let _ = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            position as libc::off64_t,
            bytes as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
}

/// Lets the system forget what it keeps of a synced file in memory, so that it is read from the disk again. A wish as well.
pub(crate) fn forget_cached(path: &Path) {
    if let Ok(file) = File::open(path) {
        // SAFETY: the descriptor is open for the length of the call, which takes numbers only.
        let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Syncs every file and folder below and the folder itself.
pub(crate) fn sync_tree(directory: &Path) -> Result<()> {
    for entry in list(directory)? {
        let metadata = fs::symlink_metadata(&entry).map_err(CheckpointError::io("read", &entry))?;
        if metadata.is_dir() {
            sync_tree(&entry)?;
        } else if metadata.is_file() {
            File::open(&entry).and_then(|file| file.sync_all()).map_err(CheckpointError::io("sync", &entry))?;
        }
    }
    sync_directory(directory)
}

/// The paths in a folder, sorted.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(CheckpointError::io("list", directory))?;
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(CheckpointError::io("list", directory))?;
    paths.sort();
    Ok(paths)
}

/// Writes a small file that does not exist yet and syncs it.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = File::create_new(path).map_err(CheckpointError::io("create", path))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.map_err(CheckpointError::write(path, content.len() as u64))
}

/// Opens a file to be read. Anything else that has its name is `refused`, and never waited for: a pipe that nobody writes to would
/// be opened only once somebody did.
pub(crate) fn open_file(path: &Path, refused: impl FnOnce(&Path, String) -> CheckpointError) -> Result<File> {
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(CheckpointError::io("open", path))?;
    let metadata = file.metadata().map_err(CheckpointError::io("read", path))?;
    match metadata.is_file() {
        true => Ok(file),
        false => Err(refused(path, format!("it is {}, not a file", kind_of(&metadata)))),
    }
}

/// What something is that is no ordinary file.
pub(crate) fn kind_of(metadata: &fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// Reads a file that may not be larger than `bound` bytes.
pub(crate) fn read_bounded(path: &Path, bound: u64) -> Result<Vec<u8>> {
    let file = open_file(path, CheckpointError::bad_json)?;
    let mut content = Vec::new();
    file.take(bound + 1).read_to_end(&mut content).map_err(CheckpointError::io("read", path))?;
    if content.len() as u64 > bound {
        return Err(CheckpointError::bad_json(path, format!("it is larger than {bound} bytes")));
    }
    Ok(content)
}

/// Reserves the bytes of a file, so that a full disk is met before the work and not in it. Where the file system cannot
/// reserve, the file gets its length alone.
pub(crate) fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open for the whole call, and the call takes no memory of ours.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINTR) => {
            file.set_len(bytes).map_err(CheckpointError::write(path, bytes))
        }
        _ => Err(CheckpointError::write(path, bytes)(error)),
    }
}

/// How a rename treats what stands at its target.
#[derive(Clone, Copy)]
pub(crate) enum Rename {
    /// The target must not exist.
    NoReplace,
    /// The two change places in one step.
    Exchange,
}

/// `renameat2`. Old kernels and some file systems answer `EINVAL` or `ENOSYS`.
pub(crate) fn rename_with(from: &Path, to: &Path, how: Rename) -> std::io::Result<()> {
    let flags = match how {
        Rename::NoReplace => libc::RENAME_NOREPLACE,
        Rename::Exchange => libc::RENAME_EXCHANGE,
    };
    let (from, to) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: both paths end with a zero byte and outlive the call.
    let answer = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A suffix that no other call of any process on this machine gave out.
pub(crate) fn unique_suffix() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{call:x}", std::process::id(), time.as_nanos() as u64)
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| CheckpointError::io("name", path)(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_of_the_nearest_folder_that_exists() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("run/checkpoints");
        ensure_room(&later, 1).unwrap();
        let error = ensure_room(&later, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("run/checkpoints") && error.contains("hint: free space"), "{error}");
    }

    #[test]
    fn a_full_disk_has_its_own_error() {
        let path = Path::new("/dev/full");
        let mut file = File::options().write(true).open(path).unwrap();
        let error = file.write_all(b"x").map_err(CheckpointError::write(path, 1_500_000_000)).unwrap_err();
        assert!(matches!(error, CheckpointError::DiskFull { .. }));
        assert!(error.to_string().contains("/dev/full (1.5 GB needed in all)"), "{error}");
    }

    #[test]
    fn a_reservation_beyond_the_disk_fails_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge");
        let file = File::create_new(&path).unwrap();
        // An exbibyte: more than the disk has, and on most file systems more than one file may have.
        let error = reserve(&file, &path, 1 << 60).unwrap_err();
        assert!(matches!(error, CheckpointError::DiskFull { .. }), "{error}");
    }

    #[test]
    fn names_that_leave_their_folder_are_not_plain() {
        for name in ["", ".", "..", "../a", "/a", "a/b", "a\\b", "a\0b", "a/../b"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        for name in ["a", "..a", "model-00001-of-00002.safetensors"] {
            assert!(is_plain_name(name), "{name:?}");
        }
    }
}
