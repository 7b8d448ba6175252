//! A rank's memory as all ranks of the host see it: a file without a name that each of them maps.
//!
//! It begins with what ranks tell each other ([`Control`]); the rest holds tensors. The file is as large as the host's
//! memory, but the system gives pages only where something is written, so a rank can have as many tensors there as it likes
//! and the others need map it only once. It has no name and no descriptor once all have mapped it, so nothing is left
//! however the ranks end.

use super::control::Control;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// What such a file is called in lists of open files.
pub(super) const NAME: &str = "zerofold-shm";
/// Pages of the largest size that the system may use.
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// Where tensors begin.
pub(super) const TENSORS: usize = Control::BYTES.next_multiple_of(HUGE_PAGE);
/// Addresses for the memory of all ranks together: half of what a process has.
const ADDRESSES: usize = 1 << 46;

/// The mapping of a rank's memory in this process.
pub(super) struct Segment {
    pointer: *mut c_void,
    length: usize,
}

// SAFETY: the mapping belongs to no thread; what is written to it is ordered by the atomics of `Control`.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// Bytes of a rank's segment: what it could ever use, as far as there are addresses for the segments of all ranks.
pub(super) fn size(world_size: usize) -> io::Result<usize> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let total: usize = total
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::other("/proc/meminfo does not tell how much memory there is"))?;
    // Room for gaps between tensors costs nothing.
    let wanted = total.saturating_mul(2 * 1024).min(ADDRESSES / world_size.max(1));
    Ok(TENSORS + wanted.next_multiple_of(HUGE_PAGE))
}

impl Segment {
    /// A new segment of zeros, and the file that others map it by.
    pub(super) fn create(length: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        ftruncate(&file, length as u64)?;
        let segment = Segment::map(&file, length, true)?;
        Ok((segment, file))
    }

    /// Maps the segment behind `file`, which is `length` long. Tensors may be written where they are this rank's `own`.
    pub(super) fn map(file: &impl AsFd, length: usize, own: bool) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let all = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of a file of that length, at an address that the system chooses.
        let pointer = unsafe { mmap(std::ptr::null_mut(), length, all, flags, file, 0)? };
        // From here on dropping it unmaps.
        let segment = Segment { pointer, length };
        // SAFETY: all of it lies inside the mapping. Advice changes no content, and whether it is taken does not matter.
        unsafe {
            let _advice = madvise(pointer, length, Advice::LinuxDontDump);
            let _advice = madvise(segment.tensors().cast(), length - TENSORS, Advice::LinuxHugepage);
            if !own {
                let only_read = rustix::mm::MprotectFlags::READ;
                rustix::mm::mprotect(segment.tensors().cast(), length - TENSORS, only_read)?;
            }
        }
        Ok(segment)
    }

    /// What its rank tells the others.
    pub(super) fn control(&self) -> &Control {
        // SAFETY: the mapping begins with a `Control`, is longer than one and aligned to pages; zeros are a valid one, and
        // all of its fields may be changed by others meanwhile.
        unsafe { &*self.pointer.cast::<Control>() }
    }

    /// Where the byte at `offset` lies in this process.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.length, "an offset of this segment");
        // SAFETY: inside the mapping, or its end.
        unsafe { self.pointer.cast::<u8>().add(offset) }
    }

    fn tensors(&self) -> *mut u8 {
        self.at(TENSORS)
    }

    /// The offset of `pointer`, if `bytes` bytes there are tensors of this segment.
    pub(super) fn offset_of(&self, pointer: *const c_void, bytes: usize) -> Option<usize> {
        let offset = (pointer as usize).checked_sub(self.pointer as usize)?;
        (offset >= TENSORS && offset.checked_add(bytes)? <= self.length).then_some(offset)
    }

    /// Bytes of all of it.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length and unmapped once; tensors on it keep it alive.
        let _unmapped = unsafe { munmap(self.pointer, self.length) };
    }
}
