//! Memory that released parameters point at: all bits set, which is NaN in every floating-point type.
//!
//! A read of a released unit then yields NaN, which the step's check for finite gradients finds, instead of a crash or
//! of plausible numbers. The mapping repeats a few pages over the needed length, so it costs next to no memory.

use std::ffi::c_void;
use std::io::Error;

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
        let length = bytes.div_ceil(PATTERN) * PATTERN;
        // SAFETY: plain system calls; every result is checked, the file is closed on all paths, and MAP_FIXED only
        // replaces pages of the range that the first mmap reserved.
        unsafe {
            let file = libc::memfd_create(c"poison".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 {
                return Err(Error::last_os_error());
            }
            let pattern = vec![0xffu8; PATTERN];
            let written = libc::write(file, pattern.as_ptr().cast(), PATTERN);
            let reserved = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            let mut failed = written != PATTERN as isize || reserved == libc::MAP_FAILED;
            let mut offset = 0;
            while !failed && offset < length {
                let place = reserved.cast::<u8>().add(offset).cast();
                let page = libc::mmap(place, PATTERN, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED, file, 0);
                failed = page == libc::MAP_FAILED;
                offset += PATTERN;
            }
            let error = Error::last_os_error();
            libc::close(file);
            if failed {
                if reserved != libc::MAP_FAILED {
                    libc::munmap(reserved, length);
                }
                return Err(error);
            }
            Ok(Poison { pointer: reserved, length })
        }
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
