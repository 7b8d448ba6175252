//! Memory that released parameters point at: all bits set, which is NaN in every floating-point type.
//!
//! A read of a released unit then yields NaN, which the step's check for finite gradients finds, instead of a crash or
//! of plausible numbers. The mapping repeats a few pages over the needed length, so it costs next to no memory, in host
//! memory as on a GPU.

use super::ShardError;
use crate::gpu::RepeatedMemory;
use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use tch::Device;

/// Bytes that the mapping repeats.
const PATTERN: usize = 1 << 20;

/// A mapping full of NaN, on the device that the parameters belong to.
pub(super) enum Poison {
    /// Where nothing is ever released.
    None,
    Host(HostPoison),
    Device(RepeatedMemory),
}

impl Poison {
    /// At least `bytes` bytes; nothing at all for 0.
    pub(super) fn new(bytes: usize, device: Device) -> Result<Self, ShardError> {
        match device {
            _ if bytes == 0 => Ok(Poison::None),
            Device::Cuda(index) => {
                let memory = RepeatedMemory::new(bytes, index as i32, 0xff);
                Ok(Poison::Device(memory.map_err(|source| ShardError::DevicePoison { bytes, source })?))
            }
            _ => Ok(Poison::Host(HostPoison::new(bytes).map_err(|source| ShardError::Poison { bytes, source })?)),
        }
    }

    /// Its first byte.
    pub(super) fn pointer(&self) -> *mut c_void {
        match self {
            Poison::None => std::ptr::null_mut(),
            Poison::Host(memory) => memory.pointer,
            Poison::Device(memory) => memory.pointer(),
        }
    }
}

/// A read-only mapping of host memory.
pub(super) struct HostPoison {
    pointer: *mut c_void,
    length: usize,
}

impl HostPoison {
    fn new(bytes: usize) -> Result<Self, Error> {
        let file = pattern_file()?;
        let length = bytes.div_ceil(PATTERN) * PATTERN;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: reserves address space that nobody uses.
        let pointer = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, reserve, -1, 0) };
        if pointer == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // From here on dropping it unmaps.
        let poison = HostPoison { pointer, length };
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
}

impl Drop for HostPoison {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length and unmapped once.
        unsafe { libc::munmap(self.pointer, self.length) };
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
