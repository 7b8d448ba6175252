//! The disk under a run folder: its space, its kind, and how fast it takes a checkpoint.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::finding::{Finding, Verdict};
use crate::format;

/// A checkpoint of the smallest model of the README, with masters and moments, and its export.
const LITTLE_SPACE: u64 = 4 << 30;
/// At less, a checkpoint of 1.6 GB holds a job up for more than half a minute.
const SLOW_BYTES_PER_SECOND: f64 = 50e6;
/// What is written at once.
const PIECE: usize = 4 << 20;

/// File systems that a user should know of, by the number that the kernel gives them.
const TMPFS: i64 = 0x0102_1994;
const OVERLAY: i64 = 0x794c_7630;
const NFS: i64 = 0x6969;

/// What a file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes in all.
    pub(super) total: u64,
    /// Bytes that this user may still fill.
    pub(super) free: u64,
    /// The kernel's number of its kind.
    pub(super) kind: i64,
}

/// Asks the file system of `folder`.
pub(super) fn space(folder: &Path) -> std::io::Result<Space> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call, the path is zero-terminated.
    if unsafe { libc::statfs(path.as_ptr(), &mut found) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let block = found.f_bsize as u64;
    Ok(Space { total: found.f_blocks * block, free: found.f_bavail * block, kind: found.f_type as i64 })
}

/// All checks of this file. `bytes` are written to an unnamed file in `folder`, or in the folder above it that exists.
pub(super) fn findings(folder: &Path, bytes: u64) -> Vec<Finding> {
    let place = existing(folder);
    if !place.is_dir() {
        let what = Finding::of_system("disk", format!("{} is no folder", place.display()));
        return vec![what.when(true, Verdict::Problem, "--output_dir DIR looks at another folder")];
    }
    let space = space(&place);
    let needs = bytes.saturating_mul(2);
    let mut findings = vec![free_space(&place, &space)];
    // What has no size at all is no disk, and says so when it is written to.
    if space.is_ok_and(|space| space.free > needs || space.total == 0) {
        findings.push(speed(bytes, write(&place, bytes)));
    }
    findings
}

/// The folder, or the nearest above it that exists (or is a file): a run folder is made when its job starts.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn free_space(folder: &Path, space: &std::io::Result<Space>) -> Finding {
    let space = match space {
        Ok(space) => space,
        Err(error) => {
            return Finding::of_system("disk", format!("{}: {error}", folder.display())).when(
                true,
                Verdict::Problem,
                "--output_dir DIR looks at another folder",
            );
        }
    };
    let kind = match space.kind {
        TMPFS => ", in memory (tmpfs)",
        OVERLAY => ", in the container's layer (overlay)",
        NFS => ", over the network (NFS)",
        _ => "",
    };
    let value =
        format!("{} free of {} in {}{kind}", format::bytes(space.free), format::bytes(space.total), folder.display());
    Finding::of_system("disk", value)
        .when(
            space.kind == OVERLAY,
            Verdict::Note,
            "what a run writes is gone with the container; mount a folder of the host (--volume) for output_dir",
        )
        .when(
            space.kind == TMPFS,
            Verdict::Note,
            "what a run writes takes memory from the ranks, and is gone after a restart; take a folder on a disk for output_dir",
        )
        .when(
            space.free < LITTLE_SPACE,
            Verdict::Warning,
            "a checkpoint has 12 bytes and an exported model 2 to 4 for each parameter; free some, or set output_dir to a \
             larger disk",
        )
}

/// Writes incompressible bytes and waits until they are on the disk.
fn write(folder: &Path, bytes: u64) -> std::io::Result<Duration> {
    let mut file: File = tempfile::tempfile_in(folder)?;
    let mut piece = vec![0u8; PIECE];
    fill(&mut piece, 1);
    let began = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE as u64);
        // A disk that removes repetitions must not see any.
        piece[..8].copy_from_slice(&left.to_le_bytes());
        file.write_all(&piece[..length as usize])?;
        left -= length;
    }
    file.sync_all()?;
    Ok(began.elapsed())
}

/// Fills `bytes` with noise: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016).
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let noise = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        chunk.copy_from_slice(&noise[..chunk.len()]);
    }
}

fn speed(bytes: u64, written: std::io::Result<Duration>) -> Finding {
    match written {
        Ok(time) => {
            let rate = bytes as f64 / time.as_secs_f64().max(1e-9);
            let value = format!("{} MB/s, {} written and synced", format::figure(rate / 1e6), format::bytes(bytes));
            Finding::of_system("disk speed", value).when(
                rate < SLOW_BYTES_PER_SECOND,
                Verdict::Warning,
                "checkpoints hold the job up for long: a larger save_steps, or an output_dir on a local SSD",
            )
        }
        Err(error) => Finding::of_system("disk speed", format!("cannot write: {error}")).when(
            true,
            Verdict::Problem,
            "a run writes checkpoints and its model there: give it to this user, or set output_dir to another folder",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_and_kind_are_judged() {
        let judge = |free: u64, kind: i64| {
            let finding = free_space(Path::new("/run"), &Ok(Space { total: 1 << 40, free, kind }));
            (finding.verdict, finding.value)
        };
        assert_eq!(judge(1 << 39, 0xef53), (Verdict::Ok, "512 GiB free of 1.00 TiB in /run".to_owned()));
        assert_eq!(judge(1 << 30, TMPFS).0, Verdict::Warning);
        assert_eq!(judge(1 << 39, TMPFS).0, Verdict::Note);
        assert!(judge(1 << 39, OVERLAY).1.ends_with("(overlay)"));
        let error = Err(std::io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(free_space(Path::new("/run"), &error).verdict, Verdict::Problem);
    }

    #[test]
    fn a_slow_disk_is_told_and_one_that_takes_nothing_a_problem() {
        assert_eq!(speed(64 << 20, Ok(Duration::from_millis(100))).verdict, Verdict::Ok);
        assert_eq!(speed(64 << 20, Ok(Duration::from_secs(10))).verdict, Verdict::Warning);
        assert_eq!(speed(1, Err(std::io::Error::from_raw_os_error(libc::EACCES))).verdict, Verdict::Problem);
    }

    #[test]
    fn the_test_writes_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("runs/first")), folder.path());
        let findings = findings(&folder.path().join("runs/first"), (1 << 20) + 5);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[1].value.contains("MB/s"), "{findings:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn noise_does_not_repeat() {
        let mut bytes = [0; 4096];
        fill(&mut bytes, 1);
        let different: std::collections::HashSet<&[u8]> = bytes.chunks(8).collect();
        assert_eq!(different.len(), 512);
    }
}
