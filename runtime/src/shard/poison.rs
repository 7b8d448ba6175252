//! Memory that released parameters point at: all bits set, which is NaN in every floating-point type.
//!
//! A read of a released unit then yields NaN, which the step's check for finite gradients finds, instead of a crash or
//! of plausible numbers. The mapping repeats a few pages over the needed length, so it costs next to no memory.

use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// Bytes that the mapping repeats.
const PATTERN: usize = 1 << 20;

/// A read-only mapping full of NaN.
pub(super) struct Poison {
    pointer: *mut c_void,
    length: usize,
}

impl Poison {
    /// At least `bytes` bytes; nothing at all for 0.
    pub(super) fn new(bytes: usize) -> Result<Self, Error> {
        if bytes == 0 {
            return Ok(Poison { pointer: std::ptr::null_mut(), length: 0 });
        }
        let file = pattern_file()?;
        let length = bytes.div_ceil(PATTERN) * PATTERN;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: reserves address space that nobody uses.
        let pointer = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, reserve, -1, 0) };
        if pointer == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // From here on dropping it unmaps.
        let poison = Poison { pointer, length };
        for offset in (0..length).step_by(PATTERN) {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: replaces pages of the range reserved above, which is `length` bytes long.
            let page = unsafe {
                let place = pointer.cast::<u8>().add(offset).cast();
                libc::mmap(place, PATTERN, libc::PROT_READ, flags, file.as_raw_fd(), 0)
            };
            if page == libc::MAP_FAILED {
                return Err(Error::last_os_error());
            }
        }
        Ok(poison)
    }

    /// Its first byte.
    pub(super) fn pointer(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for Poison {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `new` with this length and unmapped once.
            unsafe { libc::munmap(self.pointer, self.length) };
        }
    }
}

/// A file in memory that holds the pattern once.
fn pattern_file() -> Result<File, Error> {
    // SAFETY: the name is a zero-terminated string; the descriptor is checked before it is owned.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"poison".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        File::from_raw_fd(descriptor)
    };
    file.write_all(&vec![0xff; PATTERN])?;
    Ok(file)
}
