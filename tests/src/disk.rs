//! Disks that are small.

use std::ffi::CString;
use std::path::Path;

/// A small file system of its own at a path, gone when dropped.
#[derive(Debug)]
pub struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Makes the folder and a file system of this size in it; `None` where mounting is not permitted.
    pub fn mount(path: &'a Path, bytes: u64) -> Option<SmallDisk<'a>> {
        std::fs::create_dir_all(path).expect("the scene can be written");
        let name = zero_terminated(path);
        let size = CString::new(format!("size={bytes}")).expect("digits hold no zero");
        // SAFETY: all four are zero-terminated strings that outlive the call.
        let failed =
            unsafe { libc::mount(c"none".as_ptr(), name.as_ptr(), c"tmpfs".as_ptr(), 0, size.as_ptr().cast()) };
        (failed == 0).then_some(SmallDisk(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let name = zero_terminated(self.0);
        // SAFETY: `name` is a zero-terminated string that outlives the call.
        unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) };
    }
}

fn zero_terminated(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path holds no zero")
}
