//! Optimizer state in a memory-mapped file instead of memory (Rajbhandari et al., "ZeRO-Infinity", 2021).
//!
//! The file has no name, so nothing is left behind however the process ends, and all of its room is taken at once, so a
//! full disk is an error at the start and not a crash in the middle. The system writes back what was changed and takes the
//! pages away when memory is short.

use super::ShardError;
use std::ffi::c_void;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Pieces begin at multiples of this, as libtorch's own tensors do.
const ALIGNMENT: usize = 64;

/// A mapped file that is handed out piece by piece. It outlives the tensors on it.
pub(super) struct MappedFile {
    pointer: *mut c_void,
    length: usize,
    used: usize,
}

impl MappedFile {
    /// `bytes` bytes of zeros on the disk of `folder`, which must be there: one of a mistyped path would lie on
    /// another disk than was meant.
    pub(super) fn create(folder: &Path, bytes: usize) -> Result<Self, ShardError> {
        let failed = |source| ShardError::Offload { path: folder.to_path_buf(), bytes, source };
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        if bytes == 0 {
            return Ok(MappedFile { pointer: std::ptr::null_mut(), length: 0, used: 0 });
        }
        // SAFETY: the descriptor is open for the length of the call.
        let status = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
        if status != 0 {
            return Err(failed(Error::from_raw_os_error(status)));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of a file that is `bytes` long; the mapping keeps the file alive.
        let pointer = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if pointer == libc::MAP_FAILED {
            return Err(failed(Error::last_os_error()));
        }
        Ok(MappedFile { pointer, length: bytes, used: 0 })
    }

    /// Bytes of the whole file.
    pub(super) fn bytes(&self) -> usize {
        self.length
    }

    /// Bytes that a piece of `numel` elements takes.
    pub(super) fn piece_bytes(numel: usize, kind: Kind) -> usize {
        (numel * kind.elt_size_in_bytes()).next_multiple_of(ALIGNMENT)
    }

    /// The next piece, as a flat tensor of zeros. The caller has counted with [`MappedFile::piece_bytes`].
    pub(super) fn piece(&mut self, numel: usize, kind: Kind) -> Tensor {
        let bytes = Self::piece_bytes(numel, kind);
        assert!(self.used + bytes <= self.length, "the pieces were counted before the file was made");
        // SAFETY: the piece lies inside the mapping, which lives as long as `self`; nobody else gets these bytes.
        let tensor = unsafe {
            let place = self.pointer.cast::<u8>().add(self.used);
            Tensor::from_blob(place, &[numel as i64], &[1], kind, Device::Cpu)
        };
        self.used += bytes;
        tensor
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `create` with this length and unmapped once.
            unsafe { libc::munmap(self.pointer, self.length) };
        }
    }
}
