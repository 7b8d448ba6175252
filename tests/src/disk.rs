//! Disks that are small, and folders that cannot be written.

use std::ffi::CString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
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

/// A folder in which nothing can be made, changed or deleted until this is dropped. What is open stays open.
#[derive(Debug)]
pub struct ReadOnly<'a> {
    path: &'a Path,
    mounted: bool,
}

impl<'a> ReadOnly<'a> {
    /// Mounts the folder over itself, read-only; where that is not permitted, takes away its mode, which binds all but root. `None`
    /// where neither helps.
    pub fn make(path: &'a Path) -> Option<ReadOnly<'a>> {
        let name = zero_terminated(path);
        let mount = |source: *const libc::c_char, flags| {
            // SAFETY: the strings are zero-terminated and outlive the call, or null, which these kinds of mount allow.
            unsafe { libc::mount(source, name.as_ptr(), std::ptr::null(), flags, std::ptr::null()) == 0 }
        };
        if mount(name.as_ptr(), libc::MS_BIND) {
            let read_only = ReadOnly { path, mounted: true };
            return mount(std::ptr::null(), libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY).then_some(read_only);
        }
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } == 0 {
            return None;
        }
        set_mode(path, 0o555);
        Some(ReadOnly { path, mounted: false })
    }

    /// Whether it is a mount: the system's word for a refusal is another one then.
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return set_mode(self.path, 0o755);
        }
        let name = zero_terminated(self.path);
        // SAFETY: `name` is a zero-terminated string that outlives the call.
        unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH) };
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the scene is ours");
}

/// Tells that this machine cannot show what the test is for, whether or not output is captured: such a test passes.
pub fn not_tested(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {name}: {reason}");
}

fn zero_terminated(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path holds no zero")
}
